"""Connection pools that clients of this process with equal settings share, until the last of them is closed."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._process import ForkSafeLock

if TYPE_CHECKING:
    from collections.abc import Callable


class SharedPool:
    """A pool for threads, or for one event loop, and who uses it. It is closed with its last user."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.turns = asyncio.Lock()
        """Held by a reply for one turn of the loop before it is parsed."""
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()

    def leave(self, user: object) -> bool:
        """Takes a user out; returns whether it was the last one, who must close the pool."""
        with _lock.current:
            self.users.discard(user)
            return not self.users


_shared: weakref.WeakValueDictionary[tuple[object, ...], SharedPool] = weakref.WeakValueDictionary()
_lock = ForkSafeLock()


def join_shared_pool(
    user: object, digest: bytes, loop: asyncio.AbstractEventLoop | None, make: Callable[[], SharedPool]
) -> SharedPool:
    """The pool of these settings, for threads or for a loop, which `user` uses from now on; made if there is none.

    `digest` stands for all settings of the connections and of their requests, so that no key is kept here.
    """
    key = (os.getpid(), digest, loop)  # never a socket of the parent process
    with _lock.current:
        shared = _shared.get(key)
        if shared is None or not shared.users:
            shared = _shared[key] = make()
        shared.users.add(user)
        return shared
