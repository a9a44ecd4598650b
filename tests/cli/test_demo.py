"""The command `demo`: what it prints and asks; how its texts are cut, ranked and found again."""

from __future__ import annotations

import contextlib
import re
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings.emulator import Emulator, in_process

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")
from dashscope_embeddings.cli import app  # noqa: E402 - they need what was just looked for
from dashscope_embeddings.cli.demo import command  # noqa: E402 - same
from dashscope_embeddings.cli.demo.passages import (  # noqa: E402 - same
    QUESTIONS,
    Passage,
    help_topics,
    read_folder,
    split_text,
)
from dashscope_embeddings.cli.demo.search import DENSE, SPARSE, STORES, PassageIndex, fuse, open_indexes  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "sk-made-up-and-secret"
EMULATOR_LINE = "On the emulator: no key, no network, no bill; vectors are made up from words."
TEA = "# Tea\n\nGreen tea.\n\n# Coffee\n\nBeans.\n"
every_store = pytest.mark.parametrize("store", STORES)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def frameworks() -> None:
    for package in ("langchain_core", "llama_index.core", "langchain_qdrant", "llama_index.vector_stores.qdrant"):
        pytest.importorskip(package)


def run(*arguments: str) -> Any:
    result = typer_testing.CliRunner().invoke(app.app, ["demo", *arguments])
    assert "Traceback" not in result.output
    assert KEY not in result.output
    return result


# --- what it refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--store", "redis"], 2, "--store redis: expected memory or qdrant\n"),
        (["--live"], 2, "no API key"),
        (["--dimensions", "7"], 2, "text-embedding-v4 has no vectors of 7 dimensions"),
        (["--model", "text-embedding-v9"], 1, "'text-embedding-v9' is not in the catalogue"),
    ],
)
@pytest.mark.usefixtures("frameworks")
@pytest.mark.filterwarnings("default")
def test_what_cannot_work_is_reported_without_a_word_of_python(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "tea.md").write_text(TEA, "utf-8")
    result = run("tea.md", *arguments)
    assert result.exit_code == code
    assert result.output.startswith(message)
    assert "UserWarning" not in result.output
    if "--live" in arguments:
        assert result.output.count("\n") == 1
        assert "leave out --live" in result.output
        assert "--base-url" not in result.output, "the demo has no such option"
    if "--model" in arguments:
        assert "ModelNotFound" in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("absent", "store"),
    [
        ("langchain_core.vectorstores", "memory"),
        ("llama_index.core", "memory"),
        ("langchain_qdrant", "qdrant"),
        ("llama_index.vector_stores.qdrant", "qdrant"),
    ],
)
def test_without_a_framework_or_its_store_the_extras_are_named(
    absent: str, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    (tmp_path / "tea.md").write_text(TEA, "utf-8")
    result = run("tea.md", "--store", store)
    assert result.exit_code == 1
    assert 'pip install "dashscope-embeddings[cli,langchain,llama-index,qdrant]"' in result.output


@pytest.mark.usefixtures("frameworks")
def test_a_refused_key_ends_it_with_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tea.md").write_text(TEA, "utf-8")
    with Emulator(api_key="sk-another").serve() as server:
        monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", server.url)
        monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
        result = run(".", "--live")
    assert result.exit_code == 1
    assert "401 InvalidApiKey" in result.output


# --- what it reads -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("frameworks")
def test_a_folder_is_read_at_any_depth_and_what_gives_no_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "tea.md").write_text("# Tea\n\nGreen tea is steamed.\n\n## Water\n\nNot too hot.\n", "utf-8")
    (tmp_path / "sub" / "KAFFEE.TXT").write_text("\ufeff紅茶用沸水沖泡。綠茶不用。", "utf-8")
    (tmp_path / "code.py").write_text("green = tea", "utf-8")
    (tmp_path / ".git" / "hidden.txt").write_text("green tea", "utf-8")
    (tmp_path / "empty.txt").write_text("\n \n", "utf-8")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00\xd8")
    assert read_folder(tmp_path) == (
        [
            Passage(str(Path("sub", "KAFFEE.TXT")), "紅茶用沸水沖泡。綠茶不用。"),
            Passage("tea.md: Tea", "Green tea is steamed."),
            Passage("tea.md: Water", "Not too hot."),
        ],
        ["empty.txt: empty", "picture.txt: not UTF-8"],
    )
    result = run(str(tmp_path))
    assert result.exit_code == 0
    assert "skipped empty.txt: empty" in result.output
    assert "skipped picture.txt: not UTF-8" in result.output
    # Without a question of the user's, the texts' own beginnings are asked for.
    assert "No --query" in result.output
    for asked in ("紅茶用沸水沖泡。", "Green tea is steamed.", "Not too hot."):
        assert asked in result.output.splitlines()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("tea.md", 0, "1 passage, 10 characters, from tea.md"),
        ("tea.csv", 2, "no text in tea.csv: a .txt or .md file with text is needed"),
        ("empty", 2, "no text in empty: a .txt or .md file with text is needed (a.md: empty)"),
        ("nowhere", 2, "no such file or folder: nowhere"),
    ],
)
@pytest.mark.usefixtures("frameworks")
def test_a_single_file_is_read_and_where_there_is_no_text_a_sentence_says_so(
    name: str, code: int, words: str, tmp_path: Path
) -> None:
    for written in ("tea.md", "tea.csv"):
        (tmp_path / written).write_text("Green tea.", "utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.md").touch()
    result = run(name)
    assert (result.exit_code, words in result.output) == (code, True), result.output


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    pytest.importorskip("llama_index.core")
    return help_topics()


def test_the_help_topics_become_titled_passages_of_even_size_without_repetition(passages: list[Passage]) -> None:
    assert len(passages) > 300
    sizes = sorted(len(passage.body) for passage in passages)
    assert sizes[-1] <= 1_000
    assert 600 <= sizes[len(sizes) // 2] <= 1_000
    assert all(passage.title.strip() and passage.body.strip() for passage in passages)
    assert 'The "with" statement' in {passage.title for passage in passages}
    assert len({passage.body for passage in passages}) == len(passages)


TEXTS = ["word " * 900, "一" * 4_321, "A sentence of six words. " * 99, "\n\n".join("abc"), "词" * 1_200 + "。\n\n甲"]
TEXTS += ["word " * 300 + f"end{mark}\n\nNext." for mark in (". ", "! \t", "?\n \n")]
"""The last ones have a long paragraph without a sentence's end but that of its own, with blanks behind it."""


@pytest.mark.parametrize("text", TEXTS)
def test_cutting_loses_no_character_but_blanks_and_needs_no_data_of_nltk(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_index.core")
    monkeypatch.setattr("llama_index.core.utils.GlobalsHelper.punkt_tokenizer", None)  # reads them
    pieces = split_text(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(len, pieces)) <= 1_000
    assert "sentence" not in text or all(piece.endswith("words.") for piece in pieces)


def test_an_excerpt_starts_with_the_sentence_that_shares_most_with_the_question() -> None:
    passage = Passage("Tea", "Coffee is\nroasted. Green tea is steamed! 紅茶用沸水。綠茶不用。")
    assert passage.excerpt("How is green tea made?") == "Green tea is steamed! 紅茶用沸水。綠茶不用。"
    assert passage.excerpt("Something else") == "Coffee is roasted. Green tea is steamed! 紅茶用沸水。綠茶不用。"
    assert passage.first_sentence == "Coffee is roasted."


# --- what it prints and asks -------------------------------------------------------------------------------

FUSIONS = {
    "memory": ["reciprocal ranks · LangChain and LlamaIndex agree"],
    "qdrant": ["reciprocal ranks, by Qdrant · LangChain", "min-max scores, averaged · LlamaIndex"],
}


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(mark) in "WF" else 1 for mark in line.rstrip())


@pytest.mark.usefixtures("frameworks")
@pytest.mark.parametrize(("columns", "store"), [(80, "memory"), (120, "qdrant")])
def test_both_frameworks_answer_within_the_terminals_width_and_the_bill_is_right(
    columns: int, store: str, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(command, "help_topics", lambda: passages[:145])
    result = run("-k", "2", "--store", store)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == EMULATOR_LINE
    assert max(map(width, lines)) <= columns
    heads = [
        "dense · cosine · LangChain and LlamaIndex agree",
        "sparse · shared tokens, weighted · LangChain and LlamaIndex agree",
        *(f"fused · {how}" for how in FUSIONS[store]),
    ]
    for question in QUESTIONS:
        start = lines.index(question) + 1
        shown = lines[start : lines.index("", start)]
        assert [line.strip() for line in shown[::3]] == heads
        assert [line.split()[0] for line in shown[1::3] + shown[2::3]] == ["1"] * len(heads) + ["2"] * len(heads)
    billed = next(line for line in lines if line.startswith("together")).split()[1:4]
    requests, texts, tokens = (int(number.replace(",", "")) for number in billed)
    # Every passage once for each framework, ten a request; every question once, and again where the store fuses.
    filling, asked = 2 * 15, 2 * len(QUESTIONS) * (2 if store == "qdrant" else 1)
    assert (requests, texts) == (filling + asked, 2 * 145 + asked)
    service = in_process()
    assert (requests, texts, tokens) == (service.billed_requests, service.billed_texts, service.billed_tokens)
    assert lines[-2] == f"{filling} requests for the passages, {asked} for the questions, each for dense and sparse."
    assert lines[-1].startswith("Nothing was billed")


@pytest.mark.usefixtures("frameworks")
@every_store
def test_live_asks_the_service_with_roles_and_one_request_for_dense_and_sparse(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tea.md").write_text(TEA, "utf-8")
    service = Emulator(api_key=KEY)
    with service.serve() as server:
        monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", server.url)
        monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
        result = run(".", "--live", "--store", store, "-q", "Which tea is green?", "--dimensions", "256")
    assert result.exit_code == 0, result.output
    host = server.url.removeprefix("http://")
    assert result.output.splitlines()[0] == f"On the service at {host}: the texts are sent there and billed."
    documents = ("tea.md: Tea\n\nGreen tea.", "tea.md: Coffee\n\nBeans.")
    question = ("Which tea is green?",)
    assert [(asked.texts, asked.text_type, asked.output_type or "dense") for asked in service.asked] == [
        *[(documents, "document", "dense&sparse")] * 2,
        *[(question, "query", "dense&sparse")] * (4 if store == "qdrant" else 2),
    ]
    assert {asked.dimension for asked in service.asked} == {256}
    billed = "6 +8" if store == "qdrant" else "4 +6"  # requests and texts
    assert re.search(rf"together +{billed} +\d+ +unknown", result.output)


@pytest.mark.usefixtures("frameworks")
@every_store
def test_a_model_without_sparse_vectors_shows_the_dense_ranking_only(store: str, tmp_path: Path) -> None:
    (tmp_path / "tea.txt").write_text("Green tea is steamed.", "utf-8")
    result = run(".", "--store", store, "--model", "text-embedding-v2", "-q", "steamed tea")
    assert result.exit_code == 0, result.output
    heads = [line.split(" · ")[0].strip() for line in result.output.splitlines() if " · " in line]
    assert heads == ["dense"]
    assert re.search(r"^LlamaIndex, dense {2}", result.output, re.MULTILINE)
    assert "2 requests for the passages, 2 for the questions." in result.output
    assert {asked.output_type for asked in in_process().asked} <= {None, "dense"}


@pytest.mark.usefixtures("frameworks")
@every_store
def test_a_question_that_shares_no_token_has_dense_hits_and_no_store_speaks_of_its_own_limits(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from qdrant_client.common import client_warnings  # noqa: PLC0415 - only this test needs it
    from qdrant_client.local.local_collection import LocalCollection  # noqa: PLC0415 - same

    monkeypatch.setattr(client_warnings, "SEEN_MESSAGES", seen := set[str]())
    monkeypatch.setattr(LocalCollection, "LARGE_DATA_THRESHOLD", 1)
    (tmp_path / "tea.md").write_text(TEA, "utf-8")
    result = run(".", "--store", store, "-q", "zebra")
    assert result.exit_code == 0, result.output
    assert result.output.count("no passage shares a token") == 1
    assert re.search(r"dense · cosine.*\n +1 .*\n +2 ", result.output)
    assert seen == ({"large-local-collection"} if store == "qdrant" else set())
    assert "Local mode" not in result.output
    assert "not recommended" not in result.output


# --- rankings ----------------------------------------------------------------------------------------------


def test_fusion_adds_reciprocal_ranks_whatever_the_scores() -> None:
    fused = fuse([(7, 0.9), (8, 0.8)], [(8, 44.0), (9, 0.1)])
    assert [place for place, _ in fused] == [8, 7, 9]
    assert [score for _, score in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_where_the_frameworks_disagree_or_fuse_differently_both_are_shown() -> None:
    found: Any = {
        "LangChain": {DENSE: [(0, 0.9), (1, 0.8)], SPARSE: [], "fused · ranks": [(0, 0.1)]},
        "LlamaIndex": {DENSE: [(1, 0.9), (0, 0.8)], SPARSE: [], "fused · scores": [(0, 0.1)]},
    }
    texts = [Passage("Tea", "Green."), Passage("Coffee", "Black.")]
    lines = [line.plain.strip() for line in command.answer_lines("Which?", found, texts, max_hits=1, width=80)]
    tea, coffee = "1  0.9000  Tea                       Green.", "1  0.9000  Coffee                    Black."
    assert lines == [
        "Which?",
        "dense · cosine · LangChain",
        tea,
        "dense · cosine · LlamaIndex",
        coffee,
        "sparse · shared tokens, weighted · LangChain and LlamaIndex agree",
        "no passage shares a token",
        "fused · ranks · LangChain",
        tea.replace("0.9", "0.1"),
        "fused · scores · LlamaIndex",
        tea.replace("0.9", "0.1"),
        "",
    ]


def test_a_passages_first_sentence_finds_it_among_the_first_five(passages: list[Passage]) -> None:
    numpy = pytest.importorskip("numpy")
    client = EmbeddingClient(base_url="emulator")
    documents = numpy.array(client.embed([passage.text for passage in passages]).dense)
    questions = [passage.first_sentence for passage in passages]
    queries = numpy.array(client.embed(questions, text_type="query").dense)
    best = numpy.argsort(-(queries @ documents.T), axis=1)[:, :5]
    found = sum(place in row for place, row in enumerate(best))
    assert found / len(passages) >= 0.9


COUNT = 175
"""Passages: more than an index is filled with at once, and no multiple of a request's ten."""


@pytest.fixture(params=list(STORES))
def indexes(request: pytest.FixtureRequest, passages: list[Passage], frameworks: None) -> Iterator[list[PassageIndex]]:  # noqa: ARG001
    opened = open_indexes("text-embedding-v4", request.param, base_url="emulator", dimensions=256)
    with contextlib.ExitStack() as closing:
        for index in opened:
            closing.callback(index.close)
            index.fill(passages[:COUNT], lambda _: None)
        yield opened


def by_ranks(constant: int) -> Callable[[dict[int, float], dict[int, float]], dict[int, float]]:
    def fused(dense: dict[int, float], sparse: dict[int, float]) -> dict[int, float]:
        ranks = [{place: rank for rank, place in enumerate(part)} for part in (dense, sparse)]
        return {
            place: sum(1 / (constant + part[place]) for part in ranks if place in part) for place in {**dense, **sparse}
        }

    return fused


def by_scores(dense: dict[int, float], sparse: dict[int, float]) -> dict[int, float]:
    def scaled(part: dict[int, float], place: int) -> float:
        low, high = min(part.values()), max(part.values())
        return (part.get(place, low) - low) / (high - low)

    return {place: (scaled(dense, place) + scaled(sparse, place)) / 2 for place in {**dense, **sparse}}


COMPUTED: dict[str, Any] = {
    "fused · reciprocal ranks": by_ranks(61),
    "fused · reciprocal ranks, by Qdrant": by_ranks(2),
    "fused · min-max scores, averaged": by_scores,
}


def test_all_rankings_are_those_of_a_computation_without_any_framework(
    indexes: list[PassageIndex], passages: list[Passage]
) -> None:
    client = EmbeddingClient(base_url="emulator", dimensions=256)
    corpus = client.embed([passage.text for passage in passages[:COUNT]], output="dense&sparse")
    asked = client.embed(list(QUESTIONS), text_type="query", output="dense&sparse")
    assert corpus.sparse is not None
    assert asked.sparse is not None
    for question, vector, weights in zip(QUESTIONS, asked.dense, asked.sparse, strict=True):
        dense = {n: sum(a * b for a, b in zip(vector, row, strict=True)) for n, row in enumerate(corpus.dense)}
        shared = {n: set(weights.indices) & set(row.indices) for n, row in enumerate(corpus.sparse)}
        sparse = {
            n: sum(weights.as_dict()[token] * corpus.sparse[n].as_dict()[token] for token in tokens)
            for n, tokens in shared.items()
            if tokens
        }
        for by_way in (index.rank(question) for index in indexes):
            fusion = list(by_way)[-1]
            fused = COMPUTED[fusion](dict(by_way[DENSE]), dict(by_way[SPARSE]))
            for way, scores in ((DENSE, dense), (SPARSE, sparse), (fusion, fused)):
                ranking = by_way[way]
                # Where scores are equal, either may come first.
                best = sorted(scores.values(), reverse=True)[:50]
                assert [score for _, score in ranking] == pytest.approx(best, abs=1e-5)
                assert [scores[place] for place, _ in ranking] == pytest.approx(best, abs=1e-5)
