"""One bad text among many: the others are kept and paid for once, and the bad one is named."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from entry_points import CORPUS, DOCUMENTS, EmulatedService, EntryPoint, TextVectors, expected_vectors

from dashscope_embeddings import BadRequestError, DashScopeError, InvalidInput, corpus
from dashscope_embeddings.emulator import Emulator, faults, synthetic_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT, BAD, ROWS = 200, 117, 10
"""Texts, which of them is bad, and those of a request."""
WAYS = [way for way in DOCUMENTS if not way.is_streaming and (way.protocol, way.output) == ("native", "dense")]


@pytest.fixture(scope="module", autouse=True)
def _remembering() -> Iterator[None]:
    """An emulator that computes a text's vector once in all these tests."""
    patch = pytest.MonkeyPatch()
    patch.setattr(synthetic_vectors, "dense", cache(synthetic_vectors.dense))
    yield
    patch.undo()


def texts(text: str, count: int = COUNT, bad: int = BAD) -> list[str]:
    found = [f"paragraph of number {n}" for n in range(count)]
    found[bad] = text
    return found


BLOCKED = "something IMPROPER"
LONG = "word " * 9_000
"""More than the emulator takes, and not so long that the client is sure of it."""
INVISIBLE = "\u200b\u200b"
"""Not blank to Python, but empty to a service that strips it; what the service says then is not known."""
BLANK, FAR_TOO_LONG = " \t ", "word " * 300_000
REFUSED = {
    "blocked": (BLOCKED, faults.Blocked(match="IMPROPER"), "DataInspectionFailed"),
    "too long": (LONG, None, "Range of input length"),
    "empty once stripped": (INVISIBLE, faults.RowRefused(match=INVISIBLE), "Range of input length"),
    "refused in unknown words": (BLOCKED, faults.RowRefused("No, thank you.", match="IMPROPER"), "No, thank you"),
}
refused_by_the_service = pytest.mark.parametrize(("text", "fault", "reason"), REFUSED.values(), ids=REFUSED)
not_even_sent = pytest.mark.parametrize("text", [BLANK, FAR_TOO_LONG], ids=["blank", "far too long"])


def service_of(fault: faults.Fault | None = None, folder: Path | None = None) -> EmulatedService:
    service = EmulatedService(folder=folder)
    service.emulator = Emulator(clock=service.clock.now, tokens_per_row=8192, faults=[fault] if fault else [])
    return service


def check_kept(
    service: EmulatedService, way: EntryPoint, listed: list[str], kept: dict[int, TextVectors], bad: int = BAD
) -> None:
    """All but one are there, right, and paid for once; it is found by bisecting, and no other request is repeated."""
    assert kept == {index: expected_vectors(text, way) for index, text in enumerate(listed) if index != bad}
    assert service.emulator.billed_texts == len(listed) - 1
    assert service.emulator.requests <= len(listed) // ROWS + 2 * ROWS.bit_length()


def check_error(service: EmulatedService, way: EntryPoint, listed: list[str], bad: int = BAD) -> None:
    got = way.run(service, listed)
    error = got.error
    assert isinstance(error, BadRequestError)
    assert (error.failed, list(error.reasons), error.status) == ([bad], [bad], 400)
    assert str(error).startswith(f"text {bad} of {len(listed)}: ")
    check_kept(service, way, listed, got.rows, bad)


@refused_by_the_service
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_text_that_the_service_refuses_is_named_and_its_neighbours_are_kept(
    way: EntryPoint, text: str, fault: faults.Fault | None, reason: str
) -> None:
    del reason
    check_error(service_of(fault), way, texts(text))


def test_of_ten_thousand_texts_all_but_the_bad_one_are_kept() -> None:
    bad = 5_004
    check_error(service_of(REFUSED["blocked"][1]), DOCUMENTS[0], texts(BLOCKED, 10_000, bad), bad)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_blank_text_is_found_before_anything_is_spent(way: EntryPoint) -> None:
    service = service_of()
    error = way.run(service, texts(BLANK)).error
    assert isinstance(error, InvalidInput)
    assert f"text {BAD} is empty or blank" in str(error)
    assert "nothing was sent" in str(error)
    assert (error.failed, list(error.reasons), service.emulator.requests) == ([BAD], [BAD], 0)


# --- streams: the others come all the same -----------------------------------------------------------------

STREAMS = [way for way in DOCUMENTS if way.is_streaming]


def check_stream(service: EmulatedService, way: EntryPoint, text: str) -> DashScopeError:
    listed, told, kept = texts(text), dict[int, DashScopeError](), dict[int, TextVectors]()
    client = service.client()

    async def take() -> None:
        async for found in client.astream(listed, refused=told.__setitem__):
            kept[found.index] = {"dense": found.dense or []}

    if "astream" in str(way):
        asyncio.run(take())
    else:
        for found in client.stream(listed, refused=told.__setitem__):
            kept[found.index] = {"dense": found.dense or []}
    assert list(told) == [BAD]
    check_kept(service, way, listed, kept)
    return told[BAD]


@refused_by_the_service
@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_a_stream_tells_of_a_refused_text_and_goes_on(
    way: EntryPoint, text: str, fault: faults.Fault | None, reason: str
) -> None:
    error = check_stream(service_of(fault), way, text)
    assert isinstance(error, BadRequestError)
    assert reason in str(error)


@not_even_sent
@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_a_stream_tells_of_a_text_that_is_not_even_sent_and_goes_on(way: EntryPoint, text: str) -> None:
    check_stream(service_of(), way, text)


# --- files: the bad one is in the rejects ------------------------------------------------------------------


def check_corpus(service: EmulatedService, text: str, reason: str, **how: Any) -> corpus.Summary:
    assert service.folder is not None
    source, output, listed = service.folder / "in.jsonl", service.folder / "out.jsonl", texts(text)
    lines = (json.dumps({"id": number, "text": each}) for number, each in enumerate(listed))
    source.write_text("\n".join(lines), "utf-8")
    summary = corpus.embed_corpus(source, output, client=service.client(), id_field="id", **how)
    check_kept(service, CORPUS, listed, {int(str(row.id)): {"dense": row.dense or []} for row in corpus.read(output)})
    assert summary.rejects is not None
    (reject,) = [json.loads(line) for line in summary.rejects.read_text("utf-8").splitlines()]
    assert str(reject["id"]) == str(BAD)
    assert reason in reject["reason"]
    return summary


@refused_by_the_service
def test_a_corpus_rejects_what_the_service_refuses(
    text: str, fault: faults.Fault | None, reason: str, tmp_path: Path
) -> None:
    summary = check_corpus(service_of(fault, tmp_path), text, reason)
    assert (summary.embedded, summary.rejected, summary.skipped) == (COUNT - 1, 1, 0)


def test_a_corpus_skips_a_blank_text_where_it_is_told_to_and_else_spends_nothing(tmp_path: Path) -> None:
    service = service_of(None, tmp_path)
    with pytest.raises(InvalidInput, match="empty or blank") as caught:
        check_corpus(service, BLANK, "")
    assert caught.value.failed == [BAD]
    assert service.emulator.requests == 0
    summary = check_corpus(service, BLANK, "empty or blank", on_bad_input="skip")
    assert (summary.embedded, summary.rejected, summary.skipped) == (COUNT - 1, 0, 1)
