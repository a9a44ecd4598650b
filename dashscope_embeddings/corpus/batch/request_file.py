"""Writes pending texts to request files: groups texts into lines, and lines into files within the service's limits."""

from __future__ import annotations

import itertools
import re
from typing import IO, TYPE_CHECKING

from pydantic_core import to_json

from dashscope_embeddings._core.planning import BatchPlanner
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


class RequestFileWriter:
    """Writes the selected texts to one request file after another."""

    def __init__(self, job: BatchJob, selection: Selection) -> None:
        self._job, self._checkpoint, self._job_store, self._selection = job, job.checkpoint, job.job_store, selection
        self._lines: Iterator[list[Unit]] = self._group_units()

    def write(self, path: Path) -> BatchFile | None:
        """Writes the next file and adds its batch to the checkpoint; None: there is nothing left to submit.

        Raises:
            OSError: for example, the disk is full; the checkpoint is unchanged.
        """
        file = files.create_replacing(path)
        try:
            with files.name_in_errors(path), file, self._checkpoint.transaction():
                batch = self._write_lines(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if batch is None:
            path.unlink()
        return batch

    def _write_lines(self, file: IO[bytes]) -> BatchFile | None:
        number, line = self._job_store.next_numbers()
        options, first, texts = self._job.request_options, line, 0
        for units in itertools.islice(self._lines, MAX_FILE_LINES):
            content = messages.request_line(line_name(line), options, [unit.text for unit in units])
            if texts and file.tell() + len(content) > MAX_FILE_BYTES:
                self._lines = itertools.chain([units], self._lines)
                break
            file.write(content)
            self._job_store.add_line(number, line, units)
            texts += len(units)
            line += 1
        if not texts:
            return None
        return self._job_store.add_batch(number, line - first, texts, is_resubmission=self._selection == "invalid")

    def _group_units(self) -> Iterator[list[Unit]]:
        """The units of each line: as many as a request may have, and of one `max_per_line`."""
        settings = self._job.settings
        planner = BatchPlanner(self._job.limits, max_rows=settings.batch_size, max_tokens=settings.tokens_per_request)
        line: list[Unit] = []
        line_tokens, line_size = 0.0, _LINE_OVERHEAD_BYTES
        for unit in self._fitting_units():
            tokens, size = estimate_tokens(unit.text), len(to_json(unit.text)) + 1
            if size + _LINE_OVERHEAD_BYTES > MAX_LINE_BYTES:
                message = f"the text takes {size:,} bytes of JSON, and a line may have {MAX_LINE_BYTES:,}; not sent"
                self._checkpoint.reject(unit.number, message)
                continue
            if line and (
                unit.max_per_line != line[0].max_per_line
                or 0 < unit.max_per_line <= len(line)
                or line_size + size > MAX_LINE_BYTES
                or not planner.has_room(len(line), line_tokens, tokens)
            ):
                yield line
                line, line_tokens, line_size = [], 0.0, _LINE_OVERHEAD_BYTES
            line.append(unit)
            line_tokens += tokens
            line_size += size
        if line:
            yield line

    def _fitting_units(self) -> Iterator[Unit]:
        """The selected units that fit the model. Longer texts are rejected or split, depending on `long_text`."""
        policy, limits = self._job.settings.long_text, self._job.limits
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
    match = re.fullmatch("line-([0-9]{1,18})", name)
    return int(match[1]) if match is not None else 0
