"""As what the compatible route embeds: its vector of a text beside the native ones of both roles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dashscope_embeddings.check.probes import DOCUMENT, LATE, at_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashscope_embeddings._core.address import Address
    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.check.probes import Account, Ask, Try

Verdict = Literal["query", "document", "both alike", "neither"]

_ALIKE = 1e-4
"""Cosines nearer to 1 than this are of equal vectors: a third party saw 1.0000 for equal roles, 0.99 and less for
different ones (qwen3.7-text-embedding, 2026-09-25)."""


@dataclass(frozen=True, slots=True)
class RoleCheck:
    """Cosines of the vectors that one text gets over the compatible route and natively, in each role."""

    query: float
    """Compatible to native `text_type=query`."""
    document: float
    """Compatible to native `text_type=document`."""
    verdict: Verdict
    between: float
    """Native query to native document: 1 where the role makes no difference."""
    repeated: float
    """Native document to itself, asked again: what "equal" can mean on this host."""
    length: float
    """Euclidean length of the compatible vector."""
    joint: float | None
    """Dense vector of a dense&sparse request to that of a dense one; None: not measured."""
    host: str
    model: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures, or why there are none; and what was tried for them."""

    role: RoleCheck | None
    said: str
    tries: Sequence[Try]


def asks_of(model: Model) -> list[Ask]:
    """The native asks; one more goes over the compatible route."""
    asks: list[Ask] = [("query", "dense"), DOCUMENT]
    return [*asks, ("document", "dense&sparse")] if model.sparse else asks


def measure(account: Account, place: Address, model: Model, earlier: list[float]) -> Measured:
    """Asks for one text in each way; `earlier` is its native document vector from another request."""
    asks = asks_of(model)
    jobs = [account.job(place, model.name, asks), account.job(place, model.name, protocol="openai")]
    found = at_once(jobs, account.timeout * len(asks))
    native, compatible = found[0] or [], found[1] or []
    tries = [*compatible, *native]
    vectors = [one.dense for one in tries[:3] if one.dense is not None]
    if len(compatible) != 1 or len(vectors) != 3:  # noqa: PLR2004 - compatible, query, document
        failed = next((one.said for one in tries[:3] if one.error is not None), LATE)
        return Measured(None, failed, tries)
    over, query, document = vectors
    joint = native[2].dense if len(native) == len(asks) > 2 else None  # noqa: PLR2004 - the third is that one
    repeated = cosine(document, earlier)
    to_query, to_document = cosine(over, query), cosine(over, document)
    role = RoleCheck(
        query=to_query,
        document=to_document,
        verdict=_verdict(to_query, to_document, repeated),
        between=cosine(query, document),
        repeated=repeated,
        length=math.hypot(*over),
        joint=None if joint is None else cosine(joint, document),
        host=place.host,
        model=model.name,
    )
    return Measured(role, "", tries)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """0 where there is nothing to compare: a vector without length, or of another width."""
    lengths = math.hypot(*one) * math.hypot(*other)
    if not lengths or len(one) != len(other):
        return 0.0
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / lengths


def _verdict(query: float, document: float, repeated: float) -> Verdict:
    """Equal is what differs no more than twice what the same request does when it is asked again."""
    slack = max(_ALIKE, 2 * (1 - repeated))
    verdicts: dict[tuple[bool, bool], Verdict] = {
        (True, True): "both alike",
        (True, False): "query",
        (False, True): "document",
        (False, False): "neither",
    }
    return verdicts[1 - query <= slack, 1 - document <= slack]
