"""Who may come in: API keys, of which only fingerprints are kept."""

from __future__ import annotations

import hashlib
import hmac
import threading
from typing import TYPE_CHECKING

from dashscope_embeddings.emulator.error_responses import invalid_api_key

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.messages import Request


class Authenticator:
    """The check of every request's key.

    Args:
        only: the only key that is let in; None: any key is.
        required: False lets requests without a key in.
    """

    def __init__(self, accepted_key: str | None, *, required: bool) -> None:
        self._accepted_fingerprint = None if accepted_key is None else _fingerprint(accepted_key)
        self._required = required
        self._seen_fingerprints: set[str] = set()
        self.reset_lock()

    def reset_lock(self) -> None:
        """After a fork: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    @property
    def seen_fingerprints(self) -> frozenset[str]:
        """Fingerprints of every key that came along."""
        with self._lock:
            return frozenset(self._seen_fingerprints)

    def clear(self) -> None:
        """Forget the keys that came along."""
        with self._lock:
            self._seen_fingerprints.clear()

    def authenticate(self, request: Request) -> str:
        """The fingerprint of a request's key; empty where none came, and none need come.

        Raises:
            Refusal: for a wrong key, or none.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if not key:
            if self._required:
                raise invalid_api_key()
            return ""
        fingerprint = _fingerprint(key)
        with self._lock:
            self._seen_fingerprints.add(fingerprint)
        if self._accepted_fingerprint is not None and not hmac.compare_digest(self._accepted_fingerprint, fingerprint):
            raise invalid_api_key()
        return fingerprint


def _fingerprint(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
