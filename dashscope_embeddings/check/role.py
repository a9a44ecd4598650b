"""As what the compatible route embeds: its vector of a text beside the native ones of both roles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dashscope_embeddings.check.probes import DENSE_DOCUMENT, NO_ANSWER_IN_TIME, run_concurrently

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashscope_embeddings._core.address import Address
    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.check.probes import Attempt, Prober, RequestVariant

RoleVerdict = Literal["query", "document", "both alike", "neither"]

_EQUALITY_TOLERANCE = 1e-4
"""Cosines nearer to 1 than this are of equal vectors: a third party saw 1.0000 for equal roles, 0.99 and less for
different ones (qwen3.7-text-embedding, 2026-09-25)."""


@dataclass(frozen=True, slots=True)
class RoleCheck:
    """Cosines of the vectors that one text gets over the compatible route and natively, in each role."""

    query: float
    """Compatible to native `text_type=query`."""
    document: float
    """Compatible to native `text_type=document`."""
    verdict: RoleVerdict
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
class RoleMeasurement:
    """The figures, or why there are none; and what was tried for them."""

    role: RoleCheck | None
    reason: str
    attempts: Sequence[Attempt]


def variants_of(model: Model) -> list[RequestVariant]:
    """The native asks; one more goes over the compatible route."""
    variants: list[RequestVariant] = [("query", "dense"), DENSE_DOCUMENT]
    return [*variants, ("document", "dense&sparse")] if model.sparse else variants


def measure_role(prober: Prober, host_address: Address, model: Model, document_vector: list[float]) -> RoleMeasurement:
    """Asks for one text in each way; `earlier` is its native document vector from another request."""
    variants = variants_of(model)
    tasks = [
        prober.probe(host_address, model.name, variants),
        prober.probe(host_address, model.name, protocol="openai"),
    ]
    results = run_concurrently(tasks, prober.timeout * len(variants))
    native, compatible = results[0] or [], results[1] or []
    attempts = [*compatible, *native]
    vectors = [one.dense for one in attempts[:3] if one.dense is not None]
    if len(compatible) != 1 or len(vectors) != 3:  # noqa: PLR2004 - compatible, query, document
        failed = next((one.message for one in attempts[:3] if one.error is not None), NO_ANSWER_IN_TIME)
        return RoleMeasurement(None, failed, attempts)
    compatible_vector, query, document = vectors
    joint = native[2].dense if len(native) == len(variants) > 2 else None  # noqa: PLR2004 - the third is that one
    repeated = cosine_similarity(document, document_vector)
    to_query, to_document = cosine_similarity(compatible_vector, query), cosine_similarity(compatible_vector, document)
    role = RoleCheck(
        query=to_query,
        document=to_document,
        verdict=_role_verdict(to_query, to_document, repeated),
        between=cosine_similarity(query, document),
        repeated=repeated,
        length=math.hypot(*compatible_vector),
        joint=None if joint is None else cosine_similarity(joint, document),
        host=host_address.host,
        model=model.name,
    )
    return RoleMeasurement(role, "", attempts)


def cosine_similarity(one: Sequence[float], other: Sequence[float]) -> float:
    """0 where there is nothing to compare: a vector without length, or of another width."""
    lengths = math.hypot(*one) * math.hypot(*other)
    if not lengths or len(one) != len(other):
        return 0.0
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / lengths


def _role_verdict(query: float, document: float, repeated: float) -> RoleVerdict:
    """Equal is what differs no more than twice what the same request does when it is asked again."""
    slack = max(_EQUALITY_TOLERANCE, 2 * (1 - repeated))
    verdicts: dict[tuple[bool, bool], RoleVerdict] = {
        (True, True): "both alike",
        (True, False): "query",
        (False, True): "document",
        (False, False): "neither",
    }
    return verdicts[1 - query <= slack, 1 - document <= slack]
