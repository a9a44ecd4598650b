"""A checkpoint that a disk, a copy or a backup spoilt: never a wrong vector; damaged texts alone are asked again."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import FakeClock, client_for
from corpus_helpers import DIMENSIONS, expected_vector, read_vectors, write_lines

from dashscope_embeddings import EmbeddingClient, InvalidInput, corpus
from dashscope_embeddings.corpus import inputs
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.emulator.batch.service import BatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = [f"text number {number}" for number in range(300)]
NAMES = ("out.jsonl.ledger", "out.jsonl.ledger-vectors")
PAGE = 4096


def embed(emulator: Emulator, folder: Path, **how: Any) -> corpus.Summary:
    client = client_for(emulator, dimensions=DIMENSIONS)
    return corpus.embed_corpus(folder / "in.txt", folder / "out.jsonl", client=client, **how)


def right(emulator: Emulator, folder: Path, texts: list[str]) -> bool:
    return [row.dense for row in read_vectors(folder / "out.jsonl")] == [
        expected_vector(emulator, text) for text in texts
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished corpus of each kind, what it was before its second half was there, and one of other texts."""
    found = {}
    for kind in ("dense", "dense&sparse"):
        folder, emulator = tmp_path_factory.mktemp("made"), Emulator()
        write_lines(folder / "in.txt", TEXTS[:150])
        embed(emulator, folder, kind=kind, with_text=True)
        found[f"{kind} before"] = Path(shutil.copytree(folder, f"{folder}-before"))
        write_lines(folder / "in.txt", TEXTS)
        embed(emulator, folder, kind=kind, with_text=True)
        found[kind] = folder
    folder = tmp_path_factory.mktemp("other")
    write_lines(folder / "in.txt", [f"another {text}" for text in TEXTS])
    embed(Emulator(), folder)
    found["other"] = folder
    return found


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["dense"], tmp_path / "run"))


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


# --- all kinds of damage, anywhere -------------------------------------------------------------------------


def spoil(path: Path, how: str, before: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    at = chance.randrange(size)
    page = at // PAGE * PAGE
    stale = before.read_bytes()[page : page + PAGE]
    if how == "truncated":
        os.truncate(path, at)
    elif how == "stale page":
        overwrite(path, page, stale)
    elif how == "torn page":
        overwrite(path, page, stale[: PAGE // 2])
    else:
        length = min(chance.choice([1, 16, 512, PAGE]), size - at)
        content = {"zero": bytes(length), "ones": b"\xff" * length, "noise": chance.randbytes(length)}
        overwrite(path, at, content[how])


@pytest.mark.parametrize("kind", ["dense", "dense&sparse"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["zero", "ones", "noise", "truncated", "stale page", "torn page"])
def test_no_damage_anywhere_brings_a_wrong_vector(
    how: str, name: str, kind: Any, made: dict[str, Path], tmp_path: Path
) -> None:
    for seed in range(int(os.environ.get("SEEDS", "4"))):
        chance = random.Random(f"{how} {name} {kind} {seed}")  # noqa: S311 - the same damage in every run
        folder, emulator = Path(shutil.copytree(made[kind], tmp_path / f"{seed}")), Emulator()
        spoil(folder / name, how, made[f"{kind} before"] / name, chance)
        before = (folder / "out.jsonl").read_bytes()
        try:
            found = embed(emulator, folder, kind=kind, with_text=True)
        except InvalidInput as error:
            assert name in str(error), seed  # noqa: PT017 - not every damage ends in it
            assert "goes on" not in str(error), seed  # noqa: PT017
            assert emulator.billed_texts == 0, seed
            assert (folder / "out.jsonl").read_bytes() == before, seed
            continue
        assert right(emulator, folder, TEXTS), seed
        assert [row.text for row in read_vectors(folder / "out.jsonl")] == TEXTS, seed
        assert emulator.billed_texts == found.embedded, seed
        assert embed(emulator, folder, kind=kind, with_text=True).embedded == 0, "it was mended"


def test_damaged_texts_alone_are_asked_again_and_their_number_is_told(
    folder: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    overwrite(folder / NAMES[1], 1000, bytes(512))
    client = client_for(emulator, dimensions=DIMENSIONS)
    assert corpus.estimate_corpus(folder / "in.txt", folder / "out.jsonl", client=client).pending == 3
    with caplog.at_level(logging.WARNING, "dashscope_embeddings"):
        found = embed(emulator, folder)
    assert (found.finished, found.embedded, emulator.billed_texts) == (True, 3, 3)
    assert "the vectors of 3 texts are damaged" in caplog.text
    assert right(emulator, folder, TEXTS)


def test_what_is_damaged_while_a_run_is_at_work_is_not_written(folder: Path, emulator: Emulator) -> None:
    write_lines(folder / "in.txt", [*TEXTS, "one more"])
    before = (folder / "out.jsonl").read_bytes()

    def spoiling(_: corpus.Progress) -> None:
        overwrite(folder / NAMES[1], 1000, bytes(512))
        overwrite(folder / NAMES[1], 50_000, b"\xff")

    with pytest.raises(InvalidInput, match="4 of 301 records cannot be written") as caught:
        embed(emulator, folder, progress=spoiling)
    assert "Run the command with its input again" in str(caught.value)
    assert (folder / "out.jsonl").read_bytes() == before
    assert embed(emulator, folder).embedded == 4
    assert right(emulator, folder, [*TEXTS, "one more"])


def test_links_between_texts_and_vectors_are_not_believed(folder: Path, emulator: Emulator) -> None:
    with sqlite3.connect(folder / NAMES[0]) as checkpoint:
        checkpoint.execute("UPDATE texts SET reply = reply % 30 + 1 WHERE key % 7 = 0")
        checkpoint.execute("UPDATE texts SET slot = 9 - slot WHERE key % 11 = 0")
        checkpoint.execute("UPDATE texts SET reply = -1 WHERE key = 5")
        checkpoint.execute("UPDATE texts SET reply = 'noise', slot = x'00' WHERE key = 6")
    checkpoint.close()
    found = embed(emulator, folder)
    assert 60 < found.embedded == emulator.billed_texts < 80
    assert right(emulator, folder, TEXTS)


# --- which files belong together ---------------------------------------------------------------------------


def replaced(name: str) -> Callable[[Path, dict[str, Path]], object]:
    return lambda folder, made: (folder / name).write_bytes((made["other"] / name).read_bytes())


def emptied(name: str) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, _: os.truncate(folder / name, 0)


def removed(name: str) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, _: (folder / name).unlink()


def other_database(folder: Path, _: dict[str, Path]) -> None:
    (folder / NAMES[0]).unlink()
    with sqlite3.connect(folder / NAMES[0]) as database:
        database.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    database.close()


def torn(folder: Path, _: dict[str, Path]) -> None:
    overwrite(folder / NAMES[0], PAGE * 2, random.Random(3).randbytes(PAGE * 3))  # noqa: S311 - noise


def folder_in_its_place(folder: Path, _: dict[str, Path]) -> None:
    (folder / NAMES[0]).unlink()
    (folder / NAMES[0]).mkdir()


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (replaced(NAMES[1]), "is not the file of the last run: put that one back"),
        (emptied(NAMES[1]), "is not the file of the last run: put that one back"),
        (removed(NAMES[1]), "is missing: put it back"),
        (replaced(NAMES[0]), "is not the file of the last run: put that one back"),
        (emptied(NAMES[0]), "is empty or was replaced: put the checkpoint back"),
        (removed(NAMES[0]), "out.jsonl exists, but its checkpoint"),
        (other_database, "is not a checkpoint of this package"),
        (folder_in_its_place, "is a folder"),
        (torn, "is damaged: .* Put back a copy of .*, or delete both"),
    ],
    ids=[
        "vectors replaced",
        "vectors emptied",
        "vectors removed",
        "checkpoint replaced",
        "checkpoint emptied",
        "checkpoint removed",
        "other database",
        "folder",
        "torn pages",
    ],
)
def test_files_that_do_not_belong_together_are_refused_with_what_to_do(
    spoiled: Any, said: str, folder: Path, made: dict[str, Path], emulator: Emulator
) -> None:
    before = (folder / "out.jsonl").read_bytes()
    spoiled(folder, made)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=said):
            embed(emulator, folder)
    assert (emulator.requests, (folder / "out.jsonl").read_bytes()) == (0, before)
    for name in NAMES:
        if (folder / name).is_dir():
            (folder / name).rmdir()
        shutil.copy(made["dense"] / name, folder / name)
    assert embed(emulator, folder).embedded == 0, "put back, it goes on"


@pytest.mark.parametrize("stale", NAMES)
def test_an_older_copy_of_one_of_the_two_files_brings_no_wrong_vector(
    stale: str, folder: Path, made: dict[str, Path], emulator: Emulator
) -> None:
    shutil.copy(made["dense before"] / stale, folder / stale)
    assert embed(emulator, folder).embedded == emulator.billed_texts == 150
    assert right(emulator, folder, TEXTS)
    shutil.copy(made["dense"] / NAMES[1], folder / NAMES[1])
    embed(emulator, folder)
    assert right(emulator, folder, TEXTS)


def test_an_emptied_checkpoint_does_not_take_over_vectors_that_were_paid_for(folder: Path, emulator: Emulator) -> None:
    (folder / "out.jsonl").unlink()
    os.truncate(folder / NAMES[0], 0)
    for _ in range(2):
        with pytest.raises(InvalidInput, match="exists, but its checkpoint does not"):
            embed(emulator, folder)
    assert emulator.requests == 0


# --- batches -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> Emulator:
    return Emulator(clock=clock.now, batches=BatchSettings(seconds=60))


@pytest.fixture
def asking(service: Emulator, clock: FakeClock) -> EmbeddingClient:
    return client_for(service, clock, protocol="openai", dimensions=DIMENSIONS)


@pytest.fixture
def submitted(tmp_path: Path, asking: EmbeddingClient, clock: FakeClock) -> Path:
    """An output whose batch has ended, and was not fetched."""
    output = write_lines(tmp_path / "in.txt", TEXTS).with_name("out.jsonl")
    corpus.batch_submit(tmp_path / "in.txt", output, client=asking, with_text=True)
    clock.time += 300
    return output


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE batch_lines SET members = (SELECT members FROM batch_lines WHERE line = 4) WHERE line = 3",
        "UPDATE batch_lines SET members = x'00ff' WHERE line = 3",
        "UPDATE texts SET hash = x'00112233445566778899aabbccddeeff' WHERE key = 7",
        "UPDATE items SET key = key + 1 WHERE seq % 9 = 1",
        "UPDATE items SET id = 'x' || seq WHERE seq = 5",
        "UPDATE items SET text = 'another' WHERE seq = 5",
        "DELETE FROM items WHERE seq > 200",
        "UPDATE batch_notes SET value = '{'",
        "UPDATE terms SET value = x'ff00' WHERE name = 'model'",
        "DELETE FROM terms",
    ],
)
def test_a_checkpoint_of_batches_that_was_changed_is_refused_before_anything_is_written(
    change: str, submitted: Path, asking: EmbeddingClient
) -> None:
    with sqlite3.connect(corpus.ledger_beside(submitted)) as checkpoint:
        checkpoint.execute(change)
    checkpoint.close()
    with pytest.raises(InvalidInput, match="damaged"):
        corpus.batch_fetch(submitted, client=asking)
    assert not submitted.exists()


def test_vectors_of_batches_that_were_damaged_are_named_and_submitted_again_with_the_input(
    submitted: Path, asking: EmbeddingClient, service: Emulator, clock: FakeClock
) -> None:
    assert corpus.batch_fetch(submitted, client=asking).finished
    before = submitted.read_bytes()
    overwrite(submitted.with_name(NAMES[1]), 1000, bytes(512))
    with pytest.raises(InvalidInput, match="3 of 300 records cannot be written") as caught:
        corpus.batch_fetch(submitted, client=asking)
    assert "Run the command with its input again" in str(caught.value)
    assert submitted.read_bytes() == before
    sent = corpus.batch_submit(submitted.with_name("in.txt"), submitted, client=asking, with_text=True)
    assert sent.under_way == 3
    clock.time += 300
    assert corpus.batch_fetch(submitted, client=asking).embedded == 3
    found = [row.dense for row in read_vectors(submitted)]
    assert found == [expected_vector(service, text, text_type="query") for text in TEXTS]


# --- a checkpoint of the released format -------------------------------------------------------------------


def released(folder: Path) -> None:
    """Makes of a finished corpus what the release before wrote: no identity, no sums but one of a reply's floats."""
    vectors = (folder / NAMES[1]).read_bytes()
    (folder / NAMES[1]).write_bytes(vectors[32:])
    with sqlite3.connect(folder / NAMES[0]) as checkpoint:
        rows = checkpoint.execute(
            "SELECT reply, keys, requests, texts, tokens, dense_at - 32, dense_size, sparse_counts, "
            "sparse_indices, sparse_values FROM replies"
        ).fetchall()
        checkpoint.executescript(
            "DROP TABLE replies; DROP TABLE checkpoint; CREATE TABLE replies (reply INTEGER PRIMARY KEY, "
            "keys BLOB NOT NULL, requests INTEGER NOT NULL, texts INTEGER NOT NULL, tokens INTEGER NOT NULL, "
            "dense_at INTEGER, dense_size INTEGER, dense_sum INTEGER, sparse_counts BLOB, sparse_indices BLOB, "
            "sparse_values BLOB); CREATE TABLE old (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, place TEXT NOT NULL, "
            "key INTEGER NOT NULL, text TEXT); INSERT INTO old SELECT seq, id, place, key, text FROM items; "
            "DROP TABLE items; ALTER TABLE old RENAME TO items; PRAGMA user_version=1"
        )
        for row in rows:
            at, size = row[5:7]
            summed = zlib.crc32(vectors[at + 32 : at + 32 + size])
            checkpoint.execute(f"INSERT INTO replies VALUES ({','.join('?' * 11)})", (*row[:7], summed, *row[7:]))  # noqa: S608 - only question marks
    checkpoint.close()


@pytest.mark.parametrize("kind", ["dense", "dense&sparse"])
def test_a_checkpoint_of_the_release_before_goes_on_and_is_checked_from_then_on(
    kind: Any, made: dict[str, Path], tmp_path: Path, emulator: Emulator
) -> None:
    folder = Path(shutil.copytree(made[kind], tmp_path / "run"))
    released(folder)
    for name in NAMES:
        (folder / name).chmod(0o644)
    write_lines(folder / "in.txt", [*TEXTS, "new"])
    assert embed(emulator, folder, kind=kind).embedded == 1
    assert right(emulator, folder, [*TEXTS, "new"])
    overwrite(folder / NAMES[1], 1000, bytes(512))
    assert embed(emulator, folder, kind=kind).embedded == 3
    assert right(emulator, folder, [*TEXTS, "new"])
    shutil.copy(made["other"] / NAMES[1], folder / NAMES[1])
    with pytest.raises(InvalidInput, match="is not the file of the last run"):
        embed(emulator, folder, kind=kind)
    if os.name == "posix":
        assert (folder / NAMES[0]).stat().st_mode & 0o777 == 0o600


def test_vectors_of_the_release_before_that_were_exchanged_are_refused(folder: Path, made: dict[str, Path]) -> None:
    released(folder)
    (folder / NAMES[1]).write_bytes((made["other"] / NAMES[1]).read_bytes()[32:])
    with pytest.raises(InvalidInput, match="is not the file of the last run"):
        embed(Emulator(), folder)


def test_an_upgrade_that_is_cut_off_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released(folder)
    with monkeypatch.context() as patch:
        patch.setattr("dashscope_embeddings.corpus.checkpoint.store.CheckpointStore._commit", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError), inputs.open_checkpoint(folder / NAMES[0]):
            pass
    assert embed(Emulator(), folder).embedded == 0
