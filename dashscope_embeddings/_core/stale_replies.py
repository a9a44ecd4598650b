"""Detects stale replies: a copy of a reply to an earlier request, read as the reply to this one.

A server or gateway that writes a reply twice leaves the second copy on the connection, where it would answer the
next request. A copy is recognised by its request id, or by its whole body if it has no id, when the same was seen
in a reply to another request. Some servers repeat ids or bodies without being wrong. Repeating the request on
another connection distinguishes them: a copy can only be on the connection of its original.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from dashscope_embeddings._process import on_reset

if TYPE_CHECKING:
    from dashscope_embeddings._core.protocol import Reply

Decision: TypeAlias = Literal["keep", "close", "stale"]
"""Accept the reply and keep its connection; accept it and close the connection; repeat the request on another one."""

_MAX_REMEMBERED_REPLIES = 5_000
"""Replies in each of the two generations, together about a megabyte at most."""
_MAX_DOUBTED_IDS = 3
"""How many times a fingerprint seen on another connection leads to a repeated request; after that, such a reply is
accepted and its connection closed."""
_MAX_DOUBTED_FINGERPRINTS = 64


_Origin: TypeAlias = "tuple[int, int | None]"
"""Where a reply comes from: hash of the request that it answers, and the connection.

A plain tuple: the garbage collector does not look at those of numbers, and thousands are kept.
"""


@dataclass
class SeenReplies:
    """Fingerprints, hashes of ids or bodies, of the latest replies. Threads and tasks may share it."""

    _recent: dict[int, _Origin] = field(default_factory=dict)
    """Fingerprint → origin of the first reply that had it."""
    _older: dict[int, _Origin] = field(default_factory=dict)
    _ambiguous_kinds: set[str] = field(default_factory=set)
    """Fingerprint kinds, "id" or "body", that this server repeats for different requests."""
    _repeats_replies: bool = False
    """Whether this server repeats whole replies for equal requests."""
    _doubted_fingerprints: set[int] = field(default_factory=set)
    """The latest fingerprints that led to a repeated request."""
    _doubt_count: int = 0

    def judge(
        self, request: bytes, reply: Reply, request_id: str | None, *, has_vectors: bool, is_repeat: bool
    ) -> Decision:
        """Whether `reply` belongs to `request`.

        `is_repeat`: an earlier reply to this request was found to be stale.
        """
        if reply.connection_id is None:
            return "keep"
        this = hash(request), reply.connection_id
        if request_id is not None and "id" not in self._ambiguous_kinds:
            decision = self._judge_by("id", hash(request_id), this, is_repeat=is_repeat)
            if "id" not in self._ambiguous_kinds:
                return decision
        if not has_vectors:
            # A copy of an error without an id could not be recognised, so do not read from this connection again.
            return "stale" if self._is_copy_of_vectors(hash(reply.body), this) else "close"
        if "body" in self._ambiguous_kinds:
            return "keep"
        return self._judge_by("body", hash(reply.body), this, is_repeat=is_repeat)

    def _judge_by(self, kind: str, fingerprint: int, this: _Origin, *, is_repeat: bool) -> Decision:
        first = self._find(fingerprint)
        if first is None:
            self._remember(fingerprint, this)
            return "keep"
        same_connection = first[1] == this[1]
        if first[0] == this[0]:
            return self._judge_equal_request(same_connection=same_connection) if kind == "id" else "keep"
        if not same_connection and is_repeat and fingerprint in self._doubted_fingerprints:
            self._ambiguous_kinds.add(kind)
            return "keep"
        if not same_connection and self._doubt_count >= _MAX_DOUBTED_IDS:
            return "close"
        self._doubt_count += not same_connection
        if len(self._doubted_fingerprints) >= _MAX_DOUBTED_FINGERPRINTS:
            self._doubted_fingerprints.clear()
        self._doubted_fingerprints.add(fingerprint)
        return "stale"

    def _judge_equal_request(self, *, same_connection: bool) -> Decision:
        """A copy is a valid answer to an equal request, but the real reply is then still on the connection."""
        if self._repeats_replies:
            return "keep"
        self._repeats_replies = not same_connection
        return "close" if same_connection else "keep"

    def _is_copy_of_vectors(self, fingerprint: int, this: _Origin) -> bool:
        """Whether an unusable reply was the reply to another request on its connection, of more texts or fewer."""
        first = self._find(fingerprint)
        return first is not None and first[0] != this[0] and first[1] == this[1]

    def _find(self, fingerprint: int) -> _Origin | None:
        return self._recent.get(fingerprint) or self._older.get(fingerprint)

    def _remember(self, fingerprint: int, this: _Origin) -> None:
        if len(self._recent) >= _MAX_REMEMBERED_REPLIES:
            self._older, self._recent = self._recent, {}
        self._recent[fingerprint] = this


_seen_by_server: weakref.WeakValueDictionary[str, SeenReplies] = weakref.WeakValueDictionary()
on_reset("replies seen", _seen_by_server.clear)


def seen_replies_of(server: str) -> SeenReplies:
    """The replies seen from a server, by its address: its connections may be shared by several clients."""
    return _seen_by_server.setdefault(server, SeenReplies())
