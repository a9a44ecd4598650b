"""Threads that outlive a call but never the program, and locks that a fork leaves free."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    _Item: TypeAlias = "tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None"

T = TypeVar("T")


class Workers:
    """At most so many daemon threads, started when they are needed, ended when nobody holds this any more.

    `ThreadPoolExecutor` makes a program wait at its end for every thread, and with it for a reply that nobody
    wants any more, as after Ctrl-C.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0
        self._lock = threading.Lock()
        weakref.finalize(self, self._queue.put, None).atexit = False

    def submit(self, run: Callable[..., T], *args: Any) -> Future[T]:
        """Has it done, now or when a thread is free."""
        future: Future[T] = Future()
        self._queue.put((future, run, args))
        if not self._idle.acquire(timeout=0):
            with self._lock:
                if self._started < self._most:
                    self._started += 1
                    name = f"{self._name}_{self._started}"
                    threading.Thread(target=_work, args=(self._queue, self._idle), name=name, daemon=True).start()
        return future


def _work(queue: SimpleQueue[_Item], idle: threading.Semaphore) -> None:
    """Holds no reference to its pool, nor, while it waits, to anything that was done."""
    while True:
        try:
            item = queue.get_nowait()
        except Empty:
            idle.release()
            item = queue.get()
        if item is None:
            queue.put(None)  # for the next
            return
        _do(*item)
        del item


def _do(future: Future[T], run: Callable[..., T], args: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = run(*args)
    except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
        future.set_exception(error)
    else:
        future.set_result(result)


class Lock:
    """A lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        # One that was taken before a fork is let go after it, in the child too.
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def renew(self) -> None:
        """Forgets who held it."""
        self._lock = threading.Lock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_renew_all)
