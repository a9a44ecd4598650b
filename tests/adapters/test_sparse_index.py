"""The index in memory: exact, ordered as Qdrant orders, the same however it was filled, and cheap to add to."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("numpy")

import numpy as np

from dashscope_embeddings._adapters import sparse_index
from dashscope_embeddings._adapters.sparse_index import SparseIndex
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = ["cat", "dog", "tree", "river", "stone", "猫", "河", "index", "context", "manager"]


def random_vectors(count: int, seed: int = 0, vocabulary: int = 60) -> list[SparseVector]:
    draw = random.Random(seed)  # noqa: S311 - the same vectors in every run
    vectors = []
    for _ in range(count):
        indices = sorted(draw.sample(range(vocabulary), draw.randrange(12)))
        weights = np.array([draw.choice([0.0, draw.random(), -draw.random()]) for _ in indices], dtype=np.float32)
        vectors.append(SparseVector(indices, weights.tolist()))
    return vectors


def emulated(texts: Sequence[str], role: str) -> list[SparseVector]:
    rows = [Emulator().sparse(text, text_type=role, model="text-embedding-v4") for text in texts]
    return [SparseVector.merged((token.index, float(np.float32(token.value)), None) for token in row) for row in rows]


def filled(vectors: Sequence[SparseVector], step: int | None = None) -> SparseIndex:
    index = SparseIndex()
    for start in range(0, len(vectors), step or len(vectors)):
        index.add(vectors[start : start + (step or len(vectors))])
    return index


def dot_products(query: SparseVector, vectors: Sequence[SparseVector]) -> list[tuple[int, float]]:
    """Every row that shares a token: the largest first, then the first."""
    weights, found = query.as_dict(), []
    for row, vector in enumerate(vectors):
        if common := sorted(weights.keys() & vector.as_dict().keys()):
            found.append((row, sum(weights[i] * vector.as_dict()[i] for i in common)))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize("step", [None, 1, 7])
def test_products_are_exact_and_equal_ones_keep_the_order_of_their_rows(step: int | None) -> None:
    vectors = random_vectors(100) * 2  # each score twice
    index = filled(vectors, step)
    assert len(index) == 200
    for query in random_vectors(40, seed=1):
        expected = dot_products(query, vectors)
        for k in (1, 2, 5, 1_000):
            assert index.search(query, k) == expected[:k]


@pytest.mark.parametrize(
    ("documents", "queries"),
    [
        pytest.param(random_vectors(150), random_vectors(30, seed=2), id="random"),
        pytest.param(
            emulated([" ".join(words) for words in itertools.permutations(WORDS, 3)][::5], "document"),
            emulated([" ".join(pair) for pair in itertools.combinations(WORDS, 2)], "query"),
            id="emulated",
        ),
    ],
)
def test_rankings_are_those_of_qdrant(documents: list[SparseVector], queries: list[SparseVector]) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    models = pytest.importorskip("qdrant_client.models")
    client, index = qdrant.QdrantClient(":memory:"), filled(documents, 40)
    client.create_collection("demo", {}, sparse_vectors_config={"sparse": models.SparseVectorParams()})
    rows = [models.SparseVector(indices=vector.indices, values=vector.values) for vector in documents]
    client.upsert("demo", [models.PointStruct(id=i, vector={"sparse": row}) for i, row in enumerate(rows)])
    for query in queries:
        vector = models.SparseVector(indices=query.indices, values=query.values)
        points = client.query_points("demo", query=vector, using="sparse", limit=len(documents)).points
        # Qdrant's scores are float32, and among equal ones its order is any.
        theirs = sorted([(-point.score, point.id) for point in points])
        ours = sorted([(-float(np.float32(score)), row) for row, score in index.search(query, len(documents))])
        assert ours == theirs
        assert [row for row, _ in index.search(query, 5)] == [row for row, _ in dot_products(query, documents)[:5]]
    client.close()


def test_a_query_without_a_known_token_finds_nothing() -> None:
    index = filled(random_vectors(50))
    assert index.search(SparseVector([61, 2**32 - 1], [1.0, 1.0]), 5) == []
    assert index.search(SparseVector([], []), 5) == []
    assert SparseIndex().search(SparseVector([1], [1.0]), 5) == []


def test_the_rows_that_are_accepted_are_found_in_their_order() -> None:
    vectors = random_vectors(200)
    query, asked = SparseVector(list(range(60)), [1.0] * 60), []
    expected = [pair for pair in dot_products(query, vectors) if pair[0] % 10 == 0][:5]

    def accepts(row: int) -> bool:
        asked.append(row)
        return row % 10 == 0

    assert filled(vectors, 30).search(query, 5, accepts) == expected
    assert len(asked) < 100, "it is asked for the best rows alone, until there are enough"


def test_adding_in_small_steps_moves_each_weight_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = 0
    build = sparse_index._Segment.build

    def counted(first: int, count: int, indices: Any, *postings: Any) -> sparse_index._Segment:
        nonlocal moved
        moved += len(indices)
        return build(first, count, indices, *postings)

    monkeypatch.setattr(sparse_index._Segment, "build", counted)
    index = filled([SparseVector([row % 50, 100 + row], [1.0, 0.5]) for row in range(2_048)], 1)
    assert moved == 2 * 2_048 * 12  # once, and at each of eleven doublings
    assert len(index._segments) == 1
    monkeypatch.setattr(sparse_index, "_MAX_POSTINGS", 1_000)
    assert [len(segment.rows) for segment in filled([SparseVector([1], [1.0])] * 4_000, 500)._segments] == [1_000] * 4


def test_an_index_takes_eight_bytes_a_weight_and_a_little_for_each_token() -> None:
    vectors = [SparseVector(list(range(row % 7, 1_400, 7)), [0.5] * 200) for row in range(1_000)]
    arrays = filled(vectors, 100).to_arrays()
    assert sum(array.nbytes for array in arrays.values()) < 1_000 * 200 * 8 * 1.2


def test_arrays_make_the_same_index_again_and_broken_ones_none() -> None:
    vectors = random_vectors(100)
    index = filled(vectors, 30)
    arrays = index.to_arrays()
    again = SparseIndex.from_arrays(arrays)
    again.add(vectors[:10])
    query = SparseVector(list(range(60)), [1.0] * 60)
    assert again.search(query, 1_000) == dot_products(query, vectors + vectors[:10])
    for name, broken in {
        "rows_0": arrays["rows_0"] + np.uint32(1_000),
        "tokens_0": arrays["tokens_0"][1:],
        "counts_0": -arrays["counts_0"],
        "values_0": arrays["values_0"] * np.float32("nan"),
        "row_counts": -arrays["row_counts"],
    }.items():
        with pytest.raises((KeyError, TypeError, ValueError)):
            SparseIndex.from_arrays({**arrays, name: broken})
    del arrays["rows_0"]
    with pytest.raises(KeyError):
        SparseIndex.from_arrays(arrays)
