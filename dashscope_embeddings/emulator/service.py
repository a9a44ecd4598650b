"""The service on this machine: from a request to a response, without a socket and without waiting."""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dashscope_embeddings import _process, catalogue
from dashscope_embeddings.emulator import embeddings, error_responses, synthetic_vectors, transports
from dashscope_embeddings.emulator.authentication import Authenticator
from dashscope_embeddings.emulator.batch.file_store import parse_json_object
from dashscope_embeddings.emulator.batch.service import BatchService, BatchSettings
from dashscope_embeddings.emulator.fault_schedule import Fault, FaultSchedule
from dashscope_embeddings.emulator.messages import Asked, Request, Response, WireProtocol
from dashscope_embeddings.emulator.quota import Quota, QuotaExceededError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import httpx

    from dashscope_embeddings.emulator.batch.lifecycle import BatchLine
    from dashscope_embeddings.emulator.fault_schedule import Target
    from dashscope_embeddings.emulator.http import Server

_PROTOCOLS: dict[str, WireProtocol] = {
    embeddings.NATIVE_PATH: "native",
    embeddings.COMPATIBLE_PATH: "openai",
}


class Emulator:
    """The text embedding service, native and OpenAI-compatible, as its documents describe it.

    Give it to httpx as `httpx.MockTransport(emulator)` or `emulator.transport()`, or `serve()` it on this
    machine. All methods may be called from any thread.

    Args:
        api_key: the only key that is let in; None: any key is.
        key_required: False lets requests without a key in.
        models: what is on offer; any other model is unknown.
        rows: texts a request may hold, for all models; None: as each model's row in the catalogue says.
        tokens_per_row: tokens a text may have, likewise.
        requests_per_second: quota of each model; None: no limit. The tighter of this and the next counts.
        requests_per_minute: quota of each model; None: no limit.
        tokens_per_minute: quota of each model; None: no limit.
        window: seconds over which quotas are enforced.
        retry_after: whether a refusal for a quota says in a header when to come again.
        faults: what shall go wrong.
        clock: gives seconds; for quotas and the log.
        log: how many requests `asked`, and lines `batch_lines`, keeps, the latest; None: all.
        batches: how the Batch route runs.
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
        retry_after: bool = False,
        faults: Sequence[Fault] = (),
        clock: Callable[[], float] = time.monotonic,
        log: int | None = None,
        batches: BatchSettings | None = None,
    ) -> None:
        self._authenticator = Authenticator(api_key, required=key_required)
        self._models = {model.name: _with_limits(model, rows, tokens_per_row) for model in models}
        if requests_per_second is not None:
            requests_per_minute = min(requests_per_second * 60, requests_per_minute or float("inf"))
        self._quota_settings = (requests_per_minute, tokens_per_minute, window)
        self._sends_retry_after = retry_after
        self._clock = clock
        self._lock = threading.Lock()
        self._request_log: deque[Asked] = deque(maxlen=log)
        self._batch_line_log: deque[BatchLine] = deque(maxlen=log)
        self._fault_schedule = FaultSchedule(faults)
        self.batches = BatchService(
            batches or BatchSettings(), self._models, self._trigger_fault, self._record_batch_line
        )
        self.clear()
        _process.on_fork(self)

    def __repr__(self) -> str:
        return f"<Emulator: {self.requests} requests, {self.billed_texts} texts billed>"

    # Faces

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer an httpx request, as the handler of an `httpx.MockTransport`.

        Raises:
            httpx.TransportError: where a fault breaks the connection or outlasts the request's read timeout.
        """
        return transports.to_httpx(request, self.answer(transports.from_httpx(request)))

    def transport(self) -> httpx.MockTransport:
        """A transport for `httpx.Client` and `httpx.AsyncClient`; a slow reply is never really waited for."""
        return transports.transport(self)

    def serve(self, port: int = 0, *, latency: float = 0.0) -> Server:
        """Serve it on 127.0.0.1 until the returned server is closed.

        Args:
            port: 0 takes a free one.
            latency: seconds that every reply takes.
        """
        from dashscope_embeddings.emulator.http import Server  # noqa: PLC0415  (sockets only for who wants them)

        return Server(self, port, latency)

    # What it was asked

    @property
    def asked(self) -> list[Asked]:
        """The requests of the log, in the order of their answers."""
        with self._lock:
            return list(self._request_log)

    @property
    def batch_lines(self) -> list[BatchLine]:
        """Lines of batches that were worked on, in that order; as batches, it moves when somebody asks for them."""
        with self._lock:
            return list(self._batch_line_log)

    @property
    def keys_seen(self) -> frozenset[str]:
        """SHA-256 of every key that came along, in hex: never the key."""
        return self._authenticator.seen_fingerprints

    def clear(self) -> None:
        """Forget all requests: the log, the counts, the quotas' windows, what faults have done; not files, batches."""
        self.batches.clear()
        with self._lock:
            self._request_log.clear()
            self._batch_line_log.clear()
            self._authenticator.clear()
            self._quotas: dict[str, Quota] = {}
            self._fault_schedule = FaultSchedule(self._fault_schedule.faults)
            self.requests = 0
            """Requests that came, refused ones too."""
            self.billed_requests = 0
            self.billed_texts = 0
            self.billed_tokens = 0

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What shall go wrong; setting it starts their counts anew, with the next request as the first."""
        return self._fault_schedule.faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        with self._lock:
            self._fault_schedule = FaultSchedule(faults)

    # What it would answer

    def dense(  # noqa: D417  (the others are the service's own parameters)
        self,
        text: str,
        *,
        model: str = catalogue.DEFAULT_MODEL,
        text_type: str = "document",
        dimension: int | None = None,
        instruct: str = "",
    ) -> list[float]:
        """The dense vector that a client must get for a text; nothing is logged or billed.

        Args:
            text_type: `query` for what the compatible protocol gives.
        """
        size = dimension or self._models[model].default_dimension or 1024
        instruct = instruct if text_type == "query" else ""
        vector = synthetic_vectors.dense(text, model=model, text_type=text_type, dimension=size, instruct=instruct)
        return [float(number) for number in json.loads(synthetic_vectors.to_json_array(vector))]

    def sparse(
        self, text: str, *, model: str = catalogue.DEFAULT_MODEL, text_type: str = "document"
    ) -> list[synthetic_vectors.Token]:
        """The sparse vector that a client must get for a text, in the service's order: that of the text."""
        return synthetic_vectors.sparse(text, model=model, text_type=text_type)

    # The core

    def answer(self, request: Request) -> Response:
        """Answer one request: check the path, faults, the key, the body, the quota, in this order."""
        request_id = str(uuid.uuid4())
        is_batch_route = self.batches.handles(request)
        protocol = "openai" if is_batch_route else _PROTOCOLS.get(request.path) if request.method == "POST" else None
        # A file of a batch is large, and no JSON.
        body = parse_json_object(request.body) if request.body[:1] != b"-" else None
        fields = (
            embeddings.read_fields(protocol, body or {})
            if protocol is not None
            else embeddings.RequestFields(None, None)
        )
        now = self._clock()
        fault = self._trigger_fault(fields.texts, f"{request.method} {request.path}", "requests")
        response = fault.intercept(protocol or "native", request_id) if fault is not None else None
        tokens = 0
        if response is None:
            try:
                if is_batch_route:
                    response = self.batches.answer(request, self._authenticator.authenticate(request), now, request_id)
                else:
                    embedding_request = self._validate_request(request, protocol, body, now)
                    response, tokens = (
                        embeddings.success_response(embedding_request, request_id),
                        embedding_request.tokens,
                    )
            except error_responses.ApiError as refusal:
                response = refusal.response(protocol or _protocol_of(request.path), request_id)
                response = self._add_retry_after(response, refusal)
            if fault is not None:
                response = fault.corrupt(response)
        name = None if fault is None else type(fault).__name__
        self._log_request(
            request, body, fields, _ReplyRecord(now, protocol, _visible_status(response), tokens, request_id, name)
        )
        return response

    def _trigger_fault(self, texts: tuple[str, ...], name: str, target: Target) -> Fault | None:
        with self._lock:
            self.requests += target == "requests"
            return self._fault_schedule.trigger(texts, name, target)

    def _record_batch_line(self, line: BatchLine) -> None:
        with self._lock:
            self._batch_line_log.append(line)
            self._bill(len(line.texts), line.tokens)

    def _bill(self, text_count: int, tokens: int) -> None:
        if tokens:
            self.billed_requests += 1
            self.billed_texts += text_count
            self.billed_tokens += tokens

    def _validate_request(
        self, request: Request, protocol: WireProtocol | None, body: dict[str, Any] | None, now: float
    ) -> embeddings.EmbeddingRequest:
        """Raises Refusal."""
        if protocol is None:
            raise error_responses.path_not_found()
        self._authenticator.authenticate(request)
        if request.headers.get("x-dashscope-async") == "enable":
            raise error_responses.ApiError(403, "AccessDenied", "Current user api does not support asynchronous calls.")
        if body is None:
            # What a body that is no JSON object gets is not documented.
            raise error_responses.ApiError(400, "BadRequest.IllegalInput", "The request body requires json format.")
        embedding_request = embeddings.validate(protocol, body, self._models)
        # Whether requests refused for their content count is not documented: here they do not.
        self._check_quota(embedding_request, now)
        return embedding_request

    def _check_quota(self, embedding_request: embeddings.EmbeddingRequest, now: float) -> None:
        with self._lock:
            quota = self._quotas.get(embedding_request.model)
            if quota is None:
                quota = self._quotas[embedding_request.model] = Quota(*self._quota_settings)
            exceeded = quota.admit(embedding_request.tokens, now)
        if exceeded is not None:
            raise QuotaExceededError(*exceeded)

    def _add_retry_after(self, response: Response, error: error_responses.ApiError) -> Response:
        if not self._sends_retry_after or not isinstance(error, QuotaExceededError):
            return response
        # The vendor's newer SDK code reads both; neither has been seen in a reply.
        milliseconds = math.ceil(error.retry_after_seconds * 1000)
        hints = {"retry-after": str(math.ceil(error.retry_after_seconds)), "retry-after-ms": str(milliseconds)}
        return replace(response, headers={**response.headers, **hints})

    def _log_request(
        self, request: Request, body: dict[str, Any] | None, fields: embeddings.RequestFields, record: _ReplyRecord
    ) -> None:
        entry = Asked(
            time=record.time,
            method=request.method,
            path=request.path,
            headers={name: value for name, value in request.headers.items() if name != "authorization"},
            body=body or {},
            protocol=record.protocol,
            model=fields.model,
            texts=fields.texts,
            text_type=fields.text_type,
            output_type=fields.output_type,
            dimension=fields.dimension,
            instruct=fields.instruct,
            encoding_format=fields.encoding_format,
            status=record.status,
            tokens=record.tokens,
            request_id=record.request_id,
            fault=record.fault,
            query=request.query,
        )
        with self._lock:
            self._request_log.append(entry)
            self._bill(len(fields.texts), record.tokens)

    def reset_after_fork(self) -> None:
        """Replaces the locks, which another thread of the parent may have held at the moment of the fork."""
        self._lock = threading.Lock()
        self._authenticator.reset_lock()
        self.batches.reset_lock()


@dataclass(frozen=True, slots=True)
class _ReplyRecord:
    time: float
    protocol: WireProtocol | None
    status: int
    tokens: int
    request_id: str
    fault: str | None


def _with_limits(model: catalogue.Model, rows: int | None, tokens: int | None) -> catalogue.Model:
    if rows is not None:
        model = replace(model, rows=rows)
    if tokens is not None:
        model = replace(model, tokens_per_row=tokens, tokens_per_row_seen=tokens)
    return model


def _protocol_of(path: str) -> WireProtocol:
    return "openai" if path.startswith("/compatible-mode/") else "native"


def _visible_status(response: Response) -> int:
    """What the caller gets to see."""
    broken = response.ending in ("closed", "reset", "unreachable")
    silent = response.ending == "stalled" and not response.sent_bytes
    return 0 if broken or silent else response.status
