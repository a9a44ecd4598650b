"""Daemon threads, and an event and a future that an exception from a signal handler cannot leave locked.

Python runs signal handlers on the main thread, between any two bytecodes, and what a handler raises (Ctrl-C, a soft
time limit) is raised there. `Event`, `Condition`, `Semaphore` and `Future` take their locks in Python code: an
exception right after leaves them locked for good. Here, locks are taken by single C calls only, or on other threads.
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
"""Longest single wait in seconds: where a wait cannot be interrupted, a pending signal is handled after it."""


def is_main_thread() -> bool:
    """Whether this is the main thread, on which signal handlers run."""
    return threading.get_ident() == threading.main_thread().ident


class StopEvent(Protocol):
    """A `SignalSafeEvent`, or a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether the job is cancelled."""

    def wait(self, seconds: float, /) -> bool:
        """Waits until it is set, or for so many seconds; returns whether it is."""


class SignalSafeEvent:
    """`threading.Event` that no exception of a signal handler can leave locked, and that a handler may set."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Sets it and calls all waiters."""
        self._set = True
        for wake in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # released already
                wake()

    def clear(self) -> None:
        """Unsets it."""
        self._set = False

    def wait(self, seconds: float) -> bool:
        """Waits until it is set, or for so many seconds; returns whether it is."""
        if self._set:
            return True
        lock = threading.Lock()
        lock.acquire()
        self.add_waiter(lock.release)
        try:
            if not self._set:  # it may have been set before the waiter was added
                lock.acquire(timeout=seconds)
        finally:
            self.remove_waiter(lock.release)
        return self._set

    def add_waiter(self, wake: Callable[[], object]) -> None:
        """Calls `wake` when this is set; not if it is set already."""
        self._waiters.append(wake)

    def remove_waiter(self, wake: Callable[[], object]) -> None:
        """No longer calls `wake`."""
        self._waiters.remove(wake)


class WorkItem(Generic[T]):
    """A call for another thread, and its result: a future."""

    __slots__ = ("_done_lock", "_function", "_result", "_start_lock", "error", "is_done")

    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._start_lock = threading.Lock()
        self._done_lock = threading.Lock()
        self._done_lock.acquire()
        self._result: list[T] = []
        self.is_done = False
        """Whether it has returned, raised or been cancelled."""
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
        self.is_done = True
        self._done_lock.release()

    def wait(self) -> None:
        """Waits until it is done."""
        while not self.is_done:
            if self._done_lock.acquire(timeout=_POLL_SECONDS):
                self._done_lock.release()  # for the next waiter

    def result(self) -> T:
        """What it returned; raises what it raised."""
        self.wait()
        if self.error is None:
            return self._result[0]
        try:
            raise self.error
        finally:
            del self  # the error holds this frame


class _PoolState:
    """State shared by a pool's threads, which hold no reference to the `DaemonThreadPool` itself."""

    def __init__(self, max_threads: int, name: str) -> None:
        self.max_threads, self.name = max_threads, name
        self.work_items: SimpleQueue[WorkItem[Any] | None] = SimpleQueue()
        self.has_started = False
        """Whether a first thread has been started."""
        self.lock = threading.Lock()
        self.thread_count = self.idle_count = 0


class DaemonThreadPool:
    """A thread pool that never delays the end of the program.

    Threads start when they are needed, and end when this object is garbage collected. `ThreadPoolExecutor` would make
    the program wait at exit for every thread, and so for replies that are no longer needed, for instance after Ctrl-C.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._pool = _PoolState(max_threads, name)
        weakref.finalize(self, self._pool.work_items.put, None).atexit = False

    def submit(self, call: WorkItem[T]) -> WorkItem[T]:
        """Queues a call; runs it on this thread if no thread can be started."""
        pool = self._pool
        pool.work_items.put(call)
        if pool.has_started:
            return call
        try:
            if is_main_thread():
                # `Thread.start` takes locks in Python code, so another thread calls it.
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
        _worker_loop(pool)  # no second thread can start: this one works


def _worker_loop(pool: _PoolState) -> None:
    """Executes queued calls until the pool ends.

    A thread that takes a call makes sure that another thread waits for the next one. So `submit`, which may be
    interrupted anywhere, only puts a call into a queue. Keeps no reference to a finished call.
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
            # At the thread limit of the machine or container the pool goes on with fewer threads.
            with contextlib.suppress(RuntimeError, MemoryError):
                _new_thread(pool).start()
        call.execute()
        del call
        with pool.lock:
            pool.idle_count += 1
    pool.work_items.put(None)  # ends the next thread


def _run_queued_here(pool: _PoolState) -> None:
    while True:
        try:
            call = pool.work_items.get_nowait()
        except Empty:
            return
        if call is not None:
            call.execute()
