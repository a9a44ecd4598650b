"""Every format that a corpus is read from and written to, and what is said about bad input."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest
from client_helpers import client_for
from corpus_helpers import (
    DIMENSIONS,
    ENDINGS,
    MODEL,
    as_float32,
    expected_vector,
    read_rejects,
    read_vectors,
    write_json_lines,
    write_lines,
)

from dashscope_embeddings import InvalidInput, corpus
from dashscope_embeddings.corpus import options, readers, sources, writers
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable


TEXTS = ["风急天高猿啸哀", "one, two", 'say "hello"', "tab\tand more", "渚清沙白鸟飞回 🐦"]


def embed(emulator: Emulator, inputs: Any, output: Path, **how: Any) -> corpus.Summary:
    return corpus.embed_corpus(inputs, output, client=client_for(emulator, dimensions=DIMENSIONS), **how)


# --- in ----------------------------------------------------------------------------------------------------


def test_a_text_file_has_a_text_a_line_and_its_positions_are_ids(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "in.txt").write_bytes("\ufeffone\r\ntwo \x0b\u2028three\rfour\nfive".encode())
    embed(emulator, tmp_path / "in.txt", tmp_path / "out.jsonl", with_text=True)
    assert [(r.id, r.text) for r in read_vectors(tmp_path / "out.jsonl")] == [
        (0, "one"),
        (1, "two \x0b\u2028three\rfour"),
        (2, "five"),
    ]


def test_folders_globs_and_files_are_read_in_order_without_our_own_outputs(tmp_path: Path, emulator: Emulator) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    write_lines(folder / "b.txt", ["b"])
    write_lines(folder / "deep" / "c.txt", ["c"])
    write_lines(folder / "a.txt", ["a"])
    write_lines(folder / "notes.md", ["not read"])
    write_lines(tmp_path / "z.txt", ["z"])
    output = folder / "out.jsonl"
    asked = [tmp_path / "z.txt", folder, str(folder / "**" / "[bc].txt")]
    for _ in range(2):
        embed(emulator, asked, output, with_text=True)
        assert [row.text for row in read_vectors(output)] == ["z", "a", "b", "c"]
        assert [row.id for row in read_vectors(output)] == ["0", "docs/a.txt:1", "docs/b.txt:1", "docs/deep/c.txt:1"]
    assert emulator.billed_texts == 4


def test_standard_input_is_read_once_its_format_is_named(
    tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(InvalidInput, match="needs a format"):
        embed(emulator, "-", output)
    raw = io.BytesIO('{"text": "远"}\n{"text": "b"}\n'.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="ascii"))
    embed(emulator, "-", output, format="jsonl", with_text=True)
    assert [row.text for row in read_vectors(output)] == ["远", "b"]
    assert not raw.closed


def test_another_encoding_is_read_where_it_is_named(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "in.csv").write_bytes("id,text\n甲,风急\n".encode("gb18030"))
    output = tmp_path / "out.jsonl"
    with pytest.raises(InvalidInput, match=r"in\.csv:1: "):
        embed(emulator, tmp_path / "in.csv", output, id_field="甲")
    embed(emulator, tmp_path / "in.csv", output, id_field="id", encoding="GB18030", with_text=True)
    assert [(row.id, row.text) for row in read_vectors(output)] == [("甲", "风急")]
    with pytest.raises(InvalidInput, match="no such encoding"):
        embed(emulator, tmp_path / "in.csv", output, encoding="utf-9")


def test_whole_numbers_stay_numbers_unless_one_id_is_none(tmp_path: Path, emulator: Emulator) -> None:
    numbers = write_json_lines(tmp_path / "n.jsonl", [{"id": 7, "text": "a"}, {"id": -3, "text": "b"}])
    mixed = write_json_lines(tmp_path / "m.jsonl", [{"id": 7, "text": "a"}, {"id": "x", "text": "b"}])
    same = write_json_lines(tmp_path / "s.jsonl", [{"id": 7, "text": "a"}, {"id": "7", "text": "b"}])
    output = tmp_path / "out.jsonl"
    embed(emulator, numbers, output, id_field="id")
    assert [row.id for row in read_vectors(output)] == [7, -3]
    embed(emulator, mixed, output, id_field="id")
    assert [row.id for row in read_vectors(output)] == ["7", "x"]
    with pytest.raises(InvalidInput, match=r"s\.jsonl:2: has the id '7', which .*s\.jsonl:1 has already"):
        embed(emulator, same, output, id_field="id")


def test_reading_holds_no_more_than_a_few_records(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", (json.dumps({"text": f"text {n}"}) for n in range(3)))
    found = readers.read_records(sources.Source(str(path), "jsonl"), options.InputOptions())
    assert next(found).text == "text 0"
    assert next(found).place == f"{path}:2"


# --- bad input ---------------------------------------------------------------------------------------------

BAD = [
    ("in.txt", b"good\n\xff\xfe\n", 2, "holds bytes that are not utf-8", {}),
    ("in.jsonl", b'{"text": "good"}\n{"text": \n', 2, "is no JSON: Expecting value at character 10", {}),
    ("in.jsonl", b'{"text": "good"}\n' + b'{"text":' + b"[" * 200_000 + b"\n", 2, "is nested too deeply: ", {}),
    ("in.jsonl", b'{"text": "good"}\n{"text": " "}\n', 2, "empty or blank", {}),
    ("in.jsonl", b'{"text": "good"}\n["text"]\n', 2, "is a JSON array: write one object per line", {}),
    ("in.jsonl", b'{"text": "good"}\n"text"\n', 2, "a JSON str, not an object", {}),
    ("in.jsonl", b'{"text": "good"}\n{"body": "x"}\n', 2, "no field 'text'; it has 'body'", {}),
    ("in.jsonl", b'{"text": "good"}\n{"text": null}\n', 2, "nothing in the field 'text'", {}),
    ("in.jsonl", b'{"text": "good"}\n{"text": 5}\n', 2, "is int, not a string", {}),
    ("in.jsonl", b'{"text": "good"}\n{"text": "\\ud800"}\n', 2, "lone surrogate", {}),
    ("in.jsonl", b'{"text": "good"}\n{"text": "b\xff"}\n', 2, "holds bytes that are not utf-8", {}),
    ("in.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n', 2, "in.jsonl:1 has already", {"id_field": "id"}),
    ("in.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": 1.5}\n', 2, "not float", {"id_field": "id"}),
    ("in.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": null}\n', 2, "not nothing", {"id_field": "id"}),
    ("in.jsonl", b'{"text": "a", "id": 1}\n{"text": "b"}\n', 2, "no field 'id'", {"id_field": "id"}),
    ("in.csv", b'text,n\n"two\nlines",1\nshort\n', 4, "has 1 fields, and the header 2", {}),
    ("in.csv", b"text,n\ngood,1\n,2\n", 3, "empty or blank", {}),
    ("in.csv", b"text,n\ngood,1\nb\xffd,2\n", 3, "holds bytes that are not utf-8", {}),
]


@pytest.mark.parametrize("bad", BAD, ids=[f"{name}: {said}" for name, _, _, said, _ in BAD])
def test_bad_input_is_named_by_file_and_line_before_anything_is_spent(
    bad: tuple[str, bytes, int, str, dict[str, Any]], tmp_path: Path, emulator: Emulator
) -> None:
    name, content, line, said, how = bad
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "out.jsonl"
    with pytest.raises(InvalidInput) as caught:
        embed(emulator, tmp_path / name, output, **how)
    assert f"{tmp_path / name}:{line}: " in str(caught.value)
    assert said in str(caught.value)
    assert emulator.requests == 0
    assert not output.exists()

    summary = embed(emulator, tmp_path / name, output, on_bad_input="skip", **how)
    assert (summary.texts + summary.skipped, summary.skipped) == (len(read_vectors(output)) + 1, 1)
    (reject,) = read_rejects(output)
    assert (reject["place"], reject["code"]) == (f"{tmp_path / name}:{line}", None)
    assert said in reject["reason"]


def test_many_bad_records_are_named_up_to_some(tmp_path: Path, emulator: Emulator) -> None:
    with pytest.raises(InvalidInput, match=r"in\.jsonl:1: .*\(and at least 19 more\); nothing was sent") as caught:
        embed(emulator, write_json_lines(tmp_path / "in.jsonl", [{"text": ""}] * 50), tmp_path / "out.jsonl")
    assert caught.value.failed == list(range(20))


@pytest.mark.parametrize(
    "wrong",
    [
        ("gone.txt", "out.jsonl", {}, "no such file to read: gone.txt (inputs are files, folders or globs; "),
        (["The cat sleeps."], "out.jsonl", {}, "read: The cat sleeps. (inputs are files, folders or globs; "),
        (["a text longer than a name " * 99], "out.jsonl", {}, "texts themselves go to client.embed)"),
        ("in.dat", "out.jsonl", {}, "says nothing about the format"),
        ("in.XLSX", "out.jsonl", {}, "is a spreadsheet: save it as CSV UTF-8"),
        ("in.pdf", "out.jsonl", {}, "is a formatted document: extract its passages"),
        ([], "out.jsonl", {}, "no input given"),
        ("", "out.jsonl", {}, "an input must be a path, not an empty string"),
        (["in.txt", ""], "out.jsonl", {}, "an input must be a path, not an empty string"),
        (None, "out.jsonl", {}, "an input must be a path, not NoneType"),
        (["in.txt", b"in.txt"], "out.jsonl", {}, "an input must be a path, not bytes"),
        ("in.txt", "", {}, "output must be a path, not an empty string"),
        ("in.txt", None, {}, "output must be a path, not NoneType"),
        ("empty", "out.jsonl", {}, "no file in empty ends in"),
        ("in.txt", "out.xlsx", {}, "its ending must be one of .parquet, .jsonl, .npy"),
        ("in.txt", "nowhere/out.npy", {}, "there is no folder nowhere"),
        ("in.txt", "out.npy", {"kind": "sparse"}, "holds only dense vectors"),
        ("in.txt", "out.jsonl", {"kind": "both"}, "kind='both'"),
        ("in.txt", "out.jsonl", {"text_type": "title"}, "text_type='title'"),
        ("in.txt", "out.jsonl", {"on_bad_input": "hope"}, "on_bad_input='hope'"),
        ("in.txt", "out.jsonl", {"format": "xml"}, "format='xml'"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_asked(
    wrong: tuple[Any, Any, dict[str, Any], str], tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, output, how, said = wrong
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.txt", ["a"])
    for name in ("in.dat", "in.XLSX", "in.pdf"):
        write_lines(tmp_path / name, ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput) as caught:
        embed(emulator, inputs, output, **how)
    assert said in str(caught.value)
    assert emulator.requests == 0
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_is_no_parquet_says_so(tmp_path: Path, emulator: Emulator) -> None:
    pytest.importorskip("pyarrow")
    write_lines(tmp_path / "in.parquet", ["not really"])
    with pytest.raises(InvalidInput, match=r"in\.parquet cannot be read"):
        embed(emulator, tmp_path / "in.parquet", tmp_path / "out.jsonl")


def test_parquet_without_pyarrow_names_the_extra_before_anything_is_spent(
    tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "dashscope-embeddings\[corpus\]"'):
        embed(emulator, write_lines(tmp_path / "in.txt", ["a"]), tmp_path / "out.parquet")
    assert emulator.requests == 0


# --- out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "sparse", "dense&sparse"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back(ending: str, kind: Any, tmp_path: Path, emulator: Emulator) -> None:
    if ending == ".npy" and kind != "dense":
        pytest.skip("refused, as another test says")
    texts = [f"{text} {number}" for number in range(30) for text in TEXTS]
    output = tmp_path / f"out{ending}"
    source = write_json_lines(tmp_path / "in.jsonl", ({"text": text, "id": f"n{n}"} for n, text in enumerate(texts)))
    embed(emulator, source, output, kind=kind, id_field="id", with_text=True, text_type="query")
    found = read_vectors(output)
    width = DIMENSIONS if "dense" in kind else None
    assert [(row.id, row.text) for row in found] == [(f"n{n}", text) for n, text in enumerate(texts)]
    assert {(row.model, row.dimension, row.role) for row in found} == {(MODEL, width, "query")}
    for row, text in zip(found, texts, strict=True):
        assert row.dense == (expected_vector(emulator, text, text_type="query") if "dense" in kind else None)
        if "sparse" not in kind:
            assert row.sparse is None
            continue
        weights = sorted((w.index, w.value) for w in emulator.sparse(text, model=MODEL, text_type="query"))
        assert row.sparse is not None
        assert row.sparse.indices == [index for index, _ in weights]
        assert row.sparse.values == as_float32(value for _, value in weights)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_corpus_whose_texts_are_all_refused_gives_an_empty_output(ending: str, tmp_path: Path) -> None:
    output = tmp_path / f"out{ending}"
    emulator = Emulator(faults=[faults.Blocked(match="refused")])
    assert embed(emulator, write_lines(tmp_path / "in.txt", ["refused"]), output).finished
    assert read_vectors(output) == []


@pytest.fixture
def parquet(tmp_path: Path, emulator: Emulator) -> Path:
    pytest.importorskip("pyarrow")
    output = tmp_path / "out.parquet"
    embed(emulator, write_lines(tmp_path / "in.txt", TEXTS), output, kind="dense&sparse")
    return output


def test_pyarrow_finds_fixed_size_lists(parquet: Path) -> None:
    schema = pytest.importorskip("pyarrow.parquet").read_schema(parquet)
    assert {name: str(schema.field(name).type).replace(" not null", "") for name in schema.names} == {
        "id": "int64",
        "embedding": f"fixed_size_list<element: float>[{DIMENSIONS}]",
        "sparse_indices": "list<element: uint32>",
        "sparse_values": "list<element: float>",
        "model": "string",
        "dimension": "int32",
        "role": "string",
    }


def test_writing_it_does_not_load_pandas(tmp_path: Path) -> None:
    """It takes a second and 60 MB, and most functions of pyarrow that make an array load it."""
    pytest.importorskip("pyarrow")
    write_lines(tmp_path / "in.txt", TEXTS)
    run = (
        "import sys; from dashscope_embeddings import EmbeddingClient, corpus; "
        "client = EmbeddingClient(base_url='emulator', dimensions=64); "
        "corpus.embed_corpus('in.txt', 'out.parquet', client=client, kind='dense&sparse', with_text=True); "
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "False"


def _pandas(path: Path) -> Any:
    return pytest.importorskip("pandas").read_parquet(path)["embedding"].to_list()


def _polars(path: Path) -> Any:
    return pytest.importorskip("polars").read_parquet(path)["embedding"].to_list()


def _duckdb(path: Path) -> Any:
    with pytest.importorskip("duckdb").connect() as database:
        rows = database.execute("SELECT embedding FROM read_parquet(?) ORDER BY id", [str(path)]).fetchall()
        return [row[0] for row in rows]


@pytest.mark.parametrize("read", [_pandas, _polars, _duckdb])
def test_other_programs_read_it_without_us(read: Callable[[Path], Any], parquet: Path, emulator: Emulator) -> None:
    assert [list(row) for row in read(parquet)] == [expected_vector(emulator, text) for text in TEXTS]


def test_numpy_loads_the_array_without_us(tmp_path: Path, emulator: Emulator) -> None:
    numpy = pytest.importorskip("numpy")
    embed(emulator, write_lines(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy")
    found = numpy.load(tmp_path / "out.npy", mmap_mode="r")
    assert (found.shape, str(found.dtype)) == ((5, DIMENSIONS), "float32")
    assert found[4].tolist() == expected_vector(emulator, TEXTS[4])
    del found


def test_an_array_without_its_ids_is_not_believed(tmp_path: Path, emulator: Emulator) -> None:
    output = tmp_path / "out.npy"
    embed(emulator, write_lines(tmp_path / "in.txt", TEXTS), output)
    writers.ids_path(output).unlink()
    with pytest.raises(InvalidInput, match="run the command that wrote it again"):
        read_vectors(output)
    embed(emulator, tmp_path / "in.txt", output)
    assert [row.id for row in read_vectors(output)] == [0, 1, 2, 3, 4]
    assert emulator.billed_texts == 5
    with pytest.raises(InvalidInput, match="must be one of"):
        read_vectors(tmp_path / "out.csv")


@pytest.mark.parametrize("cut", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_output_that_is_cut_off_gives_no_vector_of_half_a_row(
    ending: str, cut: float, tmp_path: Path, emulator: Emulator
) -> None:
    output = tmp_path / f"out{ending}"
    embed(emulator, write_lines(tmp_path / "in.txt", TEXTS), output)
    content = output.read_bytes()
    output.write_bytes(content[: int(len(content) * cut)] or b'{"a": 1}\n')
    with pytest.raises(InvalidInput, match=rf"out{ending} is damaged, or this package did not write it"):
        read_vectors(output)


# --- signatures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embed_corpus", "estimate_corpus", "batch_submit", "batch_run"])
def test_signatures_list_the_input_options_and_a_misspelt_one_is_answered(name: str) -> None:
    function = getattr(corpus, name)
    parameters = inspect.signature(function).parameters
    defaults = dataclasses.asdict(options.InputOptions())
    assert {option: parameters[option].default for option in defaults} == defaults
    assert get_type_hints(options.InputKeywords) == get_type_hints(options.InputOptions)
    assert "options" not in parameters
    with pytest.raises(TypeError, match=rf"{name}\(…\) has no argument text_feild: is text_field meant\?"):
        function("in.txt", "out.jsonl", client=None, text_feild="body")
