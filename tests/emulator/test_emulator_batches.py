"""The emulator's Batch route: files go in, batches move with the clock, results come out, and what goes wrong."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from emulator_calls import KEY, V4, Clock

from dashscope_embeddings.emulator import Emulator, faults, in_process, synthetic_vectors
from dashscope_embeddings.emulator.batch.service import BatchSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OTHER = "sk-another"
ROOT = "/compatible-mode/v1"
V3 = "text-embedding-v3"
TEXTS = [
    "風急天高猿嘯哀",
    "The islet is clear, the sand is white.",
    "無邊落木蕭蕭下",
    "The river rolls on and on.",
    "x",
]
START = Clock().now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def openai_client() -> Iterator[tuple[Any, Emulator]]:
    openai = pytest.importorskip("openai")
    emulator = Emulator(api_key=KEY)
    with (
        emulator.serve() as server,
        openai.OpenAI(api_key=KEY, base_url=server.url + ROOT, max_retries=0) as client,
    ):
        yield client, emulator


def line(custom_id: str, given: Any, *, url: str = "/v1/embeddings", method: str = "POST", **body: Any) -> str:
    body = {"model": V4, "input": given, "dimensions": 64, **body}
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body}, ensure_ascii=False)


def file_of(texts: Iterable[Any]) -> bytes:
    return "".join(line(f"row-{number}", text) + "\n" for number, text in enumerate(texts)).encode()


class Caller:
    """Asks an emulator in process, and gives what came as JSON."""

    def __init__(self, emulator: Emulator, key: str | None = KEY) -> None:
        self.emulator = emulator
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        address = f"http://emulator{ROOT}"
        with httpx.Client(transport=self.emulator.transport(), base_url=address, headers=self._headers) as client:
            return client.request(method, path, **how)

    def json(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        reply = self.ask(method, path, **how)
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-request-id"]
        found: dict[str, Any] = reply.json()
        return found

    def send(self, content: bytes, purpose: str = "batch") -> httpx.Response:
        files = {"file": ("naïve; 名.jsonl", content, "application/jsonl")}
        return self.ask("POST", "/files", data={"purpose": purpose}, files=files)

    def start(self, content: bytes, **fields: Any) -> dict[str, Any]:
        fields = {
            "input_file_id": self.send(content).json()["id"],
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            **fields,
        }
        return self.json("POST", "/batches", json=fields)

    def retrieve(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.json("GET", f"/batches/{batch['id']}")

    def run(self, content: bytes, **fields: Any) -> dict[str, Any]:
        return self.retrieve(self.start(content, **fields))

    def content(self, name: str | None) -> list[dict[str, Any]]:
        if name is None:
            return []
        reply = self.ask("GET", f"/files/{name}/content")
        assert reply.status_code == 200
        return [json.loads(entry) for entry in reply.text.splitlines()]

    def codes(self, batch: dict[str, Any]) -> dict[str, str]:
        return {entry["custom_id"]: entry["error"]["code"] for entry in self.content(batch["error_file_id"])}

    def answered(self, batch: dict[str, Any]) -> set[str]:
        return {entry["custom_id"] for entry in self.content(batch["output_file_id"])}


# The openai package


def test_openais_package_gets_the_vectors_of_the_synchronous_route(openai_client: tuple[Any, Emulator]) -> None:
    client, emulator = openai_client
    sent = client.files.create(file=("in.jsonl", file_of([TEXTS[:2], *TEXTS[2:]])), purpose="batch")
    assert (sent.object, sent.filename, sent.purpose, sent.status) == ("file", "in.jsonl", "batch", "processed")
    batch = client.batches.create(
        input_file_id=sent.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        metadata={"ds_name": "poems", "ds_description": "Two lines"},
    )
    assert (batch.status, batch.output_file_id, batch.request_counts.total) == ("validating", None, 0)
    ended = client.batches.retrieve(batch.id)
    assert (ended.status, ended.errors, ended.error_file_id, ended.expires_at) == ("completed", None, None, None)
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (4, 4, 0)
    assert ended.metadata == {"ds_name": "poems", "ds_description": "Two lines"}
    results = {}
    for text in client.files.content(ended.output_file_id).text.splitlines():
        result = json.loads(text)
        results[result["custom_id"]] = result["response"]["body"]
    tokens = emulator.billed_tokens
    for number, given in enumerate([TEXTS[:2], *TEXTS[2:]]):
        direct = client.embeddings.create(model=V4, input=given, dimensions=64, encoding_format="float").model_dump()
        result = results[f"row-{number}"]
        assert result["data"] == direct["data"]
        assert result["usage"] == direct["usage"]
    assert emulator.billed_tokens == 2 * tokens


def test_openais_package_lists_and_cancels_batches(openai_client: tuple[Any, Emulator]) -> None:
    client, emulator = openai_client
    emulator.batches.settings = BatchSettings(seconds=3_600)
    assert client.batches.list().data is None
    assert list(client.batches.list()) == []
    sent = client.files.create(file=("in.jsonl", file_of(TEXTS)), purpose="batch")
    fields = {"input_file_id": sent.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    made = [client.batches.create(**fields).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    cancelled = client.batches.cancel(made[0])
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at >= cancelled.created_at
    named = client.batches.list(extra_query={"input_file_ids": f"{sent.id},file-batch-unknown"})
    assert [batch.id for batch in named] == made[::-1]
    assert emulator.asked[-1].query == f"input_file_ids={sent.id}%2Cfile-batch-unknown"


def test_openais_package_raises_its_own_errors(openai_client: tuple[Any, Emulator]) -> None:
    openai = pytest.importorskip("openai")
    client, emulator = openai_client
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("in.jsonl", b"{}"), purpose="assistants")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_unknown")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        client.with_options(api_key=OTHER).batches.list()
    emulator.faults = [faults.Throttle(route="POST .*/batches$")]
    assert list(client.batches.list()) == []
    with pytest.raises(openai.RateLimitError):
        client.batches.create(input_file_id="x", endpoint="/v1/embeddings", completion_window="24h")


# Shapes


def test_a_file_is_described_as_the_documents_show_it() -> None:
    caller = Caller(Emulator())
    content = file_of(TEXTS)
    sent = caller.send(content).json()
    assert list(sent) == ["id", "bytes", "created_at", "filename", "object", "purpose", "status", "status_details"]
    assert sent["id"].startswith("file-batch-")
    assert (sent["bytes"], sent["status_details"], sent["filename"]) == (len(content), None, "naïve; 名.jsonl")
    assert caller.ask("GET", f"/files/{sent['id']}/content").content == content


def test_a_batch_is_described_as_it_was_seen() -> None:
    batch = Caller(Emulator()).start(file_of(TEXTS), metadata={"ds_name": "poems"})
    assert re.fullmatch(r"batch_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", batch.pop("id"))
    assert batch.pop("input_file_id").startswith("file-batch-")
    assert batch.pop("created_at") > 1_700_000_000
    stamps = ["in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
    assert batch == {
        "object": "batch",
        "endpoint": "/v1/embeddings",
        "errors": None,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        **{f"{name}_at": None for name in stamps},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": {"ds_name": "poems"},
    }


def test_result_lines_have_the_published_frame() -> None:
    caller = Caller(Emulator())
    batch = caller.run(file_of([*TEXTS, "", [""]]))
    assert batch["output_file_id"].startswith("file-batch_output-")
    assert batch["error_file_id"].startswith("file-batch_output-")
    assert batch["output_file_id"] != batch["error_file_id"]
    for result in caller.content(batch["output_file_id"]):
        assert list(result) == ["id", "custom_id", "response", "error"]
        assert list(result["response"]) == ["status_code", "request_id", "body"]
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        assert result["id"] == result["response"]["request_id"] == result["response"]["body"]["id"]
    failed = caller.content(batch["error_file_id"])
    assert {entry["custom_id"] for entry in failed} == {"row-5", "row-6"}
    for entry in failed:
        assert list(entry) == ["id", "custom_id", "response", "error"]
        assert entry["error"]["code"] == "InvalidParameter"
        assert "Range of input length" in entry["error"]["message"]
    assert {json.dumps(entry["response"]) for entry in failed} == {"null", "{}"}


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_results_are_not_in_the_order_of_the_file(count: int) -> None:
    caller = Caller(Emulator())
    batch = caller.run(file_of(str(number) for number in range(count)))
    names = [entry["custom_id"] for entry in caller.content(batch["output_file_id"])]
    in_order = [f"row-{number}" for number in range(count)]
    assert names != in_order
    assert sorted(names) == sorted(in_order)


def test_a_file_reads_the_same_twice() -> None:
    caller = Caller(Emulator())
    name = caller.run(file_of(TEXTS))["output_file_id"]
    first, second = (caller.ask("GET", f"/files/{name}/content").content for _ in range(2))
    assert first == second


def test_no_vector_is_computed_before_somebody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(Emulator())
    computed = []
    real = synthetic_vectors.dense

    def dense(text: str, **how: Any) -> list[float]:
        computed.append(text)
        return real(text, **how)

    monkeypatch.setattr(synthetic_vectors, "dense", dense)
    batch = caller.run(file_of(TEXTS))
    assert (batch["status"], computed) == ("completed", [])
    assert len(caller.content(batch["output_file_id"])) == len(computed) == len(TEXTS)


# What is billed and logged


def test_only_successful_lines_are_billed_and_every_line_is_logged() -> None:
    emulator = Emulator()
    caller = Caller(emulator)
    batch = caller.run(file_of([TEXTS[:2], TEXTS[2], "", ["y"] * 11]))
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert (emulator.billed_texts, emulator.billed_requests) == (3, 2)
    lines = {entry.custom_id: entry for entry in emulator.batch_lines}
    assert set(lines) == {"row-0", "row-1", "row-2", "row-3"}
    assert sum(entry.tokens for entry in lines.values()) == emulator.billed_tokens
    assert (lines["row-0"].texts, lines["row-0"].code, lines["row-0"].batch) == (tuple(TEXTS[:2]), None, batch["id"])
    assert (lines["row-3"].tokens, lines["row-3"].code) == (0, "InvalidParameter")
    usage = [entry["response"]["body"]["usage"]["total_tokens"] for entry in caller.content(batch["output_file_id"])]
    assert sum(usage) == emulator.billed_tokens


def test_the_log_of_lines_is_bounded_and_cleared_like_that_of_requests() -> None:
    emulator = Emulator(log=2)
    batch = Caller(emulator).run(file_of(TEXTS))
    assert (len(emulator.batch_lines), emulator.billed_texts) == (2, 5)
    emulator.clear()
    assert (emulator.batch_lines, emulator.billed_texts) == ([], 0)
    assert Caller(emulator).retrieve(batch)["status"] == "completed"


def test_a_batch_whose_lines_all_failed_has_no_output_file() -> None:
    caller = Caller(Emulator())
    batch = caller.run(file_of(["", " "]))
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    assert len(caller.content(batch["error_file_id"])) == 2
    assert caller.emulator.billed_tokens == 0


# Validation


GOOD = line("1", "a")
INVALID: list[tuple[str, tuple[str, str | None, int | None]]] = [
    (line("1", "a", url="/v1/chat/completion"), ("url_not_found", "url", 1)),
    (f"{GOOD}\n{line('2', 'b', model=V3)}", ("mismatched_model", "body.model", 2)),
    (f"{GOOD}\n\n{line('1', 'b')}", ("duplicate_custom_id", "custom_id", 3)),
    (line("1", "a", model="text-embedding-v9"), ("model_not_found", "body.model", 1)),
    (f"{GOOD}\n{{", ("invalid_json_line", None, 2)),
    (f"{GOOD}\n[]", ("invalid_json_line", None, 2)),
    (json.dumps({"method": "POST", "url": "/v1/embeddings"}), ("missing_required_parameter", "custom_id", 1)),
    (line("1", "a", model=None), ("missing_required_parameter", "body.model", 1)),
    (line("1", "a", method="GET"), ("invalid_method", "method", 1)),
    ("\n \n", ("empty_file", None, None)),
    ("\n".join(line(str(number), "a") for number in range(5)), ("too_many_lines", None, None)),
    (line("1", "a" * 300), ("line_too_large", None, 1)),
    ("\n".join(line(str(number), "a" * 90) for number in range(4)), ("file_too_large", None, None)),
]


@pytest.mark.parametrize(("content", "expected"), INVALID, ids=[entry[1][0] for entry in INVALID])
def test_a_file_that_is_not_valid_fails_later_with_http_200(
    content: str, expected: tuple[str, str | None, int | None]
) -> None:
    emulator = Emulator(batches=BatchSettings(lines=4, line_bytes=350, file_bytes=800))
    batch = Caller(emulator).run(content.encode())
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert (batch["failed_at"], batch["in_progress_at"]) == (batch["created_at"], None)
    assert batch["errors"]["object"] == "list"
    [error] = batch["errors"]["data"]
    assert list(error) == ["code", "message", "param", "line"]
    assert (error["code"], error["param"], error["line"]) == expected
    assert emulator.billed_texts == 0


def test_a_url_that_is_not_served_is_refused_in_the_words_that_were_seen() -> None:
    batch = Caller(Emulator()).run(line("1", "a", url="/v1/chat/completion").encode())
    words = "The provided url '/v1/chat/completion' is not supported by the Batch API."
    assert batch["errors"] == {
        "object": "list",
        "data": [{"code": "url_not_found", "message": words, "param": "url", "line": 1}],
    }


def test_the_endpoint_must_be_every_lines_url() -> None:
    batch = Caller(Emulator()).run(file_of(TEXTS), endpoint="/v1/chat/completions")
    assert {error["code"] for error in batch["errors"]["data"]} == {"mismatched_url"}
    assert [error["line"] for error in batch["errors"]["data"]] == [1, 2, 3, 4, 5]


def test_a_failed_validation_names_at_most_a_hundred_lines() -> None:
    batch = Caller(Emulator()).run(b"{\n" * 300)
    assert len(batch["errors"]["data"]) == 100


def test_a_file_that_is_not_utf_8_is_not_valid() -> None:
    batch = Caller(Emulator()).run(GOOD.encode("utf-16"))
    assert batch["errors"]["data"][0]["code"] == "invalid_json_line"


# Refusals


@pytest.mark.parametrize("window", ["24h", "336h", "1d", "14d"])
def test_windows_of_a_day_to_two_weeks_are_taken(window: str) -> None:
    assert Caller(Emulator()).start(file_of(TEXTS), completion_window=window)["completion_window"] == window


BAD_FIELDS = [
    ({"completion_window": window}, "completion_window")
    for window in ("23h", "337h", "0d", "15d", "24", "1.5d", "24h\n", "٢d", 24)
] + [
    ({"metadata": "poems"}, "metadata"),
    ({"endpoint": None}, "endpoint"),
    ({"input_file_id": 7}, "input_file_id"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS)
def test_a_batch_with_a_bad_field_is_refused(fields: dict[str, Any], param: str) -> None:
    caller = Caller(Emulator())
    name = caller.send(file_of(TEXTS)).json()["id"]
    fields = {"input_file_id": name, "endpoint": "/v1/embeddings", "completion_window": "24h", **fields}
    refused = caller.ask("POST", "/batches", json=fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, param, None)
    assert error["type"] == "invalid_request_error"
    assert caller.json("GET", "/batches")["data"] is None


def test_only_files_for_batches_are_taken() -> None:
    caller = Caller(Emulator())
    refused = caller.send(b"{}", "file-extract")
    assert (refused.status_code, list(refused.json())) == (400, ["error"])
    assert refused.json()["error"]["param"] == "purpose"
    output = caller.run(file_of(TEXTS))["output_file_id"]
    fields = {"input_file_id": output, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert caller.ask("POST", "/batches", json=fields).json()["error"]["param"] == "input_file_id"


@pytest.mark.parametrize(
    "sent",
    [
        {"content": b"{}", "headers": {"content-type": "application/json"}},
        {"content": b"--b\r\n\r\n", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"files": {"other": ("x", b"")}},
        {"data": {"file": "no file", "purpose": "batch"}},
    ],
)
def test_an_upload_without_a_file_is_refused(sent: dict[str, Any]) -> None:
    refused = Caller(Emulator()).ask("POST", "/files", **sent)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "file")


def test_a_batch_request_that_is_no_object_is_refused() -> None:
    refused = Caller(Emulator()).ask("POST", "/batches", content=b"[]")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_file_id")


def test_the_key_is_checked_as_for_embeddings() -> None:
    for caller in (Caller(Emulator(api_key=KEY), OTHER), Caller(Emulator(), None)):
        for method, path in (("POST", "/files"), ("GET", "/batches"), ("GET", "/files/x/content")):
            refused, expected = caller.ask(method, path), caller.ask("POST", "/embeddings", json={})
            assert (refused.status_code, refused.json()) == (401, expected.json())


def test_another_key_finds_neither_files_nor_batches() -> None:
    emulator = Emulator()
    caller, other = Caller(emulator), Caller(emulator, OTHER)
    batch = caller.run(file_of(TEXTS))
    paths = [
        ("GET", f"/files/{batch['input_file_id']}/content"),
        ("GET", f"/files/{batch['output_file_id']}/content"),
        ("GET", f"/batches/{batch['id']}"),
        ("POST", f"/batches/{batch['id']}/cancel"),
    ]
    for method, path in paths:
        refused = other.ask(method, path)
        assert refused.status_code == 404
        assert refused.json()["error"]["type"] == "invalid_request_error"
    fields = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert other.ask("POST", "/batches", json=fields).status_code == 404
    assert other.json("GET", "/batches")["data"] is None
    assert caller.retrieve(batch)["status"] == "completed"


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/files"), ("GET", "/files"), ("GET", "/files/x"), ("DELETE", "/files/x"), ("POST", "/files/x"),
     ("GET", "/files/x/cancel"), ("GET", "/batches/x/content"), ("DELETE", "/batches/x"),
     ("GET", "/batches/x/cancel/y")],
)  # fmt: skip
def test_other_methods_and_paths_do_not_exist(method: str, path: str) -> None:
    refused = Caller(Emulator()).ask(method, path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


# Time


def test_a_batch_moves_with_the_clock_alone(clock: Clock) -> None:
    emulator = Emulator(clock=clock, batches=BatchSettings(seconds=60))
    caller = Caller(emulator)
    batch = caller.start(file_of(str(number) for number in range(10)))
    made = batch["created_at"]
    seen = []
    for later in (0, 59, 60, 90, 119, 120, 179, 180):
        clock.now = START + later
        batch = caller.retrieve(batch)
        seen.append((later, batch["status"], batch["request_counts"]["completed"], emulator.billed_texts))
        assert (batch["output_file_id"] is None) == (later < 180)
    assert seen == [
        (0, "validating", 0, 0),
        (59, "validating", 0, 0),
        (60, "in_progress", 0, 0),
        (90, "in_progress", 5, 5),
        (119, "in_progress", 9, 9),
        (120, "finalizing", 10, 10),
        (179, "finalizing", 10, 10),
        (180, "completed", 10, 10),
    ]
    stamps = {name: batch[f"{name}_at"] for name in ("in_progress", "finalizing", "completed", "expired")}
    assert stamps == {"in_progress": made + 60, "finalizing": made + 120, "completed": made + 180, "expired": None}


def test_a_batch_nobody_looked_at_ended_when_it_was_due(clock: Clock) -> None:
    caller = Caller(Emulator(clock=clock, batches=BatchSettings(seconds=60)))
    batch = caller.start(file_of(TEXTS))
    clock.now += 9_000
    assert caller.retrieve(batch)["completed_at"] == batch["created_at"] + 180


@pytest.mark.parametrize("unfinished", ["errors", "absent"])
def test_a_cancelled_batch_gives_and_bills_the_lines_done_so_far(clock: Clock, unfinished: Any) -> None:
    emulator = Emulator(clock=clock, batches=BatchSettings(seconds=60, unfinished=unfinished))
    caller = Caller(emulator)
    batch = caller.start(file_of(str(number) for number in range(10)))
    clock.now += 90
    assert caller.json("POST", f"/batches/{batch['id']}/cancel")["status"] == "cancelling"
    clock.now += 30
    assert caller.json("POST", f"/batches/{batch['id']}/cancel")["status"] == "cancelling"
    clock.now += 30
    batch = caller.retrieve(batch)
    assert (batch["status"], batch["cancelled_at"] - batch["cancelling_at"]) == ("cancelled", 60)
    assert len(caller.answered(batch)) == emulator.billed_texts == 5
    codes = caller.codes(batch)
    assert list(codes.values()) == (["batch_cancelled"] * 5 if unfinished == "errors" else [])
    assert not set(codes) & caller.answered(batch)
    refused = caller.ask("POST", f"/batches/{batch['id']}/cancel")
    assert refused.status_code == 400
    assert "cancelled" in refused.json()["error"]["message"]


def test_a_batch_cancelled_before_its_validation_has_no_files(clock: Clock) -> None:
    caller = Caller(Emulator(clock=clock, batches=BatchSettings(seconds=60)))
    batch = caller.start(file_of(TEXTS))
    caller.json("POST", f"/batches/{batch['id']}/cancel")
    clock.now += 60
    batch = caller.retrieve(batch)
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("cancelled", None, None)


@pytest.mark.parametrize("unfinished", ["errors", "absent"])
def test_a_batch_expires_at_the_end_of_its_window_with_what_was_done(clock: Clock, unfinished: Any) -> None:
    emulator = Emulator(clock=clock, batches=BatchSettings(seconds=16 * 3_600, unfinished=unfinished))
    caller = Caller(emulator)
    batch = caller.start(file_of(str(number) for number in range(10)))
    clock.now += 48 * 3_600
    batch = caller.retrieve(batch)
    assert (batch["status"], batch["expired_at"] - batch["created_at"]) == ("expired", 24 * 3_600)
    assert len(caller.answered(batch)) == emulator.billed_texts == 5
    assert list(caller.codes(batch).values()) == (["batch_expired"] * 5 if unfinished == "errors" else [])
    assert batch["request_counts"]["failed"] == (5 if unfinished == "errors" else 0)


# Lists and limits


def test_lists_are_paged_from_the_latest_on() -> None:
    caller = Caller(Emulator())
    made = [caller.start(file_of(TEXTS))["id"] for _ in range(5)][::-1]
    first = caller.json("GET", "/batches", params={"limit": 2})
    assert [batch["id"] for batch in first["data"]] == made[:2]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (made[0], made[1], True)
    rest = caller.json("GET", "/batches", params={"after": first["last_id"]})
    assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == (made[2:], False)
    last = caller.json("GET", "/batches", params={"after": made[-1]})
    assert last == {"object": "list", "data": None, "first_id": None, "last_id": None, "has_more": False}


def test_lists_of_batches_are_filtered_by_file() -> None:
    caller = Caller(Emulator())
    made = [caller.start(file_of(TEXTS)) for _ in range(3)]
    files = ",".join(batch["input_file_id"] for batch in made[::2])

    def found(**query: Any) -> list[int]:
        data = caller.json("GET", "/batches", params=query)["data"] or []
        return [[batch["id"] for batch in made].index(batch["id"]) for batch in data]

    assert found() == [2, 1, 0]
    assert found(input_file_ids=files) == [2, 0]
    assert found(input_file_ids="file-batch-unknown") == []


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "x"},
        {"after": "batch_unknown"},
    ],
)
def test_a_list_with_a_bad_query_is_refused(query: dict[str, str]) -> None:
    refused = Caller(Emulator()).ask("GET", "/batches", params=query)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(query)))


# Faults


def test_a_chosen_line_fails_under_a_chosen_code() -> None:
    emulator = Emulator(faults=[faults.LineFails(custom_id="row-3")])
    caller = Caller(emulator)
    batch = caller.run(file_of(TEXTS))
    assert caller.codes(batch) == {"row-3": "DataInspectionFailed"}
    assert caller.answered(batch) == {"row-0", "row-1", "row-2", "row-4"}
    assert emulator.billed_texts == 4
    assert [entry.fault for entry in emulator.batch_lines if entry.code] == ["LineFails"]
    assert caller.codes(caller.run(file_of(TEXTS))) == {"row-3": "DataInspectionFailed"}


def test_a_line_may_fail_once_and_pass_in_the_next_batch() -> None:
    caller = Caller(Emulator(faults=[faults.LineFails(custom_id="row-1", times=1, code="InternalError")]))
    first, second = (caller.run(file_of(TEXTS)) for _ in range(2))
    assert caller.codes(first) == {"row-1": "InternalError"}
    assert caller.content(first["error_file_id"])[0]["error"]["message"] == "Internal server error!"
    assert (caller.codes(second), len(caller.answered(second))) == ({}, 5)


def test_lines_fail_by_their_number_or_their_text() -> None:
    caller = Caller(Emulator(faults=[faults.LineFails(every=4, code="x", message="No.")]))
    batch = caller.run(file_of(str(number) for number in range(8)))
    assert set(caller.codes(batch).values()) == {"x"}
    assert {entry["error"]["message"] for entry in caller.content(batch["error_file_id"])} == {"No."}
    assert len(caller.codes(batch)) == 2
    caller.emulator.faults = [faults.LineFails(match="islet", code="y")]
    assert caller.codes(caller.run(file_of(TEXTS))) == {"row-1": "y"}


@pytest.mark.parametrize("billed", [True, False])
def test_a_line_may_be_lost_from_both_files(*, billed: bool) -> None:
    emulator = Emulator(faults=[faults.LineLost(custom_id="row-2", billed=billed)])
    caller = Caller(emulator)
    batch = caller.run(file_of(TEXTS))
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 4 + billed)
    assert caller.answered(batch) | set(caller.codes(batch)) == {"row-0", "row-1", "row-3", "row-4"}
    assert emulator.billed_texts == 4 + billed


def test_a_batch_may_fail_its_validation_once() -> None:
    caller = Caller(Emulator(faults=[faults.BatchFails()]))
    failed, passed = (caller.run(file_of(TEXTS)) for _ in range(2))
    assert failed["status"] == "failed"
    assert failed["errors"]["data"] == [
        {
            "code": "url_not_found",
            "message": "The provided url '/v1/embeddings' is not supported by the Batch API.",
            "param": "url",
            "line": 1,
        }
    ]
    assert (passed["status"], caller.emulator.billed_texts) == ("completed", 5)


def test_a_batch_may_expire_after_a_share_of_its_lines(clock: Clock) -> None:
    emulator = Emulator(
        clock=clock, batches=BatchSettings(seconds=60), faults=[faults.BatchExpires(share=0.3, after=1)]
    )
    caller = Caller(emulator)
    batches = [caller.start(file_of(str(number) for number in range(10))) for _ in range(2)]
    clock.now += 90
    assert [caller.retrieve(batch)["request_counts"]["completed"] for batch in batches] == [5, 1]
    clock.now += 90
    whole, part = (caller.retrieve(batch) for batch in batches)
    assert (whole["status"], part["status"], part["expired_at"]) == ("completed", "expired", part["created_at"] + 120)
    assert (len(caller.answered(part)), set(caller.codes(part).values())) == (3, {"batch_expired"})
    assert emulator.billed_texts == 13


def test_faults_of_requests_apply_to_these_paths_by_route() -> None:
    throttle = faults.Throttle(route=r"GET .*/batches/", times=2)
    emulator = Emulator(faults=[throttle, faults.Status(503, route="/content$", after=1)])
    caller = Caller(emulator)
    batch = caller.start(file_of(TEXTS))
    replies = [caller.ask("GET", f"/batches/{batch['id']}") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [429, 429, 200]
    assert replies[0].json()["error"]["code"] == "limit_requests"
    content = f"/files/{replies[-1].json()['output_file_id']}/content"
    assert [caller.ask("GET", content).status_code for _ in range(3)] == [200, 503, 200]
    assert [asked.fault for asked in emulator.asked].count("Throttle") == 2


def test_a_lost_reply_leaves_the_batch_made() -> None:
    caller = Caller(Emulator(faults=[faults.Drop("reset", billed=True, route="POST .*/batches$")]))
    with pytest.raises(httpx.ReadError):
        caller.start(file_of(TEXTS))
    assert len(caller.json("GET", "/batches")["data"]) == 1
    assert [asked.status for asked in caller.emulator.asked] == [200, 0, 200]


def test_an_output_file_may_be_cut_short() -> None:
    caller = Caller(Emulator(faults=[faults.Truncate(framed=True, route="/content$")]))
    content = f"/files/{caller.run(file_of(TEXTS))['output_file_id']}/content"
    cut, whole = (caller.ask("GET", content).content for _ in range(2))
    assert cut == whole[: len(whole) // 2]


def test_reply_faults_wait_for_replies_with_rows() -> None:
    emulator = Emulator(faults=[faults.Shuffle(every=1), faults.LineFails(custom_id="row-0")])
    caller = Caller(emulator)
    batch = caller.run(file_of(TEXTS))
    assert len(caller.answered(batch)) == 4
    assert [asked.fault for asked in emulator.asked] == [None] * 4
    reply = caller.ask("POST", "/embeddings", json={"model": V4, "input": TEXTS})
    assert [row["index"] for row in reply.json()["data"]] != [0, 1, 2, 3, 4]


def test_faults_of_lines_leave_requests_alone_and_do_not_count_them() -> None:
    emulator = Emulator(faults=[faults.LineFails(after=2), faults.BatchFails(after=1), faults.Throttle(after=6)])
    caller = Caller(emulator)
    for _ in range(3):
        assert caller.ask("POST", "/embeddings", json={"model": V4, "input": "x"}).status_code == 200
    first = caller.run(file_of(TEXTS))
    assert (first["status"], len(caller.emulator.batch_lines)) == ("completed", 5)
    assert [entry.code for entry in emulator.batch_lines] == [None, None, "DataInspectionFailed", None, None]
    assert [asked.status for asked in emulator.asked] == [200] * 6
    assert caller.send(b"").status_code == 429


def test_the_emulator_of_this_process_serves_it_without_a_key() -> None:
    caller = Caller(in_process(), None)
    batch = caller.run(file_of(TEXTS))
    expected = in_process().dense(TEXTS[4], text_type="query", dimension=64)
    results = {entry["custom_id"]: entry["response"]["body"] for entry in caller.content(batch["output_file_id"])}
    assert results["row-4"]["data"][0]["embedding"] == expected
    assert in_process().billed_texts == 5


def test_base64_is_answered_where_a_line_asks_for_it() -> None:
    caller = Caller(Emulator())
    body = {"model": V4, "input": "x", "dimensions": 64, "encoding_format": "base64"}
    batch = caller.run(line("only", "x", encoding_format="base64").encode())
    [result] = caller.content(batch["output_file_id"])
    direct = caller.ask("POST", "/embeddings", json=body).json()
    assert result["response"]["body"]["data"] == direct["data"]


def test_half_a_character_passes_through_names_and_texts() -> None:
    caller = Caller(Emulator())
    content = json.dumps(json.loads(line("row-\ud83d", "\ud83d"))).encode()
    assert caller.answered(caller.run(content)) == {"row-\ud83d"}


def test_the_key_is_in_nothing_that_is_kept() -> None:
    emulator = Emulator(api_key=KEY)
    Caller(emulator).run(file_of(TEXTS))
    kept = (vars(emulator), vars(emulator.batches), [vars(job) for job in emulator.batches._batches.values()])
    assert KEY not in repr(kept)
