"""No key, header value or text shows in what a program prints of an error, with the variables of every frame.

Here every frame is looked at, pydantic's, httpx's and a framework's too, as `rich.traceback.install(show_locals=True)`,
`cgitb` and collectors of errors print them; `test_secrets.py` looks into the variables of our own.
"""

from __future__ import annotations

import traceback
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from secret_scanner import CANARY, find_secret

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")
pytest.importorskip("langchain_qdrant")

from dashscope_embeddings import EmbeddingClient, InvalidInput
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding
from dashscope_embeddings.ray_data import EmbedBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpcore

    from dashscope_embeddings.emulator.http import Server

KINDS: dict[str, Any] = {
    "client": EmbeddingClient,
    "langchain": DashScopeEmbeddings,
    "langchain sparse": DashScopeSparseEmbeddings,
    "llama_index": DashScopeEmbedding,
    "llama_index sparse": DashScopeSparseEmbedding,
    "ray": EmbedBatch,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def printed(call: Callable[[], object]) -> tuple[BaseException, str]:
    """The error of a call, and its traceback with the variables of all frames but this test's own."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - whatever comes out is what is looked at
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        own = [frame for frame in shown.stack if frame.filename == __file__]
        for frame in own:
            frame.locals = None
        return error, "".join(shown.format())
    pytest.fail("nothing was raised")


WRONG: dict[str, dict[str, Any]] = {
    "dimensions": {"dimensions": 7},
    "a type": {"max_retries": "many"},
    "a range": {"timeout": -1.0},
    "a choice": {"protocol": "soap"},
    "plain http": {"base_url": "http://plain.example"},
    "a workspace": {"workspace": "a.b"},
    "no such setting": {"nonsense": 1},
    "headers that are none": {"default_headers": {"X-Key": 1, "X-Gateway-Key": CANARY}},
    "headers in a list": {"default_headers": [("X-Gateway-Key", CANARY)]},
    "a header with a line break": {"default_headers": {"X-Gateway-Key": f"{CANARY}\n"}},
    "a header that is not ASCII": {"default_headers": {"X-Gateway-Key": f"{CANARY}\u00e4"}},
}


@every_kind
@pytest.mark.parametrize("wrong", WRONG)
def test_no_frame_of_a_failed_construction_shows_key_or_header(kind: str, wrong: str) -> None:
    given = {"api_key": CANARY, "default_headers": {"X-Gateway-Key": CANARY}, **WRONG[wrong]}
    error, shown = printed(lambda: KINDS[kind](**given))
    assert CANARY not in shown
    assert find_secret(error) == []


@pytest.mark.parametrize("name", ["dashscope_apikey", "apikey", "key", "token", "DASHSCOPE_API_KEY"])
@every_kind
def test_a_key_under_a_misspelt_name_is_not_shown(kind: str, name: str) -> None:
    secret = "a-key-of-another-form-0a1b2c3d"
    error, shown = printed(lambda: KINDS[kind](**{name: secret}))
    assert secret not in shown
    assert name in str(error)


SLIPS = {
    "client": ["model", "instruct", "region", "workspace", "base_url"],
    "langchain": ["model", "instruct", "region", "workspace", "base_url"],
    "llama_index": ["model", "model_name", "text_type", "instruct", "workspace", "base_url"],
    "langchain sparse": ["model", "workspace"],
    "llama_index sparse": ["model", "workspace"],
    "ray": ["model", "workspace"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SLIPS.items() for name in names])
def test_a_key_in_the_place_of_another_setting_is_named_and_not_shown(kind: str, name: str) -> None:
    error, shown = printed(lambda: KINDS[kind](**{name: CANARY}))
    assert isinstance(error, InvalidInput)
    assert str(error) == f"{name} holds what looks like an API key: pass the key as api_key="
    assert CANARY not in shown


@pytest.mark.parametrize("kind", ["client", "llama_index", "langchain sparse", "llama_index sparse"])
def test_a_key_given_by_position_is_not_shown(kind: str) -> None:
    error, shown = printed(lambda: KINDS[kind](CANARY))
    assert isinstance(error, InvalidInput)
    assert CANARY not in shown


@pytest.mark.parametrize(
    ("args", "settings"),
    [(("text-embedding-v4", CANARY), {}), (("text-embedding-v4",), {"model": "text-embedding-v3", "api_key": CANARY})],
)
def test_a_key_beside_wrong_positions_is_not_shown(args: tuple[Any, ...], settings: dict[str, Any]) -> None:
    error, shown = printed(lambda: EmbeddingClient(*args, **settings))
    assert "by position" in str(error)
    assert CANARY not in shown


@pytest.mark.parametrize("address", [f"https://me:{CANARY[3:]}@gw.example", f"https://gw.example/?key={CANARY[3:]}"])
@pytest.mark.parametrize("kind", ["client", "langchain", "llama_index", "ray"])
def test_credentials_in_an_address_are_refused_and_not_shown(kind: str, address: str) -> None:
    error, shown = printed(lambda: KINDS[kind](api_key="sk-a", base_url=address))
    assert "must hold no user, password, query or fragment" in str(error)
    assert CANARY[3:] not in shown


PYDANTIC: dict[str, Any] = {"langchain": DashScopeEmbeddings, "llama_index": DashScopeEmbedding}


@pytest.mark.parametrize("kind", PYDANTIC)
@pytest.mark.parametrize("way", ["model_validate", "model_validate_json", "model_copy", "assignment"])
def test_no_frame_of_pydantic_shows_key_or_header(kind: str, way: str) -> None:
    cls = PYDANTIC[kind]
    key = "dashscope_api_key" if kind == "langchain" else "api_key"
    made: Any = cls(api_key="sk-a")

    def assign() -> None:
        setattr(made, key, CANARY)
        made.default_headers = {"X-Gateway-Key": CANARY}
        assert CANARY not in str(vars(made))
        made.nonsense = CANARY

    ways: dict[str, Callable[[], object]] = {
        "model_validate": lambda: cls.model_validate(
            {key: CANARY, "default_headers": {"a": CANARY}, "dimensions": "x"}
        ),
        "model_validate_json": lambda: cls.model_validate_json(f'{{"{key}": "{CANARY}", "dimensions": "x"}}'),
        "model_copy": lambda: made.model_copy(update={key: CANARY, "dimensions": 7}).client,
        "assignment": assign,
    }
    _, shown = printed(ways[way])
    assert CANARY not in shown


@pytest.mark.parametrize("kind", PYDANTIC)
def test_a_key_that_is_not_validated_is_hidden_all_the_same(kind: str) -> None:
    cls = PYDANTIC[kind]
    key = "dashscope_api_key" if kind == "langchain" else "api_key"
    for made in (
        cls.model_construct(**{key: CANARY, "default_headers": {"X-Gateway-Key": CANARY}}),
        cls(api_key="sk-a").model_copy(update={key: CANARY, "default_headers": {"X-Gateway-Key": CANARY}}),
    ):
        assert vars(made)[key] == SecretStr(CANARY)
        assert CANARY not in str(vars(made))


def test_no_frame_of_the_http_library_shows_the_head_of_a_request(served: Server) -> None:
    client = EmbeddingClient(api_key=CANARY, base_url=served.url, default_headers={"X-Gateway-Key": CANARY})
    client.embed("a text")

    def fail(_: httpcore.Request) -> httpcore.Response:
        raise OverflowError("timeout is too large")

    own = client._transport._sync_client()
    own.close()
    own._connect, own._is_closed = lambda: SimpleNamespace(handle_request=fail, close=list), False
    error, shown = printed(lambda: client.embed("a text"))
    assert isinstance(error, OverflowError)
    assert CANARY not in shown
