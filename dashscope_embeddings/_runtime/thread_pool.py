"""Threads that outlive a call but never the program, and what to wait with where a signal may come at any moment.

Python runs signal handlers on the main thread, between any two of its calls, and what a handler raises (Ctrl-C, a soft
time limit) appears there. `Event`, `Condition`, `Semaphore` and `Future` take their locks in Python code: an exception
that falls right after leaves them taken for good. Here, locks are taken by single C calls only, or on other threads.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_LOOK = 0.25
"""Seconds after which who waits looks again: where a wait cannot be interrupted, an interruption is heard by then."""


def may_be_interrupted() -> bool:
    """Whether this is the thread that signal handlers run on."""
    return threading.get_ident() == threading.main_thread().ident


class Halt(Protocol):
    """A `Flag`, or the `threading.Event` of a caller of ours."""

    def is_set(self) -> bool:
        """Whether the job is given up."""

    def wait(self, seconds: float, /) -> bool:
        """Until it is, or so long; whether it is."""


class Flag:
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
        self.add(mine.release)
        try:
            if not self._set:  # it may have been, before there was anyone to wake
                mine.acquire(timeout=seconds)
        finally:
            self.remove(mine.release)
        return self._set

    def add(self, wake: Callable[[], object]) -> None:
        """Has it called when this is set; not if it is already."""
        self._waiters.append(wake)

    def remove(self, wake: Callable[[], object]) -> None:
        """Has it called no more."""
        self._waiters.remove(wake)


class Call(Generic[T]):
    """Something for another thread to do, and what came of it."""

    __slots__ = ("_claim", "_gate", "_result", "_run", "error", "over")

    def __init__(self, run: Callable[[], T]) -> None:
        self._run: Callable[[], T] | None = run
        self._claim = threading.Lock()
        self._gate = threading.Lock()
        self._gate.acquire()
        self._result: list[T] = []
        self.over = False
        """Whether it has ended."""
        self.error: BaseException | None = None
        """What it raised, once it is over."""

    def perform(self) -> None:
        """Does it here, unless it was cancelled."""
        run, self._run = self._run, None
        if run is None or not self._claim.acquire(blocking=False):
            return
        try:
            self._result.append(run())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
            self.error = error
        finally:
            self._end()

    def cancel(self) -> bool:
        """True: it has not begun, and never will."""
        if not self._claim.acquire(blocking=False):
            return False
        self._end()
        return True

    def _end(self) -> None:
        self.over = True
        self._gate.release()

    def wait(self) -> None:
        """Until it has ended."""
        while not self.over:
            if self._gate.acquire(timeout=_LOOK):
                self._gate.release()  # for the next who waits

    def result(self) -> T:
        """What it returned, or raises what it raised."""
        self.wait()
        if self.error is None:
            return self._result[0]
        try:
            raise self.error
        finally:
            del self  # the error holds this frame


class _Pool:
    """What the threads of `Workers` know. They hold no reference to it."""

    def __init__(self, most: int, name: str) -> None:
        self.most, self.name = most, name
        self.calls: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self.begun = False
        """Whether a first thread has been started."""
        self.lock = threading.Lock()
        self.threads = self.idle = 0


class Workers:
    """At most so many daemon threads, started when they are needed, ended when nobody holds this any more.

    `ThreadPoolExecutor` makes a program wait at its end for every thread, and with it for a reply that nobody
    wants any more, as after Ctrl-C.
    """

    def __init__(self, most: int, name: str) -> None:
        self._pool = _Pool(most, name)
        weakref.finalize(self, self._pool.calls.put, None).atexit = False

    def submit(self, call: Call[T]) -> Call[T]:
        """Has it done, now or when a thread is free; here, where no thread can be started."""
        pool = self._pool
        pool.calls.put(call)
        if pool.begun:
            return call
        try:
            if may_be_interrupted():
                # `Thread.start` takes locks in Python code: another thread calls it.
                _thread.start_new_thread(_begin, (pool,))
            else:
                _thread_of(pool).start()
        except (RuntimeError, MemoryError):
            _work_off(pool)
        else:
            pool.begun = True
        return call


def _thread_of(pool: _Pool) -> threading.Thread:
    return threading.Thread(target=_work, args=(pool,), name=f"{pool.name}_{pool.threads + 1}", daemon=True)


def _begin(pool: _Pool) -> None:
    try:
        _thread_of(pool).start()
    except (RuntimeError, MemoryError):
        _work(pool)  # there will be no second thread: this one does


def _work(pool: _Pool) -> None:
    """Takes calls as long as there are any. Whoever takes one makes sure that another thread waits for the next.

    So callers, who may be interrupted anywhere, only ever put a call into a queue. Holds no reference to what was done.
    """
    with pool.lock:
        if pool.threads >= pool.most:
            return
        pool.threads += 1
        pool.idle += 1
    while (call := pool.calls.get()) is not None:
        with pool.lock:
            pool.idle -= 1
            more = not pool.idle and pool.threads < pool.most
        if more:
            # At the limit of this machine or container it takes longer, with fewer threads.
            with contextlib.suppress(RuntimeError, MemoryError):
                _thread_of(pool).start()
        call.perform()
        del call
        with pool.lock:
            pool.idle += 1
    pool.calls.put(None)  # for the next


def _work_off(pool: _Pool) -> None:
    while True:
        try:
            call = pool.calls.get_nowait()
        except Empty:
            return
        if call is not None:
            call.perform()


class Lock:
    """A lock that is free in a forked child, whoever held it in the parent: `with lock.here:`."""

    def __init__(self) -> None:
        self.here = threading.Lock()
        """To be taken by `with`: one C call, so that an interruption falls before or after it."""
        _locks.add(self)

    def renew(self) -> None:
        """Forgets who held it."""
        self.here = threading.Lock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_renew_all)
