"""The batches of a checkpoint, recorded before and after each step so that none is lost or submitted twice.

States of a batch: `planned` (its lines are chosen), `uploaded` (the service has its file), `creating` (the request to
create it may have been sent), `running` (it has an id) and `closed` (its results are imported, its lines deleted).

A line consists of units. A unit is the key of a text or, as a negative number, a chunk of a long text. In the tables,
units are called members, chunks pieces, and units in open batches batch_out.
"""

from __future__ import annotations

import array
import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from dashscope_embeddings.corpus.batch import tables
from dashscope_embeddings.corpus.batch.types import BatchFile
from dashscope_embeddings.corpus.checkpoint.checksums import record_checksum, text_differs
from dashscope_embeddings.vectors import Part, combine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dashscope_embeddings.corpus.batch.messages import BatchStatus
    from dashscope_embeddings.corpus.batch.types import BatchState
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore

MAX_ROUNDS = 5
"""How often one submission submits a text before it gives up; a new submission tries again."""

_SYNCHRONOUS = "FULL"
"""A submitted batch must survive a power failure: if it is forgotten, its texts are paid for twice."""

Selection = Literal["all", "failed", "invalid"]
"""Units to submit: all pending ones; those whose line failed in this command; those whose file was refused."""


class Unit(NamedTuple):
    """A text, or a chunk of one, to submit."""

    number: int
    text: str
    max_per_line: int
    """Maximum number of units in its line; 0: the model's limit."""


class JobStore:
    """The batches of one checkpoint."""

    def __init__(self, checkpoint: CheckpointStore) -> None:
        self._checkpoint = checkpoint
        # Without a write-ahead log, a copy of the database is complete even while batches run or after a crash.
        checkpoint.disable_wal()
        checkpoint.fetch_all(f"PRAGMA synchronous={_SYNCHRONOUS}")
        with checkpoint.transaction():
            tables.create_tables(checkpoint)
        if (numbers := self.get_note("numbers")) is not None:
            checkpoint.has_integer_ids = numbers

    def _unpack_units(self, line: int, batch: int, packed_units: bytes, checksum: bytes) -> array.array[int]:
        """The units of a line. The checksum guards against assigning vectors to other texts unnoticed."""
        try:
            is_intact = checksum == tables.line_checksum(self._checkpoint, line, batch, packed_units)
        except (TypeError, ValueError):
            is_intact = False
        if not is_intact:
            raise self._checkpoint.damage_error(f"line {line} of its batches differs from what was submitted")
        return array.array("q", packed_units)

    # --- notes ----------------------------------------------------------------------------------------------

    def set_note(self, name: str, value: Any) -> None:
        """Stores a value for later commands."""
        self._checkpoint.fetch_all("INSERT OR REPLACE INTO batch_notes VALUES (?, ?)", (name, json.dumps(value)))

    def get_note(self, name: str) -> Any:
        """A stored value; None: there is none."""
        value = self._checkpoint.fetch_value("SELECT value FROM batch_notes WHERE name = ?", (name,))
        return None if value is None else self._checkpoint.parse_json(value)

    # --- batches --------------------------------------------------------------------------------------------

    def batches(self, *states: BatchState) -> list[BatchFile]:
        """All batches in these states; without arguments, in any state."""
        chosen = f"WHERE state IN ({','.join('?' * len(states))})" if states else ""
        rows = self._checkpoint.fetch_all(
            "SELECT number, state, again, batch_id, status, lines, texts, completed, failed, file_id "  # noqa: S608 - only question marks
            f"FROM batches {chosen} ORDER BY number",
            states,
        )
        return [BatchFile(row[0], row[1], bool(row[2]), *row[3:]) for row in rows]

    def batch(self, number: int) -> BatchFile:
        """The current record of a batch."""
        return next(batch for batch in self.batches() if batch.number == number)

    def next_numbers(self) -> tuple[int, int]:
        """The numbers of the next batch and of its first line."""
        last = dict(self._checkpoint.fetch_all("SELECT name, seq FROM sqlite_sequence"))
        return last.get("batches", 0) + 1, last.get("batch_lines", 0) + 1

    def add_lines(self, number: int, lines: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Adds lines to a batch."""
        packed = [(line, number, array.array("q", units).tobytes()) for line, units in lines]
        rows = [(*row, tables.line_checksum(self._checkpoint, *row)) for row in packed]
        self._checkpoint.execute_many(
            "INSERT INTO batch_lines (line, batch, members, done, sum) VALUES (?, ?, ?, 0, ?)", rows
        )
        self._checkpoint.execute_many(
            "INSERT INTO batch_out VALUES (?)", ((unit,) for _, units in lines for unit in units)
        )

    def add_batch(self, number: int, lines: int, texts: int, *, is_resubmission: bool) -> BatchFile:
        """Adds a batch whose lines are all added."""
        self._checkpoint.fetch_all(
            "INSERT INTO batches (number, state, again, lines, texts) VALUES (?, 'planned', ?, ?, ?)",
            (number, is_resubmission, lines, texts),
        )
        return self.batch(number)

    def set_uploaded(self, batch: BatchFile, file_id: str) -> None:
        """Records that the service has the file of a batch."""
        self._checkpoint.fetch_all(
            "UPDATE batches SET state = 'uploaded', file_id = ? WHERE number = ?", (file_id, batch.number)
        )

    def set_creating(self, batch: BatchFile) -> None:
        """Records that the batch may exist from now on."""
        self._checkpoint.fetch_all("UPDATE batches SET state = 'creating' WHERE number = ?", (batch.number,))

    def update_status(self, batch: BatchFile, update: BatchStatus) -> BatchFile:
        """Records the status of a batch."""
        self._checkpoint.fetch_all(
            "UPDATE batches SET state = 'running', batch_id = ?, status = ?, completed = ?, failed = ? "
            "WHERE number = ?",
            (update.batch_id, update.status, update.completed, update.failed, batch.number),
        )
        return self.batch(batch.number)

    def close(self, batch: BatchFile) -> None:
        """Closes a batch; its units without vectors may be submitted again."""
        with self._checkpoint.transaction():
            for _, units in self.lines_without_vectors(batch):
                self._release(units)
            self._checkpoint.fetch_all("DELETE FROM batch_lines WHERE batch = ?", (batch.number,))
            self._checkpoint.fetch_all("UPDATE batches SET state = 'closed' WHERE number = ?", (batch.number,))

    # --- lines ----------------------------------------------------------------------------------------------

    def line_units(self, batch: BatchFile, line: int) -> tuple[array.array[int], bool] | None:
        """The units of a line, and whether its vectors are stored; None: the batch has no such line."""
        query = "SELECT members, sum, done FROM batch_lines WHERE line = ? AND batch = ?"
        for members, checksum, done in self._checkpoint.fetch_all(query, (line, batch.number)):
            return self._unpack_units(line, batch.number, members, checksum), bool(done)
        return None

    def nth_line(self, batch: BatchFile, nth: int) -> tuple[int, int] | None:
        """Number and first unit of a line, by its position in the file from 1."""
        query = "SELECT line, batch, members, sum FROM batch_lines WHERE batch = ? ORDER BY line LIMIT 1 OFFSET ?"
        for row in self._checkpoint.fetch_all(query, (batch.number, max(nth, 1) - 1)):
            return row[0], self._unpack_units(*row)[0]
        return None

    def place(self, unit: int) -> str | None:
        """The first place of a text in the input."""
        query = "SELECT place FROM items WHERE key = ? ORDER BY seq LIMIT 1"
        return cast("str | None", self._checkpoint.fetch_value(query, (self.key_of(unit),)))

    def lines_without_vectors(self, batch: BatchFile) -> Iterator[tuple[int, array.array[int]]]:
        """Number and units of the lines of a batch that have no vectors, in order."""
        last = 0
        while rows := self._checkpoint.fetch_all(
            "SELECT line, batch, members, sum FROM batch_lines WHERE batch = ? AND line > ? AND NOT done "
            "ORDER BY line LIMIT 1000",
            (batch.number, last),
        ):
            last = rows[-1][0]
            for row in rows:
                yield row[0], self._unpack_units(*row)

    def mark_done(self, lines: Mapping[int, Sequence[int]]) -> None:
        """Records that the vectors of these lines are stored."""
        self._checkpoint.execute_many("UPDATE batch_lines SET done = 1 WHERE line = ?", ((line,) for line in lines))
        units = [(unit,) for group in lines.values() for unit in group]
        self._checkpoint.execute_many("DELETE FROM batch_out WHERE member = ?", units)
        self._checkpoint.execute_many("DELETE FROM batch_tries WHERE member = ?", units)

    def _release(self, units: Iterable[int]) -> None:
        self._checkpoint.execute_many("DELETE FROM batch_out WHERE member = ?", ((unit,) for unit in units))

    # --- units ----------------------------------------------------------------------------------------------

    def units_to_submit(self, selection: Selection, page_size: int = 512) -> Iterator[Unit]:
        """The texts to submit, then the chunks of long texts, each in order. Tables may change during the iteration."""
        rounds = f"t.rounds BETWEEN 1 AND {MAX_ROUNDS - 1} AND t.invalid {'> 0' if selection == 'invalid' else '= 0'}"
        wanted = "1" if selection == "all" else rounds
        texts = "pending p LEFT JOIN batch_tries t ON t.member = p.key"
        chunks = "batch_pieces q LEFT JOIN batch_tries t ON t.member = -q.piece"
        if selection != "all":
            # Join from the few failed units to their texts instead of scanning all texts.
            texts = "batch_tries t CROSS JOIN pending p ON p.key = t.member"
            chunks = "batch_tries t CROSS JOIN batch_pieces q ON q.piece = -t.member"
        yield from self._read_pages(
            f"SELECT p.key, p.text, coalesce(t.most, 0), x.hash FROM {texts} CROSS JOIN texts x ON x.key = p.key "  # noqa: S608 - no input in it
            f"WHERE p.key > ? AND x.reply IS NULL AND {wanted} "
            "AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = p.key) "
            "AND NOT EXISTS (SELECT 1 FROM batch_pieces WHERE key = p.key) ORDER BY p.key LIMIT ?",
            page_size,
        )
        for chunk in self._read_pages(
            f"SELECT q.piece, q.text, coalesce(t.most, 0), NULL FROM {chunks} "  # noqa: S608 - no input in it
            "CROSS JOIN pending p ON p.key = q.key CROSS JOIN texts x ON x.key = q.key "
            f"WHERE q.piece > ? AND q.dense IS NULL AND x.reply IS NULL AND {wanted} "
            "AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = -q.piece) ORDER BY q.piece LIMIT ?",
            page_size,
        ):
            self._check_chunks("piece = ?", chunk.number)
            yield chunk._replace(number=-chunk.number)

    def _read_pages(self, query: str, page_size: int) -> Iterator[Unit]:
        last = 0
        while rows := self._checkpoint.fetch_all(query, (last, page_size)):
            last = rows[-1][0]
            for *unit, digest in rows:
                if digest is not None and text_differs(unit[1], digest):
                    raise self._checkpoint.damage_error(f"text {unit[0]} differs from what was read")
                yield Unit(*unit)

    def counts(self) -> tuple[int, int]:
        """Different texts that are under way, and different texts that failed too often in this submission."""
        fetch_value = self._checkpoint.fetch_value
        return fetch_value(tables.COUNT_UNDER_WAY), fetch_value(tables.COUNT_EXHAUSTED, (MAX_ROUNDS,))

    def unsubmitted(self) -> tuple[int, int, int]:
        """Different texts that are neither embedded nor under way, their estimated tokens, and their bytes."""
        texts, tokens, size = self._checkpoint.fetch_all(tables.COUNT_UNSUBMITTED)[0]
        return texts, round(tokens), size

    def reset_attempts(self) -> None:
        """Allows texts that failed too often to be submitted again."""
        self._checkpoint.fetch_all("UPDATE batch_tries SET rounds = 0, invalid = 0")

    def schedule_retry(
        self, units: Iterable[int], *, invalid: bool = False, max_per_line: int = 0, deferred: bool = False
    ) -> None:
        """Schedules units of a failed line for another one, with at most `max_per_line` units; `deferred`: not now."""
        rounds, units = MAX_ROUNDS if deferred else 1, list(units)
        self._checkpoint.execute_many(
            "INSERT OR IGNORE INTO batch_tries VALUES (?, 0, 0, 0)", ((unit,) for unit in units)
        )
        self._checkpoint.execute_many(
            "UPDATE batch_tries SET rounds = min(rounds + ?, ?), invalid = invalid + ?, "
            "most = CASE WHEN ? THEN ? ELSE most END WHERE member = ?",
            ((rounds, MAX_ROUNDS, invalid, max_per_line, max_per_line, unit) for unit in units),
        )

    # --- chunks of long texts -------------------------------------------------------------------------------

    def key_of(self, unit: int) -> int:
        """The key of the text that a unit is, or is a chunk of; 0: there is no such chunk."""
        if unit > 0:
            return unit
        return self._checkpoint.fetch_value("SELECT key FROM batch_pieces WHERE piece = ?", (-unit,)) or 0

    def text_of(self, unit: int) -> str | None:
        """The text of a unit; None: it is no longer pending."""
        table, column = ("pending", "key") if unit > 0 else ("batch_pieces", "piece")
        query = f"SELECT text FROM {table} WHERE {column} = ?"  # noqa: S608 - no input in it
        return cast("str | None", self._checkpoint.fetch_value(query, (abs(unit),)))

    def split(self, unit: int, texts: Sequence[str]) -> None:
        """Replaces a text or a chunk by smaller chunks, which are submitted in this command."""
        key = self.key_of(unit)
        with self._checkpoint.transaction():
            if unit < 0:
                self._checkpoint.fetch_all("DELETE FROM batch_pieces WHERE piece = ?", (-unit,))
            last = self._checkpoint.fetch_value("SELECT max(seq) FROM sqlite_sequence WHERE name = 'batch_pieces'")
            chunks = [(number, key, text, None) for number, text in enumerate(texts, (last or 0) + 1)]
            rows = [(*chunk, record_checksum(*chunk)) for chunk in chunks]
            self._checkpoint.execute_many(
                "INSERT INTO batch_pieces (piece, key, text, dense, sum) VALUES (?, ?, ?, ?, ?)", rows
            )
            self.schedule_retry(-chunk[0] for chunk in chunks)

    def store_chunk(self, unit: int, dense: bytes) -> tuple[int, list[float]] | None:
        """Stores a chunk's vector; after the last one of a text, returns the text's key and mean vector."""
        fetch_all, key = self._checkpoint.fetch_all, self.key_of(unit)
        self._check_chunks("piece = ?", -unit)
        for chunk, text in fetch_all("SELECT piece, text FROM batch_pieces WHERE piece = ?", (-unit,)):
            checksum = record_checksum(chunk, key, text, dense)
            fetch_all("UPDATE batch_pieces SET dense = ?, sum = ? WHERE piece = ?", (dense, checksum, chunk))
        if fetch_all("SELECT 1 FROM batch_pieces WHERE key = ? AND dense IS NULL LIMIT 1", (key,)):
            return None
        self._check_chunks("key = ?", key)
        chunks = fetch_all("SELECT text, dense FROM batch_pieces WHERE key = ? ORDER BY piece", (key,))
        if not chunks:
            return None
        self.drop_chunks(key)
        mean = combine([Part(array.array("f", dense).tolist(), None, float(len(text))) for text, dense in chunks]).dense
        return key, mean or []

    def _check_chunks(self, condition: str, number: int) -> None:
        rows = self._checkpoint.fetch_all(
            f"SELECT piece, key, text, dense, sum FROM batch_pieces WHERE {condition}",  # noqa: S608 - no input in it
            (number,),
        )
        if any(record_checksum(*row) != checksum for *row, checksum in rows):
            raise self._checkpoint.damage_error("a chunk of a long text differs from what was written")

    def drop_chunks(self, key: int) -> None:
        """Deletes all chunks of a text."""
        self._checkpoint.fetch_all("DELETE FROM batch_pieces WHERE key = ?", (key,))
