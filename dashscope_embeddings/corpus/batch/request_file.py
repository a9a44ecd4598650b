"""Open texts → lines → a file within the service's limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from pydantic_core import to_json

from dashscope_embeddings._core.text_inputs import complaint
from dashscope_embeddings._core.text_length import estimate, fitting
from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus.batch import messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings.corpus.batch.context import Work
    from dashscope_embeddings.corpus.batch.store import Job, Member, Which

# https://help.aliyun.com/zh/model-studio/batch-quick-start-tutorial and the error codes' page, seen 2026-11-20.
# A page that says MB is taken to mean millions.
MOST_LINES = 50_000
MOST_BYTES = 500_000_000
MOST_LINE_BYTES = 6_000_000
_FRAME = 1_000
"""Bytes of a line beside its texts, with room to spare."""
_CHUNK = 500


@dataclass(slots=True)
class _Group:
    """The texts of one line."""

    members: list[Member] = field(default_factory=list)
    tokens: float = 0.0
    bytes: int = _FRAME
    most: int = 0

    def takes(self, member: Member, tokens: float, size: int, budget: float | None) -> bool:
        """Whether another text fits."""
        if not self.members:
            return True
        rows = min(self.most, member.most or self.most)
        affordable = budget is None or self.tokens + tokens <= budget
        return len(self.members) < rows and self.bytes + size <= MOST_LINE_BYTES and affordable

    def add(self, member: Member, tokens: float, size: int, rows: int) -> None:
        """Takes it."""
        self.most = min(self.most or rows, member.most or rows)
        self.members.append(member)
        self.tokens += tokens
        self.bytes += size


class Cut:
    """Lines of what is open, from the first file to the last."""

    def __init__(self, work: Work, which: Which) -> None:
        self._ledger, self._book, self._which = work.ledger, work.book, which
        self._settings, self._limits, self._ask = work.settings, work.limits, work.ask
        self._groups = self._all_groups()

    def write(self, path: Path) -> Job | None:
        """The next file, and its batch in the ledger; None: there is nothing left to submit.

        Raises:
            OSError: the disk is full, or the like; nothing was planned.
        """
        file = files.create_anew(path)
        try:
            with file, self._ledger.transaction():
                job = self._written(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if job is None:
            path.unlink()
        return job

    def _written(self, file: IO[bytes]) -> Job | None:
        number, line = self._book.next_numbers()
        first, texts, size = line, 0, 0
        chunk: list[tuple[int, list[int]]] = []
        while line - first < MOST_LINES and (group := next(self._groups, None)) is not None:
            content = messages.line(name_of(line), self._ask, [member.text for member in group.members])
            if size + len(content) > MOST_BYTES and size:
                self._groups = _before(group, self._groups)
                break
            file.write(content)
            size += len(content)
            texts += len(group.members)
            chunk.append((line, [member.number for member in group.members]))
            line += 1
            if len(chunk) >= _CHUNK:
                self._book.plan(number, chunk)
                chunk = []
        self._book.plan(number, chunk)
        if line == first:
            return None
        return self._book.planned(number, line - first, texts, again=self._which == "invalid")

    def _all_groups(self) -> Iterator[_Group]:
        rows = min(self._settings.batch_size or self._limits.rows, self._limits.rows)
        budgets = (self._settings.tokens_per_request, self._limits.tokens_per_request)
        budget = min((tokens for tokens in budgets if tokens is not None), default=None)
        group = _Group()
        for member in self._fitting():
            tokens, size = estimate(member.text), len(to_json(member.text)) + 1
            if size + _FRAME > MOST_LINE_BYTES:
                said = f"the text takes {size:,} bytes of JSON, and a line may have {MOST_LINE_BYTES:,}; not sent"
                self._reject(member, said)
                continue
            if not group.takes(member, tokens, size, budget):
                yield group
                group = _Group()
            group.add(member, tokens, size, rows)
        if group.members:
            yield group

    def _fitting(self) -> Iterator[Member]:
        """Texts that are not too long for the model, as the settings have it."""
        policy, limits = self._settings.long_text, self._limits
        for member in self._book.open(self._which):
            if policy == "error" and (said := complaint(member.text, limits, policy)):
                self._reject(member, f"the text {said}; not sent")
            elif member.number < 0 or (parts := [*fitting(member.text, policy, limits.tokens_per_row)]) == [
                member.text
            ]:
                yield member
            else:
                self._book.cut(member.number, parts)  # they come later, with all pieces

    def _reject(self, member: Member, said: str) -> None:
        key = self._book.key(member.number)
        self._book.drop_pieces(key)
        self._ledger.reject(key, said, None, None)


def _before(group: _Group, groups: Iterator[_Group]) -> Iterator[_Group]:
    yield group
    yield from groups


def name_of(line: int) -> str:
    """A line's name in the file: unique in the whole ledger, and not only in its file."""
    return f"line-{line}"


def line_of(name: str) -> int:
    """The line of a name; 0: it is none of ours."""
    digits = name.removeprefix("line-")
    return int(digits) if name != digits and digits.isascii() and digits.isdigit() and len(digits) < _DIGITS else 0


_DIGITS = 19
