"""Tells a reply to this request from the copy of an earlier one.

A server or gateway that writes a reply twice leaves the second copy on the connection, where it would answer the
next request. Two signs give a copy away: a request id, or where there is none a whole body, that was seen before
in answer to another request. Servers that repeat themselves in good faith are told apart by asking once more on
another connection: a copy waits on the connection of its original only.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from dashscope_embeddings._core.protocol import Reply

Finding: TypeAlias = Literal["keep", "close", "stale"]
"""Believe the reply and keep its connection; believe it and close the connection; ask again on another one."""

_REMEMBERED = 5_000
"""Replies in each of two generations: about a megabyte at most."""
_DOUBTS = 3
"""How many repeated ids are doubted although they came on another connection; after that, such a reply is believed and
its connection closed."""
_LATEST = 64


@dataclass
class SeenReplies:
    """What the latest replies on some connections looked like. Threads and tasks may share it."""

    _recent: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    """Hash of an id or body → hash of the request that it answered first, and its connection."""
    _older: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    _told_nothing: set[str] = field(default_factory=set)
    """Of "id" and "body", what this server repeats for different requests."""
    _caches: bool = False
    """Whether it repeats whole replies for equal requests."""
    _doubted: set[int] = field(default_factory=set)
    """Signs for which some request was asked again, the latest ones."""
    _doubts: int = 0

    def judge(self, request: bytes, reply: Reply, request_id: str | None, *, answered: bool, again: bool) -> Finding:
        """Whether `reply` belongs to `request`.

        `answered`: it brings vectors. `again`: an earlier reply to this request was found to be stale.
        """
        if reply.connection is None:
            return "keep"
        if request_id is not None and "id" not in self._told_nothing:
            finding = self._finding("id", hash(request_id), request, reply, again=again)
            if "id" not in self._told_nothing:
                return finding
        if not answered:
            # Nothing tells a copy of it: none must be read.
            return "close"
        return (
            "keep"
            if "body" in self._told_nothing
            else self._finding("body", hash(reply.body), request, reply, again=again)
        )

    def _finding(self, kind: str, sign: int, request: bytes, reply: Reply, *, again: bool) -> Finding:
        asked, connection = self._first(sign, hash(request), reply.connection)
        same_connection = connection == reply.connection
        if asked == hash(request):
            if connection is not None and kind == "id":
                return self._equal_request(same_connection=same_connection)
            return "keep"
        if again and not same_connection and sign in self._doubted:
            self._told_nothing.add(kind)
            return "keep"
        if not same_connection:
            if self._doubts >= _DOUBTS:
                return "close"
            self._doubts += 1
        if len(self._doubted) >= _LATEST:
            self._doubted.clear()
        self._doubted.add(sign)
        return "stale"

    def _first(self, sign: int, asked: int, connection: int | None) -> tuple[int, int | None]:
        """The request and connection that this was seen with first; without a connection where that is now."""
        found = self._recent.get(sign) or self._older.get(sign)
        if found is not None:
            return found
        if len(self._recent) >= _REMEMBERED:
            self._older, self._recent = self._recent, {}
        self._recent[sign] = asked, connection
        return asked, None

    def _equal_request(self, *, same_connection: bool) -> Finding:
        """A copy answers an equal request as well as its own reply would, which still waits on the connection."""
        if self._caches:
            return "keep"
        self._caches = not same_connection
        return "close" if same_connection else "keep"


_of_users_clients: weakref.WeakKeyDictionary[Any, SeenReplies] = weakref.WeakKeyDictionary()


def seen_on(*clients: Any) -> SeenReplies:
    """What was seen on the connections of a user's HTTP clients, which several of our clients may share."""
    owners = [client for client in clients if client is not None]
    try:
        known = next((_of_users_clients[owner] for owner in owners if owner in _of_users_clients), SeenReplies())
        for owner in owners:
            _of_users_clients.setdefault(owner, known)
    except TypeError:  # it cannot be hashed, or has no weak references
        return SeenReplies()
    return known
