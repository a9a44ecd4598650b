"""Write pending texts to request files: group texts into lines, and lines into files within the service's limits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from pydantic_core import to_json

from dashscope_embeddings._core.text_inputs import text_problem
from dashscope_embeddings._core.text_length import estimate_tokens
from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus.batch import messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings.corpus.batch.job import BatchJob
    from dashscope_embeddings.corpus.checkpoint.jobs import Selection
    from dashscope_embeddings.corpus.checkpoint.rows import BatchFile, Unit

# Sources: https://help.aliyun.com/zh/model-studio/batch-quick-start-tutorial and the page on error codes, seen
# 2026-11-20. These pages say MB, which is taken as 1,000,000 bytes: the smaller size.
MAX_FILE_LINES = 50_000
MAX_FILE_BYTES = 500_000_000
MAX_LINE_BYTES = 6_000_000
_LINE_OVERHEAD_BYTES = 1_000
"""Bytes of a line besides its texts, with a margin."""
_LINES_PER_INSERT = 500


@dataclass(slots=True)
class _LineGroup:
    """The texts of one line."""

    units: list[Unit] = field(default_factory=list)
    tokens: float = 0.0
    size: int = _LINE_OVERHEAD_BYTES
    max_per_line: int = 0

    def fits(self, unit: Unit, tokens: float, size: int, token_limit: float | None) -> bool:
        """Whether the line has room for another text."""
        if not self.units:
            return True
        rows = min(self.max_per_line, unit.max_per_line or self.max_per_line)
        affordable = token_limit is None or self.tokens + tokens <= token_limit
        return len(self.units) < rows and self.size + size <= MAX_LINE_BYTES and affordable

    def add(self, unit: Unit, tokens: float, size: int, rows: int) -> None:
        """Adds a text."""
        self.max_per_line = min(self.max_per_line or rows, unit.max_per_line or rows)
        self.units.append(unit)
        self.tokens += tokens
        self.size += size


class RequestFileWriter:
    """Writes the selected texts to one request file after another."""

    def __init__(self, job: BatchJob, selection: Selection) -> None:
        self._checkpoint, self._job_store, self._selection = job.checkpoint, job.job_store, selection
        self._settings, self._limits, self._request_options = job.settings, job.limits, job.request_options
        self._groups: Iterator[_LineGroup] = self._line_groups()

    def write(self, path: Path) -> BatchFile | None:
        """Writes the next file and adds its batch to the checkpoint; None: there is nothing left to submit.

        Raises:
            OSError: for example, the disk is full; the checkpoint is unchanged.
        """
        file = files.create_replacing(path)
        try:
            with file, self._checkpoint.transaction():
                batch = self._write_lines(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if batch is None:
            path.unlink()
        return batch

    def _write_lines(self, file: IO[bytes]) -> BatchFile | None:
        number, line = self._job_store.next_numbers()
        first, texts, size = line, 0, 0
        lines: list[tuple[int, list[Unit]]] = []
        while line - first < MAX_FILE_LINES and (group := next(self._groups, None)) is not None:
            content = messages.request_line(line_name(line), self._request_options, [unit.text for unit in group.units])
            if size + len(content) > MAX_FILE_BYTES and size:
                self._groups = itertools.chain([group], self._groups)
                break
            file.write(content)
            size += len(content)
            texts += len(group.units)
            lines.append((line, group.units))
            line += 1
            if len(lines) >= _LINES_PER_INSERT:
                self._job_store.add_lines(number, lines)
                lines = []
        self._job_store.add_lines(number, lines)
        if line == first:
            return None
        return self._job_store.add_batch(number, line - first, texts, is_resubmission=self._selection == "invalid")

    def _line_groups(self) -> Iterator[_LineGroup]:
        rows = min(self._settings.batch_size or self._limits.rows, self._limits.rows)
        budgets = (self._settings.tokens_per_request, self._limits.tokens_per_request)
        budget = min((tokens for tokens in budgets if tokens is not None), default=None)
        group = _LineGroup()
        for unit in self._fitting_units():
            tokens, size = estimate_tokens(unit.text), len(to_json(unit.text)) + 1
            if size + _LINE_OVERHEAD_BYTES > MAX_LINE_BYTES:
                message = f"the text takes {size:,} bytes of JSON, and a line may have {MAX_LINE_BYTES:,}; not sent"
                self._checkpoint.reject(unit.number, message)
                continue
            if not group.fits(unit, tokens, size, budget):
                yield group
                group = _LineGroup()
            group.add(unit, tokens, size, rows)
        if group.units:
            yield group

    def _fitting_units(self) -> Iterator[Unit]:
        """The selected units that fit the model. Longer texts are rejected or split, depending on `long_text`."""
        policy, limits = self._settings.long_text, self._limits
        for unit in self._job_store.units_to_submit(self._selection):
            if policy == "error" and (message := text_problem(unit.text, limits, policy)):
                self._checkpoint.reject(unit.number, f"the text {message}; not sent")
                continue
            rows = [unit.text] if unit.part_of is not None else [*limits.fit_rows(unit.text, policy)]
            if rows == [unit.text]:
                yield unit
            else:
                self._job_store.split(unit.number, rows)  # units_to_submit yields the parts later


def line_name(line: int) -> str:
    """A line's custom_id: unique in the whole checkpoint, not only in its file."""
    return f"line-{line}"


def line_number(name: str) -> int:
    """The number of a line by its custom_id; 0: the custom_id is not ours."""
    digits = name.removeprefix("line-")
    return int(digits) if name != digits and digits.isascii() and digits.isdigit() and len(digits) < _MAX_DIGITS else 0


_MAX_DIGITS = 19
