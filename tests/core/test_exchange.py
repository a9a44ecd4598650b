"""The flow of one request, driven by lists of replies: no socket, no clock, no waiting."""

from __future__ import annotations

import json
import logging
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import errors
from dashscope_embeddings._core import planning
from dashscope_embeddings._core.exchange import Outcome, RequestContext, exchange
from dashscope_embeddings._core.failures import CANCELLED, Failure
from dashscope_embeddings._core.protocol import Reply, RequestOptions
from dashscope_embeddings._core.rate_limiter import Permit
from dashscope_embeddings._core.results import ResultCollector
from dashscope_embeddings._core.steps import Send, Sleep
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings.vectors import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._core.exchange import Exchange
    from dashscope_embeddings._core.steps import StepResult

    Service = Callable[[list[str]], StepResult]

TEN = [f"text {i}" for i in range(10)]
BOTH = RequestOptions("native", "m", output="dense&sparse")


class FakeLimiter:
    """A limiter with its own clock: grants at once, or after some waits; notes each permit's fate."""

    tokens_per_minute = None

    def __init__(self, *waits: float, after_a_throttle: float = 0.0) -> None:
        self.now, self.waits, self.pause = 0.0, [*waits], after_a_throttle
        self.permits: list[Permit] = []
        self.story = ""

    def clock(self) -> float:
        return self.now

    def create_permit(self, tokens: int, *, high_priority: bool = False, **_: object) -> Permit:
        assert self.story.endswith("ended" if self.permits else ""), "the last permit was not given back"
        self.story += " / " if self.permits else ""
        self.permits.append(Permit(tokens, high_priority))
        return self.permits[-1]

    def try_acquire(self, _: Permit) -> float:
        return self.waits.pop() if self.waits else 0.0

    def on_success(self, permit: Permit, tokens: int | None = None) -> None:
        self.cancel(permit, f"success {tokens} ")

    def on_throttled(self, permit: Permit, retry_after: float | None = None) -> None:
        self.cancel(permit, f"throttled {retry_after} ")
        self.waits = [self.pause] if self.pause else []

    def cancel(self, permit: Permit, fate: str = "ended") -> None:
        assert permit is self.permits[-1]
        self.story += fate


class Talk:
    """One exchange with a service, which is a function of the texts."""

    def __init__(
        self,
        texts: list[str] = TEN,
        *,
        limiter: FakeLimiter | None = None,
        permit: Permit | None = None,
        **settings: Any,
    ) -> None:
        self.limiter: Any = limiter or FakeLimiter()
        self.limits = Limits(10, 8192, None)
        context = {"options": RequestOptions("native", "m"), "limits": self.limits, "limiter": self.limiter, **settings}
        self.flow: Exchange = exchange(texts, RequestContext(**context), permit)
        self.sent: list[list[str]] = []
        self.sizes: list[int] = []
        self.slept: list[float] = []

    def to(self, service: Service) -> Outcome:
        answer: StepResult = None
        try:
            while len(self.sent) < 200:
                step, answer = self.flow.send(answer), None
                if isinstance(step, Send):
                    self.sent.append(json.loads(step.body)["input"]["texts"])
                    self.sizes.append(len(self.sent[-1]))
                    answer = service(self.sent[-1])
                else:
                    assert isinstance(step, Sleep)
                    self.slept.append(step.seconds)
                    self.limiter.now += step.seconds
        except StopIteration as done:
            assert self.limiter.story.count("ended") == len(self.limiter.permits)
            outcome: Outcome = done.value
            return outcome
        raise AssertionError("the flow does not end")


def vector(text: str) -> list[float]:
    """Of unit length, and another one for each text."""
    angle = sum(map(ord, text)) % 97 / 97
    return [math.cos(angle), math.sin(angle)]


def good(texts: list[str]) -> Reply:
    sparse = [{"sparse_embedding": [{"index": len(text), "value": 0.5}]} for text in texts]
    rows = [{"text_index": i, "embedding": vector(t), **sparse[i]} for i, t in enumerate(texts)]
    reply = {"output": {"embeddings": rows}, "usage": {"total_tokens": 2 * len(texts)}, "request_id": "r"}
    return Reply(200, {}, json.dumps(reply).encode())


def no(status: int, code: str | None = None, message: str = "", retry_after: str = "") -> Reply:
    content = {"code": code, "message": message, "request_id": "r"}
    return Reply(status, {"retry-after": retry_after}, json.dumps(content).encode())


def says(*answers: StepResult) -> Service:
    """First these answers, one each; then vectors."""
    left = list(answers)
    return lambda texts: left.pop(0) if left else good(texts)


def test_an_answered_batch_is_one_request_and_settles_what_it_was_billed() -> None:
    talk = Talk()
    rows: list[Part | None] = [Part(vector(t), None, float(len(t))) for t in TEN]
    assert talk.to(good) == Outcome(rows, {}, None, 1, 10, 20, ["r"])
    assert (talk.sent, talk.slept, talk.limiter.story) == ([TEN], [], "success 20 ended")


def test_the_limiter_is_asked_until_it_says_now_and_a_query_is_urgent() -> None:
    talk = Talk(limiter=FakeLimiter(0.5, 0.25), options=RequestOptions("native", "m", "query"))
    talk.to(good)
    assert (talk.slept, talk.sizes, [p.high_priority for p in talk.limiter.permits]) == ([0.25, 0.5], [10], [True])


def test_a_permit_that_was_granted_before_serves_the_first_request_alone() -> None:
    talk = Talk(limiter=(limiter := FakeLimiter()), permit=limiter.create_permit(1))
    assert talk.to(says(no(400, "DataInspectionFailed"))).abort_error is None
    assert talk.limiter.story == "ended / success 10 ended / success 10 ended"


def test_a_throttled_request_is_sent_once_more_with_a_fresh_permit_and_uses_up_no_retry() -> None:
    talk = Talk()
    outcome = talk.to(says(no(429, "Throttling")))
    assert (talk.sent, talk.slept) == ([TEN, TEN], [])  # when to go again is the limiter's word
    assert talk.limiter.story == "throttled None ended / success 20 ended"
    assert (outcome.abort_error, outcome.requests, outcome.tokens) == (None, 1, 20)
    assert Talk(max_retries=1).to(says(*[no(429, "insufficient_quota")] * 20, no(500))).abort_error is None


def test_a_pause_is_as_long_as_the_service_asks_up_to_a_minute() -> None:
    for said, seconds in {"30": 30.0, "86400": 60.0}.items():
        talk = Talk()
        talk.to(says(no(503, retry_after=said)))
        assert talk.slept == [seconds]


def test_a_throttled_request_gives_up_when_its_patience_ends() -> None:
    talk = Talk(limiter=FakeLimiter(after_a_throttle=40.0), max_throttled_seconds=300.0)
    outcome = talk.to(lambda _: no(429, "Throttling"))
    assert isinstance(outcome.abort_error, errors.RateLimitError)
    assert outcome.errors == dict.fromkeys(range(10), outcome.abort_error)
    assert (talk.limiter.now, len(talk.sent)) == (320.0, 9)
    assert isinstance(Talk(max_retries=0).to(says(no(429))).abort_error, errors.RateLimitError)


TRANSIENT: list[tuple[StepResult, type[Exception]]] = [
    *((no(status), errors.ServerError) for status in (500, 503, 504, 408)),
    (no(200, "InternalError.Algo"), errors.ServerError),
    (Failure("nothing within 60 s"), errors.ConnectionFailed),
    *((Reply(200, {}, body), errors.BadReply) for body in (b"<html>", b'{"output":{"embeddings":[]}}')),
]


@pytest.mark.parametrize("jitter", [min, max])
@pytest.mark.parametrize(("answer", "kind"), TRANSIENT)
def test_passing_trouble_is_retried_after_growing_pauses(
    answer: StepResult, kind: type, jitter: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", jitter)
    assert Talk(max_retries=2).to(says(answer, answer)).abort_error is None
    assert type(Talk(max_retries=0).to(says(answer)).abort_error) is kind
    talk = Talk(max_retries=8)
    outcome = talk.to(lambda _: answer)
    assert talk.slept == ([1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0] if jitter is max else [0.0] * 8)
    assert talk.limiter.story == " / ".join(["ended"] * 9)
    assert type(outcome.abort_error) is kind
    assert (outcome.errors, outcome.requests) == (dict.fromkeys(range(10), outcome.abort_error), 0)


def test_too_many_rows_are_cut_to_what_the_service_names_and_it_is_remembered() -> None:
    talk = Talk()
    outcome = talk.to(says(no(400, "InvalidParameter", "batch size: it should not be larger than 6.")))
    assert (talk.sent, talk.limits.rows) == ([TEN, TEN[:6], TEN[6:]], 6)
    assert outcome.dense == [vector(t) for t in TEN]
    assert (outcome.requests, outcome.texts, outcome.tokens) == (2, 10, 20)
    talk, odd = Talk(), no(400, "InvalidParameter", "it should not be larger than 20.")
    assert (talk.to(says(odd)).abort_error, talk.sizes, talk.limits.rows) == (None, [10, 5, 5], 10)
    assert isinstance(Talk(["one"]).to(says(odd)).abort_error, errors.BadRequestError)


TOO_LONG = no(400, "InvalidParameter", "Range of input length should be [1, 100]")
LONG = "".join(f"{i:04} " for i in range(200))  # 250 tokens by our estimate


def counting(characters: float) -> Service:
    """A service that takes 100 tokens a text, and has its own idea of how many characters a token has."""
    return lambda texts: good(texts) if max(map(len, texts)) <= 100 * characters else TOO_LONG


@pytest.mark.parametrize("characters", [4.0, 2.0, 1.0])
def test_a_piece_that_is_cut_again_weighs_what_its_own_pieces_weigh(characters: float) -> None:
    text = LONG + "x" * 500
    collector, taken = ResultCollector("dense&sparse", None), list[str]()
    for batch in planning.batches([text], planning.BatchPlanner(Limits(1, 200, None), long_text="average")):
        talk = Talk(batch.texts, long_text="average", options=BOTH)
        collector.add(batch, talk.to(counting(characters)))
        taken += [t for texts in talk.sent if max(map(len, texts)) <= 100 * characters for t in texts]
    assert "".join(taken) == text
    mean = [sum(len(t) * vector(t)[axis] for t in taken) for axis in (0, 1)]
    found = collector.result([text])
    assert found.dense == [pytest.approx([x / math.hypot(*mean) for x in mean], rel=1e-12)]
    assert found.sparse is not None
    assert found.sparse[0].indices == sorted({len(t) for t in taken})


def test_a_text_of_which_a_piece_is_refused_is_asked_no_further() -> None:
    talk = Talk([LONG], long_text="average")
    assert [*talk.to(says(TOO_LONG, no(400, "DataInspectionFailed"))).errors] == [0]
    assert len(talk.sent) == 2


def refusing(*bad: str, code: str = "DataInspectionFailed") -> Service:
    return lambda texts: no(400, code, "May be improper.") if {*bad} & {*texts} else good(texts)


def test_a_refusal_that_every_text_meets_stops_the_job_unless_it_is_about_content() -> None:
    talk = Talk()
    outcome = talk.to(refusing(*TEN, code="SomethingNew"))
    assert (len(talk.sent), sorted(outcome.errors)) == (19, [*range(10)])
    assert isinstance(outcome.abort_error, errors.BadRequestError)
    assert Talk().to(refusing(*TEN)).abort_error is None
    assert Talk().to(refusing(*TEN[1:], code="SomethingNew")).abort_error is None


def test_a_split_that_meets_a_dead_end_keeps_what_had_arrived() -> None:
    for dead_end in (no(401), CANCELLED):
        outcome = Talk().to(says(no(400, "DataInspectionFailed"), good(TEN[:5]), dead_end))
        assert type(outcome.abort_error) is (errors.Cancelled if dead_end is CANCELLED else errors.AuthenticationError)
        assert outcome.dense == [*map(vector, TEN[:5]), *[None] * 5]
        assert outcome.errors == dict.fromkeys(range(5, 10), outcome.abort_error)


@pytest.mark.parametrize("memory", [None, 16])
def test_no_request_is_without_texts(memory: int | None) -> None:
    run = planning.batches(["again"] * 5000, planning.BatchPlanner(Limits(10, 8192, None), dedup_window=memory))
    talks = [Talk(batch.texts) for batch in run]
    assert [talk.to(good).abort_error for talk in talks] == [None] * len(talks)
    assert [texts for talk in talks for texts in talk.sent] == [["again"]]


@pytest.mark.parametrize("answers", [[], [None], [None, None, no(503)]])
def test_a_job_given_up_in_any_pause_is_given_up(answers: list[StepResult]) -> None:
    talk = Talk(limiter=FakeLimiter(0.5, 0.5))
    assert [isinstance(talk.flow.send(answer), Sleep) for answer in [None, *answers]][-1]
    with pytest.raises(StopIteration) as done:
        talk.flow.send(CANCELLED)
    assert talk.limiter.story == "ended"
    assert isinstance(done.value.value.abort_error, errors.Cancelled)


@pytest.mark.parametrize("end", [KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("answers", [[], [None], [None, no(503)], [None, no(429)], [None, no(503), None]])
def test_a_flow_ended_anywhere_gives_its_permit_back(answers: list[StepResult], end: type[BaseException]) -> None:
    talk = Talk(limiter=FakeLimiter(0.5))
    for answer in [None, *answers]:
        talk.flow.send(answer)
    with pytest.raises(end):
        talk.flow.throw(end())
    assert talk.limiter.story.count("ended") == len(talk.limiter.permits)


def test_a_driver_that_answers_a_send_with_nothing_is_told_so() -> None:
    with pytest.raises(TypeError, match="must answer Send with Reply or Failure, not NoneType"):
        Talk().to(says(None))


def test_no_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    Talk(["a secret"]).to(says(no(429), no(503), Failure("reset")))
    assert (len(caplog.records), "secret" in caplog.text) == (3, False)
