"""Every notebook runs from top to bottom without a key, and prints what is committed with it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("ipywidgets")
pytest.importorskip("matplotlib")
pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.vector_stores.qdrant")

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LARGEST_PICTURE = 60_000
LARGEST_NOTEBOOK = 120_000
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


# In a process of its own, because Jupyter's client leaves sockets to the garbage collector, which warns.
RUNNER = """
import sys, nbclient, nbformat
path = sys.argv[1]
notebook = nbformat.read(path, as_version=4)
nbclient.NotebookClient(notebook, kernel_name="python3", timeout=60, record_timing=False).execute()
nbformat.write(notebook, path)
"""


def run(path: Path, folder: Path) -> Any:
    """The notebook after running in a fresh kernel of this interpreter, whatever kernels are installed.

    Without a key, an address, a user's settings, or the test run's rule that warnings are errors.
    """
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(spec), "utf-8")
    foreign = ("DASHSCOPE_", "IPYTHON", "JUPYTER_", "MPL", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "JUPYTER_PATH": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        # Whether it is installed or not: the package under test is this one.
        "PYTHONPATH": os.pathsep.join([str(path.parents[1]), *filter(None, sys.path)]),
    }
    copy = Path(shutil.copy(path, folder))
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", RUNNER, copy.name],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return nbformat.read(copy, as_version=4)


def printed(notebook: Any, tag: str | None = None, *, without: tuple[str, ...] = ("varies",)) -> list[str]:
    """What each code cell printed or showed as text: all cells, or those with a tag; progress bars left out.

    Cells tagged `varies` never count. What follows from Python's own help, which changes from release to release,
    is tagged `from-source`, and the cell that says which help it is `source`.
    """
    return [
        "".join(
            output.get("text", "") if output.output_type == "stream" else output.data.get("text/plain", "")
            for output in cell.outputs
            if (output.name == "stdout" if output.output_type == "stream" else WIDGET not in output.data)
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
        and not set(without) & (tags := set(cell.metadata.get("tags", [])))
        and (tag is None or tag in tags)
    ]


def pictures(notebook: Any) -> Iterator[bytes]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode(output.data["image/png"])


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {
        "corpus",
        "first_steps",
        "langchain_retrieval",
        "llama_index_hybrid",
        "model_and_dimension",
    }


@every_notebook
def test_a_notebook_runs_on_the_emulator_and_prints_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    notebook = run(path, tmp_path)
    assert "emulator" in printed(notebook)[0]
    same = printed(notebook, "source") == printed(committed, "source")
    without = ("varies",) if same else ("varies", "source", "from-source")
    assert printed(notebook, without=without) == printed(committed, without=without)
    assert len(list(pictures(notebook))) == len(list(pictures(committed)))
    warned = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
    ]
    assert warned == []
    assert sorted(left.name for left in tmp_path.iterdir()) == sorted([path.name, "ipython", "kernels"])


@every_notebook
def test_with_a_key_a_notebook_asks_the_service_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-made-up-77d1")
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    names: dict[str, Any] = {}
    exec(first.source, names)  # noqa: S102 - our own notebook
    assert names["settings"] == {}
    said = capsys.readouterr().out
    assert "the service" in said
    assert "emulator" not in said
    assert "sk-made-up" not in said


@every_notebook
def test_every_class_that_a_notebook_makes_is_told_where_to_ask(path: Path) -> None:
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    makers = r"\b(?:EmbeddingClient|DashScopeEmbeddings|DashScopeEmbedding)\((?P<arguments>[^)]*)\)"
    made = [found["arguments"] for source in cells for found in re.finditer(makers, source)]
    assert made
    assert [arguments for arguments in made if "**settings" not in arguments] == []


@every_notebook
def test_a_notebook_is_valid_and_tells_nothing_of_the_machine_that_ran_it(path: Path) -> None:
    text = path.read_text("utf-8")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert all(cell.id for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    machine = (str(Path.home()), str(Path(__file__).resolve().parents[2]), tempfile.gettempdir())
    for trace in (*machine, "/home/", "/Users/", "C:\\\\", "site-packages", "ipykernel_"):
        assert trace not in text


@every_notebook
def test_a_notebook_begins_with_a_title_and_then_says_in_a_line_where_it_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "DASHSCOPE_API_KEY" in first.source
    assert printed(notebook)[0].count("\n") == 1
    assert "emulator" in printed(notebook)[0]


@every_notebook
def test_a_notebook_was_run_in_order_and_without_an_error(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    assert "stderr" not in {output.get("name") for cell in cells for output in cell.outputs}


@every_notebook
def test_a_notebook_is_small_and_keeps_no_bars(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    sizes = [len(picture) for picture in pictures(notebook)]
    assert 0 < max(sizes) < LARGEST_PICTURE
    assert path.stat().st_size < LARGEST_NOTEBOOK
    assert WIDGET not in path.read_text("utf-8")


def rewrite(path: Path) -> None:
    """Runs a notebook, and writes it with its new outputs: without bars, or anything of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(path, Path(folder))
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    # python tests/system/test_notebooks.py [NAME ...]: after a change that notebooks show. Look at the difference.
    for wanted in NOTEBOOKS:
        if wanted.stem in sys.argv[1:] or not sys.argv[1:]:
            rewrite(wanted)
