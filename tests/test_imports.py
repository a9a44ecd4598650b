"""What imports what: the road runs one way, and each outside thing is met in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dashscope_embeddings

PACKAGE = "dashscope_embeddings"
ROOT = Path(dashscope_embeddings.__file__).parent
EMULATOR = "emulator"

# Each stage may lead only to stages before it; not through modules that are not named here either.
ROAD = (
    {"vectors", "errors", "workers"},
    {"catalogue", "shapes", "memo"},
    {"reply_fields"},
    {"wire", "lengths", "throttles", "metering"},
    {"pace", "addresses"},
    {"limiter", "stale_replies"},
    {"inputs", "planning", "settings", "splitting"},
    {"exchange"},
    {"assembly", "coalesce"},
    {"http_exchange"},
    {"transfers"},
    {"sessions"},
    {"drivers", "async_drivers"},
    {"calls"},
    {"client"},
    {"halves"},
    {"adapter"},
    {"sparse_adapter"},
    {"langchain", "llama_index", "ray_data"},
    {"cli"},
)
STAGE = {module: stage for stage, modules in enumerate(ROAD) for module in modules}
JSON_NAMES = {
    *("text_index", "sparse_embedding", "embedding", "embeddings", "output", "data", "index", "usage"),
    *("total_tokens", "prompt_tokens", "request_id", "input", "texts", "parameters"),
}


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module}.py").read_text("utf-8"))


def names(node: ast.AST) -> set[str]:
    """Dotted names that an import statement may load; empty for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


def imported(module: str) -> set[str]:
    """Everything a module imports anywhere, for type checking and inside functions too."""
    return {name for node in ast.walk(tree(module)) for name in names(node)}


def needed(module: str) -> set[str]:
    """What a module imports when it runs: not for type checking alone."""
    nodes = [*ast.walk(tree(module))]
    checks = [node for node in nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    idle = {id(inner) for node in checks for inner in ast.walk(node)}
    return {name for node in nodes if id(node) not in idle for name in names(node)}


def siblings(module: str) -> set[str]:
    """The package's own top-level modules among them."""
    parts = [name.split(".") for name in imported(module)]
    return {part[1] for part in parts if part[0] == PACKAGE and len(part) > 1} & MODULES


MODULES = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}


def reached(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = siblings(waiting.pop()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("module", sorted(MODULES & STAGE.keys()))
def test_a_module_leads_only_to_earlier_stages_of_the_road(module: str) -> None:
    later = {other for other in reached(module) if STAGE.get(other, -1) >= STAGE[module]}
    assert not later, f"{module} leads to {later}"


def test_every_stage_up_to_the_frameworks_exists() -> None:
    assert STAGE.keys() <= MODULES


NETWORK = {"connect_errors", "connections", "environment", "http_exchange", "sessions", "transfers"}


def test_httpx_is_met_in_the_modules_of_the_network_alone() -> None:
    assert {module for module in MODULES if "httpx" in imported(module)} == NETWORK


def test_on_the_road_clocks_and_event_loops_are_met_at_its_end_alone() -> None:
    road = {"client"} | reached("client")
    assert road >= {"exchange", "planning", "limiter", "wire"}
    met = {module for module in road if {"time", "asyncio"} & needed(module)}
    assert met == {"connections", "http_exchange", "sessions", "async_drivers", "client"}


def test_only_wire_knows_the_names_in_the_services_json() -> None:
    road = {"client"} | reached("client")
    knowing = {
        module: found
        for module in road
        if (found := JSON_NAMES & {n.value for n in ast.walk(tree(module)) if isinstance(n, ast.Constant)})
    }
    assert knowing.pop("argument_names") == {"input"}  # of pydantic's own errors
    assert knowing.pop("errors") == {"request_id"}  # an attribute of ours
    assert knowing.keys() == {"wire", "reply_fields"}
    assert set().union(*knowing.values()) == JSON_NAMES
    assert {module for module in road if "json" in imported(module)} <= {"wire"}


def test_the_emulator_is_written_from_the_documents_not_from_our_wire() -> None:
    found: set[str] = set()
    for path in sorted((ROOT / EMULATOR).glob("*.py")):
        found |= siblings(f"{EMULATOR}/{path.stem}")
    assert found <= {"catalogue", "vectors"}


def test_only_sessions_reaches_for_the_emulator_and_only_when_asked() -> None:
    name = f"{PACKAGE}.{EMULATOR}"
    road = {"client"} | reached("client")
    assert {module for module in road if name in imported(module)} == {"sessions"}
    nodes = [node for node in ast.walk(tree("sessions")) if name in names(node)]
    lazy = [n for f in ast.walk(tree("sessions")) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
    assert len(nodes) == 1
    assert [node for node in lazy if name in names(node)]


def test_importing_the_package_loads_no_framework() -> None:
    unwanted = ["langchain", "langchain_core", "llama_index", "numpy", "typer", "dashscope", "openai", "tqdm"]
    unwanted += ["ray", "pyarrow", f"{PACKAGE}.{EMULATOR}"]
    ask = f"import sys, {PACKAGE}; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "[]"


def test_all_names_what_the_package_offers_no_more_no_less() -> None:
    bound = {name.rpartition(".")[2] for name in imported("__init__") if name.rpartition(".")[2][0].isupper()}
    lower = {
        alias.name
        for node in tree("__init__").body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name[0].islower()
    }
    assert dashscope_embeddings.__all__ == sorted(bound | lower)
    assert all(hasattr(dashscope_embeddings, name) for name in dashscope_embeddings.__all__)


def test_the_whole_error_tree_is_public_except_what_is_never_raised() -> None:
    def below(kind: type[Exception]) -> set[type[Exception]]:
        children: list[type[Exception]] = kind.__subclasses__()
        return {kind}.union(*map(below, children))

    tree_of_errors = {
        kind.__name__ for kind in below(dashscope_embeddings.DashScopeError) if kind.__module__ == f"{PACKAGE}.errors"
    }
    assert tree_of_errors - set(dashscope_embeddings.__all__) == {"GivenUp"}
