"""Any texts, any limits, any accidents: every text gets its own vector, or the error says which did not."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, AsyncCalls, FakeClock, SyncCalls, client_for
from hypothesis import assume, event, given
from hypothesis import strategies as st
from strategies import any_texts, examples, lists_of, reset_shared_state, texts

from dashscope_embeddings import BadRequestError, DashScopeError, InvalidInput, SparseVector
from dashscope_embeddings._core import planning, text_length
from dashscope_embeddings._core.exchange import Outcome
from dashscope_embeddings._core.results import ResultCollector
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.emulator import Emulator, faults, synthetic_vectors
from dashscope_embeddings.errors import BadReply
from dashscope_embeddings.vectors import Part, combine

if TYPE_CHECKING:
    from dashscope_embeddings import EmbeddingClient, Embeddings
    from dashscope_embeddings.emulator import Asked
    from dashscope_embeddings.emulator.fault_schedule import Fault

HOST = "dashscope.aliyuncs.com"
WIDTH = 64
WAYS: st.SearchStrategy[SyncCalls | AsyncCalls] = st.sampled_from([SyncCalls(), AsyncCalls()])
LONG = 30_000
"""A limit of tokens a text that none of these texts reaches."""
TEN, ROWS, FEW_ROWS = st.just(10), st.integers(1, 25), st.integers(1, 12)
NOTHING: st.SearchStrategy[tuple[Fault, ...]] = st.just(())


@dataclass(frozen=True)
class World:
    """A service, a client that may be wrong about its limits, a way to call it, and the texts to ask for."""

    asked: list[Any]
    way: SyncCalls | AsyncCalls
    emulator: Emulator
    client: EmbeddingClient
    rows: int
    """Texts that the client puts into a request at most."""
    limits: Limits
    """The service's."""
    believed: Limits
    """What the client thinks of them at first."""

    def embed(self, **options: Any) -> Embeddings:
        return self.way.embed(self.client, self.asked, **options)

    def right(self, text: str) -> list[float]:
        return self.emulator.dense(text, dimension=WIDTH)

    @property
    def right_vectors(self) -> list[list[float]]:
        return [self.right(text) for text in self.asked]

    @property
    def answered(self) -> list[Asked]:
        """The requests whose replies came back whole and right."""
        return [record for record in self.emulator.asked if record.tokens and record.fault in PASSING]

    @property
    def billed(self) -> list[Asked]:
        """The requests whose replies came back and stated what was billed."""
        return [record for record in self.emulator.asked if record.tokens and record.fault in PASSING | STATING]

    @property
    def bill(self) -> tuple[int, int, int]:
        """Requests, texts and tokens."""
        billed = self.billed
        return len(billed), sum(len(record.texts) for record in billed), sum(record.tokens for record in billed)

    @property
    def in_flight(self) -> int:
        return sum(limiter.in_flight for limiter in {context.limiter for context in self.client._contexts.values()})


def make(
    asked: list[Any],
    way: SyncCalls | AsyncCalls,
    limits: tuple[int, int] = (10, LONG),
    believed: tuple[int, int] | None = None,
    script: tuple[Fault, ...] = (),
    **client: Any,
) -> World:
    """`limits`: rows a request and tokens a text."""
    reset_shared_state()
    clock = FakeClock()
    emulator = Emulator(rows=limits[0], tokens_per_row=limits[1], faults=script, clock=clock.now)
    thought = Limits(*(believed or limits), None)
    text_length._observed_limits[HOST, DEFAULT_MODEL] = replace(thought)
    made = client_for(emulator, clock, dimensions=WIDTH, **client)
    # One whose replies take some turns of the loop, so that queries pile up meanwhile.
    made._user_resources.async_client._transport = httpx.MockTransport(lambda request: _later(emulator, request))
    for output in ("dense", "dense&sparse"):
        context = made._request_context("document", output)
        # Threads that spin on a clock without time can use up five minutes while another computes a vector.
        made._contexts["document", output] = replace(context, max_throttled_seconds=math.inf)
    most = min(thought.rows, client.get("batch_size") or thought.rows)
    return World(asked, way, emulator, made, most, Limits(*limits, None), thought)


def bill_of(found: Embeddings | EmbeddingClient) -> tuple[int, int, int]:
    return found.usage.requests, found.usage.texts, found.usage.tokens


async def _later(emulator: Emulator, request: httpx.Request) -> httpx.Response:
    for _ in range(5):
        await asyncio.sleep(0)
    return emulator(request)


CLIENTS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"max_concurrency": st.integers(1, 8)},
    optional={
        "batch_size": st.integers(1, 25),
        "requests_per_minute": st.sampled_from([60.0, 6_000.0]),
        "tokens_per_minute": st.sampled_from([600.0, 600_000.0]),
        "protocol": st.just("native"),
    },
)

# --- accidents ---------------------------------------------------------------------------------------------

HARMLESS = st.one_of(
    st.builds(faults.Fault),
    st.builds(faults.Slow, seconds=st.floats(0, 5)),
    st.builds(faults.Shuffle),
    st.builds(faults.ExtraFields),
    st.builds(faults.WrongContentType, content_type=st.sampled_from([None, "text/html"])),
    st.builds(faults.Gzip),
)
THROTTLED = st.builds(
    faults.Throttle,
    retry_after=st.none() | st.floats(0, 70),
    code=st.sampled_from(
        ["Throttling.RateQuota", "Throttling.AllocationQuota", "Throttling.BurstRate", "LimitRequests"]
    ),
    empty_body=st.booleans(),
)
FAILED = st.one_of(
    st.builds(
        faults.Status,
        status=st.sampled_from([408, 500, 502, 503, 504]),
        body=st.sampled_from(["json", "html", "empty"]),
    ),
    st.builds(faults.Drop, how=st.sampled_from(["closed", "reset", "unreachable"]), billed=st.booleans()),
    st.builds(faults.Stall, share=st.floats(0, 1)),
    st.builds(faults.Truncate, share=st.floats(0, 0.9), framed=st.booleans()),
    st.builds(faults.Garbage),
    st.builds(faults.TrailingBytes),
    st.builds(faults.WrongCount, by=st.sampled_from([-1, 1, 3])),
    st.builds(faults.DuplicateIndex),
    st.builds(faults.WrongWidth, by=st.sampled_from([-1, 1, -WIDTH])),
    st.builds(faults.NotFinite, value=st.sampled_from([math.nan, math.inf, -math.inf])),
    st.builds(faults.NullEmbedding),
)
STATING = {"WrongCount", "DuplicateIndex", "WrongWidth", "NotFinite", "NullEmbedding"}
"""Replies without usable vectors that state what they were billed."""
PASSING = {None, "Fault", "Slow", "Shuffle", "ExtraFields", "WrongContentType", "Gzip"}
FATAL = st.one_of(
    st.builds(faults.FreeQuotaExhausted, only_free=st.booleans()),
    st.builds(faults.Overdue),
    st.builds(faults.Arrearage),
    st.builds(faults.Redirect),
    st.builds(
        faults.Status, status=st.sampled_from([401, 403, 404]), code=st.sampled_from(["InvalidApiKey", "AccessDenied"])
    ),
)


def at_some_request(accident: st.SearchStrategy[Fault]) -> st.SearchStrategy[Fault]:
    return st.builds(lambda fault, after: replace(fault, after=after), accident, st.integers(0, 12))


RECOVERED = st.lists(at_some_request(HARMLESS | THROTTLED | FAILED), max_size=6).map(tuple)
"""No more than one request is ready to bear alone."""
_GARBLING = {"Garbage", "TrailingBytes", "Truncate"}
LEGIBLE = RECOVERED.map(lambda script: tuple(fault for fault in script if fault.label not in _GARBLING))
"""The same where refusals are part of the plan: a refusal that cannot be read is believed by its status alone."""


@st.composite
def worlds(  # noqa: PLR0913 - each is drawn on its own
    draw: st.DrawFn,
    /,
    asked: st.SearchStrategy[list[Any]],
    rows: st.SearchStrategy[int] = TEN,
    *,
    believed_rows: st.SearchStrategy[int] | None = None,
    tokens: st.SearchStrategy[tuple[int, int]] | None = None,
    script: st.SearchStrategy[tuple[Fault, ...]] = RECOVERED,
    **client: Any,
) -> World:
    """`tokens`: of a text, at the service and as the client believes."""
    limit, believed = (LONG, LONG) if tokens is None else draw(tokens)
    most = draw(rows)
    thought = most if believed_rows is None else draw(believed_rows)
    settings = draw(CLIENTS) | client
    return make(draw(asked), draw(WAYS), (most, limit), (thought, believed), draw(script), **settings)


# --- all is well in the end --------------------------------------------------------------------------------


@given(worlds(lists_of(texts()), ROWS))
@examples(60)
def test_whatever_passes_every_text_gets_its_own_vector_and_the_bill_is_the_services(world: World) -> None:
    found, good, distinct = world.embed(), world.answered, set(world.asked)
    assert found.dense == world.right_vectors
    assert len(good) == math.ceil(len(distinct) / world.rows)
    failed = sum(record.fault not in PASSING for record in world.emulator.asked)
    assert world.emulator.requests - len(good) == failed
    assert Counter(text for record in good for text in record.texts) == Counter(distinct)
    assert Counter(found.request_ids) == Counter(record.request_id for record in world.billed)
    assert bill_of(found) == world.bill
    assert world.client.usage == found.usage
    assert len({id(vector) for vector in found.dense}) == len(world.asked)
    assert world.in_flight == 0


@given(worlds(lists_of(texts()), ROWS, believed_rows=ROWS, script=LEGIBLE))
@examples(30)
def test_a_client_that_is_wrong_about_rows_loses_nothing(world: World) -> None:
    found, good, rows = world.embed(), world.answered, world.limits.rows
    assert found.dense == world.right_vectors
    assert all(len(record.texts) <= rows for record in good)
    assert sum(len(record.texts) for record in good) == len(set(world.asked))
    assert bill_of(found) == world.bill
    # Each of the requests that were planned may have been cut once.
    planned = math.ceil(len(set(world.asked)) / world.rows)
    assert len(good) <= planned * math.ceil(world.rows / rows)
    refused = sum(record.status == 400 and record.fault in PASSING for record in world.emulator.asked)
    assert refused <= planned
    assert world.emulator.requests <= len(good) + refused + len(world.emulator.faults)
    assert world.client._limits.rows <= rows or refused == 0


@given(st.integers(1, 200).flatmap(lambda budget: worlds(lists_of(texts(), min_size=1), tokens_per_request=budget)))
@examples(20)
def test_tokens_a_request_are_kept_to(world: World) -> None:
    assert world.embed().dense == world.right_vectors
    budget = world.client.settings.tokens_per_request or 0
    for record in world.emulator.asked:
        assert len(record.texts) == 1 or sum(map(text_length.estimate_tokens, record.texts)) <= budget


@given(worlds(lists_of(texts())))
@examples(20)
def test_both_components_are_of_the_same_text(world: World) -> None:
    found = world.embed(output="dense&sparse")
    assert found.dense == world.right_vectors
    assert found.sparse is not None
    for text, weights in zip(world.asked, found.sparse, strict=True):
        tokens = [(token.index, token.value, token.token) for token in world.emulator.sparse(text)]
        expected = SparseVector.merged((i, array("f", [value])[0], token) for i, value, token in tokens)
        assert weights == expected
    assert sum(len(record.texts) for record in world.answered) == len(set(world.asked))
    assert bill_of(found) == world.bill


@given(worlds(lists_of(texts()), ROWS))
@examples(25)
def test_a_stream_gives_what_embed_gives_and_an_array_holds_the_same_numbers(world: World) -> None:
    asked, script = world.asked, world.emulator.faults
    streamed = world.way.stream(world.client, iter(asked))
    assert [embedding.index for embedding in streamed] == list(range(len(asked)))
    assert [embedding.dense for embedding in streamed] == world.right_vectors
    assert len({id(embedding.dense) for embedding in streamed}) == len(asked)
    assert len(set(asked)) <= sum(len(record.texts) for record in world.answered) <= len(asked)
    assert bill_of(world.client) == world.bill
    world.emulator.faults = script
    packed = world.embed(array=True)
    assert (len(packed), packed.dense) == (len(asked), [])
    assert [list(row) for row in packed.dense_array] == [list(array("f", vector)) for vector in world.right_vectors]


# --- long texts --------------------------------------------------------------------------------------------

LONGER = st.lists(texts(30) | st.sampled_from(["word ", "字。", "\n\n", "!" * 9, "  "]), min_size=1, max_size=12).map(
    "".join
)
MIXED = lists_of((texts(20) | LONGER).filter(lambda text: bool(text.strip())), max_size=12)
TOKENS = st.tuples(st.integers(1, 40), st.integers(1, 60))


def fits(world: World, text: str) -> bool:
    """Whether both the service and the client take it as it is."""
    limit = world.limits.tokens_per_row
    estimate = text_length.estimate_tokens(text)
    return synthetic_vectors.count_tokens(text) <= limit and estimate <= min(limit, world.believed.tokens_per_row)


@given(worlds(MIXED, tokens=TOKENS, script=LEGIBLE, long_text="truncate"))
@examples(40)
def test_a_truncated_text_has_the_vector_of_its_beginning_and_a_whole_one_its_own(world: World) -> None:
    found = world.embed()
    vectors = {tuple(world.right(row)): row for record in world.answered for row in record.texts}
    for text, vector in zip(world.asked, found.dense, strict=True):
        row = vectors[tuple(vector)]
        assert text.startswith(row) or text.lstrip().startswith(row)
        assert row == text or not fits(world, text)
    assert all(synthetic_vectors.count_tokens(row) <= world.limits.tokens_per_row for row in vectors.values())


@given(worlds(MIXED, tokens=TOKENS, script=LEGIBLE, long_text="average"))
@examples(40)
def test_an_averaged_text_has_a_vector_of_all_of_it(world: World) -> None:
    found, limit, believed = world.embed(), world.limits.tokens_per_row, world.believed.tokens_per_row
    rows = [row for record in world.answered for row in record.texts]
    for text, vector in zip(world.asked, found.dense, strict=True):
        assert math.hypot(*vector) == pytest.approx(1.0)
        cut = [*text_length.Limits(1, believed, None).fit_rows(text, "average")]
        if fits(world, text):
            assert vector == world.right(text)
        elif believed <= limit and set(cut) <= {row for row in rows if synthetic_vectors.count_tokens(row) <= limit}:
            assert vector == combine([Part(world.right(piece), None, float(len(piece))) for piece in cut]).dense
    letters = Counter("".join("".join(rows).split()))
    assert all(Counter("".join(text.split())) <= letters for text in set(world.asked))
    assert bill_of(found) == world.bill


@given(worlds(MIXED, tokens=TOKENS, script=LEGIBLE))
@examples(40)
def test_texts_that_are_too_long_are_named_and_their_neighbours_are_kept(world: World) -> None:
    limit, believed = world.limits.tokens_per_row, world.believed.tokens_per_row
    too_long = [i for i, text in enumerate(world.asked) if synthetic_vectors.count_tokens(text) > limit]
    surely = [i for i, text in enumerate(world.asked) if 0.4 * text_length.estimate_tokens(text) > believed]
    if not too_long and not surely:
        assert world.embed().dense == world.right_vectors
        return
    with pytest.raises(DashScopeError) as caught:
        world.embed()
    error = caught.value
    if surely:
        assert isinstance(error, InvalidInput)
        assert (error.failed, world.emulator.requests) == (surely, 0)
        return
    assert isinstance(error, BadRequestError)
    assert error.failed == too_long
    check_failure(world, error)


# --- failures ----------------------------------------------------------------------------------------------


@given(worlds(lists_of(any_texts() | st.sampled_from(["", " \n", "\ud800", "a\udfff", None, 7, b"x"])), script=NOTHING))
@examples(30)
def test_texts_that_cannot_be_embedded_are_all_named_before_anything_is_sent(world: World) -> None:
    bad = [i for i, text in enumerate(world.asked) if not _fine(text)]
    if not bad:
        assert len(world.embed()) == len(world.asked)
        return
    with pytest.raises(InvalidInput) as caught:
        world.embed()
    assert caught.value.failed == bad == sorted(caught.value.reasons)
    assert world.emulator.requests == 0
    assert world.client.usage.tokens == 0


def _fine(text: object) -> bool:
    if not isinstance(text, str) or not text.strip():
        return False
    return text.encode("utf-8", "ignore").decode() == text


def check_failure(world: World, error: DashScopeError) -> None:
    """Everything that was paid for and arrived is handed over; the rest is named."""
    assert not isinstance(error, InvalidInput)
    assert sorted([*error.partial, *error.failed]) == list(range(len(world.asked)))
    assert error.failed == sorted(error.failed)
    assert error.partial == {index: world.right(world.asked[index]) for index in error.partial}
    paid = {text for record in world.answered for text in record.texts}
    assert {world.asked[index] for index in error.partial} == paid
    assert sum(len(record.texts) for record in world.answered) == len(paid)
    assert bill_of(world.client) == world.bill
    assert KEY not in str(error)
    assert world.in_flight == 0


@st.composite
def hopeless(draw: st.DrawFn) -> tuple[Fault, ...]:
    """A script with an accident in it that ends a job, if the job gets so far."""
    script = draw(st.lists(at_some_request(HARMLESS | THROTTLED | FAILED | FATAL), max_size=5))
    script.insert(draw(st.integers(0, len(script))), draw(at_some_request(FATAL)))
    return tuple(script)


TROUBLE = st.lists(at_some_request(FAILED | THROTTLED), max_size=6).map(tuple)


@given(
    worlds(lists_of(texts(), min_size=1), FEW_ROWS, script=hopeless())
    | st.integers(0, 2).flatmap(lambda n: worlds(lists_of(texts(), min_size=1), script=TROUBLE, max_retries=n))
)
@examples(70)
def test_when_a_job_fails_nothing_that_arrived_is_lost(world: World) -> None:
    retries = world.client.settings.max_retries
    try:
        found = world.embed()
    except DashScopeError as error:
        check_failure(world, error)
        assert retries == 6 or sum(record.fault is not None for record in world.emulator.asked) > retries
    else:
        assert found.dense == world.right_vectors
        assert not {"FreeQuotaExhausted", "Overdue", "Arrearage", "Redirect"}.intersection(
            record.fault for record in world.emulator.asked
        )


MARK = "☠"
MARKED = st.tuples(texts(20), st.sampled_from(["", "", "", MARK])).map("".join)
BLOCKED = faults.Blocked(match=MARK)


@given(worlds(lists_of(MARKED, min_size=1), FEW_ROWS, script=LEGIBLE.map(lambda script: (BLOCKED, *script))))
@examples(40)
def test_a_refused_text_is_named_and_costs_its_neighbours_nothing(world: World) -> None:
    refused = [i for i, text in enumerate(world.asked) if MARK in text]
    if not refused:
        assert world.embed().dense == world.right_vectors
        return
    with pytest.raises(BadRequestError) as caught:
        world.embed()
    assert caught.value.failed == refused == sorted(caught.value.reasons)
    check_failure(world, caught.value)
    bad = len({world.asked[i] for i in refused})
    # Halving finds a bad text of `rows` in at most so many refusals.
    depth = math.ceil(math.log2(world.rows)) + 1 if world.rows > 1 else 1
    blocked = sum(record.fault == "Blocked" for record in world.emulator.asked)
    assert bad <= blocked <= bad * depth


@given(worlds(lists_of(MARKED, min_size=1), FEW_ROWS, script=st.just((BLOCKED,))))
@examples(25)
def test_a_stream_goes_on_without_the_texts_that_were_refused(world: World) -> None:
    said: dict[int, DashScopeError] = {}
    arrived: list[str] = []

    def came(batch: Any, outcome: Outcome) -> None:
        arrived.extend(text for text, vector in zip(batch, outcome.dense, strict=True) if vector)

    if isinstance(world.way, SyncCalls):
        found = list(world.client.stream(world.asked, refused=said.__setitem__, arrived=came))
    else:

        async def take() -> list[Any]:
            return [one async for one in world.client.astream(world.asked, refused=said.__setitem__, arrived=came)]

        found = asyncio.run(take())
    good = {i: text for i, text in enumerate(world.asked) if MARK not in text}
    assert sorted(said) == [i for i in range(len(world.asked)) if i not in good]
    assert {one.index: one.dense for one in found} == {i: world.right(text) for i, text in good.items()}
    assert [one.index for one in found] == list(good)
    assert set(arrived) == set(good.values())


# --- queries -----------------------------------------------------------------------------------------------


def ask_at_once(world: World) -> list[Any]:
    """A task for each query; its vector, or its error."""

    async def ask() -> list[Any]:
        calls = (world.client.aembed(text, text_type="query") for text in world.asked)
        return await asyncio.gather(*calls, return_exceptions=True)

    return [found if isinstance(found, Exception) else found.dense for found in asyncio.run(ask())]


def right_query(world: World, text: str) -> list[list[float]]:
    return [world.emulator.dense(text, dimension=WIDTH, text_type="query")]


@st.composite
def queries(draw: st.DrawFn) -> World:
    asked, script = draw(lists_of(MARKED, min_size=1, max_size=30)), draw(RECOVERED)
    if any(MARK in text for text in asked):  # see the test of a batch call that was split, below
        script = tuple(fault for fault in script if fault.label != "Throttle")
    return make(asked, AsyncCalls(), (draw(FEW_ROWS), LONG), script=(BLOCKED, *script), **draw(CLIENTS))


@given(queries())
@examples(40)
def test_queries_that_travel_together_get_their_own_vector_or_their_own_error(world: World) -> None:
    errors: list[Exception] = []
    for text, found in zip(world.asked, ask_at_once(world), strict=True):
        if MARK in text:
            assert isinstance(found, BadRequestError)
            assert found.failed == [0]
            errors.append(found)
        else:
            assert found == right_query(world, text)
    assert len(set(map(id, errors))) == len(errors)
    good = world.answered
    event(f"most texts in a request: {max(len(record.texts) for record in world.emulator.asked)}")
    sent, asked = Counter(text for record in good for text in record.texts), Counter(world.asked)
    assert sent.keys() == {text for text in asked if MARK not in text}
    assert sent <= asked  # equal ones that wait at the same time share a row
    assert all(len(record.texts) <= world.limits.rows for record in world.emulator.asked)
    assert bill_of(world.client) == world.bill
    assert world.in_flight == 0


def test_what_a_split_flight_was_answered_before_a_throttle_is_not_asked_again() -> None:
    asked = ["first", "second", "third", MARK]
    world = make(asked, AsyncCalls(), script=(faults.Throttle(after=3), BLOCKED), max_concurrency=1)
    found = ask_at_once(world)
    assert found[:3] == [right_query(world, text) for text in asked[:3]]
    assert isinstance(found[3], BadRequestError)
    assert [record.texts for record in world.emulator.asked][:4] == [
        ("first",),
        ("second", "third", MARK),
        ("second",),
        ("third", MARK),
    ]
    assert world.emulator.billed_texts == 3
    assert world.client.usage.tokens == world.emulator.billed_tokens


# --- planning and results alone ----------------------------------------------------------------------------

PLANS = st.fixed_dictionaries(
    {"long_text": st.sampled_from(["error", "truncate", "average"])},
    optional={
        "max_rows": st.integers(1, 6),
        "max_tokens": st.integers(1, 40),
        "dedup_window": st.none() | st.integers(0, 4),
    },
)


@given(lists_of(texts(30), max_size=60), PLANS, st.integers(1, 25), st.integers(1, 30), st.none() | st.integers(1, 50))
@examples(80)
def test_a_plan_puts_every_text_into_its_place_and_keeps_to_the_limits(
    asked: list[str], how: dict[str, Any], rows: int, tokens: int, budget: int | None
) -> None:
    limits = Limits(rows, tokens, budget)
    found = list(planning.batches(asked, planning.BatchPlanner(limits, **how)))
    most = min(rows, how.get("max_rows", rows))
    smallest = min(value for value in (how.get("max_tokens"), budget, math.inf) if value is not None)
    for number, batch in enumerate(found):
        assert batch.number == number
        assert batch.texts or batch.slots
        assert len(batch.texts) <= most
        assert len(batch.texts) <= 1 or sum(map(text_length.estimate_tokens, batch.texts)) <= smallest + 1e-9
        assert len(batch.slots) <= planning._MAX_SLOTS
    places = [(batch, place) for batch in found for place in batch.slots]
    assert [place.index for _, place in places] == list(range(len(asked)))
    oldest = 0
    for batch, place in places:
        expected = [*text_length.Limits(1, tokens, None).fit_rows(asked[place.index], how["long_text"])]
        assert [found[part.batch_number].texts[part.row] for part in place.rows] == expected
        assert max(part.batch_number for part in place.rows) <= batch.number
    window = None if how["long_text"] == "average" else how.get("dedup_window", 0)
    for batch in found:
        assert all(part.batch_number >= oldest for place in batch.slots for part in place.rows)
        oldest = max(oldest, batch.oldest_referenced)
        assert window is None or batch.number - oldest < window + 1, "more is kept than the window needs"
    sent = sum(len(batch.texts) for batch in found)
    once = sum(len([*text_length.Limits(1, tokens, None).fit_rows(text, how["long_text"])]) for text in set(asked))
    assert once <= sent
    if how.get("dedup_window", 0) is None:
        assert sent == once


@given(lists_of(texts(30), max_size=40), PLANS, st.integers(1, 6), st.data())
@examples(40)
def test_an_assembly_gives_each_text_what_became_of_its_rows(
    asked: list[str], how: dict[str, Any], rows: int, data: st.DataObject
) -> None:
    batches = list(planning.batches(asked, planning.BatchPlanner(Limits(rows, 12, None), **how)))
    refused = data.draw(st.sets(st.sampled_from([row for batch in batches for row in batch.texts] or [""]), max_size=3))
    packed = data.draw(st.booleans())
    job = ResultCollector("dense", None, array_rows=len(asked) if packed else None)
    vectors = {row: [float(i), 1.0] for i, row in enumerate(dict.fromkeys(row for b in batches for row in b.texts))}
    streamed, given_out = data.draw(st.booleans()) and not packed, {}
    window = None if how["long_text"] == "average" else how.get("dedup_window", 0)
    for batch in batches:
        outcome = Outcome(
            [None if row in refused else Part(vectors[row], None, float(len(row))) for row in batch.texts],
            {at: BadReply("no") for at, row in enumerate(batch.texts) if row in refused},
        )
        job.add(batch, outcome)
        assert window is None or len(job._outcomes) <= window + 1
        if streamed:
            given_out.update({found.index: found.dense for found in job.pop_ready()})
    expected: dict[int, list[float]] = {}
    for index, text in enumerate(asked):
        cut = [*text_length.Limits(1, 12, None).fit_rows(text, how["long_text"])]
        if not refused.intersection(cut):
            expected[index] = combine([Part(vectors[row], None, float(len(row))) for row in cut]).dense or []
    if len(expected) == len(asked):
        assert not job.has_failed
        if streamed:
            assert given_out == expected
        elif packed:
            rows_of = job.result(asked).dense_array
            assert [list(row) for row in rows_of] == [list(array("f", expected[i])) for i in range(len(asked))]
        else:
            assert dict(enumerate(job.result(asked).dense)) == expected
        return
    error = job.build_error(len(asked))
    assert error.failed == [i for i in range(len(asked)) if i not in expected]
    if packed:
        expected = {index: list(array("f", vector)) for index, vector in expected.items()}
    assert {**given_out, **error.partial} == expected
    assert not set(given_out).intersection(error.partial)


@given(
    lists_of(texts(30), max_size=40), st.sampled_from(["truncate", "average"]), st.lists(st.integers(0, 39), max_size=4)
)
@examples(30)
def test_limits_that_shrink_while_a_plan_is_made_move_no_text(
    asked: list[str], policy: Any, shrinks: list[int]
) -> None:
    limits = Limits(10, 25, None)
    plan = planning.BatchPlanner(limits, long_text=policy, dedup_window=None)
    found: list[planning.Batch] = []
    for index, text in enumerate(asked):
        if index in shrinks:
            limits.lower_row_limit(limits.rows // 2)
            limits.lower_token_limit(limits.tokens_per_row // 2)
        found += plan.add(text)
    found += plan.finish()
    assert [place.index for batch in found for place in batch.slots] == list(range(len(asked)))
    for place in (place for batch in found for place in batch.slots):
        rows = [found[part.batch_number].texts[part.row] for part in place.rows]
        text = asked[place.index]
        assert "".join("".join(rows).split()) == "".join(text.split()) or text.lstrip().startswith(rows[0])
    assume(found)
    assert all(len(batch.texts) <= 10 for batch in found)
