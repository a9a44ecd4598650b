"""What the ledger keeps of batches: written before and after each step, so that none is lost or asked for twice.

A batch is `planned` (its lines are chosen), `uploaded` (its file is with the service), `creating` (it may have been
asked for), `running` (it has an id) and `closed` (its results are in the ledger, and its lines are gone).

Lines are made of members: a text's key, or, below zero, the number of a piece of a long text.
"""

from __future__ import annotations

import array
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dashscope_embeddings.corpus.batch import tables
from dashscope_embeddings.corpus.checkpoint.checksums import record_checksum, text_differs
from dashscope_embeddings.vectors import Part, combine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dashscope_embeddings.corpus.batch.messages import BatchStatus
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore

MAX_ROUNDS = 5
"""How often a text is submitted in one go before it is left for another day."""

_SYNCHRONOUS = "FULL"
"""What was submitted is money: unlike a lost reply it must survive a power failure too."""

BatchState = Literal["planned", "uploaded", "creating", "running", "closed"]
Selection = Literal["all", "failed", "invalid"]
"""Members to submit: all that are open; those whose line failed in this go; those whose file was refused."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One file of lines."""

    number: int
    state: BatchState
    is_resubmission: bool
    """Whether it holds what was in a file that failed its validation."""
    lines: int
    texts: int
    file_id: str | None
    batch_id: str | None
    status: str | None
    completed: int | None
    failed: int | None


class Unit(NamedTuple):
    """A text, or a piece of one, that waits to be embedded."""

    number: int
    text: str
    max_per_line: int
    """Texts that a line with it may have; 0: as many as the model takes."""


class JobStore:
    """The batches of one ledger."""

    def __init__(self, checkpoint: CheckpointStore) -> None:
        self._checkpoint = checkpoint
        # No log beside the ledger: whoever copies it while batches run, or after a crash, has all of it.
        checkpoint.disable_wal()
        checkpoint.fetch_all(f"PRAGMA synchronous={_SYNCHRONOUS}")
        with checkpoint.transaction():
            tables.create_tables(checkpoint)
        if (numbers := self.get_note("numbers")) is not None:
            checkpoint.has_integer_ids = numbers

    def _unpack_units(self, line: int, batch: int, packed_units: bytes, checksum: bytes) -> array.array[int]:
        """What a line stands for: with another text's vectors nobody would notice."""
        try:
            is_intact = checksum == tables.line_checksum(self._checkpoint, line, batch, packed_units)
        except (TypeError, ValueError):
            is_intact = False
        if not is_intact:
            raise self._checkpoint.damage_error(f"line {line} of its batches is not what was submitted")
        return array.array("q", packed_units)

    # --- what the next command must know --------------------------------------------------------------------

    def set_note(self, name: str, value: Any) -> None:
        """Keeps a fact."""
        self._checkpoint.fetch_all("INSERT OR REPLACE INTO batch_notes VALUES (?, ?)", (name, json.dumps(value)))

    def get_note(self, name: str) -> Any:
        """A fact that was kept; None: it was not."""
        found = self._checkpoint.fetch_all("SELECT value FROM batch_notes WHERE name = ?", (name,))
        return self._checkpoint.parse_json(found[0][0]) if found else None

    # --- batches --------------------------------------------------------------------------------------------

    def batches(self, *states: BatchState) -> list[BatchRecord]:
        """All batches in some states, or in any."""
        chosen = f"WHERE state IN ({','.join('?' * len(states))})" if states else ""
        found = self._checkpoint.fetch_all(
            "SELECT number, state, again, lines, texts, file_id, batch_id, status, completed, failed "  # noqa: S608 - only question marks
            f"FROM batches {chosen} ORDER BY number",
            states,
        )
        return [BatchRecord(row[0], row[1], bool(row[2]), *row[3:]) for row in found]

    def batch(self, number: int) -> BatchRecord:
        """One batch as it is now."""
        return next(batch for batch in self.batches() if batch.number == number)

    def next_numbers(self) -> tuple[int, int]:
        """Of the next batch and of its first line."""
        last = dict(self._checkpoint.fetch_all("SELECT name, seq FROM sqlite_sequence"))
        return last.get("batches", 0) + 1, last.get("batch_lines", 0) + 1

    def add_lines(self, number: int, lines: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Takes some lines into a batch."""
        packed = [(line, number, array.array("q", units).tobytes()) for line, units in lines]
        rows = [(*row, tables.line_checksum(self._checkpoint, *row)) for row in packed]
        self._checkpoint.execute_many(
            "INSERT INTO batch_lines (line, batch, members, done, sum) VALUES (?, ?, ?, 0, ?)", rows
        )
        self._checkpoint.execute_many(
            "INSERT INTO batch_out VALUES (?)", ((one,) for _, members in lines for one in members)
        )

    def add_batch(self, number: int, lines: int, texts: int, *, is_resubmission: bool) -> BatchRecord:
        """A batch whose lines are all chosen."""
        self._checkpoint.fetch_all(
            "INSERT INTO batches (number, state, again, lines, texts) VALUES (?, 'planned', ?, ?, ?)",
            (number, is_resubmission, lines, texts),
        )
        return self.batch(number)

    def set_uploaded(self, batch: BatchRecord, file_id: str) -> None:
        """Its file is there."""
        self._checkpoint.fetch_all(
            "UPDATE batches SET state = 'uploaded', file_id = ? WHERE number = ?", (file_id, batch.number)
        )

    def set_creating(self, batch: BatchRecord) -> None:
        """From now on it may exist."""
        self._checkpoint.fetch_all("UPDATE batches SET state = 'creating' WHERE number = ?", (batch.number,))

    def update_status(self, batch: BatchRecord, update: BatchStatus) -> None:
        """What the service says of it."""
        self._checkpoint.fetch_all(
            "UPDATE batches SET state = 'running', batch_id = ?, status = ?, completed = ?, failed = ? "
            "WHERE number = ?",
            (update.batch_id, update.status, update.completed, update.failed, batch.number),
        )

    def close(self, batch: BatchRecord) -> None:
        """Nothing more comes of it: what is not embedded is open again."""
        with self._checkpoint.transaction():
            for _, units in self.lines_without_vectors(batch):
                self._release(units)
            self._checkpoint.fetch_all("DELETE FROM batch_lines WHERE batch = ?", (batch.number,))
            self._checkpoint.fetch_all("UPDATE batches SET state = 'closed' WHERE number = ?", (batch.number,))

    # --- lines ----------------------------------------------------------------------------------------------

    def line_units(self, batch: BatchRecord, line: int) -> tuple[array.array[int], bool] | None:
        """What a line stands for, and whether its vectors are there; None: the batch has no such line."""
        found = self._checkpoint.fetch_all(
            "SELECT members, sum, done FROM batch_lines WHERE line = ? AND batch = ?", (line, batch.number)
        )
        return (self._unpack_units(line, batch.number, *found[0][:2]), bool(found[0][2])) if found else None

    def nth_line(self, batch: BatchRecord, nth: int) -> tuple[int, int] | None:
        """Number and first member of a line by its place in the file, from 1."""
        found = self._checkpoint.fetch_all(
            "SELECT line, batch, members, sum FROM batch_lines WHERE batch = ? ORDER BY line LIMIT 1 OFFSET ?",
            (batch.number, max(nth, 1) - 1),
        )
        return (found[0][0], self._unpack_units(*found[0])[0]) if found else None

    def place(self, unit: int) -> str | None:
        """Where in the input a text stands first."""
        key = self.key_of(unit)
        found = self._checkpoint.fetch_all("SELECT place FROM items WHERE key = ? ORDER BY seq LIMIT 1", (key,))
        return found[0][0] if found else None

    def lines_without_vectors(self, batch: BatchRecord) -> Iterator[tuple[int, array.array[int]]]:
        """The lines without vectors."""
        last = 0
        while found := self._checkpoint.fetch_all(
            "SELECT line, batch, members, sum FROM batch_lines WHERE batch = ? AND line > ? AND NOT done "
            "ORDER BY line LIMIT 1000",
            (batch.number, last),
        ):
            last = found[-1][0]
            for row in found:
                yield row[0], self._unpack_units(*row)

    def mark_done(self, lines: Mapping[int, Sequence[int]]) -> None:
        """The vectors of some lines are in the ledger."""
        self._checkpoint.execute_many("UPDATE batch_lines SET done = 1 WHERE line = ?", ((line,) for line in lines))
        units = [(unit,) for group in lines.values() for unit in group]
        self._checkpoint.execute_many("DELETE FROM batch_out WHERE member = ?", units)
        self._checkpoint.execute_many("DELETE FROM batch_tries WHERE member = ?", units)

    def _release(self, units: Iterable[int]) -> None:
        self._checkpoint.execute_many("DELETE FROM batch_out WHERE member = ?", ((unit,) for unit in units))

    # --- members --------------------------------------------------------------------------------------------

    def units_to_submit(self, selection: Selection, page_size: int = 512) -> Iterator[Unit]:
        """The texts to submit, then the pieces of long ones, each in order; may be changed meanwhile."""
        rounds = f"t.rounds BETWEEN 1 AND {MAX_ROUNDS - 1} AND t.invalid {'> 0' if selection == 'invalid' else '= 0'}"
        wanted = "1" if selection == "all" else rounds
        # From the few that failed to their texts, not through all texts.
        texts = "pending p LEFT JOIN batch_tries t ON t.member = p.key"
        chunks = "batch_pieces q LEFT JOIN batch_tries t ON t.member = -q.piece"
        if selection != "all":
            texts = "batch_tries t CROSS JOIN pending p ON p.key = t.member"
            chunks = "batch_tries t CROSS JOIN batch_pieces q ON q.piece = -t.member"
        yield from self._read_pages(
            f"SELECT p.key, p.text, coalesce(t.most, 0), x.hash FROM {texts} CROSS JOIN texts x ON x.key = p.key "  # noqa: S608 - our own words
            f"WHERE p.key > ? AND x.reply IS NULL AND {wanted} "
            "AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = p.key) "
            "AND NOT EXISTS (SELECT 1 FROM batch_pieces WHERE key = p.key) ORDER BY p.key LIMIT ?",
            page_size,
        )
        for chunk in self._read_pages(
            f"SELECT q.piece, q.text, coalesce(t.most, 0), NULL FROM {chunks} "  # noqa: S608 - our own words
            "CROSS JOIN pending p ON p.key = q.key CROSS JOIN texts x ON x.key = q.key "
            f"WHERE q.piece > ? AND q.dense IS NULL AND x.reply IS NULL AND {wanted} "
            "AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = -q.piece) ORDER BY q.piece LIMIT ?",
            page_size,
        ):
            self._check_chunks("piece = ?", chunk.number)
            yield chunk._replace(number=-chunk.number)

    def _read_pages(self, query: str, page_size: int) -> Iterator[Unit]:
        last = 0
        while found := self._checkpoint.fetch_all(query, (last, page_size)):
            last = found[-1][0]
            for *unit, digest in found:
                if digest is not None and text_differs(unit[1], digest):
                    raise self._checkpoint.damage_error(f"text {unit[0]} is not the one that was read")
                yield Unit(*unit)

    def counts(self) -> tuple[int, int]:
        """Different texts that are under way, and those that were submitted too often in one go."""
        (under_way,) = self._checkpoint.fetch_all(tables.COUNT_UNDER_WAY)[0]
        (left,) = self._checkpoint.fetch_all(tables.COUNT_EXHAUSTED, (MAX_ROUNDS,))[0]
        return under_way, left

    def unsubmitted(self) -> tuple[int, int, int]:
        """Different texts that are neither embedded nor under way, their estimated tokens, and their bytes."""
        texts, tokens, size = self._checkpoint.fetch_all(tables.COUNT_UNSUBMITTED)[0]
        return texts, round(tokens), size

    def reset_attempts(self) -> None:
        """Texts that were submitted too often may be submitted again."""
        self._checkpoint.fetch_all("UPDATE batch_tries SET rounds = 0, invalid = 0")

    def schedule_retry(
        self, units: Iterable[int], *, invalid: bool = False, max_per_line: int = 0, deferred: bool = False
    ) -> None:
        """Their line failed: they are to go into another, with at most so many texts; `held`: not in this go."""
        rounds, units = MAX_ROUNDS if deferred else 1, list(units)
        self._checkpoint.execute_many(
            "INSERT OR IGNORE INTO batch_tries VALUES (?, 0, 0, 0)", ((one,) for one in units)
        )
        self._checkpoint.execute_many(
            "UPDATE batch_tries SET rounds = min(rounds + ?, ?), invalid = invalid + ?, "
            "most = CASE WHEN ? THEN ? ELSE most END WHERE member = ?",
            ((rounds, MAX_ROUNDS, invalid, max_per_line, max_per_line, unit) for unit in units),
        )

    # --- pieces of long texts -------------------------------------------------------------------------------

    def key_of(self, unit: int) -> int:
        """The text that a member is, or is a piece of."""
        if unit > 0:
            return unit
        found = self._checkpoint.fetch_all("SELECT key FROM batch_pieces WHERE piece = ?", (-unit,))
        return found[0][0] if found else 0

    def text_of(self, unit: int) -> str | None:
        """None: it is no longer wanted."""
        query = "SELECT text FROM pending WHERE key = ?"
        if unit < 0:
            query = "SELECT text FROM batch_pieces WHERE piece = ?"
        found = self._checkpoint.fetch_all(query, (abs(unit),))
        return found[0][0] if found else None

    def split(self, unit: int, texts: Sequence[str]) -> None:
        """Puts pieces in the place of a text, or of a larger piece; they are to be submitted in this go."""
        key = self.key_of(unit)
        with self._checkpoint.transaction():
            if unit < 0:
                self._checkpoint.fetch_all("DELETE FROM batch_pieces WHERE piece = ?", (-unit,))
            (last,) = self._checkpoint.fetch_all("SELECT max(seq) FROM sqlite_sequence WHERE name = 'batch_pieces'")[0]
            made = [(number, key, text, None) for number, text in enumerate(texts, (last or 0) + 1)]
            rows = [(*row, record_checksum(*row)) for row in made]
            self._checkpoint.execute_many(
                "INSERT INTO batch_pieces (piece, key, text, dense, sum) VALUES (?, ?, ?, ?, ?)", rows
            )
            self.schedule_retry(-row[0] for row in made)

    def store_chunk(self, unit: int, dense: bytes) -> tuple[int, list[float]] | None:
        """Keeps a piece's vector; with the last of its text, gives the text's key and mean vector."""
        fetch_all, key = self._checkpoint.fetch_all, self.key_of(unit)
        self._check_chunks("piece = ?", -unit)
        for chunk, text in fetch_all("SELECT piece, text FROM batch_pieces WHERE piece = ?", (-unit,)):
            summed = record_checksum(chunk, key, text, dense)
            fetch_all("UPDATE batch_pieces SET dense = ?, sum = ? WHERE piece = ?", (dense, summed, chunk))
        if fetch_all("SELECT 1 FROM batch_pieces WHERE key = ? AND dense IS NULL LIMIT 1", (key,)):
            return None
        self._check_chunks("key = ?", key)
        found = fetch_all("SELECT text, dense FROM batch_pieces WHERE key = ? ORDER BY piece", (key,))
        if not found:
            return None
        fetch_all("DELETE FROM batch_pieces WHERE key = ?", (key,))
        mean = combine([Part(array.array("f", dense).tolist(), None, float(len(text))) for text, dense in found]).dense
        return key, mean or []

    def _check_chunks(self, condition: str, number: int) -> None:
        found = self._checkpoint.fetch_all(
            f"SELECT piece, key, text, dense, sum FROM batch_pieces WHERE {condition}",  # noqa: S608 - our own words
            (number,),
        )
        if any(record_checksum(*row) != summed for *row, summed in found):
            raise self._checkpoint.damage_error("a piece of a long text is not what was written")

    def drop_chunks(self, key: int) -> None:
        """Of a text that is refused: its other pieces are not wanted."""
        self._checkpoint.fetch_all("DELETE FROM batch_pieces WHERE key = ?", (key,))
