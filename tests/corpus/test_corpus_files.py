"""The files that a corpus leaves on the disk: private, whole, never written through a link, and none too many."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import pytest
from client_helpers import FakeClock, client_for
from corpus_helpers import DIMENSIONS, ENDINGS, expected_vector, read_vectors, write_lines

from dashscope_embeddings import EmbeddingClient, InvalidInput, corpus
from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus import writers
from dashscope_embeddings.corpus.checkpoint import opening
from dashscope_embeddings.corpus.checkpoint.database import Database
from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.emulator.batch.service import BatchSettings

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

TEXTS = [f"text number {number}" for number in range(95)]
posix = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")


def embed(emulator: Emulator, output: Path, *, settings: Any = None, **how: Any) -> corpus.Summary:
    client = client_for(emulator, **{"dimensions": DIMENSIONS, **(settings or {})})
    return corpus.embed_corpus(output.parent / "in.txt", output, client=client, **how)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_lines(tmp_path / "in.txt", TEXTS)
    return tmp_path / "out.jsonl"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


# --- who may read them -------------------------------------------------------------------------------------


@posix
@pytest.mark.usefixtures("open_umask")
def test_a_checkpoint_is_for_its_owner_alone_and_an_output_follows_the_umask(output: Path, emulator: Emulator) -> None:
    seen: dict[str, int] = {}

    def look(_: corpus.Progress) -> None:
        seen.update({path.name: mode(path) for path in output.parent.iterdir() if "ledger" in path.name})

    embed(emulator, output, progress=look)
    assert seen == {"out.jsonl.ledger": 0o600, "out.jsonl.ledger-wal": 0o600}
    assert mode(output) == 0o664
    corpus.ledger_beside(output).chmod(0o644)
    embed(emulator, output)
    assert mode(corpus.ledger_beside(output)) == 0o600


@posix
def test_somebody_elses_file_keeps_its_mode(output: Path, emulator: Emulator) -> None:
    notes = corpus.ledger_beside(output)
    notes.write_text("somebody's notes " * 100, "utf-8")
    notes.chmod(0o644)
    with pytest.raises(InvalidInput, match="is not a checkpoint"):
        embed(emulator, output)
    assert mode(notes) == 0o644
    assert notes.read_text("utf-8").startswith("somebody's notes")


@posix
@pytest.mark.parametrize("ending", [".jsonl", ".npy", ".parquet"])
@pytest.mark.parametrize("linked", ["out{}.partial", "out{}.rejects.jsonl.partial", "out{}.ids.jsonl.partial"])
def test_nothing_is_written_through_a_link_in_place_of_a_partial_file(
    linked: str, ending: str, tmp_path: Path, emulator: Emulator
) -> None:
    write_lines(tmp_path / "in.txt", TEXTS[:20])
    output, precious = tmp_path / f"out{ending}", tmp_path / "precious"
    precious.write_text("mine", "utf-8")
    (tmp_path / linked.format(ending)).symlink_to(precious)
    embed(emulator, output)
    assert precious.read_text("utf-8") == "mine"
    assert not output.is_symlink()
    assert len(read_vectors(output)) == 20


@posix
def test_a_checkpoint_is_not_made_at_the_end_of_a_link_that_leads_nowhere(output: Path, emulator: Emulator) -> None:
    output.with_name(f"{output.name}.ledger").symlink_to(output.parent / "elsewhere")
    with pytest.raises(InvalidInput, match=r"\.ledger is a symbolic link to nothing: remove it"):
        embed(emulator, output)
    assert not (output.parent / "elsewhere").exists()
    assert emulator.requests == 0


@posix
@pytest.mark.usefixtures("open_umask")
def test_files_of_batches_hold_texts_for_their_owner_alone_and_are_never_written_through_a_link(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    service = Emulator(clock=clock.now, batches=BatchSettings(seconds=60))
    asking = client_for(service, clock, protocol="openai", dimensions=DIMENSIONS)
    precious = output.parent / "precious"
    precious.write_text("mine", "utf-8")
    made: list[str] = []
    real = files.create_replacing

    def behind_a_link(path: Path, mode: int = files.PRIVATE_MODE) -> IO[bytes]:
        path.unlink(missing_ok=True)
        path.symlink_to(precious)
        made.append(path.name)
        return real(path, mode)

    monkeypatch.setattr(files, "create_replacing", behind_a_link)
    modes: dict[str, int] = {}
    unlink = Path.unlink

    def noted(self: Path, *, missing_ok: bool = False) -> None:
        if self.exists() and not self.is_symlink():
            modes[self.name] = mode(self)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    assert corpus.batch_run(output.parent / "in.txt", output, client=asking).finished
    batch = {name: found for name, found in modes.items() if ".batch-1." in name}
    assert batch == {"out.jsonl.batch-1.jsonl": 0o600, "out.jsonl.batch-1.output": 0o600}
    assert {name for name in made if ".batch-1." in name}
    assert precious.read_text("utf-8") == "mine"
    assert not list(output.parent.glob("*.batch-*"))


def test_a_request_file_that_a_full_disk_cut_off_is_not_left_behind(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dashscope_embeddings.corpus.batch.messages.request_line", full)
    asking = client_for(Emulator(), protocol="openai", dimensions=DIMENSIONS)
    with pytest.raises(OSError, match=r"No space left on device\. Make room.*out\.jsonl\.batch-1\.jsonl"):
        corpus.batch_submit(output.parent / "in.txt", output, client=asking)
    assert not list(output.parent.glob("*.batch-*"))


# --- an array and its ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".parquet"])
@pytest.mark.parametrize("part", ["rows", "rejects", "fsync", "replace"])
def test_a_rewrite_that_fails_leaves_the_old_output(
    part: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator, output = Emulator(faults=[faults.Blocked(match="number 17")]), tmp_path / f"out{ending}"
    write_lines(tmp_path / "in.txt", TEXTS)
    embed(emulator, output)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if "ledger" not in path.name}
    write_lines(tmp_path / "in.txt", reversed(TEXTS))
    before["in.txt"] = (tmp_path / "in.txt").read_bytes()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if part == "rows":
            patch.setattr(writers, "_columns" if ending != ".parquet" else "_arrays", full)
        elif part == "rejects":
            patch.setattr(
                "dashscope_embeddings.corpus.checkpoint.store.CheckpointStore.rejected_records",
                lambda _: map(full, [1]),
            )
        elif part == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            real = Path.replace
            patch.setattr(
                Path, "replace", lambda self, to: real(self, to) if to.name.endswith(".old") else real_unless(self, to)
            )

            def real_unless(self: Path, to: Path) -> Path:
                return full() if to == output else real(self, to)

        with pytest.raises(OSError, match="No space left"):
            embed(emulator, output)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if "ledger" not in path.name}
    if part == "replace":
        after.pop(f"out{ending}.rejects.jsonl.partial", None)
    assert after == before
    embed(emulator, output)
    assert [row.dense for row in read_vectors(output)] == [
        expected_vector(emulator, text) for text in reversed(TEXTS) if text != TEXTS[17]
    ]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("moment", range(1, 5))
def test_after_a_kill_an_array_has_its_own_ids(moment: int, tmp_path: Path) -> None:
    """Every step of the replacement, as a killed process leaves it: nothing is tidied up."""
    path, ids = tmp_path / "out.npy", tmp_path / "out.npy.ids.jsonl"
    parked, new_path, new_ids = (tmp_path / f"{name}" for name in (f"{ids.name}.old", "out.npy.partial", "n"))
    new_ids = files.partial_path(ids)
    path.write_text("old", "utf-8")
    ids.write_text("old", "utf-8")
    new_path.write_text("new", "utf-8")
    new_ids.write_text("new", "utf-8")
    steps = [(ids, parked), (new_path, path), (new_ids, ids)]
    for source, target in steps[: moment - 1]:
        source.replace(target)
    assert path.read_text("utf-8") == files.current_companion(path, ids).read_text("utf-8")
    files.recover_pair(path, ids)
    assert path.read_text("utf-8") == ids.read_text("utf-8") == ("new" if moment > 2 else "old")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["out.npy", "out.npy.ids.jsonl"]


# --- a full disk -------------------------------------------------------------------------------------------


def run_full(output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, room: int) -> OSError:
    """Replies 3 and later find no room until so many were tried."""
    commit, calls = Database._commit, itertools.count(-1)  # opening and loading commit too

    def full(self: Database) -> None:
        if 2 < next(calls) <= room:
            raise sqlite3.OperationalError("database or disk is full")
        commit(self)

    monkeypatch.setattr(Database, "_commit", full)
    with pytest.raises(OSError, match="disk is full") as caught:
        embed(emulator, output, settings={"max_concurrency": 4})
    monkeypatch.undo()
    return caught.value


def test_what_was_in_flight_when_the_disk_filled_is_kept_once_there_is_room(
    output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_full(output, emulator, monkeypatch, room=3)
    assert 20 < emulator.billed_texts < len(TEXTS)
    found = embed(emulator, output)
    assert emulator.billed_texts == len(TEXTS) == found.spent.texts
    assert found.spent.requests == emulator.requests


def test_what_could_not_be_written_to_a_full_disk_is_told(
    output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = run_full(output, emulator, monkeypatch, room=999)
    billed = emulator.billed_texts
    found = embed(emulator, output)
    stored = found.spent.texts - found.usage.texts
    assert 20 <= stored == len(TEXTS) - found.embedded
    assert f"with {billed - stored} texts (" in str(error)
    assert "in no total" in str(error)


def test_a_disk_without_room_for_the_vectors_is_found_before_anything_is_sent(
    output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(total=10**9, free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(InvalidInput, match=rf"has 0 MB free, and the vectors of {len(TEXTS)} texts take at least"):
        embed(emulator, output)
    assert emulator.requests == 0
    assert not list(output.parent.glob("*.ledger"))
    disk.total = 0  # the size is unknown
    assert embed(emulator, output).embedded == len(TEXTS)


@pytest.mark.parametrize("width", [512, 1024])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_room_that_a_run_needs_is_known_before_it(
    ending: str, width: int, output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = output.with_suffix(ending)
    embed(emulator, output, settings={"dimensions": width})
    written = [output, corpus.ledger_beside(output)]
    size = sum(path.stat().st_size for path in written)
    for path in (*written, writers.ids_path(output)):
        path.unlink(missing_ok=True)
    disk = SimpleNamespace(total=10**9, free=int(0.8 * size))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(InvalidInput, match="make room, or write to another disk; nothing was sent"):
        embed(emulator, output, settings={"dimensions": width})
    disk.free = size
    assert embed(emulator, output, settings={"dimensions": width}).embedded == len(TEXTS)


def test_after_the_first_failed_write_nothing_is_sent_that_waits_for_the_rate(
    output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Standing(FakeClock):
        """Its time passes only if a wait is not ended within five seconds."""

        def wait(self, halt: threading.Event, seconds: float) -> bool:
            return halt.wait(5) or super().wait(halt, seconds)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(CheckpointStore, "store_reply", full)
    client = client_for(emulator, Standing(), dimensions=DIMENSIONS, requests_per_minute=60)
    with pytest.raises(OSError, match=r"out\.jsonl\.ledger cannot be written: .* is full.* 1 request .* Make room"):
        corpus.embed_corpus(output.parent / "in.txt", output, client=client)
    assert emulator.requests == 1


def test_an_output_that_a_full_disk_cut_off_is_named(
    output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writers, "to_json", full)
        with pytest.raises(OSError, match=r"on device\. Make room, then run the same again: '.*out\.jsonl'") as caught:
            embed(emulator, output)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(output))
    assert embed(emulator, output).embedded == 0


# --- the write-ahead log -----------------------------------------------------------------------------------

MANY = [f"text number {number}" for number in range(1_500)]


def at_work(url: str, output: str) -> None:
    client = EmbeddingClient(api_key="sk-made-up", base_url=url, dimensions=DIMENSIONS, max_concurrency=4)
    corpus.embed_corpus(Path(output).with_name("in.txt"), output, client=client)


@pytest.mark.skipif(sys.platform == "win32", reason="no kill")
def test_after_a_kill_a_lost_log_is_noticed_before_anything_is_paid_twice(tmp_path: Path, emulator: Emulator) -> None:
    output = write_lines(tmp_path / "in.txt", MANY).with_name("out.jsonl")
    moved = tmp_path / "moved" / "out.jsonl"
    moved.parent.mkdir()
    log = "out.jsonl.ledger-wal"
    with emulator.serve(latency=0.005) as server:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dashscope_embeddings.cli.embed", "corpus_helpers"])
        process = context.Process(target=at_work, args=(server.url, str(output)))
        process.start()
        while process.is_alive() and emulator.billed_texts < 500:
            process.join(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        billed = emulator.billed_texts
        for name in ("in.txt", "out.jsonl.ledger"):
            shutil.copy(output.with_name(name), moved.with_name(name))
        for _ in range(2):
            with pytest.raises(InvalidInput, match="ledger-wal is missing: the run before was killed"):
                at_work(server.url, str(moved))
        assert emulator.billed_texts == billed
        shutil.copy(output.with_name(log), moved.with_name(log))
        at_work(server.url, str(moved))
        assert emulator.billed_texts <= len(MANY) + 4 * 10, "three files are all of it"
        # Without the log, on purpose: the same command goes on from what was moved into the checkpoint before.
        output.with_name(log).write_bytes(b"")
        at_work(server.url, str(output))
    for path in (output, moved):
        assert [row.dense for row in read_vectors(path)] == [expected_vector(emulator, text) for text in MANY]


class StopError(Exception):
    """Ends a run."""


@pytest.mark.parametrize("end", [None, StopError, KeyboardInterrupt, SystemExit])
def test_however_a_run_ends_two_files_are_all_of_its_checkpoint(end: Any, output: Path, emulator: Emulator) -> None:
    def progress(_: corpus.Progress) -> None:
        if end is not None:
            raise end

    sizes: list[int] = []

    def stop() -> bool:
        sizes.append(output.with_name("out.jsonl.ledger-wal").stat().st_size)
        return False

    if end is None:
        embed(emulator, output, stop=stop)
    else:
        with pytest.raises(end):
            embed(emulator, output, progress=progress, stop=stop)
    assert max(sizes) < 2 << 20
    assert {path.name for path in output.parent.iterdir()} - {"in.txt", "out.jsonl"} == {"out.jsonl.ledger"}
    moved = output.parent / "moved" / "out.jsonl"
    moved.parent.mkdir()
    for name in ("in.txt", "out.jsonl.ledger"):
        shutil.copy(output.with_name(name), moved.with_name(name))
    billed = emulator.billed_texts
    embed(emulator, moved)
    assert emulator.billed_texts == len(TEXTS) >= billed


def test_a_disk_that_is_full_when_a_run_ends_makes_no_false_alarm(
    output: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note that the log is in use cannot be taken back, and SQLite puts the log away all the same."""
    close = CheckpointStore.close

    def full(self: CheckpointStore) -> None:
        self.database.connection.execute("PRAGMA query_only=ON")
        close(self)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "close", full)
        embed(emulator, output)
    assert embed(emulator, output).embedded == 0


def test_the_files_beside_an_output_are_found_by_its_name_as_a_string_too() -> None:
    assert corpus.ledger_beside("a/out.npy") == Path("a/out.npy.ledger")
    assert corpus.rejects_beside(Path("out.jsonl")) == Path("out.jsonl.rejects.jsonl")


def test_an_error_without_a_number_keeps_its_words() -> None:
    with pytest.raises(ConnectionError, match=r"^the tunnel broke$"), files.name_in_errors(Path("out.jsonl")):
        raise ConnectionError("the tunnel broke")


def test_a_look_at_what_a_killed_run_left_keeps_its_log(tmp_path: Path, emulator: Emulator) -> None:
    """A command that ends with an error looks at it, to say what is kept."""
    source, left = write_lines(tmp_path / "in.txt", [f"text {i}" for i in range(95)]), tmp_path / "left"
    ledger, log = left / "out.jsonl.ledger", left / "out.jsonl.ledger-wal"

    def copy(_: object) -> None:
        if not left.exists() and (tmp_path / log.name).exists():
            left.mkdir()
            for path in tmp_path.glob("out.jsonl.*"):
                shutil.copy(path, left)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dashscope_embeddings.corpus.embedder._TEXTS_PER_REPORT", 1)
        corpus.embed_corpus(source, tmp_path / "out.jsonl", client=client_for(emulator), progress=copy)
    assert log.stat().st_size > 0
    assert opening.read_state(ledger) == (True, True)
    assert log.stat().st_size > 0
    again = corpus.embed_corpus(source, left / "out.jsonl", client=client_for(emulator))
    assert (again.finished, emulator.billed_texts < 2 * 95) == (True, True)


def test_a_checkpoint_without_tables_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.ledger").touch()
    assert opening.read_state(tmp_path / "out.jsonl.ledger") == (False, False)
