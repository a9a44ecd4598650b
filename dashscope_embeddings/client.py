"""`EmbeddingClient`: embeds, streams, counts and estimates texts, sync and async."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeAlias

from typing_extensions import Self, Unpack

from dashscope_embeddings import catalogue
from dashscope_embeddings._core import planning, text_inputs
from dashscope_embeddings._core.argument_names import reject_unknown_init_arguments, reject_unknown_keywords
from dashscope_embeddings._core.client_options import ClientOptions, documented
from dashscope_embeddings._core.exchange import READ_AHEAD, RequestContext
from dashscope_embeddings._core.settings import Settings
from dashscope_embeddings._core.text_inputs import OnRefused
from dashscope_embeddings._runtime.async_connections import check_running_loop
from dashscope_embeddings._runtime.async_drivers import run_in_thread
from dashscope_embeddings._runtime.client_base import ClientBase
from dashscope_embeddings._runtime.deadlines import GRACE_SECONDS, GracePeriod
from dashscope_embeddings._runtime.flow_runs import ClosingGenerator
from dashscope_embeddings._runtime.job import OnBatchDone
from dashscope_embeddings._runtime.progress import progress_bar
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
from dashscope_embeddings._runtime.user_resources import UserResources
from dashscope_embeddings.quota import Quota
from dashscope_embeddings.vectors import Embedding, Embeddings, EstimatedUsage, Output, TextType, TokenCounts

Texts: TypeAlias = str | Iterable[str]
Progress: TypeAlias = Callable[[int], object]
OnVectors: TypeAlias = Callable[[dict[int, Any]], Any]


@documented
class EmbeddingClient(ClientBase):
    """Embeds texts with one model of one account. Safe to share between threads, tasks and event loops.

    May be used as a context manager, `with` or `async with`, which closes its connections at the end; without it they
    are closed when nothing holds the client any more. Clients with equal settings share connections; idle threads end
    after 10 seconds, idle connections after 30. A forked child makes its own connections. A pickle holds the settings
    and the key, but no `on_request`; `http_client` and LangChain's `rate_limiter` cannot be pickled. Clients with equal
    settings are equal and have equal hashes. A request that is cancelled closes its connection, and what the service
    bills for it is in no `usage`; of several requests, those that Ctrl-C interrupts are counted.

    Args:
        model: A model's name; the catalogue knows its limits, an unknown one works with cautious limits.
        {settings}

    Raises:
        InvalidInput: a setting that cannot work, or no key.
        TypeError: an argument that does not exist.
    """

    @reject_unknown_init_arguments
    def __init__(self, model: str = catalogue.DEFAULT_MODEL, **options: Unpack[ClientOptions]) -> None:
        http_client, http_async_client = options.get("http_client"), options.get("http_async_client")
        resources = UserResources(
            http_client, http_async_client, options.get("rate_limiter"), options.get("on_request")
        )
        self._set_up(Settings.from_options(model, options), resources)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- sync ---------------------------------------------------------------------------------------------

    @reject_unknown_keywords
    def embed(  # noqa: PLR0913 - options of one call; all but the texts are keywords
        self,
        texts: Texts,
        *,
        text_type: TextType = "document",
        output: Output = "dense",
        array: bool = False,
        progress: Progress | bool | None = None,
        on_vectors: OnVectors | None = None,
    ) -> Embeddings:
        """All vectors at once: shape (texts, dimensions), in the order of the texts.

        Args:
            texts: A string, an open text file (one text per line), or any iterable of strings. A blank line is refused
                as any blank text, so that the vectors are those of the lines; `corpus` skips blank lines.
            text_type: "query" for search queries, "document" for the texts that are searched.
            output: "dense", "sparse" or "dense&sparse" (one request, billed once).
            array: Keeps the dense vectors as float32 in `dense_array`, 4 KB for 1,024 numbers; `dense` stays empty.
            progress: Called with the number of texts that a request completed; True: a bar (with tqdm).
            on_vectors: Called with index → vectors (shaped as in `partial`) of the texts that a request completed, for
                a cache; `aembed` awaits its result.

        Raises:
            InvalidInput: a text cannot be embedded; nothing was sent.
            ServiceError, ConnectionFailed, BadReply: with `partial` (index → vector) and `failed` (indices).
            KeyboardInterrupt: nothing more is sent; with `partial` and `failed`. If there are several requests, those
                in flight have two seconds to be answered, or until a second one.
            asyncio.CancelledError: the same, at once; on Python 3.10 a task that awaits the cancelled one does not see
                `partial` and `failed`.
        """
        context = self.sync_context(text_type, output)
        checked = text_inputs.validate(text_inputs.iterate_texts(texts), self._limits, context.long_text)
        job = self._new_job(output, checked, array=array, await_answers=lambda: self.drain(GRACE_SECONDS, job.halt))
        if (single := self._prepare_single(checked, context)) is not None and context.blocked_loop is None:
            outcomes = self._thread_driver.run_single(*single, context, job.count_late)
        else:
            batches = planning.batches(checked, self._planner(dedup_window=None))
            flow_of = job.flow_maker(context, self._quota_question(context, self._thread_driver, checked))
            outcomes = self._thread_driver.run_many(batches, flow_of, job.halt, context)
        with progress_bar(len(checked), progress=progress) as report, job:
            with contextlib.closing(outcomes):
                for batch, outcome in outcomes:
                    done = job.collector.add(batch, outcome)
                    with job.callbacks:
                        if report is not None:
                            report(done)
                    with job.callbacks:
                        if on_vectors is not None:
                            on_vectors(job.collector.completed(batch))
            return job.result()

    @reject_unknown_keywords
    def stream(
        self,
        texts: Texts,
        *,
        text_type: TextType = "document",
        output: Output = "dense",
        refused: OnRefused | None = None,
        arrived: OnBatchDone | None = None,
    ) -> Iterator[Embedding]:
        """The vectors one by one, in order, in bounded memory however many texts there are.

        Reads ahead by the requests in flight and at most 48 more. Arguments and errors are those of `embed`, except
        that a bad text is found when it is read, and `partial` holds the vectors that had arrived and were not yet
        yielded.

        Args:
            texts: As for `embed`.
            text_type: As for `embed`.
            output: As for `embed`.
            refused: Called with the index and the error of a text that cannot be embedded, according to our check
                or to the service; the stream continues without it. None: such a text ends the stream.
            arrived: Called with the texts of a request and their outcome when the request ends: out of order, in the
                thread that sent it. It lets a caller store each result as soon as it is paid for.
        """
        context = self.sync_context(text_type, output)
        return self.run_stream(text_inputs.iterate_texts(texts), context, refused, arrived, GracePeriod(bool))

    @reject_unknown_keywords
    def count_tokens(self, texts: Texts) -> TokenCounts:
        """The tokens that each text is billed. Sends nothing.

        Exact for text-embedding-v4 and text-embedding-v2 if the extra `tokenizer` is installed, as far as five replies
        with short texts show that third parties recorded (seen 2026-11-27). Otherwise by a rule of thumb, which counts
        0.7 to 1.3 times the tokens of most English texts, and 0.5 to 0.9 times those of Chinese ones.

        Returns:
            One number for each text; its attribute `exact` tells which of the two it is.

        Raises:
            InvalidInput: a text cannot be embedded.
        """
        checked = text_inputs.validate(text_inputs.iterate_texts(texts), self._limits, "average")
        count = self._limits.count
        return TokenCounts((max(1, round(count(text))) for text in checked), exact=self._limits.counts_exactly)

    @reject_unknown_keywords
    def estimate(self, texts: Texts) -> EstimatedUsage:
        """What `embed` would be billed for these texts at most, if nothing is cached. Sends nothing.

        Returns:
            Requests, tokens (see `count_tokens`), texts (repeated ones once) and their list price.

        Raises:
            InvalidInput: a text cannot be embedded.
        """
        checked = text_inputs.validate(text_inputs.iterate_texts(texts), self._limits, self.settings.long_text)
        requests = rows = tokens = 0
        for batch in planning.batches(checked, self._planner(dedup_window=None)):
            requests, rows = requests + bool(batch.texts), rows + len(batch.texts)
            tokens += sum(max(1, round(self._limits.count(row))) for row in batch.texts)
        price = self.settings.price
        cost = None if price is None else price.of(tokens)
        return EstimatedUsage(requests, tokens, rows, cost, exact=self._limits.counts_exactly)

    def fetch_quota(self) -> Quota:
        """Asks the service for the quota of this client's model, which costs nothing.

        From then on the quota is an upper bound for all clients of the same key, host and model in this process; the
        search for the rate goes on below it. A job of at least 100 requests asks by itself, once, unless a quota is
        configured; it goes on without the answer.

        The service documents this for chat models. That it lists embedding models is likely, not proven
        (https://www.alibabacloud.com/help/en/model-studio/list-quotas, seen 2026-11-27).

        Returns:
            The limits of the account and of the workspace, and the tightest of them as requests and tokens per minute.

        Raises:
            ServiceError: the service refuses; with status 404, this host does not tell quotas.
            BadReply: the reply does not list the model.
            ConnectionFailed: there was no answer.
        """
        return self.run_steps(self._quota_request(), SignalSafeEvent())

    def close(self) -> None:
        """Closes the connections of sync code. Optional: they are closed when the client is garbage-collected."""
        self._transport.close()

    # --- async --------------------------------------------------------------------------------------------

    @reject_unknown_keywords
    async def aembed(  # noqa: PLR0913 - the options of `embed`
        self,
        texts: Texts | AsyncIterable[str],
        *,
        text_type: TextType = "document",
        output: Output = "dense",
        array: bool = False,
        progress: Progress | bool | None = None,
        on_vectors: OnVectors | None = None,
    ) -> Embeddings:
        """`embed` for a running event loop; also takes an asynchronous iterable."""
        check_running_loop()
        context = self._request_context(text_type, output)
        text_list = (
            [text async for text in texts] if isinstance(texts, AsyncIterable) else [*text_inputs.iterate_texts(texts)]
        )
        if text_inputs.needs_thread(text_list):
            checked = await run_in_thread(text_inputs.validate, text_list, self._limits, context.long_text)
        else:
            checked = text_inputs.validate(text_list, self._limits, context.long_text)
        job = self._new_job(output, checked, array=array)
        question = self._quota_question(context, self._async_driver, checked)
        if (single := self._prepare_single(checked, context)) is not None:
            outcomes = self._async_driver.run_single(*single, context, job.count_late)
        else:
            batches = planning.abatches(_as_async_iterator(checked), self._planner(dedup_window=None))
            outcomes = self._async_driver.run_many(batches, job.flow_maker(context, question), job.halt, context)
        with progress_bar(len(checked), progress=progress) as report, job:
            async with contextlib.aclosing(question), ClosingGenerator(outcomes):
                async for batch, outcome in outcomes:
                    done = await job.add(batch, outcome)
                    with job.callbacks:
                        if report is not None:
                            report(done)
                    with job.callbacks:
                        if on_vectors is not None:
                            returned = on_vectors(job.collector.completed(batch))
                            if inspect.isawaitable(returned):
                                await returned
            return job.result()

    @reject_unknown_keywords
    def astream(
        self,
        texts: Texts | AsyncIterable[str],
        *,
        text_type: TextType = "document",
        output: Output = "dense",
        refused: OnRefused | None = None,
        arrived: OnBatchDone | None = None,
    ) -> AsyncIterator[Embedding]:
        """`stream` for a running event loop; also takes an asynchronous iterable."""
        source = texts if isinstance(texts, AsyncIterable) else _as_async_iterator(text_inputs.iterate_texts(texts))
        return self._astream(source, self._request_context(text_type, output), refused, arrived)

    async def _astream(
        self, texts: AsyncIterable[str], context: RequestContext, refused: OnRefused | None, arrived: OnBatchDone | None
    ) -> AsyncIterator[Embedding]:
        check_running_loop()
        checked = text_inputs.avalidate_each(texts, self._limits, context.long_text, refused, in_thread=run_in_thread)
        batches = planning.abatches(checked, self._planner(dedup_window=READ_AHEAD))
        job, question = self._new_job(context.options.output), self._quota_question(context, self._async_driver)
        flow_of = job.flow_maker(context, question, arrived)
        outcomes = self._async_driver.run_many(batches, flow_of, job.halt, context)
        with job:
            async with contextlib.aclosing(question), ClosingGenerator(outcomes):
                async for batch, outcome in outcomes:
                    await job.add(batch, outcome)
                    for embedding in job.stream_ready(outcome, refused):
                        yield embedding
            job.callbacks.raise_first_error()
        if job.collector.has_failed:
            raise job.collector.build_error()

    async def afetch_quota(self) -> Quota:
        """`fetch_quota` for a running event loop."""
        check_running_loop()
        return await self._async_driver.run_steps(self._quota_request(), SignalSafeEvent())

    async def aclose(self) -> None:
        """Closes the connections of the running event loop and those of sync code."""
        check_running_loop()
        await self._transport.aclose()


async def _as_async_iterator(items: Iterable[str]) -> AsyncGenerator[str, None]:
    for item in items:
        yield item
