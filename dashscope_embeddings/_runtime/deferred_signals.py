"""Signal handlers that run only while the main thread waits, so that it can send a request by itself.

Python runs a signal handler on the main thread, between any two bytecodes, and what the handler raises (Ctrl-C, a soft
time limit) is raised there: halfway through the bookkeeping of a connection or of the rate limiter. Here, a handler
runs at a wait that changes nothing, or at the end of the block; in between it is only noted, for less than a
millisecond. asyncio does the same for Ctrl-C.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # of `signal`, whose functions take 20 µs each to name their results
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from typing_extensions import Self

T = TypeVar("T")

_NUMBERS = sorted(map(int, signal.valid_signals()))
_POLL_SECONDS = 0.25
"""Longest single wait in seconds: a signal that came right before a wait is handled after it."""
_thread_state = threading.local()

IS_SUPPORTED = hasattr(select, "poll")
"""Windows has none, and no wait for a socket there ends at Ctrl-C."""


class DeferredSignals:
    """A context manager for the main thread."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._noted: list[tuple[int, FrameType | None]] = []
        self._is_deferring = True

    def __enter__(self) -> Self:
        _thread_state.signals = self
        try:
            for number in _NUMBERS:
                if callable(handler := _signal.getsignal(number)):
                    self._handlers[number] = handler
                    _signal.signal(number, self._on_signal)
        except BaseException:  # of a handler that was not replaced yet
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for number, handler in self._handlers.items():
                if _signal.getsignal(number) == self._on_signal:  # no handler has set another one
                    _signal.signal(number, handler)
        except BaseException:  # of a handler that is back in its place
            self.__exit__()
            raise
        _thread_state.signals, self._is_deferring = None, False
        self._run_noted()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_deferring:
            self._noted.append((number, frame))
        else:
            self._handlers[number](number, frame)

    def _run_noted(self) -> None:
        if not self._noted:
            return
        try:
            number, frame = self._noted.pop(0)
            self._handlers[number](number, frame)
        finally:  # also if it raised: the next signal may be one that ends the program
            self._run_noted()

    def is_running(self) -> bool:
        """As the sender of a request: this thread goes on with it after any handler."""
        return True

    @property
    def is_deferring(self) -> bool:
        """Whether handlers wait; not within a handler, which may call anything."""
        return self._is_deferring

    def wait(self, function: Callable[..., T], *args: Any) -> T:
        """Calls a function that only waits; handlers run meanwhile, and may raise."""
        before, self._is_deferring = self._is_deferring, False
        try:
            self._run_noted()
            return function(*args)
        finally:
            self._is_deferring = before

    def wait_for_socket(self, connection: Any, seconds: float, *, to_write: bool = False) -> None:
        """Waits until a socket has data, or takes some, or until the timeout."""
        if connection.fileno() < 0 or (not to_write and getattr(connection, "pending", int)()):
            return  # it is closed, or has decrypted data already
        poller = select.poll()
        poller.register(connection, select.POLLOUT if to_write else select.POLLIN)
        ends_at = time.monotonic() + seconds
        while not self.wait(poller.poll, 1e3 * max(0.0, min(seconds, _POLL_SECONDS))):
            if (seconds := ends_at - time.monotonic()) <= 0:
                return


def signals_of_this_thread() -> DeferredSignals | None:
    """The block in which this thread is; None: it is in none."""
    return getattr(_thread_state, "signals", None)
