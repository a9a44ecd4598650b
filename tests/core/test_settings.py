"""Where to ask, with which key, and what fits together: found out before anything costs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import pytest
from pydantic import SecretStr

from dashscope_embeddings import EmbeddingClient, _process, catalogue
from dashscope_embeddings._core.address import EMULATOR, Address, resolve_address, resolve_api_key
from dashscope_embeddings._core.client_options import ClientOptions, SettingFields, with_defaults
from dashscope_embeddings._core.protocol import RequestOptions
from dashscope_embeddings._core.settings import Settings
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-made-up-0123"
NATIVE, COMPATIBLE = "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_COMPATIBLE_BASE_URL"
BOTH = "DASHSCOPE_BASE_URL"
WORKSPACE, REGION = "DASHSCOPE_WORKSPACE_ID", "DASHSCOPE_API_REGION"
BEIJING, FRANKFURT = "https://dashscope.aliyuncs.com", "https://W_1.eu-central-1.maas.aliyuncs.com"
N, C, GAP = "https://n.example", "https://c.example", "https://{workspace_id}.example"
HERE = resolve_address(base_url=BEIJING)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def settings(model: str = "text-embedding-v4", place: Address = HERE, **given: Any) -> Settings:
    names = {field.name for field in dataclasses.fields(Settings)}
    defaults = {name: default for name, default in with_defaults({}).items() if name in names}
    defaults |= {"protocol": "native", "model": catalogue.model(model), "api_key": SecretStr(KEY), "address": place}
    return Settings(**{**defaults, **given})


# --- where to ask -----------------------------------------------------------------------------------------


ENDPOINTS = ["", "/", "/api/v1", "/api/v1/", "/compatible-mode/v1", "/compatible-mode/v1/embeddings"]
ENDPOINTS += ["/api/v1/services/embeddings/text-embedding/text-embedding"]
ROOTS = [BEIJING, "https://proxy.example:8443/dashscope", "http://127.0.0.1:8000", "http://[::1]:8000"]


@pytest.mark.parametrize("root", [*ROOTS, "http://LOCALHOST:1"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_any_address_that_can_be_pasted_leads_to_the_root(root: str, endpoint: str) -> None:
    assert resolve_address("native", base_url=root + endpoint).root_url == root
    assert resolve_address("openai", base_url=f" {root}{endpoint}\n").root_url == root


def test_a_proxys_prefix_may_look_like_an_endpoint() -> None:
    given = "https://proxy.example/api/v1/dashscope/compatible-mode/v1"
    assert resolve_address(base_url=given).root_url == "https://proxy.example/api/v1/dashscope"


@pytest.mark.parametrize(
    ("complaint", "addresses"),
    [
        ("must start with https", ["https://[::1", "https://host:port", "https://host:99999"]),
        ("must start with https", ["", " ", "dashscope.aliyuncs.com", "ftp://h.example", "https://", "Emulator"]),
        ("plain http", [f"http://{h}" for h in ("h.example", "localhost.example", "127.0.0.1.x", "0.0.0.0:80")]),
        ("blank inside", ["https://ho st", f"https://h.x/api/v1 DASHSCOPE_API_KEY={KEY}", f"https://h.x\n{KEY}"]),
        ("no user", [f"https://{h}" for h in (f"{KEY}@h.x", f"u:{KEY}@h.x", f"h.x?key={KEY}", f"h.x/#{KEY}")]),
    ],
)
def test_an_address_that_could_lose_the_key_is_refused_without_showing_it(complaint: str, addresses: list[str]) -> None:
    for bad in addresses:
        with pytest.raises(InvalidInput, match=complaint) as caught:
            resolve_address(base_url=bad)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        *((slip, "'emulator'") for slip in ("emulatr", "Emulator", " emulator", "emulator/")),
        ("dashscope.aliyuncs.com", BEIJING),
        ("Dashscope.aliyuncs.com/api/v1", f"{BEIJING}/api/v1"),
        ("htps://dashscope.aliyuncs.com:443", f"{BEIJING}:443"),
        ("https:/dashscope.aliyuncs.com", BEIJING),
        *((slip, "http://127.0.0.1:8787") for slip in ("emulator:8787", "localhost:8787/", "127.0.0.1:8787")),
    ],
)
def test_a_misspelt_address_is_answered_with_the_one_that_was_meant(slip: str, meant: str) -> None:
    with pytest.raises(InvalidInput, match=r"^base_url must start with https://") as caught:
        resolve_address(base_url=slip)
    assert caught.value.message.endswith(f": is {meant} meant?")
    for without_a_guess in ("nonsense", "https://gateway.example.com:99999"):
        with pytest.raises(InvalidInput, match=r"or be 'emulator'$"):
            resolve_address(base_url=without_a_guess)


@pytest.mark.parametrize(
    ("asked", "root", "region"),
    [
        ({}, BEIJING, "cn-beijing"),
        ({"region": "cn-beijing"}, BEIJING, "cn-beijing"),
        ({"region": "Beijing"}, BEIJING, "cn-beijing"),
        ({"region": "singapore"}, "https://dashscope-intl.aliyuncs.com", "ap-southeast-1"),
        ({"region": "AP_Southeast_1"}, "https://dashscope-intl.aliyuncs.com", "ap-southeast-1"),
        ({"region": "HongKong"}, "https://cn-hongkong.dashscope.aliyuncs.com", "cn-hongkong"),
        ({"region": "Hong Kong"}, "https://cn-hongkong.dashscope.aliyuncs.com", "cn-hongkong"),
        ({"region": "北京"}, BEIJING, "cn-beijing"),
        ({"region": "中国香港"}, "https://cn-hongkong.dashscope.aliyuncs.com", "cn-hongkong"),
        ({"region": "us-east-1"}, "https://dashscope-intl.aliyuncs.com", "us-east-1"),
        ({"region": "Tokyo"}, "https://dashscope-intl.aliyuncs.com", "ap-northeast-1"),
        ({"region": "eu-central-1"}, "https://dashscope-intl.aliyuncs.com", "eu-central-1"),
        ({"base_url": "https://dashscope-us.aliyuncs.com"}, "https://dashscope-us.aliyuncs.com", "us-east-1"),
        ({"workspace": "ws-1"}, "https://ws-1.cn-beijing.maas.aliyuncs.com", "cn-beijing"),
        ({"region": "Frankfurt", "workspace": "W_1"}, FRANKFURT, "eu-central-1"),
        ({"base_url": FRANKFURT}, FRANKFURT, "eu-central-1"),
        ({"region": "xx-new-9", "workspace": "w"}, "https://w.xx-new-9.maas.aliyuncs.com", "xx-new-9"),
    ],
)
def test_a_region_or_a_city_names_the_host(asked: dict[str, str], root: str, region: str) -> None:
    found = resolve_address(**asked)  # type: ignore[arg-type] # no protocol among them
    assert found.root_url == root
    assert found.host == root.removeprefix("https://")
    assert found.region is not None
    assert found.region.id == region
    assert found.workspace is None  # the host names it already
    assert f"Asked {found.host} ({found.region.city})" in found.key_hint
    assert f"{region} (" not in found.key_hint.partition("one of")[2]


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"region": "xx-new-9"}, "pass workspace="),
        ({"base_url": GAP}, f"pass workspace= or set {WORKSPACE}"),
        ({"base_url": BEIJING, "region": "Tokyo"}, "is in cn-beijing, but region='Tokyo' is another region"),
    ],
)
def test_what_does_not_name_one_host_says_what_is_missing(asked: dict[str, str], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        resolve_address(**asked)  # type: ignore[arg-type] # no protocol among them


@pytest.mark.parametrize("base_url", [None, "emulator", "https://gateway.example.com"])
@pytest.mark.parametrize("workspace", [None, "ws"])
def test_what_is_no_region_is_answered_with_those_there_are(workspace: str | None, base_url: str | None) -> None:
    with pytest.raises(InvalidInput, match=r"region='mars' is no region: expected one of cn-beijing \(Beijing\), "):
        resolve_address(region="mars", workspace=workspace, base_url=base_url)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("intl", "ap-southeast-1"), ("us", "us-east-1"), ("cn-bejing", "cn-beijing"), ("Frankfort", "eu-central-1")],
)
def test_a_region_by_another_name_is_answered_with_the_one_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{name}'.* \(is '{meant}' meant\?\): .*cn-beijing \(Beijing\), "):
        resolve_address(region=name)


@pytest.mark.parametrize("bad", ["ws\n", "a/b", "a.b", "-a", "a b", "a@b", "x" * 65, "ä"])
def test_what_is_no_label_of_a_host_name_is_refused(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="cannot be part of a host name"):
        resolve_address(workspace=bad)
    with pytest.raises(InvalidInput, match="is no region"):
        resolve_address(region=bad, workspace="ws")
    monkeypatch.setenv(WORKSPACE, bad)
    with pytest.raises(InvalidInput, match=WORKSPACE):
        resolve_address(region="Singapore")
    with pytest.raises(InvalidInput, match=WORKSPACE):
        resolve_address(base_url=GAP)
    monkeypatch.setenv(REGION, bad)
    with pytest.raises(InvalidInput, match=f"{REGION}=.* is no region"):
        resolve_address()


@pytest.mark.parametrize(
    ("variables", "asked", "root"),
    [
        ({NATIVE: N + "/api/v1", COMPATIBLE: C}, {}, N),
        ({NATIVE: N, COMPATIBLE: C}, {"protocol": "openai"}, C),
        ({COMPATIBLE: C + "/compatible-mode/v1"}, {}, C),
        ({NATIVE: "", COMPATIBLE: "", REGION: "", WORKSPACE: ""}, {}, BEIJING),
        ({NATIVE: N}, {"region": "Beijing"}, BEIJING),
        ({NATIVE: N}, {"base_url": C}, C),
        ({NATIVE: N, REGION: "us-east-1"}, {}, N),
        ({REGION: "ap-southeast-1"}, {}, "https://dashscope-intl.aliyuncs.com"),
        ({REGION: "ap-southeast-1"}, {"region": "cn-beijing"}, BEIJING),
        ({REGION: "eu-central-1", WORKSPACE: "W_1"}, {}, FRANKFURT),
        ({REGION: "cn-beijing", WORKSPACE: "w"}, {}, BEIJING),  # as the vendor's SDK has it
        ({WORKSPACE: "w"}, {"region": "cn-beijing"}, "https://w.cn-beijing.maas.aliyuncs.com"),
        ({WORKSPACE: "w"}, {"workspace": "v"}, "https://v.cn-beijing.maas.aliyuncs.com"),
        ({NATIVE: GAP + "/api/v1", WORKSPACE: "w"}, {}, "https://w.example"),
        ({WORKSPACE: "w"}, {"base_url": GAP, "workspace": "v"}, "https://v.example"),
        ({NATIVE: GAP}, {"workspace": "v"}, "https://v.example"),
        ({NATIVE: N}, {"region": ""}, N),
        # The variables of the vendor's newer SDK mean the same.
        ({BOTH: N + "/api/v1"}, {}, N),
        ({BOTH: N}, {"protocol": "openai"}, N),
        ({BOTH: N, COMPATIBLE: C}, {"protocol": "openai"}, C),
        ({BOTH: C + "/compatible-mode/v1", NATIVE: N + "/api/v1"}, {}, N),
        ({BOTH: C + "/compatible-mode/v1", NATIVE: N}, {"protocol": "openai"}, C),
        ({BOTH: C + "/compatible-mode/v1"}, {"protocol": "native"}, C),
        ({BOTH: N, NATIVE: N + "/"}, {}, N),
        ({"DASHSCOPE_REGION": "ap-southeast-1"}, {}, "https://dashscope-intl.aliyuncs.com"),
        ({"DASHSCOPE_REGION": "ap-southeast-1", REGION: ""}, {}, "https://dashscope-intl.aliyuncs.com"),
        ({"DASHSCOPE_WORKSPACE": "w"}, {"region": "cn-beijing"}, "https://w.cn-beijing.maas.aliyuncs.com"),
        ({"DASHSCOPE_WORKSPACE": "w", WORKSPACE: "w"}, {"base_url": GAP}, "https://w.example"),
    ],
)
def test_arguments_come_before_the_environment_and_an_empty_variable_is_a_missing_one(
    variables: dict[str, str], asked: dict[str, Any], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert resolve_address(**asked).root_url == root


@pytest.mark.parametrize(
    ("first", "second", "protocol"),
    [
        ((NATIVE, N), (BOTH, C), "native"),
        ((COMPATIBLE, N), (BOTH, C + "/compatible-mode/v1"), "openai"),
        ((REGION, "cn-beijing"), ("DASHSCOPE_REGION", "ap-southeast-1"), "native"),
        ((WORKSPACE, "w"), ("DASHSCOPE_WORKSPACE", "v"), "native"),
    ],
)
def test_two_variables_that_contradict_each_other_are_named(
    first: tuple[str, str], second: tuple[str, str], protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (first, second):
        monkeypatch.setenv(*variable)
    region = "Singapore" if first[0] == WORKSPACE else None
    with pytest.raises(InvalidInput, match=f"^{first[0]} and {second[0]} mean the same") as caught:
        resolve_address(protocol, region=region)
    assert C not in str(caught.value)


@pytest.mark.parametrize("origin", [NATIVE, BOTH])
def test_a_variable_of_the_region_that_contradicts_that_of_the_address_is_told(
    origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(origin, f"{BEIJING}/api/v1")
    monkeypatch.setenv(REGION, "Singapore")
    with pytest.warns(UserWarning, match=f"{origin} is in cn-beijing, but {REGION} names ap-southeast-1: requests"):
        assert resolve_address() == HERE
    assert resolve_address() == HERE, "once a process"
    for region, address in ("beijing", BEIJING), ("Singapore", N), ("xx-new-9", BEIJING):
        _process.reset()
        monkeypatch.setenv(REGION, region)
        monkeypatch.setenv(origin, address)
        assert resolve_address().root_url == address


def test_a_region_beside_an_address_that_has_none_is_what_the_key_is_for() -> None:
    assert resolve_address(base_url=BEIJING, region="Beijing") == HERE
    behind_a_proxy = resolve_address(base_url=N, region="Tokyo")
    assert behind_a_proxy.root_url == N
    assert "(Tokyo)" in behind_a_proxy.key_hint
    assert resolve_address(base_url=BEIJING, workspace="ws").workspace == "ws"  # for the header: the host has none


def test_the_emulator_is_an_address_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NATIVE, "https://n.example")
    place = resolve_address(base_url=EMULATOR)
    assert place.is_emulator
    assert resolve_api_key(None, place).get_secret_value() == EMULATOR
    assert not HERE.is_emulator


# --- the key ----------------------------------------------------------------------------------------------


def key(api_key: Any = None) -> str:
    return resolve_api_key(api_key, HERE).get_secret_value()


def test_the_key_is_sought_from_near_to_far(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "")
    monkeypatch.setenv("DASHSCOPE_API_KEY_FILE_PATH", "")
    with pytest.raises(InvalidInput, match=r'DASHSCOPE_API_KEY; .* base_url="emulator"'):
        key()
    (home / ".dashscope").mkdir()
    (home / ".dashscope" / "api_key").write_text("sk-default\n")
    assert key() == "sk-default"
    (home / "mine").write_text(" sk-file \r\n")
    monkeypatch.setenv("DASHSCOPE_API_KEY_FILE_PATH", str(home / "mine"))
    assert key() == "sk-file"
    monkeypatch.setenv("DASHSCOPE_API_KEY_FILE_PATH", "~/mine")
    assert key() == "sk-file"
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-variable")
    assert key() == "sk-variable"
    assert key("sk-argument") == key(SecretStr("sk-argument")) == "sk-argument"
    assert key("") == key(SecretStr("")) == "sk-variable"


def test_a_key_file_that_cannot_be_read_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    (home / "empty").write_bytes(b"\n")
    for path in (home / "missing", home, home / "binary", home / "empty", "~no-such-user/api_key"):
        monkeypatch.setenv("DASHSCOPE_API_KEY_FILE_PATH", str(path))
        with pytest.raises(InvalidInput, match=r"DASHSCOPE_API_KEY_FILE_PATH names .* cannot be read"):
            key()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (KEY + "\n", "a line break around the key"),
        (" " + KEY, "blanks"),
        (" ", "blanks"),
        (f'"{KEY}"', "quotes"),
        (f"'{KEY}'", "quotes"),
        ("sk made up 0123", "characters that no key has"),
        ("sk-made\nup-0123", "characters that no key has"),
        ("sk-mäde-up-0123", "characters that no key has"),
        (f"DASHSCOPE_API_KEY={KEY}", "the variable's name"),
        (f"export DASHSCOPE_API_KEY={KEY}", "the variable's name"),
        ("${DASHSCOPE_API_KEY}", "a placeholder"),
        ("<your key>", "a placeholder"),
        ("YOUR_API_KEY", "a placeholder"),
        ("sk-xxx", "a placeholder"),
    ],
)
def test_a_key_that_was_pasted_badly_is_named_but_not_shown(
    wrong: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", wrong)
    for origin, given in {"api_key": wrong, "DASHSCOPE_API_KEY": None}.items():
        with pytest.raises(InvalidInput, match=f"^{origin} .*{complaint}") as caught:
            key(given)
        assert "0123" not in str(caught.value)


@pytest.mark.parametrize("placeholder", ["xxx", "your-key", "$KEY"])
def test_a_local_server_may_accept_any_key(placeholder: str) -> None:
    address = resolve_address(base_url="http://localhost:8000/api/v1")
    assert resolve_api_key(placeholder, address).get_secret_value() == placeholder


# --- what fits together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        *(({"dimensions": size}, "has no vectors of|whole number") for size in (0, -1, 100, 4096, True, 64.0, "64")),
        *(({"max_retries": n}, "max_retries=.* at least 0 ") for n in (-1, 1.0, True, "6")),
        *(({name: n}, f"{name}=.* at least 1") for name in ("max_concurrency", "batch_size") for n in (0, 2.5)),
        ({"tokens_per_request": 0}, "tokens_per_request=0: .* at least 1"),
        *(({"timeout": n}, "timeout=.* above 0") for n in (0, -1, float("inf"), float("nan"), "60", True, None)),
        ({"max_retries": None}, "max_retries=.* at least 0"),
        # Numbers that would fail later, deep inside a socket or a lock.
        ({"timeout": 1e10}, r"timeout=10000000000.0: expected a number above 0, at most 86,400$"),
        ({"timeout": np.float64("nan")}, "timeout=.*nan.*: .* at most 86,400"),
        ({"timeout": np.True_}, r"timeout=\(bool"),
        ({"timeout": 10**5000}, r"timeout=\(int\): "),
        ({"timeout": KEY}, r"timeout=\(str\): "),  # it may be a key
        ({"max_retries": 10**9}, "max_retries=1000000000: .* at most 1,000,000"),
        ({"max_concurrency": 10**6}, "max_concurrency=1000000: .* at most 10,000"),
        ({"batch_size": np.float64(3)}, "batch_size=.*3.0.*: expected a whole number"),
        ({"requests_per_minute": 1e-300}, "requests_per_minute=1e-300: .* at least 0.01 and at most 1,000,000,"),
        ({"tokens_per_minute": 1e300}, "tokens_per_minute=1e[+]300: .* at most"),
        ({"requests_per_minute": 0}, "requests_per_minute=0: .* above 0"),
        ({"tokens_per_minute": -5}, "tokens_per_minute=-5: .* above 0"),
        ({"protocol": "grpc"}, 'protocol=\'grpc\': expected "native" or "openai"'),
        ({"long_text": "cut"}, 'expected "error", "truncate" or "average"'),
        *(({"instruct": odd}, "instruct must be a sentence") for odd in (7, "\ud800")),
        ({"instruct": "Find", "protocol": "openai"}, 'instruct needs protocol="native"'),
        ({"instruct": "Find", "model": "text-embedding-v3"}, "v3 takes no instruct; these do: .*v4"),
        ({"dimensions": 1024, "model": "text-embedding-v2"}, "v2 has no vectors of 1024 dimensions; it has 1536"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_what_would(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as caught:
        settings(**given)
    assert KEY not in str(caught.value)


def test_settings_that_work_are_taken() -> None:
    assert settings(dimensions=64, timeout=1, max_retries=0, requests_per_minute=0.5).dimensions == 64
    assert settings("text-embedding-v2", dimensions=1536, protocol="openai").protocol == "openai"
    with pytest.warns(UserWarning, match="not in the catalogue"):
        assert settings("text-embedding-v66", dimensions=77, instruct="Find").dimensions == 77


@pytest.mark.parametrize("name", ["model", "api_key", "max_concurrency", "http_client"])
def test_a_setting_of_a_client_that_is_assigned_later_is_refused(name: str) -> None:
    client = EmbeddingClient(base_url="emulator")
    with pytest.raises(AttributeError, match=f"settings do not change: make another one with {name}=…"):
        setattr(client, name, None)


def test_sparse_vectors_need_the_native_protocol_and_a_model_that_has_them() -> None:
    settings().require_sparse()
    with pytest.raises(InvalidInput, match='protocol="native"'):
        settings(protocol="openai").require_sparse()
    with pytest.raises(InvalidInput, match=r"v2 has no sparse vectors; these have: .*v4"):
        settings("text-embedding-v2").require_sparse()


def test_settings_say_what_each_request_asks() -> None:
    asked = settings(dimensions=64, instruct="Find").request_options("query", "dense&sparse")
    assert asked == RequestOptions("native", "text-embedding-v4", "query", "dense&sparse", 64, "Find", 64)
    assert settings(instruct="Find").request_options("document", "dense") == RequestOptions(
        "native", "text-embedding-v4", expected_width=1024
    )
    # A model of one size takes no dimension: it would be ignored without a word.
    assert settings("text-embedding-v2", dimensions=1536).request_options("document", "dense").dimension is None
    wrong: list[Any] = [("passage", "dense"), ("query", "both"), (None, "dense")]
    for bad in wrong:
        with pytest.raises(InvalidInput, match="expected"):
            settings().request_options(*bad)
    with pytest.raises(InvalidInput, match="no sparse vectors"):
        settings("text-embedding-v2").request_options("query", "sparse")


def test_an_account_is_a_key_a_host_and_a_model_and_does_not_hold_the_key() -> None:
    accounts = {
        settings().quota_key,
        settings("text-embedding-v3").quota_key,
        settings(place=resolve_address(base_url=N)).quota_key,
    }
    assert len(accounts) == 3
    assert settings(dimensions=64).quota_key in accounts
    assert KEY not in repr(accounts)


def test_the_price_is_the_regions_and_the_emulators_is_beijings() -> None:
    beijing, singapore = settings().price, settings(place=resolve_address(region="Singapore")).price
    assert beijing is not None
    assert singapore is not None
    assert (beijing.currency, singapore.currency) == ("CNY", "USD")
    assert settings(place=resolve_address(base_url=EMULATOR)).price == beijing
    assert settings(place=resolve_address(base_url="https://proxy.example")).price is None
    assert settings("text-embedding-v2", resolve_address(region="Singapore")).price is None


def test_neither_repr_nor_str_shows_the_key_or_the_headers() -> None:
    made = settings(headers=(("X-Gateway-Key", SecretStr(KEY)),))
    assert KEY not in repr(made) + str(made)


def test_the_fields_of_adapters_have_the_types_of_the_clients_arguments() -> None:
    fields, arguments = SettingFields.model_fields, get_type_hints(ClientOptions)
    assert arguments.keys() - fields.keys() == {"api_key", "dimension"}
    assert {name for name in fields if fields[name].annotation != arguments[name]} == {"default_headers"}


@pytest.mark.parametrize("value", [["x"], []])
@pytest.mark.parametrize("name", ["model", "region", "workspace", "base_url"])
def test_what_must_be_a_string_says_so(name: str, value: list[str]) -> None:
    with pytest.raises(InvalidInput, match=f"^{name} must be a string, not list$"):
        EmbeddingClient(**{"api_key": KEY, name: value})  # type: ignore[arg-type] # that is the test


@pytest.mark.parametrize("name", ["text_type", "output"])
def test_what_is_one_of_some_words_says_so(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{name}=\['x'\]: expected"):
        EmbeddingClient(base_url="emulator").embed(["a"], **{name: ["x"]})  # type: ignore[arg-type] # same
