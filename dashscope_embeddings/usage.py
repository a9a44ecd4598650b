"""Who is told what was asked and billed: a hook for every request, and sums over any piece of code."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dashscope_embeddings.vectors import Cost, TextType, Usage

_log = logging.getLogger("dashscope_embeddings")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request and what came of it. Holds no text and no key."""

    model: str
    text_type: TextType
    """The role that was asked for; `protocol="openai"` does not send it."""
    texts: int
    """Texts in the request; of queries that travel together, all of them."""
    tokens: int | None
    """What was billed: 0 for a request without vectors, None where the service did not say."""
    seconds: float
    """From sending it to having read the reply."""
    attempt: int
    """1 for the first time that these texts are sent, 2 for the second, and so on."""
    request_id: str | None
    outcome: Literal["answered", "throttled", "refused", "failed"]
    """failed: the network, the service's own trouble, or a broken reply."""
    error: str | None = None
    """The service's code, or the name of our error; None: it was answered."""


OnRequest: TypeAlias = Callable[[RequestRecord], object]


def call_hook(hook: OnRequest, record: RequestRecord) -> None:
    """Calls a user's hook. Its failure is logged: it must not cost vectors that are paid for."""
    try:
        hook(record)
    except Exception:  # noqa: BLE001 - whatever a user's hook raises
        _log.exception("on_request failed; the request itself is not touched by that")


class TrackedUsage:
    """Sums of what was billed, growing while they are looked at. Safe to read from any thread."""

    def __init__(self) -> None:
        self._usage = Usage()
        self._lock = threading.Lock()

    @property
    def usage(self) -> Usage:
        """The sums so far."""
        return self._usage

    @property
    def requests(self) -> int:
        """Requests answered with vectors."""
        return self._usage.requests

    @property
    def texts(self) -> int:
        """Texts inside those requests."""
        return self._usage.texts

    @property
    def tokens(self) -> int:
        """Input tokens as the service counted them."""
        return self._usage.tokens

    @property
    def cost(self) -> Cost | None:
        """Their price; None: not known, or in more than one currency."""
        return self._usage.cost

    def add(self, usage: Usage) -> None:
        """Counts what another call was billed."""
        with self._lock:
            self._usage += usage

    def __str__(self) -> str:
        return str(self._usage)

    def __repr__(self) -> str:
        return f"TrackedUsage({self._usage})"


_context_trackers: contextvars.ContextVar[tuple[TrackedUsage, ...]] = contextvars.ContextVar(
    "dashscope_usage", default=()
)
_process_trackers: set[TrackedUsage] = set()


@contextlib.contextmanager
def track_usage(*, everywhere: bool = False) -> Iterator[TrackedUsage]:
    """Sums up what all embedding calls inside the `with` block are billed, whichever object makes them.

    ```python
    with track_usage() as usage:
        chain.invoke("a question")
    print(usage.requests, usage.tokens, usage.cost)
    ```

    Calls are counted when they end, also when they fail. Blocks may be nested: each counts. Tasks, and the
    threads that LangChain, LlamaIndex and `asyncio.to_thread` start, belong to the block in which they were
    started; a thread of your own does with `contextvars.copy_context().run`. Processes do not.

    Args:
        everywhere: count all calls of this process meanwhile, whoever makes them.
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
            # A generator may be closed in another context than it was started in, which ends anyway.
            with contextlib.suppress(ValueError):
                _context_trackers.reset(token)


def add_to_trackers(usage: Usage) -> None:
    """Adds what a call was billed to all blocks that it belongs to."""
    for tracked in (*_context_trackers.get(), *tuple(_process_trackers)):
        tracked.add(usage)
