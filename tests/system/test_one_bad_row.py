"""One bad text among ten thousand: the others are kept and paid for once, and the bad one is named."""

from __future__ import annotations

import asyncio
import json
from array import array
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from entry_points import DIMENSIONS, EmulatedService

from dashscope_embeddings import BadRequestError, DashScopeError, InvalidInput, corpus
from dashscope_embeddings.emulator import Emulator, faults, synthetic_vectors
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MANY, FEW, BAD = 10_000, 300, 217
"""How many texts there are, and which of the few is bad."""
ROWS = 10
"""Of a request."""
Vectors: TypeAlias = "dict[int, list[float]]"


@pytest.fixture(scope="module", autouse=True)
def _remembering() -> Iterator[None]:
    """An emulator that computes a text's vector once in all these tests."""
    patch = pytest.MonkeyPatch()
    patch.setattr(synthetic_vectors, "dense", cache(synthetic_vectors.dense))
    yield
    patch.undo()


@cache
def right(text: str) -> list[float]:
    return Emulator().dense(text, dimension=DIMENSIONS)


def texts(count: int, bad: int, text: str) -> list[str]:
    found = [f"paragraph of number {n}" for n in range(count)]
    found[bad] = text
    return found


# --- what is bad about it ----------------------------------------------------------------------------------

BLOCKED = "something IMPROPER"
LONG = "word " * 9_000
"""More than the emulator takes, and not so long that the client is sure of it."""
INVISIBLE = "\u200b\u200b"
"""Not blank to Python, but empty to a service that strips it; what the service says then is not known."""
BLANK = " \t "

SERVICE: list[tuple[str, str, list[faults.Fault]]] = [
    ("blocked", BLOCKED, [faults.Blocked(match="IMPROPER")]),
    ("too long", LONG, []),
    ("empty once stripped", INVISIBLE, [faults.RowRefused(match=INVISIBLE)]),
    ("refused in unknown words", BLOCKED, [faults.RowRefused("No, thank you.", match="IMPROPER")]),
]
refused_by_the_service = pytest.mark.parametrize(
    ("text", "faults_"), [case[1:] for case in SERVICE], ids=[case[0] for case in SERVICE]
)


def service_of(given: list[faults.Fault], folder: Path | None = None) -> EmulatedService:
    service = EmulatedService(folder=folder)
    service.emulator = Emulator(clock=service.clock.now, tokens_per_row=8192, faults=given)
    return service


# --- the ways that raise -----------------------------------------------------------------------------------


def _client(service: EmulatedService, listed: list[str]) -> object:
    return service.client().embed(listed)


def _aclient(service: EmulatedService, listed: list[str]) -> object:
    return asyncio.run(service.client().aembed(listed))


def _langchain(service: EmulatedService, listed: list[str]) -> object:
    return service.adapter(DashScopeEmbeddings).embed_documents(listed)


def _alangchain(service: EmulatedService, listed: list[str]) -> object:
    return asyncio.run(_awaited(service.adapter(DashScopeEmbeddings).aembed_documents(listed)))


def _llama_index(service: EmulatedService, listed: list[str]) -> object:
    return service.adapter(DashScopeEmbedding).get_text_embedding_batch(listed)


def _allama_index(service: EmulatedService, listed: list[str]) -> object:
    return asyncio.run(_awaited(service.adapter(DashScopeEmbedding).aget_text_embedding_batch(listed)))


async def _awaited(found: Any) -> Any:
    return await found


CALLS = {
    "client.embed": _client,
    "client.aembed": _aclient,
    "LangChain": _langchain,
    "LangChain, async": _alangchain,
    "LlamaIndex": _llama_index,
    "LlamaIndex, async": _allama_index,
}
Call: TypeAlias = "Callable[[EmulatedService, list[str]], object]"
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def check_error(service: EmulatedService, call: Call, listed: list[str], bad: int) -> None:
    with pytest.raises(BadRequestError) as caught:
        call(service, listed)
    error = caught.value
    assert error.failed == [bad]
    assert list(error.reasons) == [bad]
    assert error.status == 400
    assert str(error).startswith(f"text {bad} of {len(listed)}: ")
    check_kept(service, listed, bad, error.partial)


def check_kept(service: EmulatedService, listed: list[str], bad: int, kept: Vectors, *, float32: bool = False) -> None:
    """All but one are there, right, and paid for once."""
    emulator = service.emulator
    assert sorted(kept) == [index for index in range(len(listed)) if index != bad]
    for index, vector in kept.items():
        assert vector == (array("f", right(listed[index])).tolist() if float32 else right(listed[index]))
    assert emulator.billed_texts == len(listed) - 1
    # It is found by halves, and no other request is sent twice.
    assert emulator.requests <= len(listed) // ROWS + 2 * ROWS.bit_length()


@refused_by_the_service
@calls
def test_a_text_that_the_service_refuses_is_named_and_its_neighbours_are_kept(
    call: Call, text: str, faults_: list[faults.Fault]
) -> None:
    check_error(service_of(faults_), call, texts(FEW, BAD, text), BAD)


@pytest.mark.parametrize(
    "call",
    [
        # Through `client.embed`.
        pytest.param(_langchain, id="LangChain"),
        pytest.param(_aclient, id="client.aembed"),
        pytest.param(_llama_index, id="LlamaIndex"),
        pytest.param(_allama_index, id="LlamaIndex, async"),
    ],
)
def test_of_ten_thousand_texts_all_but_the_bad_one_are_kept(call: Call) -> None:
    bad = MANY // 2 + 4
    check_error(service_of([faults.Blocked(match="IMPROPER")]), call, texts(MANY, bad, BLOCKED), bad)


@calls
def test_a_blank_text_is_found_before_anything_is_spent(call: Call) -> None:
    service = service_of([])
    with pytest.raises(InvalidInput, match=f"text {BAD} is empty or blank.*nothing was sent") as caught:
        call(service, texts(FEW, BAD, BLANK))
    assert (caught.value.failed, list(caught.value.reasons)) == ([BAD], [BAD])
    assert service.emulator.requests == 0


# --- streams: the others come all the same -----------------------------------------------------------------


def stream(service: EmulatedService, listed: list[str], told: dict[int, DashScopeError], kept: Vectors) -> None:
    for found in service.client().stream(listed, refused=told.__setitem__):
        kept[found.index] = found.dense or []


def astream(service: EmulatedService, listed: list[str], told: dict[int, DashScopeError], kept: Vectors) -> None:
    async def take() -> None:
        async for found in service.client().astream(listed, refused=told.__setitem__):
            kept[found.index] = found.dense or []

    asyncio.run(take())


Stream: TypeAlias = "Callable[[EmulatedService, list[str], dict[int, DashScopeError], Vectors], None]"
streams = pytest.mark.parametrize("streamed", [stream, astream])


@refused_by_the_service
@streams
def test_a_stream_tells_of_a_refused_text_and_goes_on(streamed: Stream, text: str, faults_: list[faults.Fault]) -> None:
    check_stream(service_of(faults_), streamed, texts(FEW, BAD, text), BAD)


def test_a_stream_of_ten_thousand_texts_goes_on_after_the_bad_one() -> None:
    bad = MANY // 2 + 4
    check_stream(service_of([faults.Blocked(match="IMPROPER")]), stream, texts(MANY, bad, BLOCKED), bad)


def check_stream(service: EmulatedService, streamed: Stream, listed: list[str], bad: int) -> None:
    told: dict[int, DashScopeError] = {}
    kept: Vectors = {}
    streamed(service, listed, told, kept)
    assert list(told) == [bad]
    assert isinstance(told[bad], BadRequestError)
    check_kept(service, listed, bad, kept)


@streams
@pytest.mark.parametrize("text", [BLANK, "word " * 300_000], ids=["blank", "far too long"])
def test_a_stream_tells_of_a_text_that_is_not_even_sent_and_goes_on(streamed: Stream, text: str) -> None:
    service, told, kept = service_of([]), dict[int, DashScopeError](), dict[int, list[float]]()
    listed = texts(FEW, BAD, text)
    streamed(service, listed, told, kept)
    assert list(told) == [BAD]
    check_kept(service, listed, BAD, kept)


# --- files: the bad one is in the rejects ------------------------------------------------------------------


def check_corpus(service: EmulatedService, listed: list[str], bad: int, reason: str, **how: Any) -> corpus.Summary:
    assert service.folder is not None
    source, output = service.folder / "in.jsonl", service.folder / "out.jsonl"
    lines = (json.dumps({"id": number, "text": text}) for number, text in enumerate(listed))
    source.write_text("\n".join(lines), "utf-8")
    summary = corpus.embed_corpus(source, output, client=service.client(), id_field="id", **how)
    kept = {int(str(row.id)): row.dense or [] for row in corpus.read(output)}
    check_kept(service, listed, bad, kept, float32=True)
    assert summary.rejects is not None
    (reject,) = [json.loads(line) for line in summary.rejects.read_text("utf-8").splitlines()]
    assert str(reject["id"]) == str(bad)
    assert reason in reject["reason"]
    return summary


@pytest.mark.parametrize(
    ("text", "faults_", "reason"),
    [
        (BLOCKED, [faults.Blocked(match="IMPROPER")], "DataInspectionFailed"),
        (LONG, [], "Range of input length"),
        (INVISIBLE, [faults.RowRefused(match=INVISIBLE)], "Range of input length"),
    ],
    ids=["blocked", "too long", "empty once stripped"],
)
def test_a_corpus_rejects_what_the_service_refuses(
    text: str, faults_: list[faults.Fault], reason: str, tmp_path: Path
) -> None:
    service = service_of(faults_, tmp_path)
    summary = check_corpus(service, texts(FEW, BAD, text), BAD, reason)
    assert (summary.embedded, summary.rejected, summary.skipped) == (FEW - 1, 1, 0)


def test_a_corpus_of_ten_thousand_texts_rejects_one(tmp_path: Path) -> None:
    bad = MANY // 2 + 4
    service = service_of([faults.Blocked(match="IMPROPER")], tmp_path)
    summary = check_corpus(service, texts(MANY, bad, BLOCKED), bad, "DataInspectionFailed")
    assert (summary.embedded, summary.rejected) == (MANY - 1, 1)


def test_a_corpus_skips_a_blank_text_where_it_is_told_to(tmp_path: Path) -> None:
    service = service_of([], tmp_path)
    summary = check_corpus(service, texts(FEW, BAD, BLANK), BAD, "empty or blank", on_bad_input="skip")
    assert (summary.embedded, summary.rejected, summary.skipped) == (FEW - 1, 0, 1)


def test_a_corpus_with_a_blank_text_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    service = service_of([], tmp_path)
    with pytest.raises(InvalidInput, match="empty or blank") as caught:
        check_corpus(service, texts(FEW, BAD, BLANK), BAD, "")
    assert caught.value.failed == [BAD]
    assert service.emulator.requests == 0
