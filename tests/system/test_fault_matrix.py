"""Every fault by every way in: the right vectors for one request more, or one error that loses nothing.

The table is in `faulttable.py`, the ways are in `waysin.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from entry_points import CORPUS, DOCUMENTS, QUERIES, CallResult, EmulatedService, EntryPoint, expected_vectors
from fault_cases import FAULTS, MAX_RETRIES, Case, Occurrence, Raises, Recovers

from dashscope_embeddings._adapters import flows
from dashscope_embeddings._adapters.hybrid import HybridEmbedder
from dashscope_embeddings._adapters.hybrid_cache import HybridCache
from dashscope_embeddings.emulator import faults
from dashscope_embeddings.errors import DashScopeError, RateLimitError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dashscope_embeddings.emulator import Asked

STRUCK = "number 12"
"""In a text of the second request of four."""
DOCUMENT_TEXTS = [f"paragraph of number {n if n != 7 else 3} and more" for n in range(35)]
"""With one text twice: 34 to pay for."""
BATCHES = [10, 10, 10, 4]
QUERY = [f"what is {STRUCK}?"]


def texts_of(way: EntryPoint) -> list[str]:
    return QUERY if way.role == "query" else DOCUMENT_TEXTS


def service_of(case: Case, often: Occurrence, folder: Path | None) -> EmulatedService:
    """Where a fault never ends, one request at a time goes: what arrived before is then certain."""
    settings = {"max_retries": MAX_RETRIES, "max_concurrency": 1} if often == "always" else {}
    service = EmulatedService(settings, folder)
    times = 1 if often == "once" else None
    service.emulator.faults = [dataclasses.replace(case.fault, match=STRUCK, times=times)]
    return service


def was_struck(asked: Asked) -> bool:
    return any(STRUCK in text for text in asked.texts)


def check_the_wire(way: EntryPoint, service: EmulatedService) -> None:
    """Every request has the role and output of its way, and no text travels in two different requests."""
    role, output = (None, None) if way.protocol == "openai" else (way.role, way.output)
    for asked in service.emulator.asked:
        assert asked.text_type == role
        assert asked.output_type == (None if output == "dense" else output)
    travelled = Counter(text for batch in {asked.texts for asked in service.emulator.asked} for text in batch)
    assert set(travelled.values()) == {1}


def check_recovery(way: EntryPoint, service: EmulatedService, got: CallResult, expected: Recovers) -> None:
    texts, emulator = texts_of(way), service.emulator
    assert got.error is None
    assert got.rows == {index: expected_vectors(text, way) for index, text in enumerate(texts)}

    struck = [asked for asked in emulator.asked if was_struck(asked)]
    others = Counter(asked.texts for asked in emulator.asked if not was_struck(asked))
    assert len(struck) == 1 + expected.extra_requests
    assert sorted(others.values()) == [1] * (len(others))
    assert sorted(map(len, {asked.texts for asked in emulator.asked})) == (
        [1] if way.role == "query" else sorted(BATCHES)
    )
    distinct = len(set(texts))
    assert emulator.billed_texts == distinct + (len(struck[0].texts) if expected.rebilled else 0)
    if expected.after:
        assert struck[1].time - struck[0].time > expected.after - 1e-6
    assert got.usage is not None
    counted = struck if expected.states_bill else struck[-1:]
    assert got.usage.requests == len(counted) + len(others)
    assert got.usage.texts == distinct + (len(counted) - 1) * len(struck[0].texts)


def check_error(way: EntryPoint, service: EmulatedService, got: CallResult, expected: Raises) -> None:
    texts, emulator = texts_of(way), service.emulator
    error = got.error
    assert type(error) is expected.error
    assert isinstance(error, ServiceError) == (expected.status is not None)
    assert getattr(error, "status", None) == expected.status
    struck = [asked for asked in emulator.asked if was_struck(asked)]
    ids = {asked.request_id for asked in struck}
    assert (error.request_id in ids) if expected.has_request_id else error.request_id is None
    assert error.reasons == {}, "no text is to blame"
    assert not any(text in str(error) for text in texts)

    if expected.attempts is None:
        assert isinstance(error, RateLimitError)
        assert struck[-1].time - struck[0].time > 290
    else:
        assert len(struck) == expected.attempts
    others = Counter(asked.texts for asked in emulator.asked if not was_struck(asked))
    assert set(others.values()) <= {1}

    # What was paid for is there, and what is not there was not paid for.
    paid = {text for asked in emulator.asked if asked.tokens and not was_struck(asked) for text in asked.texts}
    assert emulator.billed_texts == len(paid) + (len(struck) * len(struck[0].texts) if expected.rebilled else 0)
    if way is CORPUS:
        return
    missing = [index for index in range(len(texts)) if index not in got.rows]
    assert error.failed == (missing[: len(error.failed)] if way.is_streaming else missing)
    assert {index for index, text in enumerate(texts) if STRUCK in text} <= set(error.failed)
    assert {texts[index] for index in got.rows} == paid
    for index, row in got.rows.items():
        whole = expected_vectors(texts[index], way)
        assert row.items() <= whole.items()
        assert row


def check(way: EntryPoint, case: Case, often: Occurrence, folder: Path | None = None) -> EmulatedService:
    service, expected = service_of(case, often, folder), case.expected(often, way.output)
    got = way.run(service, texts_of(way))
    check_the_wire(way, service)
    if isinstance(expected, Recovers):
        check_recovery(way, service, got, expected)
        return service
    check_error(way, service, got, expected)
    if often == "always" and way.role == "document":
        others = [asked.texts for asked in service.emulator.asked if not was_struck(asked)]
        assert others == [tuple(dict.fromkeys(DOCUMENT_TEXTS[:11]))], "one by one: all before it, nothing after it"
    return service


def check_that_it_goes_on(service: EmulatedService, expected: Raises) -> None:
    """A corpus keeps what arrived: the same call, once the fault is over, asks for nothing else again."""
    emulator = service.emulator
    lost = emulator.billed_texts - len({t for a in emulator.asked if a.tokens and not was_struck(a) for t in a.texts})
    emulator.faults = []
    got = CORPUS.run(service, DOCUMENT_TEXTS)
    assert got.error is None
    assert got.rows == {index: expected_vectors(text, CORPUS) for index, text in enumerate(DOCUMENT_TEXTS)}
    assert emulator.billed_texts == len(set(DOCUMENT_TEXTS)) + lost
    assert bool(lost) == expected.rebilled


faults_of_the_table = pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)


@faults_of_the_table
@pytest.mark.parametrize("way", DOCUMENTS, ids=str)
def test_documents_of_which_one_request_of_four_is_struck(way: EntryPoint, case: Case) -> None:
    check(way, case, "once")
    check(way, case, "always")


@faults_of_the_table
@pytest.mark.parametrize("way", QUERIES, ids=str)
def test_a_query_that_is_struck(way: EntryPoint, case: Case) -> None:
    check(way, case, "once")
    check(way, case, "always")


@faults_of_the_table
def test_a_corpus_of_which_one_request_of_four_is_struck(case: Case, tmp_path: Path) -> None:
    for often in ("once", "always"):
        folder = tmp_path / often
        folder.mkdir()
        service = check(CORPUS, case, often, folder)
        if isinstance(expected := case.expected(often, CORPUS.output), Raises):
            check_that_it_goes_on(service, expected)


def test_the_table_holds_every_fault_of_single_requests() -> None:
    """One that is added to the emulator is to be added to the table."""
    elsewhere = {"Blocked", "RowRefused", "IntegerComponents"}  # of single texts
    there = {name for name, _ in inspect.getmembers(faults, inspect.isfunction) if name[0].isupper()}
    assert {case.fault.label for case in FAULTS} == there - elsewhere


# --- what is not a matter of a cell ------------------------------------------------------------------------


def test_tokens_that_the_service_does_not_tell_are_not_made_up() -> None:
    service = EmulatedService()
    service.emulator.faults = [faults.MissingUsage(match=STRUCK)]
    usage = service.client().embed(DOCUMENT_TEXTS).usage
    untold = sum(asked.tokens for asked in service.emulator.asked if was_struck(asked))
    assert untold > 0
    assert usage.tokens == service.emulator.billed_tokens - untold
    assert (usage.requests, usage.texts) == (4, 34)


@pytest.mark.parametrize("run", [flows.run, lambda flow: asyncio.run(flows.arun(flow))], ids=["sync", "async"])
def test_of_a_pair_that_failed_both_halves_of_what_arrived_are_kept(run: Callable[[Any], Any]) -> None:
    """The sparse half of the ten texts that arrived is paid for: the store that asks for it pays nothing."""
    service = EmulatedService({"max_retries": MAX_RETRIES, "max_concurrency": 1})
    service.emulator.faults = [faults.Drop(match=STRUCK)]
    halves = HybridEmbedder(service.client(), HybridCache())

    with pytest.raises(DashScopeError):
        run(halves.component_flow("dense", DOCUMENT_TEXTS, "document"))
    requests = service.emulator.requests
    run(halves.component_flow("sparse", DOCUMENT_TEXTS[:10], "document"))
    assert service.emulator.requests == requests


def test_a_text_that_arrived_is_in_none_of_its_places_named_as_failed() -> None:
    service = EmulatedService({"max_retries": MAX_RETRIES, "max_concurrency": 1})
    service.emulator.faults = [faults.Drop(match=STRUCK)]
    repeated = [*DOCUMENT_TEXTS, DOCUMENT_TEXTS[0]]
    with pytest.raises(DashScopeError) as caught:
        service.client().embed(repeated)
    assert not {repeated[index] for index in caught.value.failed} & {repeated[index] for index in caught.value.partial}
