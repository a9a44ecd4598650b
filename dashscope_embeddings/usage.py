"""Usage tracking: a hook that receives every request, and sums of what was billed over any block of code."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dashscope_embeddings._process import CleanupLock, locked_soon
from dashscope_embeddings.vectors import Cost, TextType, Usage

_log = logging.getLogger("dashscope_embeddings")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request and its result. Contains no text and no key."""

    model: str
    text_type: TextType
    """The requested role; `protocol="openai"` does not send it."""
    texts: int
    """Texts in the request, including other callers' queries in the same batch."""
    tokens: int | None
    """Billed tokens, also those of a broken reply that states them; 0 for other requests without vectors, None if the
    service did not say."""
    seconds: float
    """From our limiter's permission, after the wait for a `rate_limiter` of yours, to reading the whole reply."""
    attempt: int
    """1 for the first time that these texts are sent, 2 for the second, and so on."""
    request_id: str | None
    outcome: Literal["answered", "throttled", "refused", "failed"]
    """failed: a network error, an internal error of the service, or a broken reply."""
    error: str | None = None
    """The service's error code, or the name of our exception; None if the request was answered."""


OnRequest: TypeAlias = Callable[[RequestRecord], object]


def call_hook(hook: OnRequest, record: RequestRecord) -> None:
    """Calls a user's hook. Its exceptions are only logged, so that no billed vectors are lost."""
    try:
        hook(record)
    except Exception:  # noqa: BLE001 - whatever a user's hook raises
        _log.exception("on_request failed; the request itself is not affected")


class TrackedUsage:
    """Sums of what was billed so far. Safe to read from any thread."""

    def __init__(self) -> None:
        self._usage = Usage()
        self._lock = CleanupLock()

    @property
    def usage(self) -> Usage:
        """The sums so far."""
        with self._lock.current:
            self._lock.run_held()
            return self._usage

    @property
    def requests(self) -> int:
        """Requests answered with vectors, and broken replies that state what they were billed."""
        return self.usage.requests

    @property
    def texts(self) -> int:
        """Texts in those requests."""
        return self.usage.texts

    @property
    def tokens(self) -> int:
        """Input tokens as the service counted them."""
        return self.usage.tokens

    @property
    def cost(self) -> Cost | None:
        """List price of these tokens; None: unknown, or in more than one currency."""
        return self.usage.cost

    @locked_soon
    def add(self, usage: Usage) -> None:
        """Adds what another call was billed."""
        self._usage += usage

    def __str__(self) -> str:
        return str(self.usage)

    def __repr__(self) -> str:
        return f"TrackedUsage({self.usage})"


_context_trackers: contextvars.ContextVar[tuple[TrackedUsage, ...]] = contextvars.ContextVar(
    "dashscope_usage", default=()
)
_process_trackers: set[TrackedUsage] = set()


@contextlib.contextmanager
def track_usage(*, everywhere: bool = False) -> Iterator[TrackedUsage]:
    """Sums up what all embedding calls inside the `with` block are billed, by any client or adapter.

    ```python
    with track_usage() as usage:
        chain.invoke("a question")
    print(usage.requests, usage.tokens, usage.cost)
    ```

    A call is counted when it ends, also when it fails. Blocks may be nested: a call counts in each. Tasks, and
    threads started by LangChain, LlamaIndex and `asyncio.to_thread`, belong to the block in which they were
    started; for a thread of your own use `contextvars.copy_context().run`. Other processes are not counted.

    Args:
        everywhere: also count calls of this process from outside the block while it is open.
    """
    tracked = TrackedUsage()
    token = None
    if everywhere:
        _process_trackers.add(tracked)
    else:
        token = _context_trackers.set((*_context_trackers.get(), tracked))
    try:
        yield tracked
    finally:
        _process_trackers.discard(tracked)
        if token is not None:
            # A generator may be closed in another context than the one it was started in.
            with contextlib.suppress(ValueError):
                _context_trackers.reset(token)


def add_to_trackers(usage: Usage) -> None:
    """Adds what a call was billed to all `track_usage` blocks that it belongs to."""
    for tracked in (*_context_trackers.get(), *tuple(_process_trackers)):
        tracked.add(usage)
