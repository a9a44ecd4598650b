"""The text embedding service on this machine: no key, no network, no bill.

Written from the service's documents, not from this package's own client, so that each keeps the other honest.
"""

from __future__ import annotations

from functools import lru_cache

from dashscope_embeddings import _process
from dashscope_embeddings.emulator import faults
from dashscope_embeddings.emulator.batch.service import BatchSettings
from dashscope_embeddings.emulator.messages import Asked
from dashscope_embeddings.emulator.service import Emulator

__all__ = ["Asked", "BatchSettings", "Emulator", "faults", "in_process"]


@lru_cache(maxsize=1)
def in_process() -> Emulator:
    """The emulator that `base_url="emulator"` means: one a process; asks for no key; logs 100 requests."""
    return Emulator(key_required=False, log=100)


_process.on_reset("emulator", in_process.cache_clear)
