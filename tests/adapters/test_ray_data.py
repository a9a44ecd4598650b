"""Vectors for a dataset's batches: what each batch asks, gives and says, and what two real actors do together."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY
from corpus_helpers import DIMENSIONS, as_float32, expected_vector, write_json_lines
from pydantic import SecretStr

from dashscope_embeddings import (
    AuthenticationError,
    BadRequestError,
    ConnectionFailed,
    EmbeddingClient,
    InvalidInput,
    QuotaError,
    corpus,
)
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.emulator.faults import Arrearage, Blocked, Drop, RowRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings.ray_data import EmbedBatch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
np = pytest.importorskip("numpy")

TEXTS = ["风急天高猿啸哀", "one", "two", "one"]
IDS = ["a", "b", "c", "d"]
WRONG = "sk-never-to-be-seen-0123456789"


def table(texts: Any = TEXTS, **columns: Any) -> Any:
    return pa.table({"id": IDS[: len(texts)], "text": texts, **columns})


def embedder(emulator: Emulator, **how: Any) -> EmbedBatch:
    from dashscope_embeddings.ray_data import EmbedBatch  # noqa: PLC0415 - not every platform has Arrow

    how.setdefault("api_key", SecretStr(KEY))
    return EmbedBatch(**{"dimensions": DIMENSIONS, "http_client": httpx.Client(transport=emulator.transport()), **how})


# --- what comes out ----------------------------------------------------------------------------------------


def test_rows_keep_their_order_and_equal_texts_are_billed_once(emulator: Emulator) -> None:
    found = embedder(emulator)(table())
    assert found.column_names == ["id", "text", "embedding"]
    assert found.column("id").to_pylist() == IDS
    assert found.column("embedding").to_pylist() == [expected_vector(emulator, text) for text in TEXTS]
    assert (emulator.requests, emulator.billed_texts) == (1, 3)


@pytest.mark.parametrize("output", ["dense", "sparse", "dense&sparse"])
def test_columns_and_numbers_are_those_of_the_corpus_parquet(output: Any, emulator: Emulator, tmp_path: Path) -> None:
    found = embedder(emulator, output=output)(table())
    rows = [{"id": key, "text": text} for key, text in zip(IDS, TEXTS, strict=True)]
    client = EmbeddingClient(
        api_key=KEY, dimensions=DIMENSIONS, http_client=httpx.Client(transport=emulator.transport())
    )
    corpus.embed_corpus(
        write_json_lines(tmp_path / "in.jsonl", rows),
        tmp_path / "out.parquet",
        client=client,
        id_field="id",
        kind=output,
    )
    pq.write_table(found, tmp_path / "ray.parquet")
    ours, theirs = pq.read_table(tmp_path / "ray.parquet"), pq.read_table(tmp_path / "out.parquet")
    added = [name for name in ours.column_names if name not in {"id", "text"}]
    assert added == [name for name in ("embedding", "sparse_indices", "sparse_values") if name in theirs.column_names]
    assert ours.select(["id", *added]).to_pylist() == theirs.select(["id", *added]).to_pylist()
    assert [ours.schema.field(name).type for name in added] == [theirs.schema.field(name).type for name in added]
    if "dense" in output:
        assert found.schema.field("embedding").type.list_size == DIMENSIONS


def test_texts_are_documents_unless_queries_were_asked_for(emulator: Emulator) -> None:
    embedder(emulator)(table())
    queries = embedder(emulator, text_type="query", instruct="find poems")(table(["one", "two"]))
    assert [asked.text_type for asked in emulator.asked] == ["document", "query"]
    assert queries.column("embedding").to_pylist()[0] == expected_vector(
        emulator, "one", text_type="query", instruct="find poems"
    )


def test_arrays_and_frames_are_taken_too_and_nothing_else(emulator: Emulator) -> None:
    embed = embedder(emulator)
    plain = embed(table())
    assert embed({"id": np.array(IDS), "text": np.array(TEXTS, object)}).equals(plain)
    pandas = pytest.importorskip("pandas")
    frame = embed(pandas.DataFrame({"id": IDS, "text": TEXTS}, index=[4, 3, 2, 1]))
    assert frame.to_pylist() == plain.to_pylist()
    for odd in ({"text": np.array(["x"]), "image": np.zeros((1, 2, 2))}, ["x"]):
        with pytest.raises(InvalidInput, match='batch_format="pyarrow"'):
            embed(odd)


def test_a_batch_without_rows_has_the_columns_all_the_same(emulator: Emulator) -> None:
    none = table().slice(0, 0)
    empty = embedder(emulator, on_error="null", output="dense&sparse")(none)
    full = embedder(emulator, on_error="null", output="dense&sparse")(table())
    assert (empty.schema, empty.num_rows, emulator.requests) == (full.schema, 0, 1)


# --- bad rows ----------------------------------------------------------------------------------------------

REFUSED = RowRefused(match="two", message="Value error, contents is neither str nor list of str.: input.contents")


def test_raise_names_rows_without_text_before_anything_is_sent(emulator: Emulator) -> None:
    with pytest.raises(InvalidInput, match=r"text 1 is empty.*nothing was sent\. Their id: b, c\.") as caught:
        embedder(emulator, id_column="id")(table(["one", " ", None]))
    assert (caught.value.failed, emulator.requests) == ([1, 2], 0)


def test_raise_names_the_row_that_the_service_refuses_and_takes_no_vectors_along() -> None:
    emulator = Emulator(faults=[REFUSED])
    with pytest.raises(BadRequestError, match=r'text 2 of 4: .*Their id: c\. on_error="null"') as caught:
        embedder(emulator, id_column="id")(table())
    there = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (there.failed, list(there.reasons), there.partial) == ([2], [2], {})
    assert (type(there), str(there), there.code) == (BadRequestError, str(caught.value), "InvalidParameter")
    with pytest.raises(BadRequestError, match="id_column="):
        embedder(emulator)(table())


@pytest.mark.parametrize("output", ["dense", "sparse", "dense&sparse"])
def test_null_keeps_the_neighbours_and_says_why(output: Any, tmp_path: Path) -> None:
    emulator = Emulator(faults=[REFUSED])
    texts = [None, "one", "two", "three"]
    found = embedder(emulator, on_error="null", output=output)(table(texts))
    good = embedder(emulator, output=output)(table(["one", "three"]))
    pq.write_table(found, tmp_path / "nulls.parquet")
    back = pq.read_table(tmp_path / "nulls.parquet")
    errors = back.column("error").to_pylist()
    assert [errors[1], errors[3], errors[0]] == [None, None, "there is no text"]
    assert "400 InvalidParameter" in errors[2]
    for name in good.column_names[2:]:
        assert [value is None for value in back.column(name).to_pylist()] == [True, False, True, False]
        assert back.column(name).drop_null().to_pylist() == good.column(name).to_pylist()
    assert emulator.billed_texts == 4


def test_nothing_is_asked_where_every_row_is_bad(emulator: Emulator) -> None:
    found = embedder(emulator, on_error="null")(table([None, ""]))
    assert (found.column("embedding").null_count, emulator.requests) == (2, 0)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(Arrearage(), QuotaError), (Drop(how="unreachable"), ConnectionFailed)],
    ids=["money", "network"],
)
def test_null_is_for_rows_alone(fault: Any, kind: type[Exception]) -> None:
    emulator = Emulator(faults=[Blocked(match="one"), fault])
    embed = embedder(emulator, on_error="null", max_retries=0, batch_size=1, max_concurrency=1)
    with pytest.raises(kind):
        embed(table(["one", "two", "three"]))


def test_a_wrong_key_says_what_to_do_and_is_not_shown() -> None:
    with pytest.raises(AuthenticationError, match="region=") as caught:
        embedder(Emulator(api_key=KEY), api_key=WRONG, on_error="null")(table())
    assert WRONG not in str(caught.value) + repr(caught.value.__dict__)


# --- settings ----------------------------------------------------------------------------------------------


def test_each_actor_takes_its_part_of_the_accounts_quota(emulator: Emulator) -> None:
    settings = embedder(emulator, workers=4, requests_per_minute=6_000, tokens_per_minute=1e6).client.settings
    assert (settings.requests_per_minute, settings.tokens_per_minute) == (1_500, 250_000)
    unknown = embedder(emulator, workers=4).client.settings
    assert (unknown.requests_per_minute, unknown.tokens_per_minute) == (None, None)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"requests_per_minute": 60}, "requests_per_minute is the account's: pass workers="),
        ({"tokens_per_minute": 60}, "tokens_per_minute is the account's"),
        ({"workers": 0}, "workers=0"),
        ({"workers": 2, "requests_per_minute": "many"}, r"requests_per_minute=\(str\)"),
        ({"on_error": "skip"}, "on_error='skip'"),
        ({"output": "both"}, "output='both'"),
        ({"text_type": "passage"}, "text_type='passage'"),
        ({"dimensions": 3}, "no vectors of 3 dimensions"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_construction(how: Any, words: str, emulator: Emulator) -> None:
    with pytest.raises(InvalidInput, match=words):
        embedder(emulator, **how)


@pytest.mark.parametrize(
    ("how", "columns", "words"),
    [
        ({"column": "body"}, {}, "no column 'body', only 'id', 'text': name the right one with column="),
        ({"id_column": "key"}, {}, "no column 'key'.*id_column="),
        ({}, {"embedding": [1, 2, 3, 4]}, "a column 'embedding' already"),
        ({"on_error": "null"}, {"error": IDS}, "a column 'error' already"),
        ({"column": "n", "on_error": "null"}, {"n": [1, 2, 3, 4]}, "column 'n' holds int64, not texts"),
    ],
)
def test_columns_that_do_not_fit_are_named_before_anything_is_sent(
    how: Any, columns: Any, words: str, emulator: Emulator
) -> None:
    with pytest.raises(InvalidInput, match=words):
        embedder(emulator, **how)(table(**columns))
    assert emulator.requests == 0


# --- Ray itself --------------------------------------------------------------------------------------------

ROWS = 60
REFUSED_ROW = 47
# Ray warns of what is its own: numbers of blocks that would suit it better, and what it is going to rename.
ITS_OWN = pytest.mark.filterwarnings("ignore:::ray")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray on this machine, with two CPUs, and the folder of its session."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    # Neither reports to its makers nor asks for tokens of its own.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Not pytest's folder, whose name is too long for a socket's.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder
        )
        try:
            yield ray, Path(folder)
        finally:
            ray.shutdown()
            with warnings.catch_warnings():
                # Ray stops its processes and forgets them without having waited, some versions at least.
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()


def _observed() -> type[EmbedBatch]:
    """Local, so that it travels by value: actors cannot import tests."""
    from dashscope_embeddings.ray_data import EmbedBatch  # noqa: PLC0415

    class Observed(EmbedBatch):
        def __call__(self, batch: Any) -> Any:
            found = super().__call__(batch)
            part = self.client.settings.requests_per_minute
            for name, value in (("actor", os.getpid()), ("part", part), ("client", id(self.client))):
                found = found.append_column(name, [[value] * found.num_rows])
            return found

    return Observed


@ITS_OWN
def test_two_actors_embed_what_one_machine_does_and_a_block_costs_only_itself(
    started: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test, because Ray takes seconds to start and as many to start each actor."""
    from dashscope_embeddings import ray_data  # noqa: PLC0415

    ray, session = started
    emulator = Emulator(api_key=KEY, requests_per_second=20, faults=[RowRefused(match=f"text {REFUSED_ROW} ")])
    texts = [f"text {number} of the corpus" for number in range(ROWS)]
    (tmp_path / "in").mkdir()
    for start in range(0, ROWS, 15):
        part = pa.table({"id": list(range(start, start + 15)), "text": texts[start : start + 15]})
        pq.write_table(part, tmp_path / "in" / f"{start}.parquet")
    ds = ray.data.read_parquet(str(tmp_path / "in")).repartition(6)
    ds.context.wait_for_min_actors_s = 120
    ds.context.raise_original_map_exception = True
    monkeypatch.setattr(ray_data, "EmbedBatch", _observed())

    with emulator.serve() as server:
        # The actors' environment, which is older, has no key: it must travel.
        monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
        how: dict[str, Any] = {"base_url": server.url, "dimensions": DIMENSIONS, "requests_per_minute": 1_200}
        out = ray_data.embed_dataset(ds, workers=2, batch_size=20, on_error="null", **how)
        out.write_parquet(str(tmp_path / "out"))
        assert emulator.billed_texts == ROWS - 1
        found = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
        bad = found.pop(REFUSED_ROW)
        assert (bad["id"], bad["embedding"], "400" in bad["error"]) == (REFUSED_ROW, None, True)
        assert [row["id"] for row in found] == [number for number in range(ROWS) if number != REFUSED_ROW]
        alone = EmbeddingClient(base_url=server.url, dimensions=DIMENSIONS).embed([row["text"] for row in found])
        assert [row["embedding"] for row in found] == [as_float32(vector) for vector in alone.dense]
        assert len({row["actor"] for row in found}) == 2
        assert len({(row["actor"], row["client"]) for row in found}) == 2, "an actor keeps one client"
        assert {row["part"] for row in found} == {600.0}

        monkeypatch.undo()
        with pytest.raises(TypeError, match="modle"):
            ray_data.embed_dataset(ds, workers=2, api_key=KEY, modle="text-embedding-v4")
        with pytest.raises(InvalidInput, match="no API key"):
            ray_data.embed_dataset(ds, workers=2)
        with pytest.raises(InvalidInput, match="only 'id', 'text'"):
            ray_data.embed_dataset(ray.data.from_arrow(table()), workers=2, api_key=KEY, column="body")
        with httpx.Client() as http, pytest.raises(InvalidInput, match="http_client cannot be sent"):
            ray_data.embed_dataset(ds, workers=2, api_key=KEY, http_client=http)

        small = ray.data.from_arrow(table())
        small.context.raise_original_map_exception = True
        refused = ray_data.embed_dataset(small, workers=1, api_key=WRONG, base_url=server.url)
        with pytest.raises(AuthenticationError, match="region=") as caught:
            refused.take_all()
        assert (caught.value.status, caught.value.code) == (401, "InvalidApiKey")
    assert WRONG not in str(caught.value) + repr(caught.value) + repr(refused)
    logs = [path for path in session.rglob("*") if path.is_file()]
    assert len(logs) > 5
    assert not [
        path for path in logs if {KEY, WRONG} & {key for key in (KEY, WRONG) if key.encode() in path.read_bytes()}
    ]
