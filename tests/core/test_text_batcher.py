"""Queries that wait at the same time travel in one request, and nobody's trouble becomes another's."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from client_helpers import FakeClock

from dashscope_embeddings._core.error_codes import ErrorReply, service_error
from dashscope_embeddings._core.exchange import Outcome, RequestContext
from dashscope_embeddings._core.planning import BatchPlanner
from dashscope_embeddings._core.protocol import RequestOptions
from dashscope_embeddings._core.rate_limiter import InFlightBound, Limiter
from dashscope_embeddings._core.steps import AskUserLimiter
from dashscope_embeddings._core.text_batcher import BatchCall, SingleText, TextBatcher
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings.catalogue import model
from dashscope_embeddings.errors import AuthenticationError
from dashscope_embeddings.vectors import Part

if TYPE_CHECKING:
    from dashscope_embeddings.vectors import TextType

THROTTLED = service_error(ErrorReply(429, "Throttling.RateQuota"))


class Stopped:
    """A loop that will run no more."""

    def is_running(self) -> bool:
        return False


def batcher(
    max_in_flight: int, clock: FakeClock, *, role: TextType = "query", max_tokens: int | None = None
) -> tuple[TextBatcher, RequestContext]:
    limits = Limits.from_model(model("text-embedding-v4"))
    options = RequestOptions("native", "text-embedding-v4", role)
    bound = InFlightBound(max_in_flight)
    context = RequestContext(options, limits, Limiter(clock.now), bound=bound)
    return TextBatcher(BatchPlanner(limits, max_tokens=max_tokens)), context


def join(waiting: TextBatcher, *texts: str) -> list[SingleText]:
    queries = [SingleText(text, 5, wake=lambda: None) for text in texts]
    for query in queries:
        waiting.enqueue(query)
    return queries


def answer(count: int) -> Outcome:
    rows: list[Part | None] = [Part([float(i)], None, 1.0) for i in range(count)]
    return Outcome(rows, requests=1, texts=count, tokens=3 * count + 1, request_ids=["r"])


def test_throttled_queries_go_back_to_the_front_and_travel_with_later_ones() -> None:
    clock = FakeClock()
    waiting, context = batcher(2, clock)
    (first,) = join(waiting, "first")
    batch_call = waiting.poll(first, context, None)
    assert isinstance(batch_call, BatchCall)
    join(waiting, "second")
    outcome = Outcome([None], abort_error=THROTTLED)
    context.limiter.on_throttled(batch_call.permit)
    waiting.complete(batch_call, outcome, context)
    while not isinstance(turn := waiting.poll(first, context, None), BatchCall):
        assert isinstance(turn, float)
        clock.time += turn
    assert turn.texts == ["first", "second"]


def test_the_queries_of_a_loop_that_stopped_in_flight_are_carried_by_others() -> None:
    clock = FakeClock()
    waiting, context = batcher(1, clock)
    first, second = join(waiting, "a", "b")
    lost = waiting.poll(first, context, Stopped())
    assert isinstance(lost, BatchCall)
    clock.time += 1
    batch_call = waiting.poll(second, context, None)
    assert isinstance(batch_call, BatchCall)
    assert sorted(batch_call.texts) == ["a", "b"]
    waiting.complete(lost, answer(2), context)  # too late: it counts for nobody
    assert (second.outcome, second.batch_call) == (None, batch_call)


def test_a_failure_of_all_is_an_error_of_its_own_for_each() -> None:
    waiting, context = batcher(1, FakeClock())
    queries = join(waiting, "a", "b")
    batch_call = waiting.poll(queries[0], context, None)
    assert isinstance(batch_call, BatchCall)
    stop = service_error(ErrorReply(401, "InvalidApiKey"))
    waiting.complete(batch_call, Outcome([None, None], {0: stop, 1: stop}, stop), context)
    errors = [query.outcome.abort_error for query in queries if query.outcome is not None]
    assert [type(error) for error in errors] == [AuthenticationError, AuthenticationError]
    assert errors[0] is not errors[1]


def test_who_leaves_makes_room_and_wakes_the_next() -> None:
    woken: deque[str] = deque()
    waiting, context = batcher(1, FakeClock())
    queries = [SingleText(text, 5, wake=functools.partial(woken.append, text)) for text in ("a", "b")]
    for query in queries:
        waiting.enqueue(query)
    waiting.leave(queries[0], context)
    assert list(woken) == ["b"]
    batch_call = waiting.poll(queries[1], context, None)
    assert isinstance(batch_call, BatchCall)
    assert batch_call.texts == ["b"]


def test_a_flight_that_is_broken_off_puts_its_queries_back_in_order() -> None:
    waiting, context = batcher(1, FakeClock())
    queries = join(waiting, "a", "b", "c")
    batch_call = waiting.poll(queries[0], context, None)
    assert isinstance(batch_call, BatchCall)
    context.limiter.cancel(batch_call.permit)
    waiting.complete(batch_call, None, context)
    again = waiting.poll(queries[0], context, None)
    assert isinstance(again, BatchCall)
    assert again.texts == ["a", "b", "c"]


def test_documents_have_low_priority_and_a_permit_for_the_tokens_of_all() -> None:
    waiting, context = batcher(1, FakeClock(), role="document", max_tokens=17)
    texts = join(waiting, "a", "b", "c", "d")
    batch_call = waiting.poll(texts[0], context, None)
    assert isinstance(batch_call, BatchCall)
    assert batch_call.texts == ["a", "b", "c"]  # five tokens each
    assert (batch_call.permit.estimated_tokens, batch_call.permit.high_priority) == (15, False)


def test_thousands_of_waiting_callers_poll_no_more_often_than_a_few() -> None:
    waiting, context = batcher(1, FakeClock())
    for count in (64, 6_400):
        texts = join(waiting, *(f"text {i}" for i in range(count - len(waiting._waiting))))
        pauses = [waiting.poll(text, context, None) for text in texts]
        polls_per_second = sum(1 / pause for pause in pauses[1:] if isinstance(pause, float))
        assert polls_per_second <= 64 / 0.25


def test_equal_texts_share_a_row_and_the_first_of_them_pays() -> None:
    waiting, context = batcher(1, FakeClock(), max_tokens=10)
    queries = join(waiting, "a", "a", "b", "a")
    batch_call = waiting.poll(queries[0], context, None)
    assert isinstance(batch_call, BatchCall)
    assert (batch_call.texts, batch_call.permit.estimated_tokens) == (["a", "b"], 10)
    waiting.complete(batch_call, answer(2), context)
    found = [query.outcome for query in queries if query.outcome is not None]
    assert [outcome.dense for outcome in found] == [[[0.0]], [[0.0]], [[1.0]], [[0.0]]]
    assert len({id(outcome.dense[0]) for outcome in found}) == 4
    assert [(own.requests, own.texts, own.tokens) for own in found] == [(1, 1, 4), (0, 0, 0), (0, 1, 3), (0, 0, 0)]


def test_a_text_that_is_in_flight_is_not_sent_again_for_another_caller() -> None:
    clock = FakeClock()
    waiting, context = batcher(2, clock)
    (first,) = join(waiting, "a")
    batch_call = waiting.poll(first, context, None)
    assert isinstance(batch_call, BatchCall)
    joined, other = join(waiting, "a", "b")
    assert isinstance(waiting.poll(joined, context, None), float)
    assert list(waiting._waiting) == [other]
    waiting.complete(batch_call, answer(1), context)
    assert waiting.poll(joined, context, None) == Outcome([Part([0.0], None, 1.0)], request_ids=["r"])


@pytest.mark.parametrize("event", ["failed", "cancelled", "late"])
def test_a_text_that_joined_another_request_sends_its_own_if_that_one_brings_nothing(event: str) -> None:
    clock = FakeClock()
    waiting, context = batcher(2, clock)
    (first,) = join(waiting, "a")
    batch_call = waiting.poll(first, context, None)
    assert isinstance(batch_call, BatchCall)
    joined, *others = join(waiting, *("aaa" if event == "late" else "a"))
    assert all(isinstance(waiting.poll(text, context, None), float) for text in (joined, *others))
    clock.time += 9.9
    if event == "late":
        assert isinstance(waiting.poll(joined, context, None), float)
        clock.time += 0.1
    else:
        stop = service_error(ErrorReply(401, "InvalidApiKey"))
        outcome = Outcome([None], {0: stop}, stop) if event == "failed" else None
        waiting.leave(first, context)
        waiting.complete(batch_call, outcome, context)
    own = waiting.poll(joined, context, None)
    assert isinstance(own, BatchCall)
    assert own.members == [joined, *others]
    (later,) = join(waiting, "a")
    assert isinstance(waiting.poll(later, context, None), float)
    assert later in own.joined
    if event == "failed":
        waiting.complete(own, outcome, context)
        assert isinstance(waiting.poll(joined, context, None), Outcome)  # its own failure is its last
        return
    waiting.complete(own, answer(1), context)
    waiting.complete(batch_call, answer(1), context)
    assert joined.outcome is not None
    assert joined.outcome.requests == 1


def test_a_forked_child_asks_the_users_limiter_itself() -> None:
    waiting, context = batcher(2, FakeClock())
    context = replace(context, has_user_limiter=True)
    (parents,) = join(waiting, "a")
    assert isinstance(waiting.poll(parents, context, None), AskUserLimiter)
    waiting.grant(parents)
    waiting.reset_after_fork()
    (childs,) = join(waiting, "b")
    assert isinstance(waiting.poll(childs, context, None), AskUserLimiter)
