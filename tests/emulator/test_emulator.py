"""The emulator is the service of the documents: its bodies, limits, refusals, and what it remembers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from emulator_calls import KEY, V4, Clock, compatible, native, post, rows

from dashscope_embeddings import catalogue
from dashscope_embeddings.emulator import Asked, Emulator, faults, in_process, synthetic_vectors
from dashscope_embeddings.emulator.embeddings import COMPATIBLE_PATH, NATIVE_PATH

SAMPLES = Path(__file__).parents[1] / "samples"
V3, V2, QWEN = "text-embedding-v3", "text-embedding-v2", "qwen3.7-text-embedding"
PREFIX = "<400> InternalError.Algo.InvalidParameter: "


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_text("utf-8"))


def shape(value: Any) -> Any:
    """Names and types, with one item standing for a list."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    return {name: "id" if name in ("id", "request_id") else value for name, value in body.items()}


# Bodies


def test_replies_have_the_published_shape() -> None:
    emulator = Emulator()
    reply = native(emulator, ["a text"])
    assert shape(reply.json()) == shape(sample("native_reply"))
    assert reply.headers["x-request-id"] == reply.json()["request_id"]
    assert shape(compatible(emulator, ["a text"]).json()) == shape(sample("openai_reply"))
    hybrid = rows(native(emulator, ["風急天高猿嘯哀"], output_type="dense&sparse"))[0]
    assert shape(hybrid) == shape(sample("native_hybrid_row"))


def test_refusals_are_the_published_ones() -> None:
    emulator = Emulator(api_key=KEY, faults=[faults.Throttle(after=3)])
    refused = post(emulator, NATIVE_PATH, {}, "sk-another")
    assert (refused.status_code, without_ids(refused.json())) == (
        401,
        without_ids(sample("native_wrong_key")),
    )
    refused = post(emulator, COMPATIBLE_PATH, {}, "sk-another")
    assert (refused.status_code, refused.json()) == (401, sample("openai_wrong_key"))
    refused = compatible(emulator, ["x"] * 11)
    assert without_ids(refused.json()) == without_ids(sample("openai_too_many_rows"))
    refused = compatible(emulator, "x")
    assert (refused.status_code, shape(refused.json())) == (429, shape(sample("openai_throttled")))
    assert refused.json()["error"] == sample("openai_throttled")["error"]


def test_usage_is_counted_per_request_and_qwen37_adds_tokens_to_each_row() -> None:
    emulator = Emulator()
    assert native(emulator, ["a", "two words"]).json()["usage"] == {"total_tokens": 3}
    assert compatible(emulator, ["a", "two words"]).json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert native(emulator, ["a"], QWEN).json()["usage"] == {"total_tokens": 17}
    assert synthetic_vectors.count_tokens("無邊落木蕭蕭下") == 5
    assert (emulator.billed_requests, emulator.billed_texts, emulator.billed_tokens) == (3, 5, 23)


def test_sparse_entries_follow_the_text_each_token_once() -> None:
    text = "Boundless woods shed leaves, boundless 無邊落木"
    row = rows(native(Emulator(), [text], output_type="sparse"))[0]
    assert set(row) == {"sparse_embedding", "text_index"}
    found = row["sparse_embedding"]
    assert [entry["token"] for entry in found] == ["Boundless", "woods", "shed", "leaves", *"無邊落木"]
    indices = [entry["index"] for entry in found]
    assert len(set(indices)) == len(indices)
    assert indices != sorted(indices)
    assert all(0 <= index < synthetic_vectors.VOCABULARY_SIZE for index in indices)
    assert all(entry["value"] > 0 for entry in found)


# Limits and refusals


@pytest.mark.parametrize("model", catalogue.MODELS, ids=lambda model: model.name)
def test_each_model_takes_its_rows_and_no_more(model: catalogue.Model) -> None:
    emulator = Emulator()
    assert len(rows(native(emulator, ["x"] * model.rows, model.name))) == model.rows
    refused = native(emulator, ["x"] * (model.rows + 1), model.name)
    assert refused.status_code == 400
    assert f"it should not be larger than {model.rows}.: " in refused.json()["message"]
    assert emulator.billed_texts == model.rows


def test_the_rows_and_tokens_of_all_models_can_be_set() -> None:
    emulator = Emulator(rows=6, tokens_per_row=3)
    assert "larger than 6." in native(emulator, ["x"] * 7).json()["message"]
    assert native(emulator, ["one two three four"]).json()["message"] == "Range of input length should be [1, 3]"
    assert len(rows(native(emulator, ["one two three"] * 6))) == 6


def test_a_row_too_long_refuses_the_whole_request_in_the_words_of_the_protocol() -> None:
    emulator = Emulator()
    words = "Range of input length should be [1, 33000]"
    assert native(emulator, ["good", "x " * 33_001]).json()["message"] == words
    assert compatible(emulator, ["good", "x " * 33_001]).json()["error"]["message"] == PREFIX + words
    assert "[1, 2048]" in native(emulator, "x " * 2_049, V2).json()["message"]
    assert emulator.billed_texts == 0


CONTENTS = "Value error, contents is neither str nor list of str.: input.contents"
V3_DIMENSION = (
    "Value error, dimension for embedding v3 is invalid, its value shold be in "
    "[64, 128, 256, 512, 768, 1024, 1536, 2048, 3072]"
)
REFUSED_NATIVE: list[tuple[object, int, str, str]] = [
    ({"input": {"texts": ["x"]}}, 400, "BadRequest.EmptyModel", 'Required parameter "model" missing from request.'),
    ({"model": V4}, 400, "BadRequest.EmptyInput", "Required input parameter missing from request."),
    ({"model": V4, "input": ["x"]}, 400, "BadRequest.IllegalInput", "The input parameter requires json format."),
    (b"no json", 400, "BadRequest.IllegalInput", "The request body requires json format."),
    *(
        ({"model": model, "input": {"texts": "x"}}, 404, "ModelNotFound", "Model can not be found.")
        for model in ("text-embedding-v9", ["no"])
    ),
    *(
        ({"input": {"texts": "x"}, **body}, 400, "InvalidParameter", message)
        for body, message in (
            ({"model": V4, "input": {}}, CONTENTS),
            ({"model": V4, "input": {"texts": [[1, 2]]}}, CONTENTS),
            ({"model": V4, "input": {"texts": ["x", None]}}, CONTENTS),
            (
                {"model": V2, "input": {"texts": [1]}},
                "contents is neither str nor list of str.: payload.input.contents",
            ),
            ({"model": V4, "input": {"texts": []}}, "[] is too short: input.contents"),
            ({"model": V4, "input": {"texts": ["x", " "]}}, "Range of input length should be [1, 33000]"),
            ({"model": V3, "parameters": {"dimension": 2048}}, V3_DIMENSION),
        )
    ),
]


@pytest.mark.parametrize(("body", "status", "code", "message"), REFUSED_NATIVE)
def test_a_bad_native_body_is_refused_in_the_native_envelope(
    body: object, status: int, code: str, message: str
) -> None:
    emulator = Emulator()
    refused = post(emulator, NATIVE_PATH, body)
    assert refused.status_code == status
    assert without_ids(refused.json()) == {"code": code, "message": message, "request_id": "id"}
    assert emulator.billed_tokens == 0


@pytest.mark.parametrize(
    "parameters",
    [
        {"text_type": "passage"},
        {"output_type": "both"},
        {"dimension": 1000},
        {"dimension": "1024"},
        {"instruct": 3},
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, Any]) -> None:
    refused = native(Emulator(), "x", **parameters)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")


def test_an_unknown_model_is_named_in_the_compatible_envelope() -> None:
    refused = compatible(Emulator(), "x", "text-embedding-v9")
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert "text-embedding-v9 does not exist" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/api/v1/nowhere", "/compatible-mode/v1/nowhere", NATIVE_PATH, COMPATIBLE_PATH])
def test_an_unknown_path_or_method_is_404_in_the_envelope_of_its_protocol(path: str) -> None:
    emulator = Emulator()
    with httpx.Client(transport=emulator.transport(), base_url="http://emulator") as client:
        refused = client.get(path)
    assert refused.status_code == 404
    assert ("error" in refused.json()) == path.startswith("/compatible-mode")


def test_models_of_one_size_ignore_a_dimension_and_sparse() -> None:
    row = rows(native(Emulator(), "x", V2, dimension=256, output_type="dense&sparse"))[0]
    assert set(row) == {"embedding", "text_index"}
    assert len(row["embedding"]) == 1536


def test_the_compatible_protocol_ignores_what_only_the_native_one_has() -> None:
    emulator = Emulator()
    reply = compatible(emulator, "x", QWEN, text_type="document", output_type="sparse", instruct="Find.", dimension=256)
    assert reply.json()["data"][0]["embedding"] == emulator.dense("x", model=QWEN, text_type="query")


def test_a_model_of_unknown_sizes_gives_what_is_asked() -> None:
    new = replace(catalogue.MODELS[0], name="new", dimensions=(), default_dimension=None, known=False)
    emulator = Emulator(models=[new])
    assert len(rows(native(emulator, "x", "new"))[0]["embedding"]) == 1024
    assert len(rows(native(emulator, "x", "new", dimension=99))[0]["embedding"]) == 99
    assert native(emulator, "x", "new", dimension=0).status_code == 400
    assert native(emulator, "x", V4).status_code == 404


def test_asynchronous_calls_are_denied() -> None:
    headers = {"authorization": f"Bearer {KEY}", "X-DashScope-Async": "enable"}
    with httpx.Client(transport=Emulator().transport(), base_url="http://emulator", headers=headers) as client:
        refused = client.post(NATIVE_PATH, json={"model": V2, "input": {"url": "http://x"}})
    assert (refused.status_code, refused.json()["code"]) == (403, "AccessDenied")


# The key


def test_any_key_is_let_in_unless_one_is_named_and_none_is_not() -> None:
    body = {"model": V4, "input": {"texts": "x"}}
    assert post(Emulator(), NATIVE_PATH, body, "sk-any").status_code == 200
    assert post(Emulator(), NATIVE_PATH, body, None).status_code == 401
    assert post(Emulator(key_required=False), NATIVE_PATH, body, None).status_code == 200
    assert in_process() is in_process()
    assert post(in_process(), NATIVE_PATH, body, None).status_code == 200
    assert post(Emulator(api_key=KEY), NATIVE_PATH, body, KEY).status_code == 200
    assert post(Emulator(api_key=KEY, key_required=False), NATIVE_PATH, body, "sk-other").status_code == 401


def test_the_key_is_kept_nowhere_in_the_open() -> None:
    emulator = Emulator(api_key=KEY)
    native(emulator, "x")
    assert len(emulator.keys_seen) == 1
    assert "authorization" not in emulator.asked[0].headers
    assert repr(emulator) == "<Emulator: requests 1, billed texts 1>"
    assert KEY not in repr((emulator, vars(emulator), emulator.asked, emulator.keys_seen))


# The log


def test_the_log_tells_what_was_asked() -> None:
    printed: list[Asked] = []
    emulator = Emulator(clock=Clock(), on_request=printed.append)
    native(emulator, ["a", "b"], text_type="query", output_type="dense&sparse", dimension=64, instruct="Find.")
    native(emulator, ["a"] * 11)
    compatible(emulator, "a", encoding_format="base64", dimensions=128)
    first, second, third = emulator.asked
    assert (first.protocol, first.model, first.texts) == ("native", V4, ("a", "b"))
    assert (first.text_type, first.output_type, first.dimension) == ("query", "dense&sparse", 64)
    assert (first.instruct, first.status, first.time, first.path) == ("Find.", 200, 1000.0, NATIVE_PATH)
    assert first.tokens == emulator.billed_tokens - third.tokens
    assert (second.status, second.tokens, len(second.texts)) == (400, 0, 11)
    assert (third.protocol, third.encoding_format, third.dimension) == ("openai", "base64", 128)
    assert third.body == {"model": V4, "input": "a", "encoding_format": "base64", "dimensions": 128}
    assert len({asked.request_id for asked in emulator.asked}) == 3
    assert printed == emulator.asked


def test_the_log_can_be_bounded_while_counts_go_on() -> None:
    emulator = Emulator(log=2)
    for text in "abc":
        native(emulator, text)
    assert [asked.texts for asked in emulator.asked] == [("b",), ("c",)]
    assert (emulator.requests, emulator.billed_texts) == (3, 3)
    silent = Emulator(log=0)
    native(silent, "x")
    assert (silent.asked, silent.billed_texts) == ([], 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_can_ask_while_the_parent_held_the_lock() -> None:
    code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from dashscope_embeddings.emulator import in_process
with in_process()._lock.current:
    child = os.fork()
    if not child:
        os._exit(7 if in_process().asked == [] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(  # noqa: S603  (this interpreter, own code)
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "7"
