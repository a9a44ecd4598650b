"""The emulated service: turns a request into a response, without a socket and without waiting."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings import _process, catalogue
from dashscope_embeddings.emulator import embeddings, synthetic_vectors
from dashscope_embeddings.emulator.batch.service import BatchService, BatchSettings
from dashscope_embeddings.emulator.error_responses import ApiError, path_not_found
from dashscope_embeddings.emulator.fault_schedule import Fault, FaultSchedule, check_number
from dashscope_embeddings.emulator.messages import (
    Asked,
    EmbeddingRequest,
    Request,
    Response,
    WireProtocol,
    from_httpx,
    json_object,
    to_httpx,
)
from dashscope_embeddings.emulator.quota import QUOTA_LIST_PATH, Quota, quota_list

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dashscope_embeddings.emulator.batch.lifecycle import BatchLine
    from dashscope_embeddings.emulator.fault_schedule import Target
    from dashscope_embeddings.emulator.http import Server

_PROTOCOLS: dict[str, WireProtocol] = {
    f"POST {embeddings.NATIVE_PATH}": "native",
    f"POST {embeddings.COMPATIBLE_PATH}": "openai",
}


class Emulator:
    """The text embedding service, native and OpenAI-compatible, as its documents describe it.

    Give it to httpx as `httpx.MockTransport(emulator)` or `emulator.transport()`, or `serve()` it on a local port.
    All methods are thread-safe.

    Args:
        api_key: the only key that is accepted; None: any key is.
        key_required: False accepts requests without a key.
        models: the available models; any other is unknown.
        rows: texts allowed in a request, for all models; None: each model's number in the catalogue.
        tokens_per_row: tokens allowed in a text, likewise.
        requests_per_second: quota of each model; None: no limit. The tighter of this and the next one applies.
        requests_per_minute: quota of each model; None: no limit.
        tokens_per_minute: quota of each model; None: no limit.
        window: seconds over which quotas are enforced.
        tells_quota: whether `GET /api/v1/quotas` lists these quotas; False: 404. No page says that the service lists
            embedding models. May be changed at any time. This request is in `asked`, but does not count as one of
            `requests`, nor for faults without a `route`: a client may send it at any time beside its job.
        retry_after: whether a reply to an exceeded quota has headers that say when to retry.
        faults: what goes wrong, and when: `[faults.Throttle(probability=0.05), faults.Drop(after=10)]`; see the module
            `faults`. Setting the attribute `faults` replaces them: `emulator.faults = [*emulator.faults, another]`.
        clock: returns seconds; for quotas, batches and the log.
        log: how many requests `asked`, and lines `batch_lines`, keeps, the latest; None: all.
        batches: how the Batch route runs.
        on_request: called with the log entry of each request, in the thread that answers it.
    """

    def __init__(  # noqa: PLR0913  (each is an independent property of the service)
        self,
        *,
        api_key: str | None = None,
        key_required: bool = True,
        models: Iterable[catalogue.Model] = catalogue.MODELS,
        rows: int | None = None,
        tokens_per_row: int | None = None,
        requests_per_second: float | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        window: float = 1.0,
        tells_quota: bool = False,
        retry_after: bool = False,
        faults: Sequence[Fault] = (),
        clock: Callable[[], float] = time.monotonic,
        log: int | None = None,
        batches: BatchSettings | None = None,
        on_request: Callable[[Asked], object] | None = None,
    ) -> None:
        self._accepted_key = None if api_key is None else _fingerprint(api_key)
        self._key_required = key_required
        limits = {"rows": rows, "tokens_per_row": tokens_per_row, "tokens_per_row_seen": tokens_per_row}
        quotas = {
            "requests_per_second": requests_per_second,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "window": window,
        }
        for name, limit in (limits | quotas).items():
            check_number(name, limit, 0.001)
        changed: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
        self._models = {model.name: dataclasses.replace(model, **changed) for model in models}
        if requests_per_second is not None:
            requests_per_minute = min(requests_per_second * 60, requests_per_minute or math.inf)
        self._quota_settings = (requests_per_minute, tokens_per_minute, window)
        self.tells_quota = tells_quota
        self._sends_retry_after = retry_after
        self._clock = clock
        self._on_request = on_request
        self._lock = _process.ForkSafeLock()
        self._request_log: deque[Asked] = deque(maxlen=log)
        self._batch_line_log: deque[BatchLine] = deque(maxlen=log)
        self._fault_schedule = FaultSchedule(faults)
        self.batches = BatchService(
            batches or BatchSettings(), self._models, self._trigger_fault, self._record_batch_line
        )
        self.clear()

    def __repr__(self) -> str:
        return f"<Emulator: requests {self.requests}, billed texts {self.billed_texts}>"

    # Transports

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answers an httpx request; httpx.TransportError: a fault breaks the connection, or outlasts its timeout."""
        return to_httpx(request, self.answer(from_httpx(request)))

    def transport(self) -> httpx.MockTransport:
        """A transport for `httpx.Client` and `httpx.AsyncClient`; delays of replies are not waited for."""
        return httpx.MockTransport(self)

    def serve(self, port: int = 0, *, latency: float = 0.0) -> Server:
        """Serves HTTP on 127.0.0.1 until the returned server is closed; every reply takes `latency` seconds.

        Port 0: any free port.
        """
        from dashscope_embeddings.emulator.http import Server  # noqa: PLC0415  (only this method needs sockets)

        return Server(self, port, latency)

    # The log

    @property
    def asked(self) -> list[Asked]:
        """The logged requests, in the order of their answers."""
        with self._lock.current:
            return list(self._request_log)

    @property
    def batch_lines(self) -> list[BatchLine]:
        """The processed lines of batches, in the order of processing, which goes on whenever a request comes."""
        with self._lock.current:
            return list(self._batch_line_log)

    @property
    def keys_seen(self) -> frozenset[str]:
        """SHA-256, in hex, of every key in a request; keys themselves are not stored."""
        with self._lock.current:
            return frozenset(self._keys_seen)

    def clear(self) -> None:
        """Forget all requests: log, counts, quota windows, what faults have done. Files and batches stay."""
        with self._lock.current:
            self._request_log.clear()
            self._batch_line_log.clear()
            self._keys_seen: set[str] = set()
            self._quotas: dict[str, Quota] = {}
            self._fault_schedule = FaultSchedule(self._fault_schedule.faults)
            self.requests = 0
            """Requests received, refused ones included; without those for the list of quotas."""
            self.billed_requests = 0
            self.billed_texts = 0
            self.billed_tokens = 0

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What goes wrong; setting it restarts all fault counts, with the next request as the first."""
        return self._fault_schedule.faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        with self._lock.current:
            self._fault_schedule = FaultSchedule(faults)

    # Expected vectors

    def dense(
        self,
        text: str,
        *,
        model: str = catalogue.DEFAULT_MODEL,
        text_type: str = "document",
        dimension: int | None = None,
        instruct: str = "",
    ) -> list[float]:
        """The dense vector that a client must get for a text (from the compatible protocol: that of a `query`)."""
        size = dimension or self._models[model].default_dimension or 1024
        vector = synthetic_vectors.dense(text, model=model, text_type=text_type, dimension=size, instruct=instruct)
        return [float(number) for number in json.loads(synthetic_vectors.to_json_array(vector))]

    def sparse(
        self, text: str, *, model: str = catalogue.DEFAULT_MODEL, text_type: str = "document"
    ) -> list[synthetic_vectors.Token]:
        """The sparse vector that a client must get for a text, in the service's order: that of the text."""
        return synthetic_vectors.sparse(text, model=model, text_type=text_type)

    # Requests

    def answer(self, request: Request) -> Response:
        """Answers one request: checks the path, faults, the key, the body, the quota, in this order."""
        request_id, now = str(uuid.uuid4()), self._clock()
        route = f"{request.method} {request.path}"
        protocol = "openai" if self.batches.handles(request) else _PROTOCOLS.get(route)
        # An uploaded file is a large multipart form, which begins with a hyphen: not worth parsing as JSON.
        body = None if request.body.startswith(b"-") else json_object(request.body)
        fields = embeddings.read_request(protocol, body or {})
        fault = self._trigger_fault(fields.texts, route, "requests", is_counted=route != f"GET {QUOTA_LIST_PATH}")
        response, tokens = None, 0
        if fault is not None:
            response = fault.intercept(protocol or "native", request_id)
        if response is None:
            response, tokens = self._respond(request, fields, body, now, request_id)
            if fault is not None:
                response = fault.corrupt(response)
        entry = Asked(
            **{field.name: getattr(fields, field.name) for field in dataclasses.fields(fields)} | {"tokens": tokens},
            time=now,
            method=request.method,
            path=request.path,
            query=request.query,
            headers={name: value for name, value in request.headers.items() if name != "authorization"},
            body=body or {},
            status=response.visible_status,
            request_id=request_id,
            fault=None if fault is None else fault.label,
        )
        with self._lock.current:
            self._request_log.append(entry)
            self._bill(len(fields.texts), tokens)
        if self._on_request is not None:
            self._on_request(entry)
        return response

    def _respond(
        self, request: Request, fields: EmbeddingRequest, body: dict[str, Any] | None, now: float, request_id: str
    ) -> tuple[Response, int]:
        """The service's own response, and the tokens that it bills."""
        try:
            if self.batches.handles(request):
                return self.batches.answer(request, self._authenticate(request), now, request_id), 0
            if (request.method, request.path) == ("GET", QUOTA_LIST_PATH) and self.tells_quota:
                self._authenticate(request)
                return quota_list(request, self._models, *self._quota_settings[:2], request_id), 0
            checked = self._check_request(request, fields, body)
            # Whether requests refused for their content count against the quota is not documented: here they do not.
            with self._lock.current:
                self._quotas.setdefault(checked.model, Quota(*self._quota_settings)).admit(checked.tokens, now)
            return embeddings.success_response(checked, request_id), checked.tokens
        except ApiError as error:
            is_compatible = request.path.startswith("/compatible-mode/")
            response = error.response("openai" if is_compatible else "native", request_id)
            if self._sends_retry_after:
                response = dataclasses.replace(response, headers=response.headers | error.retry_headers)
            return response, 0

    def _trigger_fault(
        self, texts: tuple[str, ...], name: str, target: Target, *, is_counted: bool = True
    ) -> Fault | None:
        with self._lock.current:
            self.requests += target == "requests" and is_counted
            return self._fault_schedule.trigger(texts, name, target, needs_route=not is_counted)

    def _record_batch_line(self, line: BatchLine) -> None:
        with self._lock.current:
            self._batch_line_log.append(line)
            self._bill(len(line.texts), line.tokens)

    def _bill(self, text_count: int, tokens: int) -> None:
        if tokens:
            self.billed_requests += 1
            self.billed_texts += text_count
            self.billed_tokens += tokens

    def _authenticate(self, request: Request) -> str:
        """The fingerprint of a request's key; empty if it has none and needs none. Raises ApiError."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            fingerprint, is_accepted = "", not self._key_required
        else:
            fingerprint = _fingerprint(key.strip())
            is_accepted = self._accepted_key in {None, fingerprint}
            with self._lock.current:
                self._keys_seen.add(fingerprint)
        if not is_accepted:
            # The documents do not distinguish a missing key from a wrong one.
            raise ApiError(401, "InvalidApiKey", "Invalid API-key provided.")
        return fingerprint

    def _check_request(
        self, request: Request, fields: EmbeddingRequest, body: dict[str, Any] | None
    ) -> EmbeddingRequest:
        """The checked embedding request. Raises ApiError."""
        if fields.protocol is None:
            raise path_not_found()
        self._authenticate(request)
        if request.headers.get("x-dashscope-async") == "enable":
            raise ApiError(403, "AccessDenied", "Current user api does not support asynchronous calls.")
        if body is None:
            # The reply to a body that is no JSON object is not documented.
            raise ApiError(400, "BadRequest.IllegalInput", "The request body requires json format.")
        return embeddings.validate(fields, body, self._models)


def _fingerprint(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
