"""A fault of the emulator: the sparse vector of some texts is present, but empty."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dashscope_embeddings.emulator.faults import Fault

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.messages import Response


@dataclass(frozen=True)
class Unweighted(Fault):
    """Texts with the token `match` get an empty sparse vector."""

    match: str | None = "unweighted"

    def corrupt(self, response: Response) -> Response:
        document = json.loads(response.body)
        for row in document["output"]["embeddings"]:
            if any(entry["token"] == self.match for entry in row.get("sparse_embedding", [])):
                row["sparse_embedding"] = []
        return replace(response, body=json.dumps(document).encode())
