"""What a key opens: which hosts are asked, with what, and what is made of every answer."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from dashscope_embeddings import EmbeddingClient, InvalidInput, catalogue, check
from dashscope_embeddings.check import probes
from dashscope_embeddings.emulator import Emulator, faults, in_process
from dashscope_embeddings.emulator.embeddings import COMPATIBLE_PATH, NATIVE_PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[httpx.Request], httpx.Response]

KEY = "sk-made-up-and-secret"
OTHER = "sk-somebody-elses"
BEIJING, SINGAPORE, HONG_KONG = (
    "dashscope.aliyuncs.com",
    "dashscope-intl.aliyuncs.com",
    "cn-hongkong.dashscope.aliyuncs.com",
)
VIRGINIA = "dashscope-us.aliyuncs.com"
V4 = "text-embedding-v4"


class Net:
    """Hosts by name; any other name is not found. Keeps what was sent where."""

    def __init__(self, hosts: dict[str, Answer]) -> None:
        self.hosts = hosts
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.asked_for_quota: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.netloc.decode()
        if request.method == "GET":
            self.asked_for_quota.append(host)
        else:
            self.asked.append((host, request.url.path, json.loads(request.content)))
        if host not in self.hosts:
            raise httpx.ConnectError("[Errno -2] Name or service not known", request=request)
        return self.hosts[host](request)

    def client(self, *args: Any, **settings: Any) -> EmbeddingClient:
        return EmbeddingClient(*args, http_client=httpx.Client(transport=httpx.MockTransport(self)), **settings)

    def check(self, *args: Any, api_key: str = KEY, **how: Any) -> check.Check:
        return check.check(*args, api_key=api_key, make_client=self.client, **how)

    def count(self) -> Counter[str]:
        return Counter(host for host, _, _ in self.asked)


def saying(status: int, code: str | None, message: str = "") -> Answer:
    body = {"code": code, "message": message, "request_id": "made-up"} if code else {"message": message}
    return lambda _: httpx.Response(status, json=body)


def regions(found: check.Check) -> dict[str | None, check.RegionCheck]:
    return {each.region: each for each in found.regions}


@pytest.fixture
def world() -> dict[str, Answer]:
    """The key is Singapore's; Virginia's host is not found."""
    return {BEIJING: Emulator(api_key=OTHER), SINGAPORE: Emulator(api_key=KEY), HONG_KONG: Emulator(api_key=OTHER)}


# --- hosts -------------------------------------------------------------------------------------------------


def test_a_key_is_found_in_its_region_with_one_text_for_each_other_host_as_announced(world: dict[str, Answer]) -> None:
    net, plans = Net(world), list[tuple[check.Plan, int]]()
    found = net.check(announce=lambda plan: plans.append((plan, len(net.asked))))
    assert {region: each.takes_key for region, each in regions(found).items()} == {
        "cn-beijing": False,
        "ap-southeast-1": True,
        "cn-hongkong": False,
        "us-east-1": None,
        "eu-central-1": None,
        "ap-northeast-1": None,
    }
    assert regions(found)["cn-beijing"].said == "401 InvalidApiKey: Invalid API-key provided."
    assert regions(found)["us-east-1"].said == "no answer: ConnectError: [Errno -2] Name or service not known"
    assert regions(found)["us-east-1"].seconds is None
    assert regions(found)["eu-central-1"].host is None
    assert "without workspace=, requests go to Singapore's" in regions(found)["eu-central-1"].said
    assert found.takes_key
    assert found.notes == ('With this key, use region="ap-southeast-1".',)
    assert net.count() == {BEIJING: 1, SINGAPORE: 13, HONG_KONG: 1, VIRGINIA: 1}
    first = {"model": V4, "input": {"texts": [check.TEXT]}, "parameters": {"text_type": "document"}}
    assert [(path, body) for host, path, body in net.asked if host != SINGAPORE] == [(NATIVE_PATH, first)] * 3
    ((plan, sent_before),) = plans
    assert (plan.hosts, plan.texts, sent_before) == ((BEIJING, SINGAPORE, HONG_KONG, VIRGINIA), len(net.asked), 0)
    assert found.usage.texts == found.usage.requests == 13
    assert found.usage.tokens == world[SINGAPORE].billed_tokens  # type: ignore[attr-defined] # an emulator


def test_without_a_key_nothing_is_announced_or_sent() -> None:
    net, plans = Net({}), list[check.Plan]()
    with pytest.raises(InvalidInput, match="no API key"):
        check.check(make_client=net.client, announce=plans.append)
    with pytest.raises(InvalidInput, match="is no region"):
        net.check(region="mars", announce=plans.append)
    assert (plans, net.asked) == ([], [])


@pytest.mark.parametrize(
    ("given", "environment", "hosts"),
    [
        ({"region": "Singapore"}, {}, [SINGAPORE]),
        ({"base_url": "https://example.com/api/v1"}, {}, ["example.com"]),
        ({"workspace": "ws-1", "region": "eu-central-1"}, {}, ["ws-1.eu-central-1.maas.aliyuncs.com"]),
        ({"workspace": "ws-1"}, {}, [f"ws-1.{region.id}.maas.aliyuncs.com" for region in catalogue.REGIONS]),
        ({}, {"WORKSPACE_ID": "ws-1"}, [f"ws-1.{region.id}.maas.aliyuncs.com" for region in catalogue.REGIONS]),
        ({}, {"WORKSPACE": "ws-1"}, [f"ws-1.{region.id}.maas.aliyuncs.com" for region in catalogue.REGIONS]),
        ({}, {"HTTP_BASE_URL": "http://127.0.0.1:9"}, ["127.0.0.1:9"]),
        ({}, {"HTTP_BASE_URL": f"https://{SINGAPORE}/api/v1"}, [BEIJING, SINGAPORE, HONG_KONG, VIRGINIA]),
        ({}, {"API_REGION": "ap-southeast-1"}, [BEIJING, SINGAPORE, HONG_KONG, VIRGINIA]),
        (
            {},
            {"HTTP_BASE_URL": "https://ws-2.cn-beijing.maas.aliyuncs.com"},
            ["ws-2.cn-beijing.maas.aliyuncs.com", BEIJING, SINGAPORE, HONG_KONG, VIRGINIA],
        ),
        ({"region": "Hong Kong"}, {"HTTP_BASE_URL": "http://127.0.0.1:9"}, [HONG_KONG]),
    ],
)
def test_who_names_an_address_has_it_asked_alone_and_the_services_own_together(
    given: dict[str, str], environment: dict[str, str], hosts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"DASHSCOPE_{name}", value)
    net = Net({})
    found = net.check(**given)
    assert [each.host for each in found.regions if each.host] == hosts
    assert net.count() == dict.fromkeys(hosts, 1)
    assert not found.takes_key
    assert any("is this machine online" in note for note in found.notes)
    assert sum("none of the service's known hosts" in note for note in found.notes) == (found.regions[0].region is None)


@pytest.mark.parametrize(
    ("answer", "takes", "message"),
    [
        (saying(403, "Model.AccessDenied", "Model access denied."), True, "takes the key, but not the request: 403"),
        (saying(400, "Arrearage", "Access denied, good standing"), True, "400 Arrearage"),
        (saying(401, "NOT AUTHORIZED", "Access denied: workspace"), False, "401 NOT AUTHORIZED: Access denied"),
        (saying(500, "InternalError", "Internal server error!"), None, "500 InternalError"),
        (saying(404, None, "no such page"), None, "404 (no code)"),
        (lambda _: httpx.Response(200, html="<p>Please log in"), None, "the reply is not JSON"),
    ],
)
def test_only_the_services_own_words_say_whether_it_takes_the_key(
    *, answer: Answer, takes: bool | None, message: str
) -> None:
    net = Net({BEIJING: answer})
    found = net.check(region="cn-beijing", models=())
    (only,) = found.regions
    assert only.takes_key is takes
    assert message in only.said
    assert only.seconds is not None
    # Nothing is tried twice; where the key is taken, the model is asked once more and the role is not.
    assert len(net.asked) == (2 if takes else 1)
    assert found.usage.requests == 0
    assert found.role is None
    assert any("role of the compatible route was not measured" in note for note in found.notes) == bool(takes)


@pytest.mark.parametrize("seconds", [0.5, 20.0])
def test_a_throttled_request_is_repeated_for_a_while_and_says_nothing_of_the_model(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "_THROTTLED_SECONDS", seconds)
    monkeypatch.setattr(probes, "_MIN_PAUSE_SECONDS", 0.01)
    throttled = faults.Throttle(times=2 if seconds > 1 else None, every=1)
    found = Net({BEIJING: Emulator(api_key=KEY, faults=[throttled])}).check(region="cn-beijing", models=())
    (host, model) = (*found.regions, *found.models)
    if seconds > 1:
        assert (host.answers, model.answers, host.said) == (True, True, "takes the key")
    else:
        assert (host.answers, model.answers) == (True, None)
        assert model.said.startswith("throttled, so run it again in a minute: 429 Throttling.RateQuota")


def test_a_host_that_does_not_answer_in_time_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_JOIN_MARGIN_SECONDS", 0.05)
    over = threading.Event()

    def hangs(_: httpx.Request) -> httpx.Response:
        over.wait(30)
        raise httpx.ConnectError("too late")

    try:
        found = Net({SINGAPORE: hangs}).check(region="Singapore", timeout=0.05)
    finally:
        over.set()
    assert (found.regions[0].takes_key, found.regions[0].said) == (None, "no answer in time")
    assert found.models == ()


def test_a_fault_of_our_own_is_raised_not_reported_as_the_hosts() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Net({BEIJING: broken}).check()


# --- what to do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "given", "present", "absent"),
    [
        (KEY, {}, ["mistyped", "sk-sp-", "pass base_url="], "Only"),
        (KEY, {"region": "cn-beijing"}, ["mistyped", "Only one host was asked"], "workspace's"),
        (KEY, {"workspace": "ws-1"}, ["mistyped", "Only the workspace's hosts"], "one host"),
        ("sk-sp-made-up", {}, ["begins with sk-sp-", "for chat only"], "mistyped"),
    ],
)
def test_a_key_that_is_refused_everywhere_gets_notes_on_what_may_be_wrong(
    key: str, given: dict[str, str], present: list[str], absent: str
) -> None:
    refusing = Emulator(api_key=OTHER)
    hosts = [BEIJING, SINGAPORE, HONG_KONG, VIRGINIA, "ws-1.cn-beijing.maas.aliyuncs.com"]
    found = Net(dict.fromkeys(hosts, refusing)).check(api_key=key, **given)
    assert not found.takes_key
    notes = " ".join(found.notes)
    assert all(words in notes for words in present)
    assert absent not in notes
    assert (found.models, found.role, refusing.billed_texts) == ((), None, 0)


def test_a_workspace_that_takes_the_key_is_named_in_the_advice() -> None:
    found = Net({"ws-1.eu-central-1.maas.aliyuncs.com": Emulator()}).check(workspace="ws-1", models=())
    assert found.notes == ('With this key, use region="eu-central-1", workspace="ws-1".',)


# --- models ------------------------------------------------------------------------------------------------


def test_every_model_of_the_catalogue_is_asked_and_its_tokens_or_refusal_reported() -> None:
    service = Emulator(api_key=KEY, models=[row for row in catalogue.MODELS if row.name.endswith(("v4", "v3"))])
    found = Net({SINGAPORE: service}).check()
    assert [each.model for each in found.models] == [row.name for row in catalogue.MODELS]
    v4 = next(each for each in found.models if each.model == V4)
    assert (v4.answers, v4.tokens, v4.tries, v4.host) == (True, 7, 3, SINGAPORE)
    v3 = next(each for each in found.models if each.model == "text-embedding-v3")
    assert (v3.answers, v3.tokens, v3.tries) == (True, 7, 1)
    rest = [each for each in found.models if each not in {v3, v4}]
    assert {(each.answers, each.said, each.tokens, each.seconds) for each in rest} == {
        (False, "404 ModelNotFound: Model can not be found.", None, None)
    }
    # Host, three times v4, v3, then the role: query, document, dense&sparse, compatible.
    assert service.billed_requests == 9
    assert found.usage.requests == 9


def test_the_time_of_the_chosen_model_is_the_median_of_three() -> None:
    service, clock = Emulator(), iter(range(100))
    takes = iter([5.0, 9.0, 1.0, 3.0, *[0.0] * 5])
    now = 0.0
    lock = threading.Lock()

    def tick() -> float:
        """Every other call ends a try."""
        nonlocal now
        with lock:
            if next(clock) % 2:
                now += next(takes)
            return now

    found = Net({BEIJING: service}).check(region="cn-beijing", models=(), clock=tick)
    assert found.regions[0].seconds == 5.0
    assert [(each.model, each.seconds, each.tries) for each in found.models] == [(V4, 3.0, 3)]


def test_a_model_that_breaks_off_is_neither_answering_nor_refused() -> None:
    service = Emulator()

    def breaks(request: httpx.Request) -> httpx.Response:
        if b"text-embedding-v3" in request.content:
            raise httpx.ReadTimeout("slow")
        return service(request)

    found = Net({BEIJING: breaks}).check(models=["text-embedding-v3"], region="cn-beijing")
    assert [(each.model, each.answers) for each in found.models] == [(V4, True), ("text-embedding-v3", None)]
    assert found.models[1].said == "no answer: nothing within 10 s (ReadTimeout)"
    assert found.role is not None


def test_a_model_that_does_not_answer_in_time_keeps_nobody_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_JOIN_MARGIN_SECONDS", 0.7)
    service, over = Emulator(), threading.Event()

    def hangs(request: httpx.Request) -> httpx.Response:
        if b"text-embedding-v3" in request.content:
            over.wait(30)
        return service(request)

    try:
        found = Net({BEIJING: hangs}).check(models=["text-embedding-v3"], region="cn-beijing", timeout=0.1)
    finally:
        over.set()
    assert [(each.answers, each.said) for each in found.models] == [(True, "answers"), (None, "no answer in time")]
    assert found.role is not None


def test_an_unknown_model_is_asked_with_one_warning_and_beside_the_others() -> None:
    with pytest.warns(UserWarning, match="not in the catalogue") as warned:
        found = Net({BEIJING: Emulator()}).check("text-embedding-v9", region="cn-beijing")
    assert len(warned) == 1
    assert found.regions[0].takes_key
    assert [each.answers for each in found.models] == [True] * 6 + [False]
    assert "text-embedding-v9 does not answer" in found.notes[-1]


# --- the role ----------------------------------------------------------------------------------------------


def embedding_as(service: Emulator, **how: Any) -> Answer:
    """The service, whose compatible route gives the vectors of that role, and instruction."""

    def answer(request: httpx.Request) -> httpx.Response:
        reply = service(request)
        if request.url.path != COMPATIBLE_PATH:
            return reply
        content = reply.json()
        content["data"][0]["embedding"] = service.dense(check.TEXT, **how)
        return httpx.Response(200, json=content)

    return answer


def roleless(service: Emulator) -> Answer:
    """The service, which takes no notice of any role."""

    def answer(request: httpx.Request) -> httpx.Response:
        content = request.content.replace(b'"text_type":"document"', b'"text_type":"query"')
        return service(httpx.Request("POST", request.url, headers=_fitting(request.headers), content=content))

    return answer


def _fitting(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name != "content-length"}


@pytest.mark.parametrize(
    ("world_of", "verdict"),
    [
        (lambda service: service, "query"),
        (lambda service: embedding_as(service, text_type="document"), "document"),
        (lambda service: embedding_as(service, text_type="query", instruct="Find cats."), "neither"),
        (roleless, "both alike"),
    ],
)
def test_the_verdict_is_the_role_whose_native_vector_the_compatible_one_equals(
    world_of: Callable[[Emulator], Answer], verdict: str
) -> None:
    service = Emulator()
    net = Net({BEIJING: world_of(service)})
    found = net.check(models=(), region="cn-beijing").role
    assert found is not None
    assert (found.verdict, found.host, found.model) == (verdict, BEIJING, V4)
    near = {"query": (True, False), "document": (False, True), "both alike": (True, True), "neither": (False, False)}
    assert (found.query > 0.9999, found.document > 0.9999) == near[verdict]
    assert (found.between > 0.9999) == (verdict == "both alike")
    assert found.repeated == pytest.approx(1)
    assert found.length == pytest.approx(1)
    assert found.joint == pytest.approx(1)
    sent = Counter(
        (path, *sorted(body.get("parameters", {}).items()))
        for _, path, body in net.asked[4:]  # after the host's one and the model's three
    )
    assert sent == {
        (NATIVE_PATH, ("text_type", "query")): 1,
        (NATIVE_PATH, ("text_type", "document")): 1,
        (NATIVE_PATH, ("output_type", "dense&sparse"), ("text_type", "document")): 1,
        (COMPATIBLE_PATH,): 1,
    }


@pytest.mark.parametrize(
    ("query", "document", "repeated", "verdict"),
    [
        (0.99995, 0.98, 1.0, "query"),
        (0.9998, 0.98, 1.0, "neither"),
        (0.9998, 0.98, 0.9999, "query"),
        (0.98, 1.0, 0.9999, "document"),
        (0.9998, 0.9999, 0.9999, "both alike"),
    ],
)
def test_equal_is_what_differs_no_more_than_a_request_asked_twice(
    query: float, document: float, repeated: float, verdict: str
) -> None:
    assert probes._role_verdict(query, document, repeated) == verdict


def test_a_model_without_sparse_vectors_is_measured_with_one_request_less() -> None:
    net = Net({BEIJING: Emulator()})
    plans: list[check.Plan] = []
    found = net.check("text-embedding-v2", models=(), region="cn-beijing", announce=plans.append).role
    assert found is not None
    assert (found.verdict, found.joint) == ("query", None)
    assert plans[0].texts == len(net.asked) == 7
    assert not any("output_type" in body.get("parameters", {}) for _, _, body in net.asked)


def test_a_refused_compatible_route_leaves_the_role_unmeasured_and_says_why() -> None:
    service = Emulator()
    refused = saying(404, "model_not_supported", "Unsupported model for OpenAI compatibility mode.")
    found = Net({BEIJING: lambda r: (refused if r.url.path == COMPATIBLE_PATH else service)(r)}).check(models=())
    assert found.role is None
    assert found.takes_key
    assert found.notes[-1] == (
        "The role of the compatible route was not measured: 404 model_not_supported: Unsupported model for OpenAI "
        "compatibility mode."
    )
    # What was answered is counted all the same.
    assert found.usage.requests == service.billed_requests == 7


def test_a_refused_dense_and_sparse_request_leaves_only_its_own_figure_out() -> None:
    service = Emulator()
    refused = saying(400, "InvalidParameter", "output_type is invalid")
    found = Net({BEIJING: lambda r: (refused if b"dense&sparse" in r.content else service)(r)}).check(models=())
    assert found.role is not None
    assert (found.role.verdict, found.role.joint) == ("query", None)


def test_vectors_without_length_or_of_different_width_are_not_alike() -> None:
    assert probes.cosine_similarity([0.0, 0.0], [1.0, 0.0]) == 0
    assert probes.cosine_similarity([1.0, 0.0], [1.0]) == 0
    assert probes.cosine_similarity([3.0, 4.0], [4.0, 3.0]) == pytest.approx(0.96)


def test_the_emulator_needs_no_key_and_says_that_it_is_none_of_the_service() -> None:
    found = check.check(base_url="emulator")
    assert found.takes_key
    assert found.notes == ("The emulator makes its vectors up: this result says nothing about the service.",)
    assert in_process().billed_texts == found.usage.texts == 13


# --- the command -------------------------------------------------------------------------------------------

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")
from dashscope_embeddings.cli import app  # noqa: E402 - it needs what was just looked for


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """To call with hosts and arguments."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(hosts: dict[str, Answer], *arguments: str, key: str | None = KEY, terminal: bool = False) -> Any:
        monkeypatch.setattr(check, "EmbeddingClient", Net(hosts).client)
        if key is not None:
            monkeypatch.setenv("DASHSCOPE_API_KEY", key)
        monkeypatch.setenv("FORCE_COLOR" if terminal else "DASHSCOPE_UNUSED", "1")
        result = typer_testing.CliRunner().invoke(app.app, ["check", *arguments])
        assert "Traceback" not in result.output
        assert key is None or key not in result.output
        return result

    return run


def test_no_host_is_waited_for_longer_than_was_said(command: Callable[..., Any]) -> None:
    seen: list[float] = []

    def late(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("timed out", request=request)

    result = command({BEIJING: late}, "--region", "beijing", "--timeout", "3")
    assert (result.exit_code, set(seen)) == (1, {3.0})


def test_0_tells_the_region_the_models_and_the_role_in_plain_lines(
    command: Callable[..., Any], world: dict[str, Answer]
) -> None:
    result = command(world)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Sends one short text to 4 hosts, then 12 to each that takes the key: about 16 in all")
    assert lines[1].startswith(
        "Beijing, dashscope.aliyuncs.com: refuses the key: 401 InvalidApiKey: Invalid API-key prov"
    )
    assert lines[2].startswith("Singapore, dashscope-intl.aliyuncs.com: takes the key (")
    assert lines[3].startswith(f"qwen3.7-text-embedding on {SINGAPORE}: answers, 23 tokens a text (")
    assert lines[5].startswith(f"{V4} on {SINGAPORE}: answers, 7 tokens a text (")
    assert lines[9].startswith(f"quota of {V4} on {SINGAPORE}: not reported: 404")
    assert lines[11].startswith("Virginia, dashscope-us.aliyuncs.com: no answer: ConnectError")
    assert lines[13].startswith("Tokyo, no host: not asked: this region has hosts of workspaces only")
    assert "without --workspace, requests go to Singapore's" in lines[13]
    assert f"{V4} on {SINGAPORE}: the compatible route embeds as query" in lines
    assert "cos(compatible, native query) = 1.0000" in lines
    assert "billed: 13 requests, 13 texts, 123 tokens, cost unknown" in lines
    assert lines[-1] == "With this key, use --region ap-southeast-1."


def test_json_is_all_of_standard_output(command: Callable[..., Any], world: dict[str, Answer]) -> None:
    result = command(world, "--json", "--region", "ap-southeast-1")
    assert result.exit_code == 0
    assert result.stderr.startswith("Sends one short text to 1 host, then 12 to each")
    found = json.loads(result.stdout)
    assert found.keys() == {"takes_key", "regions", "models", "role", "usage", "notes", "quotas"}
    assert found["takes_key"] is True
    assert [(each["region"], each["takes_key"]) for each in found["regions"]] == [("ap-southeast-1", True)]
    assert found["role"]["verdict"] == "query"
    assert {each["model"] for each in found["models"]} == {row.name for row in catalogue.MODELS}
    assert found["usage"]["texts"] == 13
    alone = json.loads(command({"emulator": Emulator()}, "--json", "--base-url", "emulator").stdout)
    assert alone["usage"]["cost"] == {"amount": "0.000055675", "currency": "CNY"}


def test_1_no_host_takes_the_key(command: Callable[..., Any]) -> None:
    refused = command({BEIJING: Emulator(api_key=OTHER)})
    assert refused.exit_code == 1
    assert "No host that answered takes the key" in refused.stdout
    assert "a trial: pass --base-url)" in refused.stdout
    assert "billed: nothing" in refused.stdout.splitlines()
    unreached = command({}, "--json")
    assert unreached.exit_code == 1
    found = json.loads(unreached.stdout)
    assert (found["takes_key"], found["models"], found["role"]) == (False, [], None)
    assert "is this machine online" in found["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        ([], None, "no API key"),
        (["--region", "mars"], KEY, "is no region"),
        (["--base-url", "http://example.com"], KEY, "plain http"),
    ],
)
def test_2_wrong_use(arguments: list[str], key: str | None, message: str, command: Callable[..., Any]) -> None:
    result = command({}, *arguments, key=key)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_on_a_terminal_tables_fit_80_columns_and_no_host_is_broken(
    command: Callable[..., Any], world: dict[str, Answer]
) -> None:
    result = command(world, terminal=True)
    assert result.exit_code == 0
    # What was announced is one long line, which the terminal wraps.
    tables = re.sub(r"\x1b\[[\d;]*m", "", result.stdout).splitlines()[1:]
    assert max(map(len, tables)) <= 80
    assert any(line.startswith(f"Hong Kong, {HONG_KONG}  refuses the key") for line in tables)
    at = next(n for n, line in enumerate(tables) if line.startswith(f"Singapore, {SINGAPORE} ") and "takes" in line)
    assert tables[at + 1].startswith("  qwen3.7-text-embedding   ")
    assert any(line.startswith(f"  quota of {V4} ") and "not reported: 404" in line for line in tables[at:])
    assert "cos(compatible, native query) = 1.0000" in tables


def test_a_terminal_lists_each_hosts_models_and_its_refusals_apart(command: Callable[..., Any]) -> None:
    v2 = [row for row in catalogue.MODELS if row.name == "text-embedding-v2"]
    both = {BEIJING: Emulator(), SINGAPORE: Emulator(models=v2)}
    result = command(both, "--model", "text-embedding-v2", terminal=True)
    beijing, singapore, _ = re.split(f"Singapore, {SINGAPORE}|Hong Kong, ", result.stdout)
    assert (beijing.count("answers, "), beijing.count("404 ModelNotFound")) == (6, 0)
    assert (singapore.count("answers, "), singapore.count("404 ModelNotFound")) == (1, 5)
    assert f"text-embedding-v2 on {BEIJING}: the compatible route" in result.stdout
    assert "dense&sparse" not in result.stdout


def test_a_terminal_shows_what_looks_like_markup_as_it_is(command: Callable[..., Any]) -> None:
    words = saying(401, "InvalidApiKey", "[red]no[/red] [/]")
    result = command({"[::1]:9": words}, "--base-url", "http://[::1]:9", terminal=True)
    assert result.exit_code == 1
    assert "[::1]:9" in result.stdout
    assert "[red]no[/red]" in result.stdout


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "meant"), [("text-embeding-4", " (is text-embedding-v4 meant?)"), ("another-model-9", "")]
)
def test_1_an_unknown_model_is_warned_of_beside_the_json_and_the_one_that_was_meant_is_named(
    name: str, meant: str, command: Callable[..., Any]
) -> None:
    result = command({BEIJING: Emulator()}, "--json", "--model", name)
    assert result.exit_code == 1
    assert f"'{name}' is not in the catalogue of dashscope_embeddings{meant}: " in result.stderr
    found = json.loads(result.stdout)
    assert found["role"] is None
    assert found["notes"][-1].endswith(f": {name} does not answer{meant}")
