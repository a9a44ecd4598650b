"""A batch's results → the ledger: each line is checked as a reply is, and joined by its name, never by its place."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.failures import explained, unbelieved
from dashscope_embeddings._core.protocol import Rows
from dashscope_embeddings._core.splitting import Piece, smaller
from dashscope_embeddings.corpus.batch import messages
from dashscope_embeddings.corpus.batch.request_file import line_of
from dashscope_embeddings.corpus.embedder import packed
from dashscope_embeddings.errors import BadReply, ServiceError, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dashscope_embeddings.corpus.batch.context import Work
    from dashscope_embeddings.corpus.batch.messages import Result
    from dashscope_embeddings.corpus.batch.store import Job
    from dashscope_embeddings.corpus.checkpoint.rows import Vectors
    from dashscope_embeddings.errors import DashScopeError

_CHUNK = 500
"""Lines that are committed at once."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a line has no vectors, and what was billed for it all the same."""

    error: DashScopeError
    answered: bool = False
    tokens: int = 0


class Taking:
    """The results of one batch on their way into the ledger; cut off anywhere, all of it can be done again."""

    def __init__(self, work: Work, job: Job) -> None:
        self._ledger, self._book, self._job = work.ledger, work.book, job
        self._ask, self._limits, self._long_text = work.ask, work.limits, work.settings.long_text
        self._asked = replace(work.settings.asked, path="")
        self._brought = work.brought
        self._failed: dict[int, _Failed] = {}
        """Line → why; only of one file at a time, which has an end."""
        self._done: dict[int, Sequence[int]] = {}
        """Lines of the present transaction whose vectors are in the ledger, and their members."""
        self._kept = 0
        self._seen: set[int] = set()

    @property
    def seen(self) -> int:
        """Lines of the batch of which some result was read."""
        return len(self._seen)

    def read(self, path: Path) -> None:
        """Takes the lines of an output or error file in."""
        with path.open("rb") as file:
            while lines := list(itertools.islice(file, _CHUNK)):
                with self._ledger.transaction():
                    for content in lines:
                        if content.strip():
                            self._take(messages.result(content))
                    self._book.done(self._done)
                self._done = {}

    def _take(self, result: Result | None) -> None:
        line = line_of(result.name) if result is not None else 0
        if result is None or (found := self._book.members(self._job, line)) is None:
            self._brought.strangers += 1
            return
        self._seen.add(line)
        members, done = found
        if done or line in self._done:  # of a file that was read before, or a line that came twice
            return
        read = self._read(result, members)
        if isinstance(read, Rows):
            try:
                self._keep(line, members, read, result.tokens)
            except BadReply as broken:
                read = broken
            else:
                self._failed.pop(line, None)
                return
        self._failed.setdefault(line, _Failed(read, result.reply is not None, result.tokens))

    def _read(self, result: Result, members: Sequence[int]) -> Rows | DashScopeError:
        refusal = result.refusal
        if result.reply is not None:
            try:
                read = protocol.read(self._ask, result.reply, len(members))
            except BadReply as broken:
                return unbelieved(broken, self._asked, self._texts(members))
            if isinstance(read, Rows):
                return read
            refusal = read
        if refusal is None:
            return BadReply("the result of a line says nothing")
        error = explained(refusal, self._asked, self._texts(members))
        if refusal.status == messages.UNKNOWN:
            error.message = error.message.replace(f"answered {refusal.status} ", "answered ", 1)
        return error

    def _texts(self, members: Sequence[int]) -> list[str]:
        return [text for text in map(self._book.text, members) if text is not None]

    def _keep(self, line: int, members: Sequence[int], rows: Rows, tokens: int) -> None:
        paid: dict[int, Vectors] = {}
        means: dict[int, Vectors] = {}
        for member, dense in zip(members, rows.dense or (), strict=True):
            vectors = packed(dense, None)
            if member > 0:
                paid[member] = vectors
            elif vectors.dense and (whole := self._book.piece_done(member, vectors.dense)) is not None:
                key, mean = whole
                means[key] = packed(mean, None)
        self._ledger.keep(paid, 1, len(members), tokens)
        if means:
            self._ledger.keep(means)
        self._done[line] = members
        self._kept += 1
        self._count(len(paid) + len(means), len(members), tokens)

    def _count(self, texts: int, billed: int, tokens: int) -> None:
        brought = self._brought
        brought.texts += texts
        brought.lines += 1
        brought.billed += billed
        brought.tokens += tokens

    # --- the end of a batch ---------------------------------------------------------------------------------

    def end(self, *, held: bool = False, invalid: bool = False) -> None:
        """Closes the batch; what it did not bring goes into another one, or into the rejects.

        Args:
            held: it goes into another one only when somebody says so.
            invalid: the file was refused as a whole.
        """
        book, ledger = self._book, self._ledger
        everything = self._refuses_everything()
        stop: DashScopeError | None = None
        with ledger.transaction():
            for line, members in book.undone(self._job):
                failed = self._failed.get(line)
                if failed is not None and failed.answered:
                    ledger.keep({}, 1, len(members), failed.tokens)
                    self._count(0, len(members), failed.tokens)
                if failed is None or failed.error.verdict in _PASSES or everything is not None:
                    book.again(members, invalid=invalid, held=held or everything is not None)
                elif failed.error.verdict is Verdict.STOP:
                    stop = stop or failed.error
                    book.again(members, held=True)
                else:
                    self._refused(members, failed.error, held=held)
            book.close(self._job)
            ledger.settle()  # what is embedded must be seen to be, before the next file is cut
        self._brought.troubles += [error for error in (everything, stop) if error is not None]

    def _refuses_everything(self) -> DashScopeError | None:
        """A refusal that all lines of several meet alike is about the job, unless some text went through before."""
        errors = [failed.error for failed in self._failed.values()]
        codes = {error.code for error in errors if isinstance(error, ServiceError)}
        alike = len(codes) == 1 and all(error.verdict is Verdict.SPLIT for error in errors)
        if not alike or not 1 < len(errors) == self._job.lines or self._kept or self._ledger.spent()[1]:
            return None
        return None if "inspection" in (codes.pop() or "").lower() else errors[0]

    def _refused(self, members: Sequence[int], error: DashScopeError, *, held: bool) -> None:
        """One refused text never costs its neighbours: in the next round it stands alone."""
        limit = error.limit if isinstance(error, ServiceError) else None
        if len(members) > 1:
            fewer = error.verdict is Verdict.CUT and limit is not None and 0 < limit < len(members)
            if fewer and limit is not None:
                self._limits.fewer_rows(limit)
            self._book.again(members, most=limit if fewer and limit is not None else 1, held=held)
            return
        (member,) = members
        text = self._book.text(member)
        if text is None:
            return
        if error.verdict is Verdict.SHORTEN:
            if groups := smaller([Piece(0, text)], error, self._limits, self._long_text):
                self._book.cut(member, [piece.text for group in groups for piece in group])
                return
            error.advise('Shorten the text, or use long_text="truncate" or "average"')
        self._reject(member, error)

    def _reject(self, member: int, error: DashScopeError) -> None:
        key = self._book.key(member)
        self._book.drop_pieces(key)
        code = error.code if isinstance(error, ServiceError) else None
        self._ledger.reject(key, error.message, code, error.request_id)


_PASSES = frozenset({Verdict.RETRY, Verdict.THROTTLE})
