"""`EmbeddingClient`: texts in, vectors out, sync and async."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import SecretStr

from dashscope_embeddings import catalogue
from dashscope_embeddings._core import planning, text_inputs
from dashscope_embeddings._core.address import resolve_address, resolve_api_key, resolve_protocol
from dashscope_embeddings._core.argument_names import reject_unknown_init_arguments, reject_unknown_keywords
from dashscope_embeddings._core.exchange import RequestContext
from dashscope_embeddings._core.protocol import ApiProtocol
from dashscope_embeddings._core.secret_settings import hide_secrets
from dashscope_embeddings._core.settings import Settings
from dashscope_embeddings._core.text_inputs import OnRefused
from dashscope_embeddings._core.text_length import LongText
from dashscope_embeddings._runtime.async_drivers import run_in_thread
from dashscope_embeddings._runtime.client_base import CallbackGuard, ClientBase, OnBatchDone, add_result, skip_refused
from dashscope_embeddings._runtime.connections import check_running_loop
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
from dashscope_embeddings._runtime.user_resources import UserResources
from dashscope_embeddings.catalogue import Price
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.usage import OnRequest
from dashscope_embeddings.vectors import Embedding, Embeddings, Output, TextType

Texts: TypeAlias = str | Iterable[str]
Progress: TypeAlias = Callable[[int], object]
OnVectors: TypeAlias = Callable[[dict[int, Any]], Any]


class EmbeddingClient(ClientBase):
    """Embeds texts with one model of one account. Safe to share between threads, tasks and event loops.

    Args:
        model: A model's name; the catalogue knows its limits, an unknown one works with cautious limits.
        api_key: Else `DASHSCOPE_API_KEY`, the file that `DASHSCOPE_API_KEY_FILE_PATH` names, or
            `~/.dashscope/api_key`.
        dimensions: Floats in a dense vector; None: the model's default. `dimension` is the same.
        instruct: What queries are for, in a sentence; sent with queries only.
        protocol: "native" (default), or "openai" for the OpenAI-compatible endpoint, without roles and sparse
            vectors.
        region: Such as "cn-beijing" (default) or "ap-southeast-1"; a key belongs to one.
        workspace: Its own host, `{workspace}.{region}.maas.aliyuncs.com`, is asked.
        base_url: Another address: a root or anything pasted from the vendor's pages; "emulator" for none.
        timeout: Seconds without an answer, or without more of it, before a request is tried again.
        request_deadline: Seconds that one request may take as a whole, even if its answer never pauses for
            `timeout`; then it is tried again. Files of the Batch route get more by their size. None: ten times
            `timeout`.
        max_retries: Further tries of one request after network errors, 5xx and broken replies. Throttled
            requests are tried for five minutes (or not at all with 0).
        max_concurrency: Requests in flight at once in sync code, and as many in each event loop.
        requests_per_minute: The account's quota, if known; without it the pace is found by itself.
        tokens_per_minute: The same for tokens.
        long_text: What to do with a text that is longer than the model takes: "error" names it; "truncate"
            embeds its beginning; "average" embeds all of it in pieces and takes their length-weighted mean,
            at unit length (for sparse vectors: each token's largest weight).
        batch_size: At most so many texts a request; None: the model's limit.
        tokens_per_request: At most about so many tokens a request; None: the model's limit, if it has one.
        default_headers: Sent with every request.
        rate_limiter: One of LangChain's or LlamaIndex's, asked before every request, besides our own pace.
        http_client: Your `httpx.Client`, for proxies, certificates and the like; never closed by us.
        http_async_client: Your `httpx.AsyncClient`; it belongs to one event loop.
        price: What you pay for a million tokens, in place of the list price.
        on_request: Called with a `RequestRecord` after every request, in whichever thread or task asked; it
            stays in this process when the client is pickled.

    Raises:
        InvalidInput: a setting that cannot work, or no key.
    """

    @reject_unknown_init_arguments
    def __init__(  # noqa: PLR0913 - every one a setting that a user may need; keywords but for the first
        self,
        model: str = catalogue.DEFAULT_MODEL,
        *,
        api_key: str | SecretStr | None = None,
        dimensions: int | None = None,
        dimension: int | None = None,
        instruct: str | None = None,
        protocol: ApiProtocol | None = None,
        region: str | None = None,
        workspace: str | None = None,
        base_url: str | None = None,
        timeout: float = 60.0,
        request_deadline: float | None = None,
        max_retries: int = 6,
        max_concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        long_text: LongText = "error",
        batch_size: int | None = None,
        tokens_per_request: int | None = None,
        default_headers: Mapping[str, str | SecretStr] | None = None,
        rate_limiter: Any = None,
        http_client: Any = None,
        http_async_client: Any = None,
        price: Price | None = None,
        on_request: OnRequest | None = None,
    ) -> None:
        given: dict[str, Any] = {"model": model, "api_key": api_key, "instruct": instruct, "region": region}
        given |= {"workspace": workspace, "base_url": base_url, "default_headers": default_headers}
        del model, api_key, instruct, region, workspace, base_url, default_headers
        hide_secrets(given)
        if dimension is not None and dimensions not in {None, dimension}:
            raise InvalidInput(f"dimensions={dimensions} and dimension={dimension} are two names of one thing")
        protocol = resolve_protocol(protocol, region=given["region"], base_url=given["base_url"])
        place = resolve_address(
            protocol, region=given["region"], workspace=given["workspace"], base_url=given["base_url"]
        )
        self._set_up(
            Settings(
                model=catalogue.model(given["model"]),
                api_key=resolve_api_key(given["api_key"], place),
                address=place,
                protocol=protocol,
                dimensions=dimensions if dimensions is not None else dimension,
                instruct=given["instruct"] or None,
                timeout=timeout,
                request_deadline=request_deadline,
                max_retries=max_retries,
                max_concurrency=max_concurrency,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                long_text=long_text,
                batch_size=batch_size,
                tokens_per_request=tokens_per_request,
                price_override=price,
                headers=tuple((given["default_headers"] or {}).items()),
            ),
            UserResources(http_client, http_async_client, rate_limiter, on_request),
        )

    # --- sync ---------------------------------------------------------------------------------------------

    @reject_unknown_keywords
    def embed(  # noqa: PLR0913 - each a choice of this call alone; keywords but for the texts
        self,
        texts: Texts,
        *,
        text_type: TextType = "document",
        output: Output = "dense",
        array: bool = False,
        progress: Progress | None = None,
        on_vectors: OnVectors | None = None,
    ) -> Embeddings:
        """All vectors at once: shape (texts, dimensions), in the order of the texts.

        Args:
            texts: A string, an open text file (a text a line), or any iterable of strings.
            text_type: "query" for what a user asks with, "document" for what is searched.
            output: "dense", "sparse" or "dense&sparse" (one request, billed once).
            array: Keep the dense vectors as float32 in `dense_array`, 4 KB for 1,024 numbers; `dense` stays empty.
            progress: Called with the number of texts that are done, whenever some are.
            on_vectors: Called with index → vectors (shaped as in `partial`) of texts that are done, whenever
                some are, for a cache; `aembed` awaits what it returns. A lone query's are in the result alone.

        Raises:
            InvalidInput: a text cannot be embedded; nothing was sent.
            ServiceError, ConnectionFailed, BadReply: with `partial` (index → vector) and `failed`.
            KeyboardInterrupt, asyncio.CancelledError: no more is sent; with `partial` and `failed` as well (Python
                3.10 loses them where the cancelled task is awaited).
        """
        context = self._request_context(text_type, output)
        checked = text_inputs.validate(text_inputs.iterate_texts(texts), self._limits, context.long_text)
        collector = self._new_collector(output, packed=len(checked) if array else None)
        if (query := self._prepare_query(checked, context)) is not None and _no_running_loop():
            on_late_outcome = functools.partial(self._count_late, collector)
            with self._billing(collector, checked):
                collector.add(query[0], self._thread_driver.run_query(query[1], query[2], context, on_late_outcome))
                return collector.result(checked)
        halt = SignalSafeEvent()
        callbacks = CallbackGuard(halt.set)
        flows = self._flows(planning.batches(checked, self._planner(memory=None)), context, collector)
        with self._billing(collector, checked):
            with contextlib.closing(self._thread_driver.run_many(flows, halt)) as outcomes:
                for batch, outcome in outcomes:
                    done = collector.add(batch, outcome)
                    with callbacks:
                        if progress is not None:
                            progress(done)
                    with callbacks:
                        if on_vectors is not None:
                            on_vectors(collector.completed(batch))
            callbacks.raise_first_error()
            return collector.result(checked)

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

        Reads ahead by at most `max_concurrency` requests. Arguments and errors are those of `embed`; but a
        bad text is found when it is read, and `partial` holds what had arrived and was not yet given out.

        Args:
            texts: As for `embed`.
            text_type: As for `embed`.
            output: As for `embed`.
            refused: Called with a text's index and the reason where that text cannot be embedded, by our own
                check or by the service's; the stream goes on without it. None: such a text ends the stream.
            arrived: Called with the texts of a request and their outcome as soon as it is over, out of order
                and in whichever thread asked: for who must not lose what is paid for.
        """
        return self._stream(
            text_inputs.iterate_texts(texts), self._request_context(text_type, output), refused, arrived
        )

    def _stream(
        self, texts: Iterator[str], context: RequestContext, refused: OnRefused | None, arrived: OnBatchDone | None
    ) -> Iterator[Embedding]:
        checked = text_inputs.validate_each(texts, self._limits, context.long_text, refused)
        collector, halt = self._new_collector(context.options.output), SignalSafeEvent()
        planner = self._planner(memory=self.settings.max_concurrency)
        flows = self._flows(planning.batches(checked, planner), context, collector, arrived)
        callbacks = CallbackGuard(halt.set)
        with self._billing(collector), contextlib.closing(self._thread_driver.run_many(flows, halt)) as outcomes:
            for batch, outcome in outcomes:
                collector.add(batch, outcome)
                with callbacks:
                    skip_refused(collector, outcome, refused)
                if collector.has_failed:
                    halt.set()
                yield from collector.pop_ready()
            callbacks.raise_first_error()
        if collector.has_failed:
            raise collector.build_error()

    def close(self) -> None:
        """Closes the connections of sync code. Without it they are closed when nobody holds the client."""
        self._transport.close()

    # --- async --------------------------------------------------------------------------------------------

    @reject_unknown_keywords
    async def aembed(  # noqa: PLR0913 - those of `embed`
        self,
        texts: Texts | AsyncIterable[str],
        *,
        text_type: TextType = "document",
        output: Output = "dense",
        array: bool = False,
        progress: Progress | None = None,
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
        collector = self._new_collector(output, packed=len(checked) if array else None)
        if (query := self._prepare_query(checked, context)) is not None:
            with self._billing(collector, checked):
                collector.add(query[0], await self._async_driver.run_query(query[1], query[2], context))
                return collector.result(checked)
        halt = asyncio.Event()
        callbacks = CallbackGuard(halt.set)
        flows = self._aflows(
            planning.abatches(_as_async_iterator(checked), self._planner(memory=None)), context, collector
        )
        with self._billing(collector, checked):
            async with contextlib.aclosing(self._async_driver.run_many(flows, halt)) as outcomes:
                async for batch, outcome in outcomes:
                    done = await add_result(collector, batch, outcome)
                    with callbacks:
                        if progress is not None:
                            progress(done)
                    with callbacks:
                        if on_vectors is not None:
                            returned = on_vectors(collector.completed(batch))
                            if inspect.isawaitable(returned):
                                await returned
            callbacks.raise_first_error()
            return collector.result(checked)

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
        collector, halt = self._new_collector(context.options.output), asyncio.Event()
        planner = self._planner(memory=self.settings.max_concurrency)
        flows = self._aflows(planning.abatches(checked, planner), context, collector, arrived)
        callbacks = CallbackGuard(halt.set)
        with self._billing(collector):
            async with contextlib.aclosing(self._async_driver.run_many(flows, halt)) as outcomes:
                async for batch, outcome in outcomes:
                    await add_result(collector, batch, outcome)
                    with callbacks:
                        skip_refused(collector, outcome, refused)
                    if collector.has_failed:
                        halt.set()
                    for found in collector.pop_ready():
                        yield found
            callbacks.raise_first_error()
        if collector.has_failed:
            raise collector.build_error()

    async def aclose(self) -> None:
        """Closes the connections of the running loop, and those of sync code."""
        check_running_loop()
        await self._transport.aclose()


async def _as_async_iterator(items: Iterable[str]) -> AsyncIterator[str]:
    for item in items:
        yield item


def _no_running_loop() -> bool:
    """A sync call on a loop's own thread must not wait for that loop's tasks: it goes alone."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False
