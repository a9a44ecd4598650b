"""Requests of `check`: short texts to one host and model; and as which role the compatible route embeds a text."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dashscope_embeddings import catalogue
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import Action, DashScopeError
from dashscope_embeddings.vectors import Embeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pydantic import SecretStr

    from dashscope_embeddings._core.address import Address
    from dashscope_embeddings._core.protocol import ApiProtocol
    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.quota import Quota

TEXT = "The cat sleeps in the sun."
"""The only text that is ever sent."""
NO_ANSWER_IN_TIME = "no answer in time"
_THROTTLED_SECONDS = 5.0
"""Seconds for which the requests of a probe are repeated while they are throttled: a 429 says nothing of the model."""
_MIN_PAUSE_SECONDS = 1.0
_JOIN_MARGIN_SECONDS = 2.0 + _THROTTLED_SECONDS
"""Seconds to wait beyond the timeout, which does not cover a slow name lookup."""
_CALLS: dict[str, Callable[[EmbeddingClient], Embeddings | Quota]] = {
    "query": lambda client: client.embed(TEXT, text_type="query"),
    "document": lambda client: client.embed(TEXT),
    "hybrid": lambda client: client.embed(TEXT, output="dense&sparse"),
    "quota": EmbeddingClient.fetch_quota,
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Requests to one host and model, in order on one connection; a failure ends them."""

    about: Literal["key", "model", "quota"]
    address: Address
    model: str
    calls: Sequence[str] = ("document",)
    protocol: ApiProtocol = "native"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request, with one text or for the quota."""

    result: Embeddings | Quota | None
    """None: it failed, with `error`."""
    error: DashScopeError | None
    seconds: float

    @property
    def said(self) -> str:
        """The outcome in words."""
        return "answers" if self.error is None else self.error.summary or self.error.message

    @property
    def dense(self) -> list[float] | None:
        """The dense vector; None if there is none."""
        return self.result.dense[0] if isinstance(self.result, Embeddings) else None


@dataclass(frozen=True, slots=True)
class Prober:
    """The key to check, and how clients for it are made."""

    key: SecretStr
    timeout: float
    make_client: Callable[..., EmbeddingClient]
    clock: Callable[[], float]

    def run(self, probes: Iterable[Probe]) -> dict[Probe, list[Attempt]]:
        """Runs each in a thread of its own; the attempts of one that takes too long are empty.

        A late one is abandoned, not awaited: a name lookup has no timeout and cannot be cancelled.
        """
        found: dict[Probe, list[Attempt]] = {probe: [] for probe in probes}
        results: dict[Probe, list[Attempt]] = {}
        errors: list[Exception] = []

        def run(probe: Probe) -> None:
            try:
                results[probe] = self._attempts(probe)
            except Exception as error:  # noqa: BLE001 - raised below, in the calling thread
                errors.append(error)

        threads = [threading.Thread(target=run, args=[probe], daemon=True) for probe in found]
        for thread in threads:
            thread.start()
        longest = self.timeout * max((len(probe.calls) for probe in found), default=0)
        end = time.monotonic() + longest + _JOIN_MARGIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if errors:
            raise errors[0]
        return found | results

    def _attempts(self, probe: Probe) -> list[Attempt]:
        client = self.make_client(
            probe.model,
            api_key=self.key,
            base_url=probe.address.root_url,
            workspace=probe.address.workspace,
            protocol=probe.protocol,
            timeout=self.timeout,
            # With retries the client would also wait up to five minutes when throttled.
            max_retries=0,
        )
        attempts: list[Attempt] = []
        repeats_until = time.monotonic() + _THROTTLED_SECONDS
        with client:
            for name in probe.calls:
                attempts.append(self._attempt(client, name, repeats_until))
                if attempts[-1].error is not None:
                    break
        return attempts

    def _attempt(self, client: EmbeddingClient, call: str, repeats_until: float) -> Attempt:
        while True:
            start = self.clock()
            try:
                return Attempt(_CALLS[call](client), None, self.clock() - start)
            except DashScopeError as error:
                pause = max(_MIN_PAUSE_SECONDS, client.seconds_blocked())
                if error.action is not Action.BACK_OFF or time.monotonic() + pause > repeats_until:
                    return Attempt(None, error, self.clock() - start)
            time.sleep(pause)


# --- the role of the compatible route -----------------------------------------------------------------------

RoleVerdict = Literal["query", "document", "both alike", "neither"]

_EQUALITY_TOLERANCE = 1e-4
"""Vectors whose cosine is nearer to 1 than this are equal: a third party saw 1.0000 for equal roles, 0.99 and less
for different ones (qwen3.7-text-embedding, 2026-09-25)."""


@dataclass(frozen=True, slots=True)
class RoleCheck:
    """How the compatible route's vector of one text compares with its native vectors, and with what they differ by."""

    query: float
    """Compatible and native `text_type=query`."""
    document: float
    """Compatible and native `text_type=document`."""
    verdict: RoleVerdict
    between: float
    """Native query and native document: 1 if the role makes no difference."""
    repeated: float
    """Native document and the same request repeated: how equal two equal requests are on this host."""
    length: float
    """Euclidean length of the compatible vector."""
    joint: float | None
    """Dense vector of a dense&sparse request and that of a dense one; None: not measured."""
    host: str
    model: str


def native_calls(model: Model) -> Sequence[str]:
    """What the role is measured with; one more goes over the compatible route."""
    return ("query", "document", "hybrid") if model.sparse else ("query", "document")


def measure_role(
    prober: Prober, model: Model, earlier: Mapping[Probe, Sequence[Attempt]]
) -> tuple[RoleCheck | str, list[Attempt]]:
    """Embeds one text in each way on the first host where the model answers, and compares the vectors.

    `earlier`: attempts with the document role. Returns the comparison, or why there is none; and its attempts.
    """
    own = ((probe.address, found[0].dense) for probe, found in earlier.items() if probe.model == model.name and found)
    address, earlier_document = next(((address, dense) for address, dense in own if dense), (None, None))
    if address is None or earlier_document is None:
        return f"{model.name} does not answer{catalogue.similar_model(model.name)}", []
    compatible, native = prober.run(
        [
            Probe("model", address, model.name, protocol="openai"),
            Probe("model", address, model.name, native_calls(model)),
        ]
    ).values()
    attempts = [*compatible, *native]
    vectors = [attempt.dense for attempt in attempts[:3] if attempt.dense is not None]
    if len(compatible) != 1 or len(vectors) != 3:  # noqa: PLR2004 - compatible, query, document
        failed = (attempt.said for attempt in attempts[:3] if attempt.error is not None)
        return next(failed, NO_ANSWER_IN_TIME), attempts
    compatible_vector, query, document = vectors
    joint = native[2].dense if len(native) > 2 else None  # noqa: PLR2004 - the third is dense&sparse
    repeated = cosine_similarity(document, earlier_document)
    to_query, to_document = cosine_similarity(compatible_vector, query), cosine_similarity(compatible_vector, document)
    role = RoleCheck(
        query=to_query,
        document=to_document,
        verdict=_role_verdict(to_query, to_document, repeated),
        between=cosine_similarity(query, document),
        repeated=repeated,
        length=math.hypot(*compatible_vector),
        joint=None if joint is None else cosine_similarity(joint, document),
        host=address.host,
        model=model.name,
    )
    return role, attempts


def cosine_similarity(first: Sequence[float], second: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 if one has no length or their widths differ."""
    lengths = math.hypot(*first) * math.hypot(*second)
    if not lengths or len(first) != len(second):
        return 0.0
    return math.fsum(x * y for x, y in zip(first, second, strict=True)) / lengths


def _role_verdict(query: float, document: float, repeated: float) -> RoleVerdict:
    """Two vectors count as equal if they differ at most twice as much as the two vectors of one repeated request."""
    tolerance = max(_EQUALITY_TOLERANCE, 2 * (1 - repeated))
    is_query, is_document = 1 - query <= tolerance, 1 - document <= tolerance
    if is_query:
        return "both alike" if is_document else "query"
    return "document" if is_document else "neither"
