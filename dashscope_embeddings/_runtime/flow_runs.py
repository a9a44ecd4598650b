"""What the drivers for threads and for tasks share: how a flow is run, and flows around an exchange."""

from __future__ import annotations

import contextvars
import functools
from typing import TYPE_CHECKING, Generic, TypeVar

from dashscope_embeddings._core.exchange import Outcome, exchange
from dashscope_embeddings._core.failures import CANCELLED
from dashscope_embeddings._core.steps import AskUserLimiter, Sleep, Start
from dashscope_embeddings._core.text_batcher import BatchCall
from dashscope_embeddings.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator

    from dashscope_embeddings._core.exchange import Exchange, RequestContext
    from dashscope_embeddings._core.permit import Sender
    from dashscope_embeddings._core.steps import Step, StepResult
    from dashscope_embeddings._core.text_batcher import SingleText, TextBatcher

T = TypeVar("T")
StepT = TypeVar("StepT")
AnswerT = TypeVar("AnswerT")


def in_own_context(function: Callable[..., T], *args: object) -> Callable[..., T]:
    """A call to make elsewhere, in a copy of this context: tracing and usage trackers are context variables."""
    return functools.partial(contextvars.copy_context().run, function, *args)


def run_flow(flow: Generator[StepT, AnswerT, T], perform: Callable[[StepT], AnswerT]) -> T:
    """What a flow returns. What `perform` raises is raised in the flow, at its step."""
    try:
        step = next(flow)
        while True:
            try:
                answer = perform(step)
            except BaseException as error:  # noqa: BLE001, PERF203 - the flow raises it again
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        flow.close()


async def arun_flow(flow: Generator[StepT, AnswerT, T], perform: Callable[[StepT], Awaitable[AnswerT]]) -> T:
    """`run_flow` for a task. A flow that is thrown `GeneratorExit` must not yield: its coroutine is closed."""
    try:
        step = next(flow)
        while True:
            try:
                answer = await perform(step)
            except BaseException as error:  # noqa: BLE001, PERF203 - the flow raises it again
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        flow.close()


class ClosingGenerator(Generic[T]):
    """`aclosing`, unless the garbage collector closes the coroutine: it has thrown `GeneratorExit` in the generator."""

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items

    async def __aenter__(self) -> AsyncGenerator[T, None]:
        return self._items

    async def __aexit__(self, *_: object) -> None:
        if not getattr(self._items, "ag_running", False):
            await self._items.aclose()


# --- the flows of a job -----------------------------------------------------------------------------------


def until_error(items: Iterator[T], errors: list[BaseException]) -> Iterator[T]:
    """The items up to an error, which is kept in `errors`: what was started before it may still end."""
    try:
        yield from items
    except Exception as error:  # noqa: BLE001 - `run_many` raises it
        errors.append(error)


async def auntil_error(items: AsyncGenerator[T, None], errors: list[BaseException]) -> AsyncGenerator[T, None]:
    """`until_error` for a loop; closes `items`, which else the loop would do later, if it is not closed by then."""
    try:
        async with ClosingGenerator(items):
            async for item in items:
                yield item
    except Exception as error:  # noqa: BLE001 - `run_many` raises it
        errors.append(error)


def cancellable(flow: Exchange, stop_job: Callable[[], None]) -> Exchange:
    """The same flow. If a step raises, it is cancelled so that it can return what arrived, and then raises the error.

    `stop_job` is called if it raises, or if its outcome aborts the job.
    """
    answer: StepResult = None
    raised: BaseException | None = None
    while True:
        try:
            step = flow.send(answer)
        except StopIteration as end:
            outcome: Outcome = end.value
            break
        except BaseException:
            stop_job()
            raise
        try:
            answer = CANCELLED if raised else (yield step)
        except BaseException as error:  # noqa: BLE001 - raised again when the flow has ended
            answer, raised = CANCELLED, error
            stop_job()
    if outcome.abort_error is not None:
        stop_job()
    if raised is not None:
        raise raised
    return outcome


# --- a single text ----------------------------------------------------------------------------------------


def single_text(
    text: SingleText,
    batcher: TextBatcher,
    context: RequestContext,
    task: Sender | None,
    on_late_outcome: Callable[[Outcome], object],
) -> Generator[Step, StepResult, Outcome]:
    """The outcome of a text that may share a request. `on_late_outcome` gets it if the caller has left.

    `task`: the caller's; None for a thread.
    """
    try:
        batcher.enqueue(text)
        outcome = yield from _poll_until_outcome(text, batcher, context, task)
    except BaseException:
        # In this caller's context, because another caller completes it.
        text.on_late_outcome = in_own_context(on_late_outcome)
        raise
    finally:
        batcher.leave(text, context)
    if text.is_interrupted():
        on_late_outcome(outcome)
    return outcome


def _poll_until_outcome(
    text: SingleText, batcher: TextBatcher, context: RequestContext, task: Sender | None
) -> Generator[Step, StepResult, Outcome]:
    while not isinstance(action := batcher.poll(text, context, task), Outcome):
        if isinstance(action, BatchCall):
            flow = _batch_exchange(action, batcher, context)
            if len(action.members) == 1:
                yield from flow
            else:
                yield Start(flow, action)
        elif (yield Sleep(action, text) if isinstance(action, float) else action) is not None:
            raise Cancelled(CANCELLED.reason)
        elif isinstance(action, AskUserLimiter):
            batcher.grant(text)
    return action


def _batch_exchange(
    batch_call: BatchCall, batcher: TextBatcher, context: RequestContext
) -> Generator[Step, StepResult, None]:
    """Sends a batch of single texts, and hands them its outcome."""
    outcome = None
    try:
        outcome = yield from exchange(batch_call.texts, context.fail_fast.for_one_call(), batch_call.permit)
    finally:
        batcher.complete(batch_call, outcome, context)
