"""Threads that outlive a call but never the program, and what to wait with where a signal may come at any moment.

Python runs signal handlers on the main thread, between any two of its calls, and what a handler raises (Ctrl-C, a soft
time limit) appears there. `Event`, `Condition`, `Semaphore` and `Future` take their locks in Python code: an exception
that falls right after leaves them taken for good. Here, locks are taken by single C calls only, or on other threads.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_POLL_SECONDS = 0.25
"""Seconds after which who waits looks again: where a wait cannot be interrupted, an interruption is heard by then."""


def is_main_thread() -> bool:
    """Whether this is the thread that signal handlers run on."""
    return threading.get_ident() == threading.main_thread().ident


class StopEvent(Protocol):
    """A `Flag`, or the `threading.Event` of a caller of ours."""

    def is_set(self) -> bool:
        """Whether the job is given up."""

    def wait(self, seconds: float, /) -> bool:
        """Until it is, or so long; whether it is."""


class SignalSafeEvent:
    """`threading.Event` that no exception of a signal handler can leave locked, and that a handler may set."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether it is."""
        return self._set

    def set(self) -> None:
        """Wakes whoever waits."""
        self._set = True
        for wake in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # woken already
                wake()

    def clear(self) -> None:
        """From now on it has to be set again."""
        self._set = False

    def wait(self, seconds: float) -> bool:
        """Until it is set, or so long; whether it is."""
        if self._set:
            return True
        mine = threading.Lock()
        mine.acquire()
        self.add_waiter(mine.release)
        try:
            if not self._set:  # it may have been, before there was anyone to wake
                mine.acquire(timeout=seconds)
        finally:
            self.remove_waiter(mine.release)
        return self._set

    def add_waiter(self, wake: Callable[[], object]) -> None:
        """Has it called when this is set; not if it is already."""
        self._waiters.append(wake)

    def remove_waiter(self, wake: Callable[[], object]) -> None:
        """Has it called no more."""
        self._waiters.remove(wake)


class WorkItem(Generic[T]):
    """Something for another thread to do, and what came of it."""

    __slots__ = ("_done_lock", "_function", "_result", "_start_lock", "error", "is_done")

    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._start_lock = threading.Lock()
        self._done_lock = threading.Lock()
        self._done_lock.acquire()
        self._result: list[T] = []
        self.is_done = False
        """Whether it has ended."""
        self.error: BaseException | None = None
        """What it raised, once it is over."""

    def execute(self) -> None:
        """Does it here, unless it was cancelled."""
        run, self._function = self._function, None
        if run is None or not self._start_lock.acquire(blocking=False):
            return
        try:
            self._result.append(run())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
            self.error = error
        finally:
            self._mark_done()

    def cancel(self) -> bool:
        """True: it has not begun, and never will."""
        if not self._start_lock.acquire(blocking=False):
            return False
        self._mark_done()
        return True

    def _mark_done(self) -> None:
        self.is_done = True
        self._done_lock.release()

    def wait(self) -> None:
        """Until it has ended."""
        while not self.is_done:
            if self._done_lock.acquire(timeout=_POLL_SECONDS):
                self._done_lock.release()  # for the next who waits

    def result(self) -> T:
        """What it returned, or raises what it raised."""
        self.wait()
        if self.error is None:
            return self._result[0]
        try:
            raise self.error
        finally:
            del self  # the error holds this frame


class _PoolState:
    """What the threads of `Workers` know. They hold no reference to it."""

    def __init__(self, most: int, name: str) -> None:
        self.max_threads, self.name = most, name
        self.work_items: SimpleQueue[WorkItem[Any] | None] = SimpleQueue()
        self.has_started = False
        """Whether a first thread has been started."""
        self.lock = threading.Lock()
        self.thread_count = self.idle_count = 0


class DaemonThreadPool:
    """At most so many daemon threads, started when they are needed, ended when nobody holds this any more.

    `ThreadPoolExecutor` makes a program wait at its end for every thread, and with it for a reply that nobody
    wants any more, as after Ctrl-C.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._pool = _PoolState(max_threads, name)
        weakref.finalize(self, self._pool.work_items.put, None).atexit = False

    def submit(self, call: WorkItem[T]) -> WorkItem[T]:
        """Has it done, now or when a thread is free; here, where no thread can be started."""
        pool = self._pool
        pool.work_items.put(call)
        if pool.has_started:
            return call
        try:
            if is_main_thread():
                # `Thread.start` takes locks in Python code: another thread calls it.
                _thread.start_new_thread(_start_first_thread, (pool,))
            else:
                _new_thread(pool).start()
        except (RuntimeError, MemoryError):
            _run_queued_here(pool)
        else:
            pool.has_started = True
        return call


def _new_thread(pool: _PoolState) -> threading.Thread:
    return threading.Thread(target=_worker_loop, args=(pool,), name=f"{pool.name}_{pool.thread_count + 1}", daemon=True)


def _start_first_thread(pool: _PoolState) -> None:
    try:
        _new_thread(pool).start()
    except (RuntimeError, MemoryError):
        _worker_loop(pool)  # there will be no second thread: this one does


def _worker_loop(pool: _PoolState) -> None:
    """Takes calls as long as there are any. Whoever takes one makes sure that another thread waits for the next.

    So callers, who may be interrupted anywhere, only ever put a call into a queue. Holds no reference to what was done.
    """
    with pool.lock:
        if pool.thread_count >= pool.max_threads:
            return
        pool.thread_count += 1
        pool.idle_count += 1
    while (call := pool.work_items.get()) is not None:
        with pool.lock:
            pool.idle_count -= 1
            more = not pool.idle_count and pool.thread_count < pool.max_threads
        if more:
            # At the limit of this machine or container it takes longer, with fewer threads.
            with contextlib.suppress(RuntimeError, MemoryError):
                _new_thread(pool).start()
        call.execute()
        del call
        with pool.lock:
            pool.idle_count += 1
    pool.work_items.put(None)  # for the next


def _run_queued_here(pool: _PoolState) -> None:
    while True:
        try:
            call = pool.work_items.get_nowait()
        except Empty:
            return
        if call is not None:
            call.execute()
