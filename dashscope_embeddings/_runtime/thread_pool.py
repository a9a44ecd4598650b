"""Daemon threads, and an event and a future that an exception from a signal handler cannot leave locked.

Python runs signal handlers on the main thread, between any two bytecodes, and what a handler raises (Ctrl-C, a soft
time limit) is raised there. `Event`, `Condition`, `Semaphore` and `Future` take their locks in Python code: an
exception right after leaves them locked for good. Here, locks are taken by single C calls only, or on other threads.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in `deferred_signals`
import _thread
import contextlib
import functools
import itertools
import math
import queue
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from dashscope_embeddings._process import on_fork
from dashscope_embeddings._runtime.deferred_signals import signals_of_this_thread

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_POLL_SECONDS = 0.25
"""Longest single wait in seconds: where a wait cannot be interrupted, a pending signal is handled after it."""
_IDLE_SECONDS = 10.0
"""Seconds until an idle thread ends: longer than the pauses within a job, so that its threads are started once."""


def is_main_thread() -> bool:
    """Whether this is the main thread, on which signal handlers run."""
    if threading.get_ident() != threading.main_thread().ident:
        return False
    try:
        _signal.signal(signal.SIGINT, None)  # always refused: for the thread, or for the handler
    except ValueError:  # `threading` takes the thread that loads it for the main one, which need not be true
        return False
    except TypeError:
        return True
    return True


def _acquire(lock: threading.Lock, seconds: float) -> bool:
    """Whether a lock was acquired before the timeout; signal handlers may raise meanwhile."""
    signals = signals_of_this_thread()
    return lock.acquire(True, seconds) if signals is None else signals.wait(lock.acquire, True, seconds)  # noqa: FBT003


class StopEvent(Protocol):
    """A `SignalSafeEvent`, or a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether the job is cancelled."""

    def wait(self, seconds: float, /) -> bool:
        """Waits until it is set, or until the timeout; returns whether it is set."""


class SignalSafeEvent:
    """`threading.Event` that no exception of a signal handler can leave locked, and that a handler may set.

    Calling it sets it.
    """

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for wake in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # released already
                wake()

    def __call__(self) -> None:
        self.set()

    def clear(self) -> None:
        self._set = False

    def wait(self, seconds: float) -> bool:
        """Waits until it is set, or until the timeout; returns whether it is set."""
        if self._set:
            return True
        lock = threading.Lock()
        lock.acquire()
        self.add_waiter(lock.release)
        try:
            if not self._set:  # it may have been set before the waiter was added
                _acquire(lock, seconds)
        finally:
            self.remove_waiter(lock.release)
        return self._set

    def add_waiter(self, wake: Callable[[], object]) -> None:
        """Calls `wake` when this is set; not if it is set already."""
        self._waiters.append(wake)

    def remove_waiter(self, wake: Callable[[], object]) -> None:
        self._waiters.remove(wake)


class WorkItem(Generic[T]):
    """A call for another thread, and its result: a future."""

    __slots__ = ("_done_lock", "_function", "_is_done", "_on_done", "_result", "_start_lock", "error")

    def __init__(self, function: Callable[[], T], on_done: Callable[[], object] | None = None) -> None:
        """`on_done` is called when it has returned, raised or been cancelled."""
        self._function: Callable[[], T] | None = function
        self._on_done, self._is_done = on_done, False
        self._start_lock, self._done_lock = threading.Lock(), threading.Lock()
        self._done_lock.acquire()
        self._result: list[T] = []
        self.error: BaseException | None = None
        """What it raised."""

    def execute(self) -> None:
        """Calls it on this thread, unless it was cancelled or called already."""
        run, self._function = self._function, None
        if run is None or not self._start_lock.acquire(blocking=False):
            return
        try:
            self._result.append(run())
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self.error = error
        finally:
            self._mark_done()

    def cancel(self) -> bool:
        """Whether it was cancelled: False if it has begun."""
        if not self._start_lock.acquire(blocking=False):
            return False
        self._mark_done()
        return True

    def _mark_done(self) -> None:
        self._is_done = True
        self._done_lock.release()
        if self._on_done is not None:
            self._on_done()

    def done(self) -> bool:
        return self._is_done

    def wait(self, seconds: float = math.inf) -> bool:
        """Waits until it is done, or until the timeout; returns whether it is done."""
        ends_at = time.monotonic() + seconds
        while not self._is_done and (left := ends_at - time.monotonic()) > 0:
            if _acquire(self._done_lock, min(left, _POLL_SECONDS)):
                self._done_lock.release()  # for the next waiter
        return self._is_done

    def result(self) -> T:
        self.wait()
        if self.error is None:
            return self._result[0]
        try:
            raise self.error
        finally:
            del self  # the error holds this frame


class DaemonThreadPool:
    """A thread pool that never delays the end of the program. The process has one: `shared_pool`.

    A work item goes to an idle thread or to a new one: the pool has no limit, because each job limits what it submits.
    `ThreadPoolExecutor` would make the program wait at exit for all threads, also for those that read a reply which
    nobody needs any more, as after Ctrl-C.
    """

    def __init__(self) -> None:
        self._idle: list[_Inbox] = []
        """Those of idle threads. The last one is taken first, so that the others can end."""
        on_fork(self)

    def reset_after_fork(self) -> None:
        """Forgets the threads: a forked child has none of its parent's."""
        self._idle = []

    def submit(self, call: WorkItem[T]) -> WorkItem[T]:
        """Runs a call on another thread; on this one if no thread can be started.

        It may be interrupted anywhere, and takes no lock. An interruption right after `pop` costs one idle thread.
        """
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = queue.SimpleQueue()
            inbox.put(call)
            try:
                # `Thread.start` takes locks in Python code, so another thread calls it for the main one.
                start = functools.partial(_thread.start_new_thread, _start_or_work) if is_main_thread() else _start
                start((self._idle, inbox))
            except (RuntimeError, MemoryError):
                call.execute()
        else:
            inbox.put(call)
        return call


shared_pool = DaemonThreadPool()
"""The threads of all clients of this process."""

_Inbox: TypeAlias = "queue.SimpleQueue[WorkItem[Any]]"
_thread_numbers = itertools.count(1)


def _start(args: tuple[list[_Inbox], _Inbox]) -> None:
    threading.Thread(target=_work, args=args, name=f"dashscope_{next(_thread_numbers)}", daemon=True).start()


def _start_or_work(*args: Any) -> None:
    try:
        _start(args)
    except (RuntimeError, MemoryError):
        _work(*args)  # no second thread can start: this one works


def _work(idle: list[_Inbox], inbox: _Inbox) -> None:
    """Executes calls until none has come for `_IDLE_SECONDS`. Keeps no reference to a finished call."""
    while True:
        try:
            call = inbox.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            try:
                idle.remove(inbox)
            except ValueError:  # `submit` has taken this thread, and is about to give it a call
                call = inbox.get()
            else:
                return
        call.execute()
        del call
        idle.append(inbox)
