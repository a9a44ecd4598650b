"""The requests of the Batch route: each is asked as often as may help, as those for embeddings are."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.backoff import backoff_seconds, retry_after_seconds
from dashscope_embeddings._core.failures import (
    ErrorContext,
    Failure,
    error_from_failure,
    error_from_reply,
    redact_bad_reply,
)
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.steps import Sleep
from dashscope_embeddings.errors import Action, BadReply, DashScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings._core.steps import Send, Step, StepResult

T = TypeVar("T")
RequestFlow: TypeAlias = "Generator[Step, StepResult, T]"

RETRYABLE_ACTIONS = frozenset({Action.RETRY, Action.BACK_OFF})
"""What a further try may change."""
_log = logging.getLogger("dashscope_embeddings")


@dataclass(frozen=True, slots=True)
class RequestSender:
    """How one command asks."""

    settings: Settings

    @property
    def _error_context(self) -> ErrorContext:
        """Of any endpoint but that for embeddings."""
        return replace(self.settings.error_context, path="")

    def send(self, request: Send, read: Callable[[Reply], T]) -> RequestFlow[T]:
        """One request, as often as it takes.

        Raises:
            DashScopeError: further tries cannot help, or there were too many.
        """
        failures = 0
        while True:
            found = self.interpret((yield request), read)
            if not isinstance(found, DashScopeError):
                return found
            failures += 1
            yield from self.wait_before_retry(found, failures)

    def interpret(self, answer: StepResult, read: Callable[[Reply], T]) -> T | DashScopeError:
        """What a reply says, or the error that it stands for."""
        if isinstance(answer, Failure):
            return error_from_failure(answer, self._error_context)
        if not isinstance(answer, Reply):
            raise TypeError(f"a driver must answer Send with Reply or Failure, not {type(answer).__name__}")
        if (refusal := protocol.parse_error_reply(answer)) is not None:
            return error_from_reply(refusal, self._error_context)
        try:
            return read(answer)
        except BadReply as broken:
            return redact_bad_reply(broken, self._error_context)

    def can_retry(self, error: DashScopeError, failures: int) -> bool:
        """Whether there is to be another try."""
        return error.action in RETRYABLE_ACTIONS and failures <= self.settings.max_retries

    def wait_before_retry(self, error: DashScopeError, failures: int) -> RequestFlow[None]:
        """Before the next try; raises the error where none would help."""
        if not self.can_retry(error, failures):
            raise error
        seconds = backoff_seconds(failures, retry_after_seconds(error))
        _log.info("try %d of a batch's request failed, next in %.1f s: %s", failures, seconds, error)
        yield from sleep(seconds)


def sleep(seconds: float) -> RequestFlow[None]:
    """Lets time pass.

    Raises:
        Cancelled: the command is to stop.
    """
    if isinstance(answer := (yield Sleep(seconds)), Failure):
        raise error_from_failure(answer, ErrorContext())
