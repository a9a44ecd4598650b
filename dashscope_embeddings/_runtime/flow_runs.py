"""Runs a flow on a thread or in a task: the caller passes in how a step is performed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings._core.failures import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from dashscope_embeddings._core.exchange import Exchange, Outcome
    from dashscope_embeddings._core.steps import StepResult

T = TypeVar("T")
StepT = TypeVar("StepT")
AnswerT = TypeVar("AnswerT")


def run(flow: Generator[StepT, AnswerT, T], perform: Callable[[StepT], AnswerT]) -> T:
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


async def arun(flow: Generator[StepT, AnswerT, T], perform: Callable[[StepT], Awaitable[AnswerT]]) -> T:
    """`run` for a task. A flow that is thrown `GeneratorExit` must not yield: its coroutine is closed."""
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
