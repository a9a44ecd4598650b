"""Flows: both drivers make the same calls, throw errors into the flow, and always close it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings._adapters.flows import Call, arun, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._adapters.flows import Flow


def double(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return 2 * number


async def adouble(number: int) -> int:
    await asyncio.sleep(0)
    return double(number)


def in_loop(flow: Flow[Any]) -> Any:
    return asyncio.run(arun(flow))


drivers = pytest.mark.parametrize("drive", [run, in_loop], ids=["run", "arun"])


@drivers
def test_a_flow_is_sent_what_its_calls_return(drive: Callable[[Flow[int]], int]) -> None:
    def flow() -> Flow[int]:
        first = yield Call(double, adouble, 1)
        return (yield Call(double, adouble, first)) + first  # type: ignore[no-any-return]

    assert drive(flow()) == 4 + 2


@drivers
def test_an_error_is_thrown_into_the_flow_which_may_call_again(drive: Callable[[Flow[int]], int]) -> None:
    def flow(retries: int) -> Flow[int]:
        try:
            return (yield Call(double, adouble, -1))  # type: ignore[no-any-return]
        except ValueError:
            if not retries:
                raise
            return (yield Call(double, adouble, 3))  # type: ignore[no-any-return]

    assert drive(flow(1)) == 6
    with pytest.raises(ValueError, match="-1"):
        drive(flow(0))


@drivers
def test_a_flow_may_raise_another_error_and_is_closed(drive: Callable[[Flow[None]], None]) -> None:
    closed: list[str] = []

    def flow() -> Flow[None]:
        try:
            yield Call(double, adouble, 1)
            raise KeyError("own")
        finally:
            closed.append("yes")

    with pytest.raises(KeyError, match="own"):
        drive(flow())
    assert closed == ["yes"]


async def test_a_cancelled_flow_ends_with_the_cancellation() -> None:
    ends: list[type[BaseException]] = []

    def flow() -> Flow[None]:
        try:
            yield Call(double, asyncio.sleep, 60)
        except BaseException as error:
            ends.append(type(error))
            raise

    task = asyncio.create_task(arun(flow()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ends == [asyncio.CancelledError]
