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
from dashscope_embeddings.corpus.checkpoint.checksums import record_sum, text_differs
from dashscope_embeddings.vectors import average

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dashscope_embeddings.corpus.batch.messages import Told
    from dashscope_embeddings.corpus.checkpoint.store import Ledger

MOST_ROUNDS = 5
"""How often a text is submitted in one go before it is left for another day."""

_SYNCHRONOUS = "FULL"
"""What was submitted is money: unlike a lost reply it must survive a power failure too."""

State = Literal["planned", "uploaded", "creating", "running", "closed"]
Which = Literal["all", "failed", "invalid"]
"""Members to submit: all that are open; those whose line failed in this go; those whose file was refused."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file of lines."""

    number: int
    state: State
    again: bool
    """Whether it holds what was in a file that failed its validation."""
    lines: int
    texts: int
    file_id: str | None
    batch_id: str | None
    status: str | None
    completed: int | None
    failed: int | None


class Member(NamedTuple):
    """A text, or a piece of one, that waits to be embedded."""

    number: int
    text: str
    most: int
    """Texts that a line with it may have; 0: as many as the model takes."""


class Book:
    """The batches of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # No log beside the ledger: whoever copies it while batches run, or after a crash, has all of it.
        ledger.end_log()
        ledger.sql(f"PRAGMA synchronous={_SYNCHRONOUS}")
        with ledger.transaction():
            tables.prepare(ledger)
        if (numbers := self.noted("numbers")) is not None:
            ledger.numbers = numbers

    def _members(self, line: int, batch: int, members: bytes, summed: bytes) -> array.array[int]:
        """What a line stands for: with another text's vectors nobody would notice."""
        try:
            whole = summed == tables.line_sum(self._ledger, line, batch, members)
        except (TypeError, ValueError):
            whole = False
        if not whole:
            raise self._ledger.damage(f"line {line} of its batches is not what was submitted")
        return array.array("q", members)

    # --- what the next command must know --------------------------------------------------------------------

    def note(self, name: str, value: Any) -> None:
        """Keeps a fact."""
        self._ledger.sql("INSERT OR REPLACE INTO batch_notes VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """A fact that was kept; None: it was not."""
        found = self._ledger.sql("SELECT value FROM batch_notes WHERE name = ?", (name,))
        return self._ledger.loads(found[0][0]) if found else None

    # --- batches --------------------------------------------------------------------------------------------

    def jobs(self, *states: State) -> list[Job]:
        """All batches in some states, or in any."""
        chosen = f"WHERE state IN ({','.join('?' * len(states))})" if states else ""
        found = self._ledger.sql(
            "SELECT number, state, again, lines, texts, file_id, batch_id, status, completed, failed "  # noqa: S608 - only question marks
            f"FROM batches {chosen} ORDER BY number",
            states,
        )
        return [Job(row[0], row[1], bool(row[2]), *row[3:]) for row in found]

    def job(self, number: int) -> Job:
        """One batch as it is now."""
        return next(job for job in self.jobs() if job.number == number)

    def next_numbers(self) -> tuple[int, int]:
        """Of the next batch and of its first line."""
        last = dict(self._ledger.sql("SELECT name, seq FROM sqlite_sequence"))
        return last.get("batches", 0) + 1, last.get("batch_lines", 0) + 1

    def plan(self, number: int, lines: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Takes some lines into a batch."""
        packed = [(line, number, array.array("q", members).tobytes()) for line, members in lines]
        rows = [(*row, tables.line_sum(self._ledger, *row)) for row in packed]
        self._ledger.sqls("INSERT INTO batch_lines (line, batch, members, done, sum) VALUES (?, ?, ?, 0, ?)", rows)
        self._ledger.sqls("INSERT INTO batch_out VALUES (?)", ((one,) for _, members in lines for one in members))

    def planned(self, number: int, lines: int, texts: int, *, again: bool) -> Job:
        """A batch whose lines are all chosen."""
        self._ledger.sql(
            "INSERT INTO batches (number, state, again, lines, texts) VALUES (?, 'planned', ?, ?, ?)",
            (number, again, lines, texts),
        )
        return self.job(number)

    def uploaded(self, job: Job, file_id: str) -> None:
        """Its file is there."""
        self._ledger.sql("UPDATE batches SET state = 'uploaded', file_id = ? WHERE number = ?", (file_id, job.number))

    def creating(self, job: Job) -> None:
        """From now on it may exist."""
        self._ledger.sql("UPDATE batches SET state = 'creating' WHERE number = ?", (job.number,))

    def saw(self, job: Job, told: Told) -> None:
        """What the service says of it."""
        self._ledger.sql(
            "UPDATE batches SET state = 'running', batch_id = ?, status = ?, completed = ?, failed = ? "
            "WHERE number = ?",
            (told.batch_id, told.status, told.completed, told.failed, job.number),
        )

    def close(self, job: Job) -> None:
        """Nothing more comes of it: what is not embedded is open again."""
        with self._ledger.transaction():
            for _, members in self.undone(job):
                self._free(members)
            self._ledger.sql("DELETE FROM batch_lines WHERE batch = ?", (job.number,))
            self._ledger.sql("UPDATE batches SET state = 'closed' WHERE number = ?", (job.number,))

    # --- lines ----------------------------------------------------------------------------------------------

    def members(self, job: Job, line: int) -> tuple[array.array[int], bool] | None:
        """What a line stands for, and whether its vectors are there; None: the batch has no such line."""
        found = self._ledger.sql(
            "SELECT members, sum, done FROM batch_lines WHERE line = ? AND batch = ?", (line, job.number)
        )
        return (self._members(line, job.number, *found[0][:2]), bool(found[0][2])) if found else None

    def nth_line(self, job: Job, nth: int) -> tuple[int, int] | None:
        """Number and first member of a line by its place in the file, from 1."""
        found = self._ledger.sql(
            "SELECT line, batch, members, sum FROM batch_lines WHERE batch = ? ORDER BY line LIMIT 1 OFFSET ?",
            (job.number, max(nth, 1) - 1),
        )
        return (found[0][0], self._members(*found[0])[0]) if found else None

    def place(self, member: int) -> str | None:
        """Where in the input a text stands first."""
        key = self.key(member)
        found = self._ledger.sql("SELECT place FROM items WHERE key = ? ORDER BY seq LIMIT 1", (key,))
        return found[0][0] if found else None

    def undone(self, job: Job) -> Iterator[tuple[int, array.array[int]]]:
        """The lines without vectors."""
        last = 0
        while found := self._ledger.sql(
            "SELECT line, batch, members, sum FROM batch_lines WHERE batch = ? AND line > ? AND NOT done "
            "ORDER BY line LIMIT 1000",
            (job.number, last),
        ):
            last = found[-1][0]
            for row in found:
                yield row[0], self._members(*row)

    def done(self, lines: Mapping[int, Sequence[int]]) -> None:
        """The vectors of some lines are in the ledger."""
        self._ledger.sqls("UPDATE batch_lines SET done = 1 WHERE line = ?", ((line,) for line in lines))
        members = [(member,) for group in lines.values() for member in group]
        self._ledger.sqls("DELETE FROM batch_out WHERE member = ?", members)
        self._ledger.sqls("DELETE FROM batch_tries WHERE member = ?", members)

    def _free(self, members: Iterable[int]) -> None:
        self._ledger.sqls("DELETE FROM batch_out WHERE member = ?", ((member,) for member in members))

    # --- members --------------------------------------------------------------------------------------------

    def open(self, which: Which, most: int = 512) -> Iterator[Member]:
        """The texts to submit, then the pieces of long ones, each in order; may be changed meanwhile."""
        rounds = f"t.rounds BETWEEN 1 AND {MOST_ROUNDS - 1} AND t.invalid {'> 0' if which == 'invalid' else '= 0'}"
        wanted = "1" if which == "all" else rounds
        # From the few that failed to their texts, not through all texts.
        texts = "pending p LEFT JOIN batch_tries t ON t.member = p.key"
        pieces = "batch_pieces q LEFT JOIN batch_tries t ON t.member = -q.piece"
        if which != "all":
            texts = "batch_tries t CROSS JOIN pending p ON p.key = t.member"
            pieces = "batch_tries t CROSS JOIN batch_pieces q ON q.piece = -t.member"
        yield from self._paged(
            f"SELECT p.key, p.text, coalesce(t.most, 0), x.hash FROM {texts} CROSS JOIN texts x ON x.key = p.key "  # noqa: S608 - our own words
            f"WHERE p.key > ? AND x.reply IS NULL AND {wanted} "
            "AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = p.key) "
            "AND NOT EXISTS (SELECT 1 FROM batch_pieces WHERE key = p.key) ORDER BY p.key LIMIT ?",
            most,
        )
        for piece in self._paged(
            f"SELECT q.piece, q.text, coalesce(t.most, 0), NULL FROM {pieces} "  # noqa: S608 - our own words
            "CROSS JOIN pending p ON p.key = q.key CROSS JOIN texts x ON x.key = q.key "
            f"WHERE q.piece > ? AND q.dense IS NULL AND x.reply IS NULL AND {wanted} "
            "AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = -q.piece) ORDER BY q.piece LIMIT ?",
            most,
        ):
            self._check_pieces("piece = ?", piece.number)
            yield piece._replace(number=-piece.number)

    def _paged(self, query: str, most: int) -> Iterator[Member]:
        last = 0
        while found := self._ledger.sql(query, (last, most)):
            last = found[-1][0]
            for *member, hashed in found:
                if hashed is not None and text_differs(member[1], hashed):
                    raise self._ledger.damage(f"text {member[0]} is not the one that was read")
                yield Member(*member)

    def counts(self) -> tuple[int, int]:
        """Different texts that are under way, and those that were submitted too often in one go."""
        (under_way,) = self._ledger.sql(tables.UNDER_WAY)[0]
        (left,) = self._ledger.sql(tables.LEFT, (MOST_ROUNDS,))[0]
        return under_way, left

    def waiting(self) -> tuple[int, int, int]:
        """Different texts that are neither embedded nor under way, their estimated tokens, and their bytes."""
        texts, tokens, size = self._ledger.sql(tables.WAITING)[0]
        return texts, round(tokens), size

    def forgive(self) -> None:
        """Texts that were submitted too often may be submitted again."""
        self._ledger.sql("UPDATE batch_tries SET rounds = 0, invalid = 0")

    def again(self, members: Iterable[int], *, invalid: bool = False, most: int = 0, held: bool = False) -> None:
        """Their line failed: they are to go into another, with at most so many texts; `held`: not in this go."""
        rounds, members = MOST_ROUNDS if held else 1, list(members)
        self._ledger.sqls("INSERT OR IGNORE INTO batch_tries VALUES (?, 0, 0, 0)", ((one,) for one in members))
        self._ledger.sqls(
            "UPDATE batch_tries SET rounds = min(rounds + ?, ?), invalid = invalid + ?, "
            "most = CASE WHEN ? THEN ? ELSE most END WHERE member = ?",
            ((rounds, MOST_ROUNDS, invalid, most, most, member) for member in members),
        )

    # --- pieces of long texts -------------------------------------------------------------------------------

    def key(self, member: int) -> int:
        """The text that a member is, or is a piece of."""
        if member > 0:
            return member
        found = self._ledger.sql("SELECT key FROM batch_pieces WHERE piece = ?", (-member,))
        return found[0][0] if found else 0

    def text(self, member: int) -> str | None:
        """None: it is no longer wanted."""
        query = "SELECT text FROM pending WHERE key = ?"
        if member < 0:
            query = "SELECT text FROM batch_pieces WHERE piece = ?"
        found = self._ledger.sql(query, (abs(member),))
        return found[0][0] if found else None

    def cut(self, member: int, texts: Sequence[str]) -> None:
        """Puts pieces in the place of a text, or of a larger piece; they are to be submitted in this go."""
        key = self.key(member)
        with self._ledger.transaction():
            if member < 0:
                self._ledger.sql("DELETE FROM batch_pieces WHERE piece = ?", (-member,))
            (last,) = self._ledger.sql("SELECT max(seq) FROM sqlite_sequence WHERE name = 'batch_pieces'")[0]
            made = [(number, key, text, None) for number, text in enumerate(texts, (last or 0) + 1)]
            rows = [(*row, record_sum(*row)) for row in made]
            self._ledger.sqls("INSERT INTO batch_pieces (piece, key, text, dense, sum) VALUES (?, ?, ?, ?, ?)", rows)
            self.again(-row[0] for row in made)

    def piece_done(self, member: int, dense: bytes) -> tuple[int, list[float]] | None:
        """Keeps a piece's vector; with the last of its text, gives the text's key and mean vector."""
        sql, key = self._ledger.sql, self.key(member)
        self._check_pieces("piece = ?", -member)
        for piece, text in sql("SELECT piece, text FROM batch_pieces WHERE piece = ?", (-member,)):
            summed = record_sum(piece, key, text, dense)
            sql("UPDATE batch_pieces SET dense = ?, sum = ? WHERE piece = ?", (dense, summed, piece))
        if sql("SELECT 1 FROM batch_pieces WHERE key = ? AND dense IS NULL LIMIT 1", (key,)):
            return None
        self._check_pieces("key = ?", key)
        found = sql("SELECT text, dense FROM batch_pieces WHERE key = ? ORDER BY piece", (key,))
        if not found:
            return None
        sql("DELETE FROM batch_pieces WHERE key = ?", (key,))
        vectors = [array.array("f", vector).tolist() for _, vector in found]
        return key, average(vectors, [float(len(text)) for text, _ in found])

    def _check_pieces(self, which: str, number: int) -> None:
        found = self._ledger.sql(f"SELECT piece, key, text, dense, sum FROM batch_pieces WHERE {which}", (number,))  # noqa: S608 - our own words
        if any(record_sum(*row) != summed for *row, summed in found):
            raise self._ledger.damage("a piece of a long text is not what was written")

    def drop_pieces(self, key: int) -> None:
        """Of a text that is refused: its other pieces are not wanted."""
        self._ledger.sql("DELETE FROM batch_pieces WHERE key = ?", (key,))
