"""The emulator's Batch route: files go in, batches move with the clock, results come out, and what goes wrong."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from emulator_calls import KEY, V4, Clock

from dashscope_embeddings.emulator import BatchSettings, Emulator, faults, synthetic_vectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OTHER = "sk-another"
ROOT = "/compatible-mode/v1"
TEXTS = [
    "風急天高猿嘯哀",
    "The islet is clear, the sand is white.",
    "無邊落木蕭蕭下",
    "The river rolls on and on.",
    "x",
]
TEN = [str(number) for number in range(10)]


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

    def create(self, content: bytes, **fields: Any) -> httpx.Response:
        file_id = self.send(content).json()["id"]
        fields = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **fields}
        return self.ask("POST", "/batches", json=fields)

    def start(self, content: bytes, **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.create(content, **fields).json()
        return found

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
        assert (result["data"], result["usage"]) == (direct["data"], direct["usage"])
    assert emulator.billed_tokens == 2 * tokens


def test_openais_package_lists_and_cancels_batches(openai_client: tuple[Any, Emulator]) -> None:
    client, emulator = openai_client
    emulator.batches.settings = BatchSettings(seconds=3_600)
    assert client.batches.list().data is None
    assert list(client.batches.list()) == []
    sent = client.files.create(file=("in.jsonl", file_of(TEXTS)), purpose="batch")
    fields = {"input_file_id": sent.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    made = [client.batches.create(**fields).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]  # in two pages
    cancelled = client.batches.cancel(made[0])
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at >= cancelled.created_at
    named = client.batches.list(extra_query={"input_file_ids": f"{sent.id},file-batch-unknown"})
    assert [batch.id for batch in named] == made[::-1]
    assert emulator.asked[-1].query == f"input_file_ids={sent.id}%2Cfile-batch-unknown"
    assert client.batches.list(extra_query={"input_file_ids": "file-batch-unknown"}).data is None


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


def test_files_and_batches_are_described_as_they_were_seen() -> None:
    caller = Caller(Emulator())
    content = file_of(TEXTS)
    sent = caller.send(content).json()
    assert list(sent) == ["id", "bytes", "created_at", "filename", "object", "purpose", "status", "status_details"]
    assert sent["id"].startswith("file-batch-")
    assert (sent["bytes"], sent["status_details"], sent["filename"]) == (len(content), None, "naïve; 名.jsonl")
    assert caller.ask("GET", f"/files/{sent['id']}/content").content == content

    batch = caller.start(content, metadata={"ds_name": "poems"})
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
        assert (result["error"], result["response"]["status_code"]) == (None, 200)
        assert result["id"] == result["response"]["request_id"] == result["response"]["body"]["id"]
    failed = caller.content(batch["error_file_id"])
    assert {entry["custom_id"] for entry in failed} == {"row-5", "row-6"}
    for entry in failed:
        assert list(entry) == ["id", "custom_id", "response", "error"]
        assert entry["error"]["code"] == "InvalidParameter"
        assert "Range of input length" in entry["error"]["message"]
    assert {json.dumps(entry["response"]) for entry in failed} == {"null", "{}"}


def test_results_are_not_in_the_order_of_the_file_and_are_computed_when_somebody_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caller, computed, real = Caller(Emulator()), list[str](), synthetic_vectors.dense

    def dense(text: str, **how: Any) -> list[float]:
        computed.append(text)
        return real(text, **how)

    monkeypatch.setattr(synthetic_vectors, "dense", dense)
    batch = caller.run(file_of(TEXTS[:2]))
    assert (batch["status"], computed) == ("completed", [])
    first, second = (caller.content(batch["output_file_id"]) for _ in range(2))
    assert [entry["custom_id"] for entry in first] == ["row-1", "row-0"]
    assert first == second
    assert len(computed) == 4


def test_a_line_may_ask_for_base64_and_hold_half_a_character() -> None:
    caller = Caller(Emulator())
    content = line("row-\ud83d", "\ud83d", encoding_format="base64").encode("ascii", "backslashreplace")
    [result] = caller.content(caller.run(content)["output_file_id"])
    body = {"model": V4, "input": "\ud83d", "dimensions": 64, "encoding_format": "base64"}
    direct = caller.ask("POST", "/embeddings", content=json.dumps(body)).json()
    assert (result["custom_id"], result["response"]["body"]["data"]) == ("row-\ud83d", direct["data"])


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


def test_the_log_of_lines_is_bounded_and_cleared_like_that_of_requests_and_batches_stay() -> None:
    emulator = Emulator(log=2)
    batch = Caller(emulator).run(file_of(["", " "]))
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    Caller(emulator).run(file_of(TEXTS))
    assert (len(emulator.batch_lines), emulator.billed_texts) == (2, 5)
    emulator.clear()
    assert (emulator.batch_lines, emulator.billed_texts) == ([], 0)
    assert Caller(emulator).retrieve(batch)["status"] == "completed"


# Refusals

GOOD = line("1", "a")
INVALID: dict[str, tuple[str | bytes, tuple[str, str | None, int | None]]] = {
    "another url": (line("1", "a", url="/v1/chat/completion"), ("url_not_found", "url", 1)),
    "two models": (f"{GOOD}\n{line('2', 'b', model='text-embedding-v3')}", ("mismatched_model", "body.model", 2)),
    "one name twice": (f"{GOOD}\n\n{line('1', 'b')}", ("duplicate_custom_id", "custom_id", 3)),
    "unknown model": (line("1", "a", model="text-embedding-v9"), ("model_not_found", "body.model", 1)),
    "no JSON": (f"{GOOD}\n{{", ("invalid_json_line", None, 2)),
    "no object": (f"{GOOD}\n[]", ("invalid_json_line", None, 2)),
    "not UTF-8": (GOOD.encode("utf-16"), ("invalid_json_line", None, 1)),
    "no name": (json.dumps({"method": "POST", "url": "/v1/embeddings"}), ("invalid_json_line", None, 1)),
    "no model": (line("1", "a", model=None), ("invalid_json_line", None, 1)),
    "another method": (line("1", "a", method="GET"), ("invalid_json_line", None, 1)),
    "empty": ("\n \n", ("empty_file", None, None)),
    "too many lines": ("\n".join(line(str(number), "a") for number in range(5)), ("file_too_large", None, None)),
    "a long line": (line("1", "a" * 300), ("line_too_large", None, 1)),
    "too large": ("\n".join(line(str(number), "a" * 90) for number in range(4)), ("file_too_large", None, None)),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_file_that_is_not_valid_fails_later_with_http_200(name: str) -> None:
    content, expected = INVALID[name]
    emulator = Emulator(batches=BatchSettings(lines=4, line_bytes=350, file_bytes=800))
    batch = Caller(emulator).run(content if isinstance(content, bytes) else content.encode())
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert (batch["failed_at"], batch["in_progress_at"]) == (batch["created_at"], None)
    assert batch["errors"]["object"] == "list"
    error = batch["errors"]["data"][0]
    assert list(error) == ["code", "message", "param", "line"]
    assert (error["code"], error["param"], error["line"]) == expected
    if error["code"] == "url_not_found":
        assert error["message"] == "The provided url '/v1/chat/completion' is not supported by the Batch API."
    assert emulator.billed_texts == 0


BAD_FIELDS: list[dict[str, Any]] = [
    *({"completion_window": window} for window in ("23h", "337h", "0d", "15d", "24", "1.5d", "24h\n", "٢d", 24)),
    {"endpoint": None},
    {"input_file_id": 7},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=repr)
def test_a_batch_with_a_bad_field_is_refused(fields: dict[str, Any]) -> None:
    caller = Caller(Emulator())
    refused = caller.create(file_of(TEXTS), **fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, next(iter(fields)), None)
    assert error["type"] == "invalid_request_error"
    assert caller.json("GET", "/batches")["data"] is None


NO_BOUNDARY = {"content-type": "multipart/form-data"}


@pytest.mark.parametrize(
    ("method", "path", "sent", "expected"),
    [
        ("POST", "/files", {"content": b"{}", "headers": {"content-type": "application/json"}}, (400, "file")),
        ("POST", "/files", {"content": b"--b\r\n\r\n", "headers": NO_BOUNDARY}, (400, "file")),
        ("POST", "/files", {"files": {"other": ("x", b"")}}, (400, "file")),
        ("POST", "/files", {"data": {"purpose": "x"}, "files": {"file": ("x", b"")}}, (400, "purpose")),
        ("POST", "/batches", {"content": b"[]"}, (400, "input_file_id")),
        ("GET", "/batches", {"params": {"limit": "0"}}, (400, "limit")),
        ("GET", "/batches", {"params": {"limit": "101"}}, (400, "limit")),
        ("GET", "/batches", {"params": {"limit": "x"}}, (400, "limit")),
        *((method, path, {}, (404, None)) for method, path in [
            ("PUT", "/files"), ("GET", "/files"), ("GET", "/files/x"), ("DELETE", "/files/x"),
            ("GET", "/files/x/cancel"), ("GET", "/batches/x/content"), ("GET", "/batches/x/cancel/y"),
        ]),
    ],
)  # fmt: skip
def test_what_is_no_request_of_this_route_is_refused(
    method: str, path: str, sent: dict[str, Any], expected: tuple[int, str | None]
) -> None:
    refused = Caller(Emulator()).ask(method, path, **sent)
    assert (refused.status_code, refused.json()["error"]["param"]) == expected


def test_the_key_is_checked_as_for_embeddings_and_kept_nowhere() -> None:
    emulator = Emulator(api_key=KEY)
    for method, path in (("POST", "/files"), ("GET", "/batches"), ("GET", "/files/x/content")):
        assert Caller(emulator, OTHER).ask(method, path).status_code == 401
    Caller(emulator).run(file_of(TEXTS))
    kept = (vars(emulator), vars(emulator.batches), [vars(job) for job in emulator.batches._batches.values()])
    assert KEY not in repr(kept)


def test_another_key_finds_neither_files_nor_batches() -> None:
    emulator = Emulator()
    caller, other = Caller(emulator), Caller(emulator, OTHER)
    batch = caller.run(file_of(TEXTS))
    for method, path in (
        ("GET", f"/files/{batch['input_file_id']}/content"),
        ("GET", f"/files/{batch['output_file_id']}/content"),
        ("GET", f"/batches/{batch['id']}"),
        ("POST", f"/batches/{batch['id']}/cancel"),
    ):
        refused = other.ask(method, path)
        assert (refused.status_code, refused.json()["error"]["type"]) == (404, "invalid_request_error")
    fields = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert other.ask("POST", "/batches", json=fields).status_code == 404
    assert other.json("GET", "/batches")["data"] is None
    assert caller.retrieve(batch)["status"] == "completed"


# Time


def test_a_batch_moves_with_the_clock_alone(clock: Clock) -> None:
    emulator = Emulator(clock=clock, batches=BatchSettings(seconds=60))
    caller = Caller(emulator)
    batch = caller.start(file_of(TEN), completion_window="14d")
    made, start = batch["created_at"], clock.now
    seen = []
    for later in (0, 59, 60, 90, 119, 120, 179, 180):
        clock.now = start + later
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
    unseen = caller.start(file_of(TEXTS))
    clock.now += 9_000
    assert caller.retrieve(unseen)["completed_at"] == unseen["created_at"] + 180


@pytest.mark.parametrize("unfinished", ["errors", "absent"])
def test_a_cancelled_batch_gives_and_bills_the_lines_done_so_far(clock: Clock, unfinished: Any) -> None:
    emulator = Emulator(clock=clock, batches=BatchSettings(seconds=60, unfinished=unfinished))
    caller = Caller(emulator)
    batch = caller.start(file_of(TEN))
    clock.now += 90
    for _ in range(2):
        assert caller.json("POST", f"/batches/{batch['id']}/cancel")["status"] == "cancelling"
        clock.now += 30
    batch = caller.retrieve(batch)
    assert (batch["status"], batch["cancelled_at"] - batch["cancelling_at"]) == ("cancelled", 60)
    assert len(caller.answered(batch)) == emulator.billed_texts == 5
    codes = caller.codes(batch)
    assert list(codes.values()) == (["batch_cancelled"] * 5 if unfinished == "errors" else [])
    assert not set(codes) & caller.answered(batch)
    refused = caller.ask("POST", f"/batches/{batch['id']}/cancel")
    assert (refused.status_code, "cancelled" in refused.json()["error"]["message"]) == (400, True)
    early = caller.start(file_of(TEXTS))
    caller.json("POST", f"/batches/{early['id']}/cancel")
    clock.now += 60
    early = caller.retrieve(early)
    assert (early["status"], early["output_file_id"], early["error_file_id"]) == ("cancelled", None, None)


# Faults

LINE_FAULTS: list[tuple[faults.Fault, int, list[set[str]]]] = [
    (faults.LineFails(custom_id="row-3"), 4, [{"row-3"}, {"row-3"}]),
    (faults.LineFails(custom_id="row-3", times=1), 4, [{"row-3"}, set()]),
    (faults.LineFails(match="islet"), 4, [{"row-1"}, {"row-1"}]),
    (faults.LineLost(custom_id="row-2"), 4, [{"row-2"}, {"row-2"}]),
    (faults.LineLost(custom_id="row-2", billed=True), 5, [{"row-2"}, {"row-2"}]),
]


@pytest.mark.parametrize(("fault", "done", "missing"), LINE_FAULTS, ids=["name", "once", "text", "lost", "billed"])
def test_chosen_lines_of_two_batches_fail_or_are_lost(fault: faults.Fault, done: int, missing: list[set[str]]) -> None:
    caller = Caller(Emulator(faults=[fault]))
    for names in missing:
        batch = caller.run(file_of(TEXTS))
        assert caller.answered(batch) == {f"row-{number}" for number in range(5)} - names
        assert set(caller.codes(batch)) == (names if isinstance(fault, faults.LineFails) else set())
        assert batch["request_counts"]["completed"] == (done if names else 5)
    assert caller.emulator.billed_texts == sum(done if names else 5 for names in missing)
    hit = [entry.fault for entry in caller.emulator.batch_lines if entry.fault]
    assert hit == [fault.label] * sum(map(len, missing))


def test_a_line_fails_under_a_chosen_code_with_chosen_words() -> None:
    caller = Caller(Emulator(faults=[faults.LineFails(code="InternalError", message="No.")]))
    [error] = caller.content(caller.run(file_of(TEXTS))["error_file_id"])
    assert error["error"] == {"code": "InternalError", "message": "No."}


def test_a_batch_may_expire_after_a_share_of_its_lines(clock: Clock) -> None:
    emulator = Emulator(
        clock=clock, batches=BatchSettings(seconds=60), faults=[faults.BatchExpires(share=0.3, after=1)]
    )
    caller = Caller(emulator)
    batches = [caller.start(file_of(TEN)) for _ in range(2)]
    clock.now += 90
    assert [caller.retrieve(batch)["request_counts"]["completed"] for batch in batches] == [5, 1]
    clock.now += 90
    whole, part = (caller.retrieve(batch) for batch in batches)
    assert (whole["status"], part["status"], part["expired_at"]) == ("completed", "expired", part["created_at"] + 120)
    assert (len(caller.answered(part)), set(caller.codes(part).values())) == (3, {"batch_expired"})
    assert emulator.billed_texts == 13


def test_faults_count_requests_batches_or_lines_and_those_of_rows_wait_for_a_reply_with_rows() -> None:
    emulator = Emulator(
        faults=[
            faults.LineFails(after=2),
            faults.BatchFails(after=1),
            faults.Shuffle(after=3),
            faults.Throttle(after=7),
        ]
    )
    caller, body = Caller(emulator), {"model": V4, "input": TEXTS[:2]}
    assert [caller.ask("POST", "/embeddings", json=body).status_code for _ in range(3)] == [200] * 3
    assert caller.run(file_of(TEXTS))["status"] == "completed"
    assert [entry.code for entry in emulator.batch_lines] == [None, None, "DataInspectionFailed", None, None]
    reply = caller.ask("POST", "/embeddings", json=body)
    assert [row["index"] for row in reply.json()["data"]] == [1, 0]
    assert caller.send(b"").status_code == 429
