"""The requests of the Batch route: each is asked as often as may help, as those for embeddings are."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.exchange import Sleep, backoff, capped
from dashscope_embeddings._core.failures import Asked, Failure, explained, unanswered, unbelieved
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings.errors import BadReply, DashScopeError, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dashscope_embeddings._core.exchange import Answer, Send, Step
    from dashscope_embeddings._core.settings import Settings

T = TypeVar("T")
Flow: TypeAlias = "Generator[Step, Answer, T]"

PASSES = frozenset({Verdict.RETRY, Verdict.THROTTLE})
"""What a further try may change."""
_log = logging.getLogger("dashscope_embeddings")


@dataclass(frozen=True, slots=True)
class Requests:
    """How one command asks."""

    settings: Settings

    @property
    def _asked(self) -> Asked:
        """Of any endpoint but that for embeddings."""
        return replace(self.settings.asked, path="")

    def ask(self, send: Send, read: Callable[[Reply], T]) -> Flow[T]:
        """One request, as often as it takes.

        Raises:
            DashScopeError: further tries cannot help, or there were too many.
        """
        failures = 0
        while True:
            found = self.answered((yield send), read)
            if not isinstance(found, DashScopeError):
                return found
            failures += 1
            yield from self.pause(found, failures)

    def answered(self, answer: Answer, read: Callable[[Reply], T]) -> T | DashScopeError:
        """What a reply says, or the error that it stands for."""
        if isinstance(answer, Failure):
            return unanswered(answer, self._asked)
        if not isinstance(answer, Reply):
            raise TypeError(f"a driver must answer Send with Reply or Failure, not {type(answer).__name__}")
        if (refusal := protocol.refusal(answer)) is not None:
            return explained(refusal, self._asked)
        try:
            return read(answer)
        except BadReply as broken:
            return unbelieved(broken, self._asked)

    def may_pass(self, error: DashScopeError, failures: int) -> bool:
        """Whether there is to be another try."""
        return error.verdict in PASSES and failures <= self.settings.max_retries

    def pause(self, error: DashScopeError, failures: int) -> Flow[None]:
        """Before the next try; raises the error where none would help."""
        if not self.may_pass(error, failures):
            raise error
        seconds = backoff(failures, capped(error))
        _log.info("try %d of a batch's request failed, next in %.1f s: %s", failures, seconds, error)
        yield from sleep(seconds)


def sleep(seconds: float) -> Flow[None]:
    """Lets time pass.

    Raises:
        GivenUp: the command is to stop.
    """
    if isinstance(given_up := (yield Sleep(seconds)), Failure):
        raise unanswered(given_up, Asked())
