"""The key goes to the service and nowhere else: a canary is looked for in all that a program shows.

Where each promise is proven: what objects show and dump, errors with the variables of our frames, logs, events,
checkpoints and tasks here; addresses that are refused for plain http in test_settings.py; keys in wrong places and
under wrong names in test_secrets_in_tracebacks.py.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import logging
import pickle
import socket
import threading
import warnings
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr
from secret_scanner import CANARY, find_secret

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")
pytest.importorskip("langchain_qdrant")

from langchain_core.load import dumpd, dumps
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined] # as its pages have it
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler

from dashscope_embeddings import BadReply, DashScopeError, EmbeddingClient, InvalidInput, corpus
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"text number {i}" for i in range(25)]
KINDS: dict[str, Any] = {
    "client": EmbeddingClient,
    "langchain": DashScopeEmbeddings,
    "langchain sparse": DashScopeSparseEmbeddings,
    "llama_index": DashScopeEmbedding,
    "llama_index sparse": DashScopeSparseEmbedding,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
both_ways = pytest.mark.parametrize("way", ["sync", "async"])


def use(thing: Any, *, way: str = "sync") -> Any:
    """Embeds some texts with whatever it is."""
    name = next(one for one in ("embed", "embed_documents", "get_text_embedding_batch") if hasattr(type(thing), one))
    if way == "sync" or isinstance(thing, DashScopeSparseEmbeddings):  # which has no asynchronous call
        return getattr(thing, name)(TEXTS)

    async def main() -> Any:
        return await getattr(thing, f"a{name}")(TEXTS)

    return asyncio.run(main())


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - whatever comes out is what is looked at
        return error
    pytest.fail("nothing was raised")


def of_frames(seen: list[str]) -> list[str]:
    """Sightings in variables of our functions."""
    return [place for place in seen if ".py:" in place]


def elsewhere(seen: list[str]) -> list[str]:
    """All others."""
    return [place for place in seen if ".py:" not in place]


# --- the search itself --------------------------------------------------------------------------------------


def test_a_canary_is_seen_wherever_it_sits() -> None:
    error = ValueError(f"bad {CANARY}")
    chained = RuntimeError("fine")
    chained.__cause__ = error
    noted: Any = RuntimeError("fine")
    noted.__notes__ = [CANARY]
    attributed: Any = RuntimeError("fine")
    attributed.headers = {"Authorization": f"Bearer {CANARY}"}
    encoded = raised(lambda: f"{CANARY}ä".encode("ascii"))
    for thing in (CANARY, [CANARY], {CANARY: 1}, {"a": ({"b": CANARY},)}, CANARY.encode(), error, chained):
        assert find_secret(thing), thing
    for exception in (noted, attributed, encoded):
        assert find_secret(exception), exception
    assert find_secret([SecretStr(CANARY), "sk-another", b"x", ValueError("x")]) == []


def test_a_canary_is_seen_in_a_variable_of_ours() -> None:
    error = raised(lambda: counted(CANARY, "text"))  # type: ignore[arg-type] # it fails, holding the canary
    assert of_frames(find_secret(error))


# --- what objects show --------------------------------------------------------------------------------------


@every_kind
def test_no_object_shows_the_key_before_or_after_use(served: Server, kind: str) -> None:
    made = KINDS[kind](api_key=CANARY, base_url=served.url, default_headers={"X-Gateway-Key": CANARY})
    for _ in range(2):
        assert find_secret([made, f"{made}", copy.copy(made), pickle.loads(pickle.dumps(made))]) == []  # noqa: S301
        # A field of the adapters, which their repr and dumps leave out.
        assert find_secret({name: value for name, value in vars(made).items() if name != "default_headers"}) == []
        for name in (
            "client",
            "_source",
            "_adapter",
            "settings",
            "_transport",
            "_user_resources",
            "_thread_driver",
            "_async_driver",
        ):
            assert find_secret(getattr(made, name, None)) == []
        use(made)


@pytest.mark.parametrize("kind", ["langchain", "llama_index", "llama_index sparse"])
def test_no_dump_holds_the_key(served: Server, kind: str) -> None:
    made = KINDS[kind](api_key=CANARY, base_url=served.url, default_headers={"X-Gateway-Key": CANARY})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        use(made)
        shown = [
            made.model_dump(),
            made.model_dump(mode="json"),
            made.model_dump_json(),
            made.model_dump(round_trip=True),
        ]
        shown += [getattr(made, name)() for name in ("to_dict", "to_json", "to_payload") if hasattr(made, name)]
        shown += [dumpd(made), dumps(made), json.dumps(type(made).model_json_schema(mode="serialization"), default=str)]
    assert len(shown) >= 7
    assert find_secret([shown, [str(one.message) for one in said]]) == []


def test_no_dump_of_what_holds_an_embedding_holds_the_key(served: Server) -> None:
    store = InMemoryVectorStore(DashScopeEmbeddings(api_key=CANARY, base_url=served.url))
    store.add_texts(TEXTS)
    retriever = store.as_retriever()
    retriever.invoke("a question")
    assert find_secret([dumpd(retriever), dumps(retriever), retriever, retriever.get_graph().to_json()]) == []


# --- what is raised -----------------------------------------------------------------------------------------

PASTED = {
    "a line break after it": (f"{CANARY}\n", "line break"),
    "a blank before it": (f" {CANARY}", "blanks"),
    "double quotes": (f'"{CANARY}"', "quotes"),
    "single quotes": (f"'{CANARY}'", "quotes"),
    "a blank inside": (f"{CANARY} {CANARY}", "characters that no key has"),
    "a line break inside": (f"{CANARY}\n{CANARY}", "characters that no key has"),
    "a tab inside": (f"{CANARY}\t{CANARY}", "characters that no key has"),
    "a letter that is not ASCII": (f"{CANARY}\u00e4", "characters that no key has"),
    "a blank of no width": (f"{CANARY}\u200b", "characters that no key has"),
    "a delete": (f"{CANARY}\x7f", "characters that no key has"),
    "the scheme": (f"Bearer {CANARY}", "Bearer"),
}


@pytest.mark.parametrize("mistake", PASTED)
@pytest.mark.parametrize("origin", ["argument", "variable", "key file"])
def test_a_badly_pasted_key_is_named_with_its_origin_and_not_shown(
    mistake: str, origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, complaint = PASTED[mistake]
    if origin == "key file":
        (tmp_path / "key").write_text(text, "utf-8")
        monkeypatch.setenv("DASHSCOPE_API_KEY_FILE_PATH", str(tmp_path / "key"))
        if mistake in {"a line break after it", "a blank before it"}:  # editors end files so: taken, not refused
            found = EmbeddingClient().key
            assert found is not None
            assert found.get_secret_value() == CANARY
            return
    elif origin == "variable":
        monkeypatch.setenv("DASHSCOPE_API_KEY", text)
    error = raised(lambda: EmbeddingClient(api_key=text if origin == "argument" else None))
    assert isinstance(error, InvalidInput)
    assert find_secret(error) == []
    name = {"argument": "api_key", "variable": "DASHSCOPE_API_KEY", "key file": str(tmp_path / "key")}[origin]
    assert name in str(error)
    assert complaint in str(error)


TROUBLES: dict[str, list[faults.Fault]] = {
    "a wrong key": [],
    "an echoed key": [faults.Status(401, code="InvalidApiKey", message=f"Incorrect API key provided: {CANARY}. See")],
    "a server error": [faults.Status(500, times=99)],
    "a bad reply": [faults.WrongCount(times=99)],
    "a broken reply": [faults.Truncate(times=99)],
    "a reset": [faults.Drop("reset", times=99)],
    "a timeout": [faults.Stall(times=99)],
    "throttling": [faults.Throttle(times=99)],
    "no connection": [],
}
COMMON = ["a wrong key", "a bad reply"]
"""The adapters ask the client: of what it raises, these show whether they add anything."""


@both_ways
@pytest.mark.parametrize(("kind", "trouble"), [(k, t) for k in KINDS for t in (TROUBLES if k == "client" else COMMON)])
def test_no_error_of_a_call_shows_the_key_anywhere(
    kind: str, trouble: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    emulator = Emulator(api_key="sk-another" if trouble == "a wrong key" else None, faults=TROUBLES[trouble])
    with caplog.at_level(logging.DEBUG), emulator.serve() as server:
        url = "http://127.0.0.1:1" if trouble == "no connection" else server.url
        made = KINDS[kind](api_key=CANARY, base_url=url, max_retries=0, timeout=0.2 if trouble == "a timeout" else 30)
        error = raised(lambda: use(made, way=way))
    assert isinstance(error, DashScopeError)
    assert emulator.requests >= (trouble != "no connection")
    assert find_secret(error) == []
    assert find_secret(pickle.loads(pickle.dumps(error))) == []  # noqa: S301 - our own bytes
    assert CANARY.encode() not in pickle.dumps(error)
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    assert find_secret([vars(record) for record in caplog.records] + [caplog.text]) == []


@both_ways
def test_an_error_of_a_users_client_finds_no_key_in_our_variables(way: str) -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    transport = httpx.MockTransport(broken)
    with httpx.Client(transport=transport) as http:
        given: dict[str, Any] = {"http_client": http, "http_async_client": httpx.AsyncClient(transport=transport)}
        error = raised(lambda: use(EmbeddingClient(api_key=CANARY, **given), way=way))
    assert isinstance(error, ZeroDivisionError)
    assert find_secret(error) == []


# --- events, tasks, files -----------------------------------------------------------------------------------


class Everything(BaseEventHandler):
    """Keeps all events, as a tracing backend would."""

    seen: list[Any] = []  # noqa: RUF012 - a pydantic field: each instance has its own

    @classmethod
    def class_name(cls) -> str:
        return "Everything"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen += [event.model_dump(), event.model_dump_json(), repr(event), kwargs]


@pytest.fixture
def traced() -> Iterator[tuple[Everything, SimpleSpanHandler]]:
    root = get_dispatcher()
    events, spans = Everything(), SimpleSpanHandler()
    before = list(root.event_handlers), list(root.span_handlers)
    root.add_event_handler(events)
    root.add_span_handler(spans)
    yield events, spans
    root.event_handlers, root.span_handlers = before


@both_ways
def test_no_event_or_span_of_llama_index_holds_the_key(
    served: Server, emulator: Emulator, traced: tuple[Everything, SimpleSpanHandler], way: str
) -> None:
    emulator.faults = [faults.Arrearage(after=6, times=99)]
    for kind in ("llama_index", "llama_index sparse"):
        use(KINDS[kind](api_key=CANARY, base_url=served.url), way=way)
    raised(lambda: use(KINDS["llama_index"](api_key=CANARY, base_url=served.url), way=way))
    events, spans = traced
    names = {seen["class_name"] for seen in events.seen if isinstance(seen, dict) and "class_name" in seen}
    assert {"EmbeddingStartEvent", "EmbeddingEndEvent", "SparseEmbeddingEndEvent", "SpanDropEvent"} <= names
    assert spans.completed_spans
    assert find_secret([events.seen, [vars(span) for span in [*spans.completed_spans, *spans.dropped_spans]]]) == []


def test_no_task_thread_or_coroutine_is_named_after_the_key(emulator: Emulator) -> None:
    names: list[Any] = []

    class Watching(Emulator):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            names.extend([repr(thread) for thread in threading.enumerate()])
            try:
                tasks = asyncio.all_tasks()
            except RuntimeError:
                tasks = set()
            names.extend([(repr(task), task.get_name(), repr(task.get_coro())) for task in tasks])
            return super().__call__(request)

    transport = Watching().transport()
    with httpx.Client(transport=transport) as http:
        given: dict[str, Any] = {"http_client": http, "http_async_client": httpx.AsyncClient(transport=transport)}
        for way in ("sync", "async"):
            use(EmbeddingClient(api_key=CANARY, **given), way=way)
    assert any("dashscope" in str(name) for name in names)
    assert any("Task" in str(name) for name in names)
    assert find_secret(names) == []
    assert emulator.requests == 0


def test_no_file_of_a_corpus_run_holds_the_key(tmp_path: Path, emulator: Emulator, served: Server) -> None:
    emulator.faults = [faults.Blocked(match="number 7"), faults.Arrearage(after=3, times=1)]
    source = tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS), "utf-8")
    seen: list[str] = []
    copies: list[bytes] = []

    def look(_: object) -> None:
        copies.extend(path.read_bytes() for path in tmp_path.iterdir())

    for number in range(2):
        client = EmbeddingClient(api_key=CANARY, base_url=served.url, max_concurrency=1)
        try:
            summary = corpus.embed_corpus(source, tmp_path / "out.jsonl", client=client, progress=look)
            seen += find_secret([summary, str(summary)])
        except DashScopeError as error:
            assert number == 0
            seen += elsewhere(find_secret(error))
    look(None)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"in.txt", "out.jsonl", "out.jsonl.ledger"} <= names
    assert any(b"SQLite format 3" in copy for copy in copies)
    assert find_secret(copies) + seen == []


# --- where it is sent ---------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_to_another_host_is_not_followed(status: int, way: str) -> None:
    """A user's client that follows redirects: `test_users_http_clients.py`."""
    elsewhere_ = Emulator()
    with elsewhere_.serve() as other:
        path = "/api/v1/services/embeddings/text-embedding/text-embedding"
        here = Emulator(faults=[faults.Redirect(other.url.replace("127.0.0.1", "localhost") + path, status, times=99)])
        with here.serve() as server:
            error = raised(lambda: use(EmbeddingClient(api_key=CANARY, base_url=server.url, max_retries=0), way=way))
    assert isinstance(error, DashScopeError)
    assert find_secret(error) == []
    assert here.requests >= 1
    assert elsewhere_.requests == 0
    assert elsewhere_.keys_seen == frozenset()


HOSTILE = ["", "ws\n", "\nws", "ws\r\n", "ws.", ".ws", "a..b", "evil.example", "evil.example/", "evil.example#"]
HOSTILE += ["a/b", "/", "//evil.example", "a\\b", "a@b", "evil.example?", "a:80", "a b", "a\tb", "a\0b", "[::1]", "-a"]
HOSTILE += [
    "ws%2eevil",
    "ws%00",
    "\uff57\uff53",
    "ws\u3002evil",
    "ws\uff0eevil",
    "ws\u2024evil",
    "w\u0455",
    "w\u00ad",
    "a" * 65,
]
HARMLESS = ["ws-1", "LLM_1", "a", "a" * 63, "ws-", "1"]
ways_to_name = pytest.mark.parametrize("how", ["argument", "variable", "gap"])


def asked_for(workspace: str, how: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The host that a client would ask, as httpx understands its address."""
    given: dict[str, Any] = {"region": "ap-southeast-1", "workspace": workspace}
    if how == "variable":
        monkeypatch.setenv("DASHSCOPE_WORKSPACE_ID", workspace)
        del given["workspace"]
    if how == "gap":
        given = {"workspace": workspace, "base_url": "https://{workspace_id}.ap-southeast-1.maas.aliyuncs.com/api/v1"}
    url = EmbeddingClient(api_key=CANARY, **given)._transport._embeddings_url
    assert url.scheme == "https"
    assert url.path == "/api/v1/services/embeddings/text-embedding/text-embedding"
    return url.host


@ways_to_name
def test_a_workspace_is_one_label_of_the_services_host_and_cannot_change_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workspace in HARMLESS:
        assert asked_for(workspace, how, monkeypatch) == f"{workspace.lower()}.ap-southeast-1.maas.aliyuncs.com"
    for workspace in HOSTILE:
        if how == "variable" and "\0" in workspace:  # no variable can hold it
            continue
        if how == "variable" and not workspace:
            assert asked_for(workspace, how, monkeypatch) == "dashscope-intl.aliyuncs.com"
            continue
        error = raised(functools.partial(asked_for, workspace, how, monkeypatch))
        assert isinstance(error, InvalidInput), workspace


class Listener:
    """Takes connections on this machine, says `greeting` after the first bytes, and keeps what it hears."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.heard: list[bytes] = []
        self._greeting = greeting
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Listener:  # noqa: PYI034 - Self is in typing from Python 3.11 on
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.heard.append(connection.recv(65536))
                if self._greeting:
                    connection.sendall(self._greeting)
                    self.heard.append(connection.recv(65536))


@both_ways
def test_a_proxy_of_the_environment_is_used_and_sees_a_tunnel_without_the_key(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Listener(b"HTTP/1.1 200 Connection established\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://someone:{CANARY}@{proxy.address}")
        client = EmbeddingClient(api_key=CANARY, region="Beijing", max_retries=0, max_concurrency=1)
        error = raised(lambda: use(client, way=way))
        assert isinstance(error, DashScopeError)
        assert "no answer from dashscope.aliyuncs.com" in str(error)
        assert find_secret(error) == []  # neither key nor the proxy's password
    connect, hello = proxy.heard[:2]
    assert connect.startswith(b"CONNECT dashscope.aliyuncs.com:443 HTTP/1.1\r\n")
    assert hello.startswith(b"\x16\x03")  # the beginning of TLS
    assert find_secret(proxy.heard) == []


@both_ways
def test_a_reply_that_repeats_the_request_is_not_quoted(way: str) -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=f"{request.method} {dict(request.headers.raw)}", headers={"x-key": CANARY})

    transport = httpx.MockTransport(echo)
    with httpx.Client(transport=transport) as http:
        given: dict[str, Any] = {"http_client": http, "http_async_client": httpx.AsyncClient(transport=transport)}
        error = raised(lambda: use(EmbeddingClient(api_key=CANARY, max_retries=0, **given), way=way))
    assert isinstance(error, BadReply)
    assert elsewhere(find_secret(error)) == []
