"""What software of others requested through an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashscope_embeddings.emulator import Emulator


def new_requests(emulator: Emulator) -> list[tuple[str | None, tuple[str, ...]]]:
    """Role and texts of the requests since the last call: documents first, for parallel ones come in any order."""
    requests = emulator.asked
    emulator.clear()
    assert {request.status for request in requests} <= {200}
    return sorted((request.text_type, request.texts) for request in requests)
