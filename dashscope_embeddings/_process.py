"""State that exists once per process, with one reset: what clients share, warnings shown, what a fork invalidates.

And locks: one that is free in a forked child, and one that cleanup never waits for.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from typing import TYPE_CHECKING, Concatenate, Protocol, TypeVar

from typing_extensions import ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable


# --- shared state ------------------------------------------------------------------------------------------

_resets: dict[str, tuple[Callable[[], object], bool]] = {}


def on_reset(name: str, reset_state: Callable[[], object], *, learned: bool = False) -> None:
    """Registers how a module resets the state that it keeps for the whole process.

    `learned`: the state was learned from replies of the service: limits and rates.
    """
    _resets[name] = reset_state, learned


def reset(*, learned_only: bool = False) -> None:
    """Resets the state that clients share, for tests: limiters, observed limits, warnings shown, the emulator.

    A client that lives on keeps what it holds already.
    """
    for reset_state, learned in _resets.values():
        if learned or not learned_only:
            reset_state()


# --- warnings ---------------------------------------------------------------------------------------------

_warned: set[str] = set()
on_reset("warnings shown", _warned.clear)


def warn_once(key: str, message: str) -> None:
    """Emits a `UserWarning` once per process and `key`."""
    if key in _warned:
        return
    _warned.add(key)
    warnings.warn(message, UserWarning, stacklevel=_user_stacklevel())


def _user_stacklevel() -> int:
    """The `stacklevel` at which `warn_once` points to the caller of this package, possibly behind pydantic."""
    level, frame = 2, sys._getframe(2)  # noqa: SLF001 - `skip_file_prefixes` needs Python 3.12
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INTERNAL_PACKAGES:
        level, frame = level + 1, frame.f_back
    return level


_INTERNAL_PACKAGES = frozenset({"dashscope_embeddings", "pydantic"})


# --- forks -------------------------------------------------------------------------------------------------


class ForkSensitive(Protocol):
    """Holds what belongs to one process alone: a lock that another thread may hold, or callers that wait."""

    def reset_after_fork(self) -> None:
        """Called in a forked child, in which one thread runs."""


_fork_sensitive: weakref.WeakSet[ForkSensitive] = weakref.WeakSet()


def on_fork(thing: ForkSensitive) -> None:
    """Has an object reset in every forked child, as long as the object lives."""
    _fork_sensitive.add(thing)


class ForkSafeLock:
    """A lock that is free in a forked child, whichever thread of the parent held it: `with lock.current:`."""

    def __init__(self) -> None:
        self.current = threading.Lock()
        """To be taken by `with`: one C call, so that an interruption falls before or after it."""
        on_fork(self)

    def reset_after_fork(self) -> None:
        """Replaces the lock: the thread that held it does not exist here."""
        self.current = threading.Lock()


class CleanupLock(ForkSafeLock):
    """A lock for what cleanup changes, too.

    The garbage collector may close a flow or a coroutine at any allocation, also while this very thread holds the lock,
    or one that the holder of this one waits for. So cleanup does not wait: what it has to do is done by the holder.
    """

    def __init__(self) -> None:
        super().__init__()
        self._actions: deque[Callable[[], object]] = deque()

    def reset_after_fork(self) -> None:
        """Also forgets what the threads of the parent were to do."""
        super().reset_after_fork()
        self._actions.clear()

    def run_soon(self, action: Callable[[], object]) -> None:
        """Runs an action with the lock held: at once if the lock is free, else when its holder releases it."""
        self._actions.append(action)
        self.run_waiting()

    def run_waiting(self) -> None:
        """Runs the actions that came while the lock was held: to be called after `with lock.current:`."""
        while self._actions:
            acquired: list[bool] = []
            try:
                # One C call acquires the lock and notes it: an interruption between the two would leave it locked.
                acquired.extend(map(self.current.acquire, (False,)))
                if acquired == [False]:
                    return
                self.run_held()
            finally:
                if acquired == [True]:
                    self.current.release()

    def run_held(self) -> None:
        """`run_waiting` for the holder of the lock."""
        while self._actions:
            self._actions.popleft()()


class _Locked(Protocol):
    @property
    def _lock(self) -> CleanupLock: ...


_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound=_Locked)


def locked(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """A method that holds the object's `CleanupLock` in `_lock`."""

    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **keywords: _P.kwargs) -> _R:
        with self._lock.current:
            self._lock.run_held()
            result = method(self, *args, **keywords)
        self._lock.run_waiting()
        return result

    return call


def locked_soon(method: Callable[Concatenate[_S, _P], None]) -> Callable[Concatenate[_S, _P], None]:
    """`locked` for cleanup: does not wait for the lock, so its holder may run the method a little later."""

    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **keywords: _P.kwargs) -> None:
        self._lock.run_soon(functools.partial(method, self, *args, **keywords))

    return call


def _reset_forked_child() -> None:
    for thing in list(_fork_sensitive):
        thing.reset_after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_reset_forked_child)
