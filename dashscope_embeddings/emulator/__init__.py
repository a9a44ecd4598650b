"""An emulator of the text embedding service: no key, no network, no bill.

It is written from the service's documents, not from this package's client, so that each is a test of the other.
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
    """The emulator behind `base_url="emulator"`: one per process; needs no key; logs the latest 100 requests."""
    return Emulator(key_required=False, log=100)


_process.on_reset("emulator", in_process.cache_clear)
