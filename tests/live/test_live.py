"""What no emulator can know. Asks the service, and bills a few hundred tokens: `pytest --live tests/live`.

Needs DASHSCOPE_API_KEY, and DASHSCOPE_API_REGION for a key of another region than Beijing.
"""

from __future__ import annotations

import math

import pytest

from dashscope_embeddings import AuthenticationError, BadRequestError, EmbeddingClient
from dashscope_embeddings.catalogue import MODELS, Model
from dashscope_embeddings.check import check

pytestmark = pytest.mark.live
TEXT = "What is a context manager?"


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) / math.hypot(*left) / math.hypot(*right)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_each_model_gives_what_its_row_says(model: Model) -> None:
    client = EmbeddingClient(model.name)
    output = "dense&sparse" if model.sparse else "dense"
    try:
        found = client.embed([TEXT] * model.rows + ["风急天高猿啸哀"], output=output)  # type: ignore[arg-type]
    except (AuthenticationError, BadRequestError) as refused:
        pytest.skip(f"not offered to this key: {refused}")
    assert len(found.dense) == model.rows + 1
    assert {len(vector) for vector in found.dense} == {model.default_dimension}
    assert math.hypot(*found.dense[0]) == pytest.approx(1.0, abs=1e-3)
    assert found.usage.tokens > 0
    if model.sparse:
        assert found.sparse is not None
        assert found.sparse[0].indices == sorted(set(found.sparse[0].indices))


def test_queries_and_documents_are_embedded_apart() -> None:
    client = EmbeddingClient()
    query = client.embed(TEXT, text_type="query").dense[0]
    document = client.embed(TEXT).dense[0]
    assert 0.5 < cosine(query, document) < 0.9999


def test_one_request_for_both_halves_gives_the_vectors_of_two() -> None:
    client = EmbeddingClient()
    both = client.embed(TEXT, output="dense&sparse")
    assert cosine(both.dense[0], client.embed(TEXT).dense[0]) > 0.9999
    assert both.sparse is not None
    alone = client.embed(TEXT, output="sparse").sparse
    assert alone is not None
    assert both.sparse[0].indices == alone[0].indices


def test_a_request_too_large_is_cut_as_the_service_says() -> None:
    client = EmbeddingClient("text-embedding-v4", batch_size=11)
    assert len(client.embed([f"text {i}" for i in range(11)]).dense) == 11


def test_a_wrong_key_is_told_as_such() -> None:
    with pytest.raises(AuthenticationError) as caught:
        EmbeddingClient(api_key="sk-wrong").embed(TEXT)
    assert caught.value.request_id


def test_check_finds_the_region_of_the_key_and_measures_the_role() -> None:
    found = check()
    assert found.takes_key
    assert found.role is not None
