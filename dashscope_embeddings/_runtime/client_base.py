"""The base of `EmbeddingClient`: its parts (connections, limiter, counters) and what sync and async calls share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from typing_extensions import Self

from dashscope_embeddings._core import client_options, planning, quota_request, text_inputs
from dashscope_embeddings._core import rate_limiter as core_rate_limiter
from dashscope_embeddings._core.exchange import READ_AHEAD, RequestContext
from dashscope_embeddings._core.other_endpoints import RequestFlow
from dashscope_embeddings._core.permit import InFlightBound
from dashscope_embeddings._core.planning import Batch
from dashscope_embeddings._core.results import ResultCollector
from dashscope_embeddings._core.settings import Settings
from dashscope_embeddings._core.stale_replies import seen_replies_of
from dashscope_embeddings._core.text_batcher import SingleText, TextBatcher
from dashscope_embeddings._core.text_inputs import OnRefused
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings._process import CleanupLock
from dashscope_embeddings._runtime.async_connections import running_loop
from dashscope_embeddings._runtime.async_drivers import AsyncDriver
from dashscope_embeddings._runtime.deadlines import GracePeriod
from dashscope_embeddings._runtime.deferred_signals import signals_of_this_thread
from dashscope_embeddings._runtime.job import Job, OnBatchDone, QuotaQuestion, is_long_job
from dashscope_embeddings._runtime.thread_drivers import ThreadDriver
from dashscope_embeddings._runtime.transport import Transport
from dashscope_embeddings._runtime.user_resources import UserResources
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.quota import Quota
from dashscope_embeddings.usage import OnRequest, RequestRecord, TrackedUsage, add_to_trackers
from dashscope_embeddings.vectors import Embedding, Output, TextType, Usage

if TYPE_CHECKING:
    import asyncio


class ClientBase:
    """Settings, and the connections, limiter and counters made from them. Only the settings are pickled.

    A pickle does not hold the `on_request` hook: it stays in the process where it was passed.
    """

    def _set_up(self, settings: Settings, user_resources: UserResources) -> None:
        self.settings = settings
        self._user_resources = user_resources
        self._transport = Transport(settings, user_resources)
        self._thread_driver = ThreadDriver(self._transport)
        self.run_steps, self.drain = self._thread_driver.run_steps, self._thread_driver.drain
        self._async_driver = AsyncDriver(self._transport)
        self._bound = InFlightBound(settings.max_concurrency)
        self._limits = shared_limits(settings.address.host, settings.model)
        self._text_batchers: dict[tuple[TextType, Output], TextBatcher] = {}
        self._contexts: dict[tuple[TextType, Output], RequestContext] = {}
        self._observers: list[OnRequest] = []
        self._seen_replies = seen_replies_of(settings.address.root_url)
        self._job_lock = CleanupLock()
        self._total = TrackedUsage()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "model" or name in client_options.settings():
            raise AttributeError(f"a client's settings do not change: make another one with {name}=…")
        super().__setattr__(name, value)

    @property
    def key(self) -> SecretStr | None:
        """The resolved API key; None for the emulator."""
        return None if self.settings.address.is_emulator else self.settings.api_key

    @property
    def usage(self) -> Usage:
        """What all calls of this client were billed so far."""
        return self._total.usage

    def _request_context(self, text_type: TextType, output: Output) -> RequestContext:
        with contextlib.suppress(TypeError):  # of a list, which is refused below
            if (known := self._contexts.get((text_type, output))) is not None:
                return known
        settings = self.settings
        options = settings.request_options(text_type, output)
        rate_limiter = core_rate_limiter.shared_limiter(settings.quota_key, self._transport.clock.now)
        rate_limiter.apply_limits(self, settings.requests_per_minute, settings.tokens_per_minute)
        context = self._contexts[text_type, output] = RequestContext(
            options,
            self._limits,
            rate_limiter,
            long_text=settings.long_text,
            max_retries=settings.max_retries,
            on_request=self._call_hooks if self._observers else self._user_resources.on_request,
            error_context=settings.error_context,
            seen_replies=self._seen_replies,
            bound=self._bound,
            has_user_limiter=self._user_resources.rate_limiter is not None,
        )
        return context

    def _prepare_single(
        self, texts: list[str], context: RequestContext
    ) -> tuple[Batch, SingleText, TextBatcher] | None:
        """A call's only text, which may share a request with those of other calls; None for any other call."""
        if len(texts) != 1:
            return None
        if (batch := planning.single_row_batch(texts[0], self._limits, context.long_text)) is None:
            return None
        key = context.options.text_type, context.options.output
        if (batcher := self._text_batchers.get(key)) is None:
            batcher = self._text_batchers.setdefault(key, TextBatcher(self._planner(dedup_window=None)))
        return batch, SingleText(batch.texts[0], max(1, round(batch.estimated_tokens))), batcher

    @contextlib.contextmanager
    def observe(self, observer: OnRequest) -> Iterator[None]:
        """Calls `observer`, beside the user's hook, after every request of a call that starts within the block."""
        self._observers.append(observer)
        self._contexts.clear()
        try:
            yield
        finally:
            self._observers.remove(observer)
            self._contexts.clear()

    def _call_hooks(self, record: RequestRecord) -> None:
        for hook in (*self._observers, self._user_resources.on_request):
            if hook is not None:
                hook(record)

    def seconds_blocked(self) -> float:
        """Seconds until the limiter lets anything be sent again after a 429; 0: now."""
        return self._request_context("document", "dense").limiter.seconds_blocked()

    def _quota_request(self) -> RequestFlow[Quota]:
        limiter = self._request_context("document", "dense").limiter
        limiter.claim_quota_request()  # so that no job asks again, whatever the answer is
        return quota_request.fetch_quota(self.settings, limiter, max_retries=self.settings.max_retries)

    def _quota_question(
        self, context: RequestContext, driver: ThreadDriver | AsyncDriver, texts: Sequence[str] = ()
    ) -> QuotaQuestion:
        """`texts`: those of the job, as far as they are known before it starts."""
        rows = min(self.settings.batch_size or self._limits.rows, self._limits.rows)
        # A user's own rate limiter stands for a quota. The emulator in this process has none to tell.
        has_quota = context.has_user_limiter or self.settings.address.is_emulator

        def ask_once() -> asyncio.Task[None] | None:
            if has_quota or not context.limiter.claim_quota_request():
                return None
            return driver.start(quota_request.ask_for_quota(self.settings, context.limiter))

        return QuotaQuestion(ask_once, is_long=is_long_job(texts, rows))

    def _planner(self, *, dedup_window: int | None) -> planning.BatchPlanner:
        settings = self.settings
        return planning.BatchPlanner(
            self._limits,
            long_text=settings.long_text,
            max_rows=settings.batch_size,
            max_tokens=settings.tokens_per_request,
            dedup_window=dedup_window,
        )

    def _new_job(
        self,
        output: Output,
        texts: Sequence[str] | None = None,
        *,
        array: bool = False,
        await_answers: Callable[[], object] = lambda: None,
    ) -> Job:
        array_rows = len(texts) if array and texts is not None else None
        collector = ResultCollector(output, self.settings.price, array_rows=array_rows)
        return Job(collector, self._job_lock, self._add_usage, texts, await_answers)

    def sync_context(self, text_type: TextType, output: Output) -> RequestContext:
        """What all batches of a call on this thread share."""
        context = self._request_context(text_type, output)
        blocked_sender = running_loop() or signals_of_this_thread()
        return context if blocked_sender is None else replace(context, blocked_loop=blocked_sender)

    def run_stream(
        self,
        texts: Iterator[str],
        context: RequestContext,
        refused: OnRefused | None,
        arrived: OnBatchDone | None,
        grace: GracePeriod,
    ) -> Generator[Embedding, None, None]:
        """`stream`, until the caller wants to stop: then it yields what is still answered, and raises `Cancelled`."""
        checked = text_inputs.validate_each(texts, self._limits, context.long_text, refused)
        batches = planning.batches(checked, self._planner(dedup_window=READ_AHEAD))
        job = self._new_job(context.options.output, await_answers=lambda: self.drain(grace.use_up(), job.halt))
        flow_of = job.flow_maker(context, self._quota_question(context, self._thread_driver), arrived)
        outcomes = self._thread_driver.run_many(batches, flow_of, job.halt, context, grace)
        with job, contextlib.closing(outcomes):
            for batch, outcome in outcomes:
                job.collector.add(batch, outcome)
                yield from job.stream_ready(outcome, refused)
            job.callbacks.raise_first_error()
        if job.collector.has_failed:
            raise job.collector.build_error()

    def _add_usage(self, usage: Usage) -> None:
        self._total.add(usage)
        add_to_trackers(usage)

    # --- copies and processes -----------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Whether both send the same requests in the same way; caches of functions compare clients."""
        if not isinstance(other, ClientBase):
            return NotImplemented
        return type(self) is type(other) and (self.settings, self._user_resources) == (
            other.settings,
            other._user_resources,
        )

    def __hash__(self) -> int:
        return hash(self.settings)

    def __deepcopy__(self, _: object) -> Self:
        """The client itself, which may be shared."""
        return self

    def __getstate__(self) -> Settings:
        if replace(self._user_resources, on_request=None) != UserResources():
            raise InvalidInput(
                "a client with an http_client or rate_limiter of yours cannot be pickled: sockets and locks belong "
                "to this process. Make the client in the other process, or set proxies by environment variables"
            )
        return self.settings

    def __setstate__(self, settings: Settings) -> None:
        self._set_up(settings, UserResources())

    def __repr__(self) -> str:
        if not hasattr(self, "settings"):
            return "EmbeddingClient()"  # its settings were refused
        return f"EmbeddingClient(model={self.settings.model.name!r}, host={self.settings.address.host!r})"
