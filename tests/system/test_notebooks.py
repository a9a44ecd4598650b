"""Every notebook runs from top to bottom without a key, and prints what is committed with it."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("ipywidgets")
pytest.importorskip("matplotlib")
pytest.importorskip("langchain_classic")
pytest.importorskip("llama_index.vector_stores.qdrant")

from fontTools.fontBuilder import FontBuilder  # type: ignore[import-untyped] # it has no types
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped] # same

nbformat = pytest.importorskip("nbformat")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FAILING = "errors_and_resume"
"""This one needs a service that fails on demand: the emulator, also with a key."""
MOST_LINES, MOST_LINES_OF_PROSE = 19, 6
LARGEST_PICTURE = 60_000
LARGEST_NOTEBOOK = 120_000
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


# --- running -----------------------------------------------------------------------------------------------

# In a process of its own, because Jupyter's client leaves sockets to the garbage collector, which warns.
RUNNER = """
import sys, nbclient, nbformat
path = sys.argv[1]
notebook = nbformat.read(path, as_version=4)
nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, record_timing=False).execute()
nbformat.write(notebook, path)
"""

# Matplotlib finds the fonts of this list, which it keeps in its configuration folder, and looks for no others.
LIST_OF_FONTS = """
import pathlib, sys, matplotlib
from matplotlib import font_manager
manager = font_manager.fontManager
if sys.argv[1] == "own":
    manager.ttflist = [font for font in manager.ttflist if font.name.startswith("DejaVu")]
for path in sys.argv[2:]:
    manager.addfont(path)
[file] = pathlib.Path(matplotlib.get_cachedir()).glob("fontlist*.json")
font_manager.json_dump(manager, file)
"""


def clean_environment(**more: str) -> dict[str, str]:
    """Without a key, an address, a user's settings, or the test run's rule that warnings are errors."""
    foreign = ("DASHSCOPE_", "IPYTHON", "JUPYTER_", "MPL", "PYTHONWARNINGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | more


def list_fonts(folder: Path, which: str, *added: Path) -> Path:
    """A configuration folder of matplotlib: with its "own" fonts or "all" of this machine, and those that are added."""
    command = [sys.executable, "-c", LIST_OF_FONTS, which, *map(str, added)]
    subprocess.run(command, env=clean_environment(MPLCONFIGDIR=str(folder)), check=True)  # noqa: S603 - our own script
    return folder


def write_chinese_font(path: Path) -> Path:
    """A font whose only glyph, a box, stands for all Chinese characters and punctuation in notebooks."""
    characters = {character for notebook in NOTEBOOKS for character in notebook.read_text("utf-8")}
    pen = TTGlyphPen(None)
    for draw, corner in ((pen.moveTo, (100, 0)), (pen.lineTo, (100, 800)), (pen.lineTo, (900, 800))):
        draw(corner)
    pen.closePath()
    font = FontBuilder(1_000, isTTF=True)
    font.setupGlyphOrder([".notdef", "box"])
    font.setupCharacterMap({ord(character): "box" for character in characters if character >= "\u2e80"})
    font.setupGlyf({name: pen.glyph() for name in (".notdef", "box")})
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "box"), (1_000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Noto Sans CJK SC", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture(scope="session")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes matplotlib's configuration: with a Chinese font, or without one."""

    @cache
    def configuration(*, has_font: bool) -> Path:
        folder = tmp_path_factory.mktemp("fonts")
        return list_fonts(folder, "own", *([write_chinese_font(folder / "chinese.ttf")] if has_font else []))

    return configuration


def run(path: Path, folder: Path, fonts: Path) -> Any:
    """The notebook after running in a fresh kernel of this interpreter, whatever kernels are installed."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(spec), "utf-8")
    env = clean_environment(
        JUPYTER_PATH=str(folder),
        IPYTHONDIR=str(folder / "ipython"),
        MPLCONFIGDIR=str(fonts),
        # Whether it is installed or not: the package under test is this one.
        PYTHONPATH=os.pathsep.join([str(path.parents[1]), *filter(None, sys.path)]),
    )
    copy = Path(shutil.copy(path, folder))
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", RUNNER, copy.name],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return nbformat.read(copy, as_version=4)


def printed(notebook: Any, tag: str | None = None, *, without: tuple[str, ...] = ("varies",)) -> list[str]:
    """What each code cell printed or showed as text: all cells, or those with a tag; progress bars left out.

    Cells tagged `varies` depend on what is installed. What follows from Python's own help, which changes from release
    to release, is tagged `from-source`, and the cell that says which help it is `source`. `zvec` needs it.
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


def font_cell(notebook: Any) -> Any:
    """The cell that looks for a Chinese font; None: the notebook needs none."""
    return next((cell for cell in notebook.cells if cell.id == "font"), None)


def pictures(notebook: Any) -> Iterator[bytes]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode(output.data["image/png"])


# --- tests -------------------------------------------------------------------------------------------------


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "corpus",
        FAILING,
        "first_steps",
        "hybrid_search",
        "llama_index_ingestion",
        "model_and_dimension",
    }


@every_notebook
def test_a_notebook_runs_on_the_emulator_and_prints_what_is_committed(
    path: Path, tmp_path: Path, fonts: Callable[..., Path]
) -> None:
    has_font = path.stem == "hybrid_search"  # the other notebook with Chinese labels runs without a font
    committed = nbformat.read(path, as_version=4)
    notebook = run(path, tmp_path, fonts(has_font=has_font))
    assert "emulator" in printed(notebook)[0]
    without: tuple[str, ...] = ("varies",) if importlib.util.find_spec("zvec") else ("varies", "zvec")
    if printed(notebook, "source") != printed(committed, "source"):
        without += ("source", "from-source")
    assert printed(notebook, without=without) == printed(committed, without=without)
    assert len(list(pictures(notebook))) == len(list(pictures(committed)))
    warned = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
    ]
    assert warned == []
    if (cell := font_cell(notebook)) is not None:
        sentence = "Chinese labels in Noto Sans CJK SC\n" if has_font else "No Chinese font is installed"
        assert cell.outputs[0].text.startswith(sentence)
    assert sorted(left.name for left in tmp_path.iterdir()) == sorted([path.name, "ipython", "kernels"])


def test_both_notebooks_with_chinese_labels_look_for_a_font_in_the_same_way() -> None:
    cells = {path.stem: font_cell(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    first, second = (cells.pop(name) for name in ("first_steps", "hybrid_search"))
    assert first.source == second.source
    assert set(cells.values()) == {None}


@every_notebook
def test_with_a_key_a_notebook_asks_the_service_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-made-up-77d1")
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    names: dict[str, Any] = {}
    exec(first.source, names)  # noqa: S102 - our own notebook
    said = capsys.readouterr().out
    if path.stem == FAILING:
        assert set(names["settings"]) == {"http_client"}
        assert "the emulator, with or without a key" in said
    else:
        assert names["settings"] == {}
        assert "the service" in said
        assert "emulator" not in said
    assert "sk-made-up" not in said


@every_notebook
def test_every_class_that_a_notebook_makes_is_given_the_settings(path: Path) -> None:
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    makers = r"\b(?:EmbeddingClient|DashScopeEmbeddings|DashScopeEmbedding)\((?P<arguments>[^)]*)\)"
    made = [found["arguments"] for source in cells for found in re.finditer(makers, source)]
    assert made
    assert [arguments for arguments in made if "**settings" not in arguments] == []


@every_notebook
def test_a_notebook_is_valid_was_run_in_order_and_tells_nothing_of_the_machine_that_ran_it(path: Path) -> None:
    text = path.read_text("utf-8")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert all(cell.id for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    machine = (str(Path.home()), str(Path(__file__).resolve().parents[2]), tempfile.gettempdir())
    for trace in (*machine, "/home/", "/Users/", "C:\\\\", "site-packages", "ipykernel_", WIDGET):
        assert trace not in text
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    assert "stderr" not in {output.get("name") for cell in cells for output in cell.outputs}
    assert max((len(picture) for picture in pictures(notebook)), default=0) < LARGEST_PICTURE
    assert path.stat().st_size < LARGEST_NOTEBOOK


@every_notebook
def test_a_notebook_begins_with_what_to_install_says_where_it_runs_and_has_short_cells(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    title, *cells = notebook.cells
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    for words in ("You learn ", 'pip install ".[notebooks]"', "DASHSCOPE_API_KEY"):
        assert words in title.source
    assert len(title.source.splitlines()) <= MOST_LINES
    assert printed(notebook)[0].count("\n") == 1
    assert "emulator" in printed(notebook)[0]
    most = {"code": MOST_LINES, "markdown": MOST_LINES_OF_PROSE}
    assert [cell.id for cell in cells if len(cell.source.splitlines()) > most[cell.cell_type]] == []


def rewrite(path: Path) -> None:
    """Runs a notebook, and writes it with its new outputs: without bars, or anything of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(path, Path(folder), list_fonts(Path(folder, "fonts"), "all"))
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
