"""A checkpoint that a disk, a copy or a backup spoilt: never a wrong vector; damaged texts alone are asked again."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import random
import shutil
import sqlite3
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import FakeClock, client_for
from corpus_helpers import DIMENSIONS, expected_vector, read_vectors, write_lines

from dashscope_embeddings import EmbeddingClient, InvalidInput, corpus
from dashscope_embeddings._core.text_length import estimate_tokens
from dashscope_embeddings.corpus import inputs
from dashscope_embeddings.corpus.checkpoint import checksums
from dashscope_embeddings.corpus.embedder import Embedder
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.emulator.batch.service import BatchSettings
from dashscope_embeddings.vectors import Part, combine, counted

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = [f"text number {number}" for number in range(300)]
NAME = "out.jsonl.ledger"
PAGE = 4096
OLD = Path(__file__).parents[1] / "samples" / "old_checkpoints.zip"


def embed(emulator: Emulator, folder: Path, **how: Any) -> corpus.Summary:
    client = client_for(emulator, dimensions=DIMENSIONS, **how.pop("settings", {}))
    return corpus.embed_corpus(folder / "in.txt", folder / "out.jsonl", client=client, **how)


def right(emulator: Emulator, folder: Path, texts: list[str]) -> bool:
    return [row.dense for row in read_vectors(folder / "out.jsonl")] == [
        expected_vector(emulator, text) for text in texts
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished corpus of each kind, what it was before its second half was there."""
    found = {}
    for kind in ("dense", "dense&sparse"):
        folder, emulator = tmp_path_factory.mktemp("made"), Emulator()
        write_lines(folder / "in.txt", TEXTS[:150])
        embed(emulator, folder, kind=kind, with_text=True)
        found[f"{kind} before"] = Path(shutil.copytree(folder, f"{folder}-before"))
        write_lines(folder / "in.txt", TEXTS)
        embed(emulator, folder, kind=kind, with_text=True)
        found[kind] = folder
    return found


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["dense"], tmp_path / "run"))


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


# --- all kinds of damage, anywhere -------------------------------------------------------------------------


def spoil(path: Path, how: str, before: bytes, at: int, length: int) -> None:
    """Damages `length` bytes, or the page that they begin in; `before`: the whole file as it was earlier."""
    page = at // PAGE * PAGE
    if how == "truncated":
        os.truncate(path, at)
    elif how == "stale page":
        overwrite(path, page, before[page : page + length].ljust(PAGE, b"\0"))
    elif how == "torn page":
        overwrite(path, page, before[page : page + PAGE // 2].ljust(PAGE // 2, b"\0"))
    else:
        noise = random.Random(at).randbytes(length)  # noqa: S311 - the same damage in every run
        overwrite(path, at, {"zero": bytes(length), "ones": b"\xff" * length, "noise": noise}[how])


HOW = ["zero", "ones", "noise", "truncated", "stale page", "torn page"]


@pytest.mark.parametrize("kind", ["dense", "dense&sparse"])
@pytest.mark.parametrize("how", HOW)
def test_no_damage_anywhere_brings_a_wrong_vector(how: str, kind: Any, made: dict[str, Path], tmp_path: Path) -> None:
    earlier = (made[f"{kind} before"] / NAME).read_bytes()
    for seed in range(int(os.environ.get("SEEDS", "5"))):
        chance = random.Random(f"{how} {kind} {seed}")  # noqa: S311 - the same damage in every run
        folder, emulator = Path(shutil.copytree(made[kind], tmp_path / f"{seed}")), Emulator()
        size = (folder / NAME).stat().st_size
        at = chance.randrange(size)
        spoil(folder / NAME, how, earlier, at, min(chance.choice([1, 16, 512, PAGE]), size - at))
        before = (folder / "out.jsonl").read_bytes()
        try:
            found = embed(emulator, folder, kind=kind, with_text=True)
        except InvalidInput as error:
            assert NAME in str(error), seed  # noqa: PT017 - not every damage ends in it
            assert emulator.billed_texts == 0, seed
            assert (folder / "out.jsonl").read_bytes() == before, seed
            continue
        assert right(emulator, folder, TEXTS), seed
        assert [row.text for row in read_vectors(folder / "out.jsonl")] == TEXTS, seed
        assert emulator.billed_texts == found.embedded, seed
        assert embed(emulator, folder, kind=kind, with_text=True).embedded == 0, "it was mended"


def test_a_repair_ends_although_the_number_of_units_is_damaged(
    folder: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / NAME, SET_UNITS, 2**40)
    damaged_page(folder / NAME)
    found = embed(emulator, folder)
    (told,) = (message for message in caplog.messages if "cannot be read" in message)
    assert told.startswith(
        f"{folder / NAME} is damaged, at most {counted(found.embedded, 'text')} in it cannot be read"
    )
    assert emulator.billed_texts == found.embedded <= 15
    assert right(emulator, folder, TEXTS)


@pytest.mark.parametrize("pages", [1, 3, 8])
@pytest.mark.parametrize("how", ["zero", "noise", "truncated", "stale page"])
def test_the_last_pages_cost_the_texts_in_them(how: str, pages: int, made: dict[str, Path], tmp_path: Path) -> None:
    """As a power failure leaves them where the disk had promised more than it kept."""
    folder, emulator = Path(shutil.copytree(made["dense"], tmp_path / "run")), Emulator()
    at = (folder / NAME).stat().st_size - pages * PAGE
    spoil(folder / NAME, how, (made["dense before"] / NAME).read_bytes(), at, pages * PAGE)
    found = embed(emulator, folder)
    assert found.finished
    assert emulator.billed_texts == found.embedded <= pages * 15, "a page holds 14 vectors of 64 numbers"
    assert right(emulator, folder, TEXTS)
    assert embed(emulator, folder).embedded == 0


@pytest.mark.parametrize("how", HOW)
def test_the_end_of_a_log_that_was_left_behind_costs_the_texts_in_it(how: str, tmp_path: Path) -> None:
    emulator, log = Emulator(), f"{NAME}-wal"
    folder, left = tmp_path / "run", tmp_path / "left"
    folder.mkdir()
    write_lines(folder / "in.txt", TEXTS)

    def progress(now: corpus.Progress) -> None:
        if now.done > 150 and not left.exists():  # what a killed process would leave
            shutil.copytree(folder, left)

    embed(emulator, folder, progress=progress, settings={"max_concurrency": 1})
    paid, size = emulator.billed_texts, (left / log).stat().st_size
    spoil(left / log, how, (left / log).read_bytes()[PAGE:], size - 3 * PAGE, 2 * PAGE)
    found = embed(emulator, left)
    assert found.finished
    assert emulator.billed_texts - paid == found.embedded < 180
    assert right(emulator, left, TEXTS)


def test_damaged_texts_alone_are_asked_again_and_their_number_is_told(
    folder: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    content = (folder / NAME).read_bytes()
    for number in (10, 11, 12):
        vector = array.array("f", expected_vector(emulator, TEXTS[number])).tobytes()
        overwrite(folder / NAME, content.index(vector) + 100, bytes(8))
    client = client_for(emulator, dimensions=DIMENSIONS)
    assert corpus.estimate_corpus(folder / "in.txt", folder / "out.jsonl", client=client).pending == 3
    with caplog.at_level(logging.WARNING, "dashscope_embeddings"):
        found = embed(emulator, folder)
    assert (found.finished, found.embedded, emulator.billed_texts) == (True, 3, 3)
    assert "the vectors of 3 texts are damaged" in caplog.text
    assert right(emulator, folder, TEXTS)


def test_what_is_damaged_while_a_run_is_at_work_is_not_written(
    folder: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = (folder / "out.jsonl").read_bytes(), Embedder.run

    def spoiling(self: Embedder, *arguments: Any) -> None:
        run(self, *arguments)
        self._checkpoint.database.fetch_all("UPDATE vectors SET dense = zeroblob(256) WHERE unit < 4")
        self._checkpoint.database.fetch_all("UPDATE vectors SET dense = 'text' WHERE unit = 4")

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "run", spoiling)
        with pytest.raises(InvalidInput, match="4 of 300 records cannot be written") as caught:
            embed(emulator, folder)
    assert "Run the command with its input again" in str(caught.value)
    assert (folder / "out.jsonl").read_bytes() == before
    assert embed(emulator, folder).embedded == 4
    assert right(emulator, folder, TEXTS)


def test_a_vector_is_bound_to_the_text_that_was_sent(
    tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Embedder.run
    write_lines(tmp_path / "in.txt", TEXTS)

    def spoiling(self: Embedder, *arguments: Any) -> None:
        self._checkpoint.database.fetch_all("UPDATE units SET text = 'another' WHERE unit = 5")
        run(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "run", spoiling)
        with pytest.raises(InvalidInput, match="1 of 300 records cannot be written"):
            embed(emulator, tmp_path)
    assert embed(emulator, tmp_path).embedded == 1
    assert right(emulator, tmp_path, TEXTS)


def test_links_between_texts_and_vectors_are_not_believed(folder: Path, emulator: Emulator) -> None:
    for statement in (
        "UPDATE vectors SET unit = unit + 1000",
        "UPDATE vectors SET unit = (unit - 1000) % 300 + 1 WHERE unit % 5 = 0",
        "UPDATE vectors SET unit = unit - 1000 WHERE unit > 1000 AND unit % 5 > 1",
        "UPDATE vectors SET sum = 'noise' WHERE unit = 7",
        "UPDATE records SET unit = unit + 1 WHERE position = 5",
    ):
        change(folder / NAME, statement)
    found = embed(emulator, folder)
    assert 60 <= found.embedded == emulator.billed_texts <= 121
    assert right(emulator, folder, TEXTS)


# --- files that are none ------------------------------------------------------------------------------------


def change(path: Path, statement: str, *values: object) -> None:
    """Changes a checkpoint as no disk would."""
    with contextlib.closing(sqlite3.connect(path)) as checkpoint:
        checkpoint.execute(statement, values)
        checkpoint.commit()


def damaged_page(path: Path) -> None:
    """Has the checkpoint repaired."""
    overwrite(path, path.stat().st_size - PAGE, bytes(512))


def other_database(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE t (x)")


def unreadable_name(path: Path) -> None:
    """In a page that SQLite's check of its structure does not compare with anything."""
    content = path.read_bytes()
    assert b"status TEXT" in content
    path.write_bytes(content.replace(b"status TEXT", b"s\xf4atus TEXT"))
    damaged_page(path)


def negative_total(path: Path) -> None:
    change(path, SET_UNITS, -5)
    damaged_page(path)


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


SET_UNITS = "UPDATE checkpoint SET units = ?"
# The first pages hold what all others depend on.
NOISE = random.Random(3).randbytes(PAGE * 3)  # noqa: S311 - noise
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: os.truncate(path, 0), "is empty or was replaced: put the checkpoint back"),
    "removed": (Path.unlink, "out.jsonl exists, but its checkpoint .* does not: put the checkpoint back"),
    "another database": (other_database, "is not a checkpoint of this package"),
    "of another version": (
        lambda path: change(path, "PRAGMA user_version=99"),
        "in format 99 .*: go on with that version, or name another output",
    ),
    "a folder": (folder_in_its_place, "is a folder"),
    "torn": (lambda path: overwrite(path, PAGE, NOISE), "is damaged: .* Put back a copy of it, or delete it"),
    "a name": (unreadable_name, "is damaged: the name of a column cannot be read. Put back a copy of it"),
    "letters": (lambda path: change(path, SET_UNITS, "many"), "is damaged: its totals cannot be read"),
    "negative": (negative_total, "is damaged: its totals cannot be read"),
    "huge": (lambda path: change(path, SET_UNITS, 2**63 - 1), "is damaged: its totals cannot be read"),
}


@pytest.mark.parametrize(("spoiled", "said"), SPOILED.values(), ids=SPOILED)
def test_what_is_no_checkpoint_is_refused_with_what_to_do(
    spoiled: Any, said: str, folder: Path, made: dict[str, Path], emulator: Emulator
) -> None:
    before = (folder / "out.jsonl").read_bytes()
    spoiled(folder / NAME)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=said):
            embed(emulator, folder)
    assert (emulator.requests, (folder / "out.jsonl").read_bytes()) == (0, before)
    if (folder / NAME).is_dir():
        (folder / NAME).rmdir()
    shutil.copy(made["dense"] / NAME, folder / NAME)
    assert embed(emulator, folder).embedded == 0, "put back, it goes on"


def test_an_older_copy_costs_what_was_paid_for_since(folder: Path, made: dict[str, Path], emulator: Emulator) -> None:
    shutil.copy(made["dense before"] / NAME, folder / NAME)
    assert embed(emulator, folder).embedded == emulator.billed_texts == 150
    assert right(emulator, folder, TEXTS)


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
    "statement",
    [
        "UPDATE units SET line = 4 WHERE unit = 3",
        "UPDATE units SET line = NULL WHERE line = 3",
        "UPDATE units SET hash = x'00112233445566778899aabbccddeeff' WHERE unit = 7",
        "UPDATE lines SET sum = 'noise' WHERE line = 3",
        "UPDATE records SET unit = unit + 1 WHERE position % 9 = 1",
        "UPDATE records SET id = 'x' || position WHERE position = 5",
        "UPDATE units SET text = 'another' WHERE unit = 5",
        "DELETE FROM records WHERE position > 200",
        "UPDATE settings SET value = '{'",
        "UPDATE settings SET value = x'ff00' WHERE name = 'fingerprint'",
        "DELETE FROM settings",
    ],
)
def test_a_checkpoint_of_batches_that_was_changed_is_refused_before_anything_is_written(
    statement: str, submitted: Path, asking: EmbeddingClient
) -> None:
    change(corpus.ledger_beside(submitted), statement)
    with pytest.raises(InvalidInput, match="damaged"):
        corpus.batch_fetch(submitted, client=asking)
    assert not submitted.exists()


def test_vectors_of_batches_that_were_damaged_are_named_and_submitted_again_with_the_input(
    submitted: Path, asking: EmbeddingClient, service: Emulator, clock: FakeClock
) -> None:
    assert corpus.batch_fetch(submitted, client=asking).finished
    before = submitted.read_bytes()
    change(corpus.ledger_beside(submitted), "UPDATE vectors SET dense = zeroblob(256) WHERE unit < 4")
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


# --- checkpoints of older versions -------------------------------------------------------------------------

OLD_TEXTS = [*(f"text number {number}" for number in range(30)), "text number 3"]
LONG = "word " * 20_000 + "zebra " * 8_000 + "quagga"


def unpack(name: str, folder: Path, texts: list[str]) -> Path:
    """A checkpoint that an older version wrote, and its input."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(OLD) as samples:
        for beside in (NAME, f"{NAME}-vectors"):
            (folder / beside).write_bytes(samples.read(f"{name}/{beside}"))
    write_lines(folder / "in.txt", texts)
    return folder


def old_vectors(folder: Path) -> dict[str, list[float]]:
    """Text → vector as the older version stored it. The emulator of today may give another."""
    content, size, found = (folder / f"{NAME}-vectors").read_bytes(), 4 * DIMENSIONS, {}
    with contextlib.closing(sqlite3.connect(folder / NAME)) as checkpoint:
        for packed, at in checkpoint.execute("SELECT keys, dense_at FROM replies WHERE dense_at NOT NULL").fetchall():
            for start, key in enumerate(array.array("q", packed)):
                vector = content[at + size * start : at + size * (start + 1)]
                found[OLD_TEXTS[key - 1]] = array.array("f", vector).tolist()
    return found


def embed_old(emulator: Emulator, folder: Path, kind: str) -> corpus.Summary:
    how: Any = {"kind": "dense&sparse" if kind == "hybrid" else "dense", "with_text": True}
    return embed(emulator, folder, settings={"long_text": "average"}, **how)


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_a_checkpoint_of_an_older_version_is_converted_once(kind: str, tmp_path: Path, emulator: Emulator) -> None:
    folder = unpack(kind, tmp_path, [*OLD_TEXTS, "new"])
    (folder / NAME).chmod(0o644)
    vectors = {**old_vectors(folder), "new": expected_vector(emulator, "new")}
    found = embed_old(emulator, folder, kind)
    assert (found.embedded, emulator.billed_texts, found.rejected, found.spent.texts) == (1, 1, 1, 30)
    assert [row.dense for row in read_vectors(folder / "out.jsonl")] == [
        vectors[text] for text in [*OLD_TEXTS, "new"] if text != "text number 17"
    ]
    assert sorted(path.name for path in folder.glob("*ledger*")) == [NAME]
    assert embed_old(emulator, folder, kind).embedded == 0
    if os.name == "posix":
        assert (folder / NAME).stat().st_mode & 0o777 == 0o600


def test_damaged_vectors_of_an_older_version_alone_are_asked_again(tmp_path: Path, emulator: Emulator) -> None:
    folder = unpack("dense", tmp_path, OLD_TEXTS)
    vectors = old_vectors(folder)
    overwrite(folder / f"{NAME}-vectors", 1000, bytes(512))
    found = embed_old(emulator, folder, "dense")
    assert found.embedded == emulator.billed_texts == 10, "one sum per reply"
    texts = [text for text in OLD_TEXTS if text != "text number 17"]
    rows = [row.dense for row in read_vectors(folder / "out.jsonl")]
    again = [number for number, row in enumerate(rows) if row == expected_vector(emulator, texts[number])]
    kept = [number for number, row in enumerate(rows) if row == vectors[texts[number]]]
    assert sorted({*again, *kept}) == list(range(len(texts)))


@pytest.mark.parametrize("missing", [NAME, f"{NAME}-vectors"])
@pytest.mark.parametrize("change", ["removed", "emptied", "replaced"])
def test_one_file_of_an_older_version_is_refused_without_the_other(
    change: str, missing: str, tmp_path: Path, emulator: Emulator
) -> None:
    folder = unpack("dense", tmp_path, OLD_TEXTS)
    path = folder / missing
    if change == "removed":
        path.unlink()
    elif change == "emptied":
        os.truncate(path, 0)
    else:
        other = unpack("batch", tmp_path / "other", [])
        overwrite(path, 0, (other / missing).read_bytes() if missing != NAME else b"noise" * 100)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"put .* back|is not a checkpoint"):
            embed_old(emulator, folder, "dense")
    assert emulator.requests == 0


@pytest.mark.parametrize("step", ["_commit", "begin_wal"])
def test_a_conversion_that_is_cut_off_is_done_again(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors stay in the file of the older version until what was made of them is on the disk."""
    folder = unpack("dense", tmp_path, OLD_TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr(f"dashscope_embeddings.corpus.checkpoint.database.Database.{step}", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError), inputs.open_checkpoint(folder / NAME):
            pass
    assert (folder / f"{NAME}-vectors").exists()
    assert embed_old(Emulator(), folder, "dense").embedded == 0


def test_a_batch_that_an_older_version_submitted_is_fetched(
    tmp_path: Path, service: Emulator, clock: FakeClock
) -> None:
    """One part of a long text has its vector, the other is under way."""
    texts = [*OLD_TEXTS, LONG]
    asking = client_for(service, clock, protocol="openai", dimensions=DIMENSIONS, long_text="average", batch_size=1)
    asking._limits.count = estimate_tokens  # which cut the parts of that checkpoint
    service.faults = [
        faults.LineFails(code="InternalError", match="quagga", every=1),
        faults.LineFails(code="DataInspectionFailed", match="number 23", every=1),
    ]
    again = write_lines(tmp_path / "in.txt", texts).with_name("again.jsonl")
    corpus.batch_submit(tmp_path / "in.txt", again, client=asking)
    clock.time += 300
    sent = corpus.batch_fetch(again, client=asking).files[1]
    assert sent.texts == 1
    folder = unpack("batch", tmp_path, texts)
    statement = "UPDATE batches SET batch_id = ?, file_id = ? WHERE number = 2"  # the service gave other names
    change(folder / NAME, statement, sent.batch_id, sent.file_id)
    vectors = old_vectors(folder)
    with contextlib.closing(sqlite3.connect(folder / NAME)) as checkpoint:
        first, second = checkpoint.execute("SELECT text, dense FROM batch_pieces ORDER BY piece").fetchall()
    parts = [
        Part(array.array("f", first[1]).tolist(), None, float(len(first[0]))),
        Part(expected_vector(service, second[0], text_type="query"), None, float(len(second[0]))),
    ]
    service.faults = []
    clock.time += 300
    found = corpus.batch_fetch(folder / "out.jsonl", client=asking)
    assert (found.finished, found.embedded, found.rejected, found.spent.texts) == (True, 1, 1, 31)
    *rows, long = read_vectors(folder / "out.jsonl")
    assert [row.dense for row in rows] == [vectors[text] for text in OLD_TEXTS if text != "text number 23"]
    assert long.dense == pytest.approx(combine(parts).dense, abs=1e-6)
    assert service.billed_texts == 31


def test_the_checksum_of_a_row_is_the_same_in_all_versions_of_python() -> None:
    """`repr` escapes a character that this Python's tables do not know."""
    place = "note \U0001fae8.md:1"
    expected = zlib.crc32(b"7 None 'note \\U0001fae8.md:1' b'\\x01'").to_bytes(4, "little")
    assert checksums.row_checksum(7, None, place, b"\x01") == expected
