"""Every notebook runs from top to bottom without a key, and prints what is committed with it."""

from __future__ import annotations

import base64
import json
import os
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
pytest.importorskip("matplotlib")

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LARGEST_PICTURE = 60_000

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


def printed(notebook: Any) -> list[str]:
    """What each code cell printed or showed as text, without cells that say that theirs varies."""
    return [
        "".join(
            output.get("text", "") if output.output_type == "stream" else output.data.get("text/plain", "")
            for output in cell.outputs
            if output.output_type != "stream" or output.name == "stdout"
        )
        for cell in notebook.cells
        if cell.cell_type == "code" and "varies" not in cell.metadata.get("tags", [])
    ]


def pictures(notebook: Any) -> Iterator[bytes]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode(output.data["image/png"])


def test_there_are_notebooks() -> None:
    assert "first_steps" in [path.stem for path in NOTEBOOKS]


@every_notebook
def test_a_notebook_runs_on_the_emulator_and_prints_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    notebook = run(path, tmp_path)
    assert "emulator" in printed(notebook)[0]
    assert printed(notebook) == printed(committed)
    assert len(list(pictures(notebook))) == len(list(pictures(committed)))


@every_notebook
def test_a_notebook_is_valid_and_tells_nothing_of_the_machine_that_ran_it(path: Path) -> None:
    text = path.read_text("utf-8")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell.id for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    machine = (str(Path.home()), str(Path(__file__).resolve().parent.parent), tempfile.gettempdir())
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
def test_a_notebooks_pictures_are_small(path: Path) -> None:
    sizes = [len(picture) for picture in pictures(nbformat.read(path, as_version=4))]
    assert max(sizes, default=0) < LARGEST_PICTURE
