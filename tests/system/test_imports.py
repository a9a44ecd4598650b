"""What imports what: imports point down through the rooms, and each outside thing is met in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import dashscope_embeddings

PACKAGE = "dashscope_embeddings"
ROOT = Path(dashscope_embeddings.__file__).parent

# From the bottom up; a name that ends with a dot is a room, with all that is in it.
FLOORS = (
    ("_process",),
    ("vectors", "errors", "catalogue", "usage", "quota"),
    ("_core.",),
    ("_runtime.",),
    ("client",),
    ("_adapters.",),
    ("langchain", "langchain_milvus", "langchain_qdrant", "llama_index.", "llama_index_milvus", "corpus.", "check."),
    ("ray_data", "pytest_plugin", "_pytest_entry"),
    ("cli.", "__main__", "_command_entry"),
)
ADAPTERS = ("langchain", "langchain_milvus", "langchain_qdrant", "llama_index.", "llama_index_milvus", "ray_data")
JSON_NAMES = {
    *("text_index", "sparse_embedding", "embedding", "embeddings", "output", "data", "index", "usage"),
    *("total_tokens", "prompt_tokens", "request_id", "input", "texts", "parameters"),
}


def path_of(module: str) -> Path:
    """Of a dotted name below the package."""
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


MODULES = frozenset(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
)


@cache
def tree(module: str) -> ast.Module:
    source = path_of(module).read_text("utf-8")
    try:
        return ast.parse(source)
    except SystemError:
        # CPython 3.11 counts the depth of a tree for all threads together: another one was parsing as well.
        return ast.parse(source)


def names(node: ast.AST) -> set[str]:
    """Dotted names that an import statement may load; empty for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


@cache
def imported(module: str) -> frozenset[str]:
    """Everything a module imports anywhere, for type checking and inside functions too."""
    return frozenset(name for node in ast.walk(tree(module)) for name in names(node))


def siblings(module: str) -> set[str]:
    """The package's own modules among them."""
    return {name.removeprefix(f"{PACKAGE}.") for name in imported(module)} & MODULES


def is_in(module: str, rooms: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(room) if room.endswith(".") else module == room for room in rooms)


def floor_of(module: str) -> int | None:
    return next((floor for floor, rooms in enumerate(FLOORS) if is_in(module, rooms)), None)


def test_every_module_has_a_room() -> None:
    assert {module for module in MODULES if floor_of(module) is None and not is_in(module, ("emulator.",))} == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    floor = floor_of(module)
    if floor is None:  # the emulator stands beside the others
        pytest.skip("the emulator has a test of its own")
    assert {other for other in siblings(module) if (floor_of(other) or 0) > floor} == set()
    rooms = FLOORS[floor]
    if not is_in(module, ADAPTERS):
        return
    own = tuple(room for room in rooms if is_in(module, (room,)))
    # The adapter of Milvus's store is one of LlamaIndex; the two of LangChain's stores stand alone.
    allowed = (*own, "llama_index.") if module == "llama_index_milvus" else own
    assert {name for name in siblings(module) if is_in(name, ADAPTERS) and not is_in(name, allowed)} == set()


CORE = sorted(module for module in MODULES if is_in(module, ("_core.",)))
OUTSIDE = {"asyncio", "httpcore", "httpx", "selectors", "socket", "ssl", "time"}


@pytest.mark.parametrize("module", CORE)
def test_the_core_knows_no_network_no_clock_and_no_event_loop(module: str) -> None:
    assert {name.partition(".")[0] for name in imported(module)} & OUTSIDE == set()


@pytest.mark.parametrize("module", sorted(module for module in MODULES if is_in(module, FLOORS[1] + ADAPTERS)))
def test_only_the_runtime_knows_the_network(module: str) -> None:
    assert {name.partition(".")[0] for name in imported(module)} & {"httpcore", "httpx", "socket", "ssl"} == set()


def test_no_module_imports_an_adapter_but_the_demo() -> None:
    importing = {
        module
        for module in MODULES
        if any(is_in(name, ADAPTERS) for name in siblings(module)) and not is_in(module, ADAPTERS)
    }
    assert importing == {"cli.demo.search"}


ROAD = {module for module in MODULES if is_in(module, ("_core.", "_runtime.", "client", *FLOORS[1]))}


def test_only_the_protocol_knows_the_names_in_the_services_json() -> None:
    knowing = {
        module: found
        for module in ROAD
        if (found := JSON_NAMES & {n.value for n in ast.walk(tree(module)) if isinstance(n, ast.Constant)})
    }
    assert knowing.pop("_core.argument_names") == {"input", "output"}  # of pydantic's errors, and an argument of ours
    assert knowing.pop("errors") == {"request_id"}  # an attribute of ours
    assert knowing.pop("_core.quota_request") == {"output"}  # of the reply about a quota
    assert knowing.keys() == {"_core.protocol", "_core.reply_fields"}
    assert set().union(*knowing.values()) == JSON_NAMES
    assert {module for module in ROAD if "json" in imported(module)} <= {"_core.protocol"}


def test_the_emulator_is_written_from_the_documents_not_from_our_protocol() -> None:
    emulator = [module for module in MODULES if is_in(module, ("emulator.",))]
    found = {name for module in emulator for name in siblings(module) if not is_in(name, ("emulator.",))}
    assert found == {"catalogue", "_process"}


def test_only_the_transport_reaches_for_the_emulator_and_only_when_asked() -> None:
    name = f"{PACKAGE}.emulator"
    assert {module for module in ROAD if name in imported(module)} == {"_runtime.transport"}
    transport = tree("_runtime.transport")
    nodes = [node for node in ast.walk(transport) if name in names(node)]
    lazy = [n for f in ast.walk(transport) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
    assert len(nodes) == 1
    assert [node for node in lazy if name in names(node)]


def test_importing_the_package_loads_no_framework() -> None:
    unwanted = ["langchain", "langchain_core", "llama_index", "numpy", "typer", "dashscope", "openai", "tqdm"]
    unwanted += ["ray", "pyarrow", f"{PACKAGE}.emulator"]
    ask = f"import sys, {PACKAGE}; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "[]"


def test_all_names_what_the_package_offers_no_more_no_less() -> None:
    bound = {name.rpartition(".")[2] for name in imported("") if name.rpartition(".")[2][0].isupper()}
    lower = {
        alias.name
        for node in tree("").body
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
    assert tree_of_errors - set(dashscope_embeddings.__all__) == {"Cancelled"}
