"""Who may come in: API keys, of which only fingerprints are kept."""

from __future__ import annotations

import hashlib
import hmac
import threading
from typing import TYPE_CHECKING

from dashscope_embeddings.emulator.error_responses import wrong_key

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.messages import Request


class Keys:
    """The check of every request's key.

    Args:
        only: the only key that is let in; None: any key is.
        required: False lets requests without a key in.
    """

    def __init__(self, only: str | None, *, required: bool) -> None:
        self._only = None if only is None else _fingerprint(only)
        self._required = required
        self._seen: set[str] = set()
        self.renew_lock()

    def renew_lock(self) -> None:
        """After a fork: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    @property
    def seen(self) -> frozenset[str]:
        """Fingerprints of every key that came along."""
        with self._lock:
            return frozenset(self._seen)

    def forget(self) -> None:
        """Forget the keys that came along."""
        with self._lock:
            self._seen.clear()

    def check(self, request: Request) -> str:
        """The fingerprint of a request's key; empty where none came, and none need come.

        Raises:
            Refusal: for a wrong key, or none.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if not key:
            if self._required:
                raise wrong_key()
            return ""
        fingerprint = _fingerprint(key)
        with self._lock:
            self._seen.add(fingerprint)
        if self._only is not None and not hmac.compare_digest(self._only, fingerprint):
            raise wrong_key()
        return fingerprint


def _fingerprint(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
