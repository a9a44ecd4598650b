"""Sends requests to endpoints other than that of embeddings, with the same retries; the limiter does not count them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dashscope_embeddings._core import failures, protocol
from dashscope_embeddings._core.failures import ErrorContext, Failure, backoff_seconds, retry_after_seconds
from dashscope_embeddings._core.steps import Sleep
from dashscope_embeddings.errors import Action, DashScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings._core.steps import Send, Step, StepResult

T = TypeVar("T")
RequestFlow: TypeAlias = "Generator[Step, StepResult, T]"

RETRYABLE_ACTIONS = frozenset({Action.RETRY, Action.BACK_OFF})
"""Actions for errors that a retry may resolve."""
_log = logging.getLogger("dashscope_embeddings")


@dataclass(frozen=True, slots=True)
class RequestSender:
    """Sends requests to any endpoint but that of embeddings, and repeats those that fail."""

    error_context: ErrorContext
    """Without the path of the embeddings endpoint."""
    max_retries: int

    def send(self, request: Send, read: Callable[[Reply], T]) -> RequestFlow[T]:
        """Sends one request until it succeeds; raises its error if a retry cannot help, or after `max_retries`."""
        failure_count = 0
        while True:
            result = self.interpret((yield request), read)
            if not isinstance(result, DashScopeError):
                return result
            failure_count += 1
            yield from self.wait_before_retry(result, failure_count)

    def interpret(self, reply: StepResult, read: Callable[[Reply], T]) -> T | DashScopeError:
        """The parsed reply, or the error that it stands for."""
        return failures.interpret(
            reply, lambda success: protocol.parse_error_reply(success) or read(success), self.error_context
        )

    def can_retry(self, error: DashScopeError, failure_count: int) -> bool:
        """Whether to retry after this error, which is failure number `failure_count`."""
        return error.action in RETRYABLE_ACTIONS and failure_count <= self.max_retries

    def wait_before_retry(self, error: DashScopeError, failure_count: int) -> RequestFlow[None]:
        """Waits before the next attempt; raises the error if a retry cannot help."""
        if not self.can_retry(error, failure_count):
            raise error
        seconds = backoff_seconds(failure_count, retry_after_seconds(error))
        _log.info("attempt %d of a request failed, next in %.1f s: %s", failure_count, seconds, error)
        yield from sleep(seconds)


def sleep(seconds: float) -> RequestFlow[None]:
    """Waits; raises `Cancelled` if the caller was stopped."""
    if isinstance(result := (yield Sleep(seconds)), Failure):
        raise failures.error_from_failure(result, ErrorContext())
