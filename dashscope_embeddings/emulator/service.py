"""The service on this machine: from a request to a response, without a socket and without waiting."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
import weakref
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dashscope_embeddings import catalogue
from dashscope_embeddings.emulator import embeddings, error_responses, synthetic_vectors, transports
from dashscope_embeddings.emulator.authentication import Keys
from dashscope_embeddings.emulator.batch.file_store import object_of
from dashscope_embeddings.emulator.batch.service import Batches, BatchSettings
from dashscope_embeddings.emulator.fault_schedule import Fault, Script
from dashscope_embeddings.emulator.messages import Asked, Protocol, Request, Response
from dashscope_embeddings.emulator.quota import OverQuota, Quota

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import httpx

    from dashscope_embeddings.emulator.batch.lifecycle import BatchLine
    from dashscope_embeddings.emulator.fault_schedule import Target
    from dashscope_embeddings.emulator.http import Server

_PROTOCOLS: dict[str, Protocol] = {
    embeddings.NATIVE_PATH: "native",
    embeddings.COMPATIBLE_PATH: "openai",
}
_emulators: weakref.WeakSet[Emulator] = weakref.WeakSet()


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
        self._keys = Keys(api_key, required=key_required)
        self._models = {model.name: _limited(model, rows, tokens_per_row) for model in models}
        if requests_per_second is not None:
            requests_per_minute = min(requests_per_second * 60, requests_per_minute or float("inf"))
        self._quota_settings = (requests_per_minute, tokens_per_minute, window)
        self._retry_after = retry_after
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: deque[Asked] = deque(maxlen=log)
        self._batch_lines: deque[BatchLine] = deque(maxlen=log)
        self._script = Script(faults)
        self.batches = Batches(batches or BatchSettings(), self._models, self._strike, self._book)
        self.clear()
        _emulators.add(self)

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
            return list(self._asked)

    @property
    def batch_lines(self) -> list[BatchLine]:
        """Lines of batches that were worked on, in that order; as batches, it moves when somebody asks for them."""
        with self._lock:
            return list(self._batch_lines)

    @property
    def keys_seen(self) -> frozenset[str]:
        """SHA-256 of every key that came along, in hex: never the key."""
        return self._keys.seen

    def clear(self) -> None:
        """Forget all requests: the log, the counts, the quotas' windows, what faults have done; not files, batches."""
        self.batches.clear()
        with self._lock:
            self._asked.clear()
            self._batch_lines.clear()
            self._keys.forget()
            self._quotas: dict[str, Quota] = {}
            self._script = Script(self._script.faults)
            self.requests = 0
            """Requests that came, refused ones too."""
            self.billed_requests = 0
            self.billed_texts = 0
            self.billed_tokens = 0

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What shall go wrong; setting it starts their counts anew, with the next request as the first."""
        return self._script.faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        with self._lock:
            self._script = Script(faults)

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
        return [float(number) for number in json.loads(synthetic_vectors.text_of(vector))]

    def sparse(
        self, text: str, *, model: str = catalogue.DEFAULT_MODEL, text_type: str = "document"
    ) -> list[synthetic_vectors.Token]:
        """The sparse vector that a client must get for a text, in the service's order: that of the text."""
        return synthetic_vectors.sparse(text, model=model, text_type=text_type)

    # The core

    def answer(self, request: Request) -> Response:
        """Answer one request: check the path, faults, the key, the body, the quota, in this order."""
        request_id = str(uuid.uuid4())
        of_batches = self.batches.serves(request)
        protocol = "openai" if of_batches else _PROTOCOLS.get(request.path) if request.method == "POST" else None
        # A file of a batch is large, and no JSON.
        body = object_of(request.body) if request.body[:1] != b"-" else None
        sent = embeddings.look(protocol, body or {}) if protocol is not None else embeddings.Sent(None, None)
        now = self._clock()
        fault = self._strike(sent.texts, f"{request.method} {request.path}", "requests")
        response = fault.refuse(protocol or "native", request_id) if fault is not None else None
        tokens = 0
        if response is None:
            try:
                if of_batches:
                    response = self.batches.answer(request, self._keys.check(request), now, request_id)
                else:
                    asking = self._admit(request, protocol, body, now)
                    response, tokens = embeddings.answer(asking, request_id), asking.tokens
            except error_responses.Refusal as refusal:
                response = refusal.response(protocol or _protocol_of(request.path), request_id)
                response = self._hint(response, refusal)
            if fault is not None:
                response = fault.spoil(response)
        name = None if fault is None else type(fault).__name__
        self._note(request, body, sent, _Outcome(now, protocol, _seen_status(response), tokens, request_id, name))
        return response

    def _strike(self, texts: tuple[str, ...], name: str, target: Target) -> Fault | None:
        with self._lock:
            self.requests += target == "requests"
            return self._script.strike(texts, name, target)

    def _book(self, line: BatchLine) -> None:
        with self._lock:
            self._batch_lines.append(line)
            self._bill(len(line.texts), line.tokens)

    def _bill(self, texts: int, tokens: int) -> None:
        if tokens:
            self.billed_requests += 1
            self.billed_texts += texts
            self.billed_tokens += tokens

    def _admit(
        self, request: Request, protocol: Protocol | None, body: dict[str, Any] | None, now: float
    ) -> embeddings.Asking:
        """Raises Refusal."""
        if protocol is None:
            raise error_responses.no_such_path()
        self._keys.check(request)
        if request.headers.get("x-dashscope-async") == "enable":
            raise error_responses.Refusal(403, "AccessDenied", "Current user api does not support asynchronous calls.")
        if body is None:
            # What a body that is no JSON object gets is not documented.
            raise error_responses.Refusal(400, "BadRequest.IllegalInput", "The request body requires json format.")
        asking = embeddings.check(protocol, body, self._models)
        # Whether requests refused for their content count is not documented: here they do not.
        self._check_quota(asking, now)
        return asking

    def _check_quota(self, asking: embeddings.Asking, now: float) -> None:
        with self._lock:
            quota = self._quotas.get(asking.model)
            if quota is None:
                quota = self._quotas[asking.model] = Quota(*self._quota_settings)
            refused = quota.admit(asking.tokens, now)
        if refused is not None:
            raise OverQuota(*refused)

    def _hint(self, response: Response, refusal: error_responses.Refusal) -> Response:
        if not self._retry_after or not isinstance(refusal, OverQuota):
            return response
        # The vendor's newer SDK code reads both; neither has been seen in a reply.
        milliseconds = math.ceil(refusal.seconds * 1000)
        hints = {"retry-after": str(math.ceil(refusal.seconds)), "retry-after-ms": str(milliseconds)}
        return replace(response, headers={**response.headers, **hints})

    def _note(self, request: Request, body: dict[str, Any] | None, sent: embeddings.Sent, outcome: _Outcome) -> None:
        asked = Asked(
            time=outcome.time,
            method=request.method,
            path=request.path,
            headers={name: value for name, value in request.headers.items() if name != "authorization"},
            body=body or {},
            protocol=outcome.protocol,
            model=sent.model,
            texts=sent.texts,
            text_type=sent.text_type,
            output_type=sent.output_type,
            dimension=sent.dimension,
            instruct=sent.instruct,
            encoding_format=sent.encoding_format,
            status=outcome.status,
            tokens=outcome.tokens,
            request_id=outcome.request_id,
            fault=outcome.fault,
            query=request.query,
        )
        with self._lock:
            self._asked.append(asked)
            self._bill(len(sent.texts), outcome.tokens)

    def _after_fork(self) -> None:
        # Another thread of the parent may have held it at the moment of the fork.
        self._lock = threading.Lock()
        self._keys.renew_lock()
        self.batches.renew_lock()


@dataclass(frozen=True, slots=True)
class _Outcome:
    time: float
    protocol: Protocol | None
    status: int
    tokens: int
    request_id: str
    fault: str | None


def _limited(model: catalogue.Model, rows: int | None, tokens: int | None) -> catalogue.Model:
    if rows is not None:
        model = replace(model, rows=rows)
    if tokens is not None:
        model = replace(model, tokens_per_row=tokens, tokens_per_row_seen=tokens)
    return model


def _protocol_of(path: str) -> Protocol:
    return "openai" if path.startswith("/compatible-mode/") else "native"


def _seen_status(response: Response) -> int:
    """What the caller gets to see."""
    broken = response.ending in ("closed", "reset", "unreachable")
    silent = response.ending == "stalled" and not response.sent
    return 0 if broken or silent else response.status


def _renew_locks() -> None:
    for emulator in list(_emulators):
        emulator._after_fork()  # noqa: SLF001  (its own module)


if hasattr(os, "register_at_fork"):  # pragma: no branch  (only Windows has none)
    os.register_at_fork(after_in_child=_renew_locks)
