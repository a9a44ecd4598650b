"""The batches of a checkpoint, recorded before and after each step so that none is lost or submitted twice.

States of a batch: `planned` (its lines are chosen), `uploaded` (the service has its file), `creating` (the request to
create it may have been sent), `running` (it has an id) and `closed` (its results are imported, its lines deleted).

A line consists of units: texts, or parts of long ones. While a unit is under way, it names its line.
"""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Any, Literal

from dashscope_embeddings._core.text_length import estimate_tokens
from dashscope_embeddings.corpus.checkpoint import checksums
from dashscope_embeddings.corpus.checkpoint.rows import BatchFile, PackedVectors, PaidReply, Unit
from dashscope_embeddings.corpus.checkpoint.schema import PENDING, VECTOR_COLUMNS
from dashscope_embeddings.vectors import Part, combine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dashscope_embeddings.corpus.checkpoint.rows import BatchState
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore

MAX_ROUNDS = 5
"""How often one submission submits a text before it gives up; a new submission tries again."""

_SYNCHRONOUS = "FULL"
"""A submitted batch must survive a power failure: if it is forgotten, its texts are paid for twice."""

Selection = Literal["all", "failed", "invalid"]
"""Units to submit: all pending ones; those whose line failed in this command; those whose file was refused."""

_FAILED = f"units.rounds > 0 AND units.rounds < {MAX_ROUNDS} AND units.refused_files"
_SELECTIONS = {"all": "1", "failed": f"{_FAILED} = 0", "invalid": f"{_FAILED} > 0"}


class JobStore:
    """The batches of one checkpoint."""

    def __init__(self, checkpoint: CheckpointStore) -> None:
        self._checkpoint, self._database = checkpoint, checkpoint.database
        self._fetch_all, self._fetch_value = self._database.fetch_all, self._database.fetch_value
        self.set_setting, self.get_setting = self._database.set_setting, self._database.get_setting
        # Without a write-ahead log, a copy of the database is complete even while batches run or after a crash.
        self._database.disable_wal()
        self._fetch_all(f"PRAGMA synchronous={_SYNCHRONOUS}")
        if (numbers := self.get_setting("numbers")) is not None:
            checkpoint.has_integer_ids = numbers

    # --- batches --------------------------------------------------------------------------------------------

    def batches(self, *states: BatchState) -> list[BatchFile]:
        """All batches in these states; without arguments, in any state."""
        rows = self._fetch_all(
            "SELECT number, state, again, batch_id, status, lines, texts, completed, failed, file_id "
            "FROM batches ORDER BY number"
        )
        batches = (BatchFile(row[0], row[1], bool(row[2]), *row[3:]) for row in rows)
        return [batch for batch in batches if not states or batch.state in states]

    def batch(self, number: int) -> BatchFile:
        """The current record of a batch."""
        return next(batch for batch in self.batches() if batch.number == number)

    def next_numbers(self) -> tuple[int, int]:
        """The numbers of the next batch and of its first line."""
        last = dict(self._fetch_all("SELECT name, seq FROM sqlite_sequence"))
        return last.get("batches", 0) + 1, last.get("lines", 0) + 1

    def add_batch(self, number: int, lines: int, texts: int, *, is_resubmission: bool) -> BatchFile:
        """Adds a batch whose lines are all added."""
        self._fetch_all(
            "INSERT INTO batches (number, state, again, lines, texts) VALUES (?, 'planned', ?, ?, ?)",
            (number, is_resubmission, lines, texts),
        )
        return self.batch(number)

    def update(self, batch: BatchFile, state: BatchState, **columns: Any) -> BatchFile:
        """Records the state of a batch, and other columns."""
        columns["state"] = state
        names = ", ".join(f"{name} = ?" for name in columns)
        self._fetch_all(f"UPDATE batches SET {names} WHERE number = ?", (*columns.values(), batch.number))  # noqa: S608 - our own names
        return self.batch(batch.number)

    def close(self, batch: BatchFile) -> None:
        """Closes a batch; its units without vectors may be submitted again."""
        with self._database.transaction():
            lines = "SELECT line FROM lines WHERE batch = ?"
            self._fetch_all(f"UPDATE units SET line = NULL WHERE line IN ({lines})", (batch.number,))  # noqa: S608 - our own names
            self._fetch_all("DELETE FROM units WHERE part_of = 0 AND line IS NULL")
            self._fetch_all("DELETE FROM lines WHERE batch = ?", (batch.number,))
            self.update(batch, "closed")

    # --- lines ----------------------------------------------------------------------------------------------

    def add_line(self, number: int, line: int, units: Sequence[Unit]) -> None:
        """Adds a line to a batch. Its units are in ascending order."""
        checksum = checksums.row_checksum(line, number, [(unit.number, unit.digest) for unit in units])
        self._fetch_all("INSERT INTO lines (line, batch, sum) VALUES (?, ?, ?)", (line, number, checksum))
        self._database.execute_many("UPDATE units SET line = ? WHERE unit = ?", ((line, unit.number) for unit in units))

    def line_units(self, batch: BatchFile, line: int) -> list[int] | None:
        """The units of a line that are under way, none if its vectors are stored; None: the batch has no such line.

        Raises:
            InvalidInput: the line is damaged; its vectors could be assigned to other texts unnoticed.
        """
        for checksum, done in self._fetch_all(
            "SELECT sum, done FROM lines WHERE line = ? AND batch = ?", (line, batch.number)
        ):
            if done:
                return []
            units = self._fetch_all("SELECT unit, hash FROM units WHERE line = ? ORDER BY unit", (line,))
            if not units or checksum != checksums.row_checksum(line, batch.number, units):
                raise checksums.damage_error(
                    self._database.path, f"line {line} of its batches differs from what was submitted"
                )
            return [unit for unit, _ in units]
        return None

    def nth_line(self, batch: BatchFile, nth: int) -> tuple[int, int] | None:
        """Number and first unit of a line, by its position in the file from 1."""
        line = self._fetch_value(
            "SELECT line FROM lines WHERE batch = ? ORDER BY line LIMIT 1 OFFSET ?", (batch.number, max(nth, 1) - 1)
        )
        units = None if line is None else self.line_units(batch, line)
        return (line, units[0]) if units else None

    def lines_without_vectors(self, batch: BatchFile) -> Iterator[tuple[int, list[int]]]:
        """Number and units of the lines of a batch that have no vectors, in order."""
        query = "SELECT line FROM lines WHERE batch = ? AND line > ? AND NOT done ORDER BY line LIMIT ?"
        for (line,) in self._database.fetch_paged(query, batch.number):
            yield line, self.line_units(batch, line) or []

    def store_line(self, line: int, vectors_by_unit: Mapping[int, PackedVectors], tokens: int) -> int:
        """Stores the vectors of a line, and what was billed; returns how many texts are complete with it.

        Raises:
            BadReply: the width of the vectors differs from earlier ones.
        """
        with self._database.transaction():
            units = self._fetch_all("SELECT unit, hash, part_of FROM units WHERE line = ?", (line,))
            reply = PaidReply((1, len(units), tokens))
            for unit, digest, _ in units:
                reply.add(unit, digest, vectors_by_unit[unit])
            self._checkpoint.store_reply(reply)
            self._fetch_all("UPDATE lines SET done = 1 WHERE line = ?", (line,))
            self._fetch_all(
                "UPDATE units SET line = NULL, rounds = 0, refused_files = 0, max_per_line = 0 WHERE line = ?", (line,)
            )
            wholes = {whole for _, _, whole in units if whole}
            return sum(whole is None for _, _, whole in units) + sum(map(self._combine_parts, wholes))

    def _combine_parts(self, whole: int) -> bool:
        """Stores the vector of a long text whose parts all have one; if one is damaged, the text is pending again."""
        rows = self._fetch_all(
            f"SELECT hash, text, {VECTOR_COLUMNS} FROM units LEFT JOIN vectors USING (unit) "  # noqa: S608 - our own names
            "WHERE part_of = ? ORDER BY unit",
            (whole,),
        )
        if any(checksum is None for _, _, checksum, *_ in rows):
            return False
        ((whole_hash, count),) = self._fetch_all("SELECT hash, parts FROM units WHERE unit = ?", (whole,))
        parts = []
        for digest, text, checksum, *columns in rows:
            vectors = PackedVectors(*columns)
            if checksums.is_text_intact(text, digest, whole_hash) and checksums.is_intact(digest, checksum, vectors):
                parts.append(Part(array.array("f", vectors.dense or b"").tolist(), None, float(len(text))))
        self._checkpoint.drop_parts(whole)
        if len(parts) != count:
            return False
        reply = PaidReply()
        reply.add(whole, whole_hash, PackedVectors.pack(combine(parts).dense))
        self._checkpoint.store_reply(reply)
        return True

    # --- units ----------------------------------------------------------------------------------------------

    def units_to_submit(self, selection: Selection) -> Iterator[Unit]:
        """The units to submit, in order. Tables may change during the iteration: new parts of texts come last.

        Raises:
            InvalidInput: a text is damaged.
        """
        query = (
            "SELECT units.unit, units.text, units.hash, units.part_of, units.max_per_line, whole.hash FROM units "  # noqa: S608 - no input in it
            "LEFT JOIN units AS whole ON whole.unit = units.part_of WHERE units.unit > ? AND units.text IS NOT NULL "
            "AND units.reason IS NULL AND units.line IS NULL "
            "AND NOT EXISTS (SELECT 1 FROM units AS part WHERE part.part_of = units.unit) "
            "AND (units.part_of IS NULL OR (whole.text IS NOT NULL AND whole.reason IS NULL)) "
            f"AND NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.unit = units.unit) AND {_SELECTIONS[selection]} "
            "ORDER BY units.unit LIMIT ?"
        )
        for *columns, whole_hash in self._database.fetch_paged(query):
            unit = Unit(*columns)
            if not checksums.is_text_intact(unit.text, unit.digest, whole_hash or b""):
                raise checksums.damage_error(self._database.path, f"text {unit.number} differs from what was read")
            yield unit

    def counts(self) -> tuple[int, int]:
        """Different texts that are under way, and different texts that failed too often in this submission."""
        whole = "coalesce(units.part_of, units.unit)"
        under_way = f"SELECT count(DISTINCT {whole}) FROM units WHERE line IS NOT NULL"  # noqa: S608 - no input in it
        given_up = (
            f"SELECT count(*) FROM units WHERE {PENDING} AND unit IN (SELECT {whole} FROM units "  # noqa: S608 - no input in it
            f"WHERE rounds > 0 AND rounds >= {MAX_ROUNDS} AND line IS NULL)"
        )
        return self._fetch_value(under_way), self._fetch_value(given_up)

    def unsubmitted(self) -> tuple[int, int, int]:
        """Different texts that are neither embedded nor under way, their estimated tokens, and their bytes."""
        texts, tokens, size = self._fetch_all(
            "SELECT count(*), total(tokens), coalesce(sum(length(CAST(text AS BLOB))), 0) FROM units "  # noqa: S608 - no input in it
            f"WHERE {PENDING} AND line IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM units AS part WHERE part.part_of = units.unit AND part.line IS NOT NULL)"
        )[0]
        return texts, round(tokens), size

    def reset_attempts(self) -> None:
        """Allows texts that failed too often to be submitted again."""
        self._fetch_all("UPDATE units SET rounds = 0, refused_files = 0 WHERE rounds > 0")

    def schedule_retry(
        self, units: Iterable[int], *, invalid: bool = False, max_per_line: int = 0, deferred: bool
    ) -> None:
        """Schedules units of a failed line for another one, with at most `max_per_line` units; `deferred`: not now."""
        rounds = MAX_ROUNDS if deferred else 1
        self._database.execute_many(
            "UPDATE units SET rounds = min(rounds + ?, ?), refused_files = refused_files + ?, "
            "max_per_line = CASE WHEN ? THEN ? ELSE max_per_line END WHERE unit = ?",
            ((rounds, MAX_ROUNDS, invalid, max_per_line, max_per_line, unit) for unit in units),
        )

    def place(self, unit: int) -> str | None:
        """The first place in the input of a text, or of the text that it is a part of."""
        return self._fetch_value(  # type: ignore[no-any-return] # NOT NULL
            "SELECT place FROM records JOIN units ON records.unit = coalesce(part_of, units.unit) "
            "WHERE units.unit = ? ORDER BY position LIMIT 1",
            (unit,),
        )

    def text_of(self, unit: int) -> str | None:
        """The text of a unit; None: it is no longer in the input."""
        return self._fetch_value("SELECT text FROM units WHERE unit = ?", (unit,))  # type: ignore[no-any-return] # TEXT

    def split(self, unit: int, texts: Sequence[str]) -> None:
        """Replaces a text or a part by smaller parts, which are submitted in this command."""
        with self._database.transaction():
            (whole,) = self._fetch_all("SELECT coalesce(part_of, unit) FROM units WHERE unit = ?", (unit,))[0]
            (digest,) = self._fetch_all("SELECT hash FROM units WHERE unit = ?", (whole,))[0]
            last = self._fetch_value("SELECT units FROM checkpoint")
            rows = [
                (number, checksums.text_hash(text, digest), estimate_tokens(text), whole, text)
                for number, text in enumerate(texts, last + 1)
            ]
            self._database.execute_many(
                "INSERT INTO units (unit, hash, tokens, part_of, text, rounds) VALUES (?, ?, ?, ?, ?, 1)", rows
            )
            if unit == whole:
                self._fetch_all("UPDATE units SET parts = ? WHERE unit = ?", (len(rows), whole))
            else:
                self._fetch_all("UPDATE units SET part_of = 0 WHERE unit = ?", (unit,))
                self._fetch_all("UPDATE units SET parts = parts + ? WHERE unit = ?", (len(rows) - 1, whole))
            self._fetch_all("UPDATE checkpoint SET units = ?", (last + len(rows),))
