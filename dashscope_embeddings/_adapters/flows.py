"""One implementation for the sync and the async method of an adapter: a flow yields calls, and two drivers make them.

A flow is a generator. It yields `Call`s, is sent what each returned (or is thrown what it raised), and returns the
result. `run` makes the calls on the caller's thread; `arun` awaits their asynchronous versions on the running loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

from dashscope_embeddings._runtime import flow_runs

T = TypeVar("T")


class Call:
    """One call to make: `function` in sync code, `async_function` on an event loop, with the same arguments."""

    __slots__ = ("args", "async_function", "function")

    def __init__(self, function: Callable[..., Any], async_function: Callable[..., Any], /, *args: Any) -> None:
        self.function, self.async_function, self.args = function, async_function, args


Flow: TypeAlias = Generator[Call, Any, T]


def run(flow: Flow[T]) -> T:
    """The result of a flow, on this thread. Whatever a call raises is thrown into the flow, which may call again."""
    return flow_runs.run_flow(flow, lambda call: call.function(*call.args))


async def arun(flow: Flow[T]) -> T:
    """`run` on the running loop."""
    return await flow_runs.arun_flow(flow, lambda call: call.async_function(*call.args))
