"""Which field is the text and which the id: ids that stay, nested fields, tables of any separator, arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import client_for
from corpus_helpers import (
    DIMENSIONS,
    ENDINGS,
    read_rejects,
    read_vectors,
    write_json_lines,
    write_lines,
    write_rows,
)

from dashscope_embeddings import InvalidInput, corpus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings.emulator import Emulator


def embed(emulator: Emulator, inputs: Any, output: str = "out.jsonl", **how: Any) -> list[tuple[Any, str | None]]:
    """Id and text of each row of the output."""
    protocol = "openai" if how.pop("batch", False) else "native"
    run: Any = corpus.batch_run if protocol == "openai" else corpus.embed_corpus
    client = client_for(emulator, dimensions=DIMENSIONS, protocol=protocol)
    run(inputs, output, client=client, **{"with_text": True, **how})
    return [(row.id, row.text) for row in read_vectors(Path(output))]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", "dashscope_embeddings.corpus"):
        yield


# --- ids ---------------------------------------------------------------------------------------------------


def test_a_column_without_a_name_is_told(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    Path("in.csv").write_text(",text, \n0,a,x\n1,b,y\n", "utf-8")  # pandas writes its index so
    assert embed(emulator, "in.csv") == [(0, "a"), (1, "b")]
    assert "in.csv:1: columns without a name are not read: 1, 3" in caplog.messages


ROWS = [{"id": 7, "text": "a", "key": "k7"}, {"id": 9, "text": "b", "key": "k9"}]
FILES = ["in.jsonl", "in.json", "in.csv", "in.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_a_field_named_id_is_the_id_unless_another_is_named_or_none(
    name: str, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(Path(name), ROWS)
    kind = str if name.endswith(".csv") else int
    assert [row[0] for row in embed(emulator, name)] == [kind(7), kind(9)]
    assert 'ids are taken from the field "id"; to take positions, switch it off (id_field=None, --id-field "")' in (
        caplog.messages
    )
    caplog.clear()
    for none in (None, ""):
        assert [row[0] for row in embed(emulator, name, id_field=none)] == [0, 1]
    assert [row[0] for row in embed(emulator, name, id_field="key")] == ["k7", "k9"]
    assert not [message for message in caplog.messages if message.startswith("ids")]
    assert [row[0] for row in embed(emulator, name, text_field="key", id_field="text")] == ["a", "b"]
    assert emulator.billed_texts == 4, "ids cost nothing"


def test_the_text_is_not_its_own_id(emulator: Emulator) -> None:
    write_json_lines(Path("in.jsonl"), [{"id": "a"}, {"id": "a"}])
    assert embed(emulator, "in.jsonl", text_field="id") == [(0, "a"), (1, "a")]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}],
            r"jsonl:2: has the id 1, which in\.jsonl:1 has already: correct one of them; or",
        ),
        ([{"id": 1.5, "text": "a"}], r"jsonl:1: its id must be a string .* not float"),
        ([{"id": " ", "text": "a"}], r"jsonl:1: its id is blank"),
        ([{"id": 1, "text": "a"}, {"text": "b"}], r"jsonl:1 has an id, and in\.jsonl:2 has none"),
        ([{"id": 1, "text": "a"}, {"id": None, "text": "b"}], r"jsonl:1 has an id, and in\.jsonl:2 has none"),
    ],
)
def test_ids_that_were_found_and_cannot_be_used_are_refused_with_the_way_out(
    rows: list[dict[str, Any]], problem: str, tmp_path: Path, emulator: Emulator
) -> None:
    write_json_lines(Path("in.jsonl"), rows)
    with pytest.raises(InvalidInput, match=rf'{problem}.*take positions as ids \(id_field=None, --id-field ""\)'):
        embed(emulator, "in.jsonl")
    assert os.listdir(tmp_path) == ["in.jsonl"], "no empty checkpoint"  # noqa: PTH208 - names are enough
    assert [row[0] for row in embed(emulator, "in.jsonl", id_field=None)] == list(range(len(rows)))


@pytest.mark.parametrize("route", ["real-time", "batch"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_added_to_a_folder_shifts_no_id(
    ending: str, route: str, tmp_path: Path, emulator: Emulator
) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    write_lines(docs / "sub" / "c.txt", ["three"])
    before = {"docs/b.txt:1": "one", "docs/b.txt:3": "two", "docs/sub/c.txt:1": "three"}
    output, how = f"out{ending}", {"batch": route == "batch"}
    assert dict(embed(emulator, "docs", output, **how)) == before
    write_lines(docs / "a.txt", ["zero"])
    write_json_lines(docs / "d.jsonl", [{"text": "a position, from here on"}])
    after = {"docs/a.txt:1": "zero", **before, "3": "a position, from here on"}
    for spelled in ("docs", "./docs/", docs, "docs/../docs", "docs/**/*.[tj]*[tl]"):
        assert dict(embed(emulator, spelled, output, **how)) == after
    assert emulator.billed_texts == 5


def test_files_that_are_named_and_folders_without_ids_have_positions(emulator: Emulator) -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
        write_lines(Path(folder, "a.txt"), [folder])
    assert embed(emulator, ["one/a.txt", "two/a.txt"]) == [(0, "one"), (1, "two")]
    assert embed(emulator, ["one", "two"], id_field=None) == [(0, "one"), (1, "two")]
    assert embed(emulator, ["one", "two"]) == [("one/a.txt:1", "one"), ("two/a.txt:1", "two")]


@pytest.mark.parametrize("route", ["real-time", "batch"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_source_of_each_text_is_written_on_request(ending: str, route: str, emulator: Emulator) -> None:
    Path("docs").mkdir()
    write_lines(Path("docs/a.txt"), ["a"])
    write_json_lines(Path("b.jsonl"), [{"text": "b"}])
    output, batch = Path(f"out{ending}"), route == "batch"
    embed(emulator, ["docs", "b.jsonl"], str(output), with_source=True, batch=batch)
    assert [(row.source, row.text) for row in read_vectors(output)] == [("docs/a.txt", "a"), ("b.jsonl", "b")]
    embed(emulator, ["docs", "b.jsonl"], str(output), batch=batch)
    assert {row.source for row in read_vectors(output)} == {None}
    assert emulator.billed_texts == 2


# --- nested fields -----------------------------------------------------------------------------------------

NESTED = [
    ({"data": {"text": "deep", "id": "k"}}, "data.text", "data.id", ("k", "deep")),
    ({"data.text": "dotted", "data": {"text": "deep", "id": "k"}}, "data.text", "data.id", ("k", "dotted")),
    ({"a": {"b": {"c": "three"}}, "id": 1}, "a.b.c", "auto", (1, "three")),
    ({"a.b": {"c": "two"}, "a": {"x": "y"}}, "a.b.c", None, (0, "two")),
    ({"a": {"b.c": "inner dots"}}, "a.b.c", None, (0, "inner dots")),
]


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.parquet"])
@pytest.mark.parametrize("case", NESTED, ids=[str(case[0]) for case in NESTED])
def test_a_path_reads_a_nested_field_and_a_name_with_dots_goes_first(name: str, case: Any, emulator: Emulator) -> None:
    row, text_field, id_field, expected = case
    write_rows(Path(name), [row])
    assert embed(emulator, name, text_field=text_field, id_field=id_field) == [expected]


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_an_object_that_is_missing_is_one_bad_record(name: str, emulator: Emulator) -> None:
    rows: list[dict[str, Any]] = [{"data": {"text": "a"}}, {"data": None}, {"data": {"text": None}}]
    write_rows(Path(name), rows)
    assert embed(emulator, name, text_field="data.text", on_bad_input="skip") == [(0, "a")]
    assert [row["id"] for row in read_rejects(Path("out.jsonl"))] == [1, 2]
    with pytest.raises(InvalidInput, match=r"has no field 'text'; it has 'data': .*--text-field\), such as data\.text"):
        embed(emulator, name)


def test_positions_of_rejected_records_are_strings_if_the_ids_of_the_output_are(emulator: Emulator) -> None:
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("a\n", "utf-8")
    write_json_lines(Path("in.jsonl"), [{"text": "b"}, {"text": None}, {"text": "d"}])
    found = embed(emulator, ["notes", "in.jsonl"], on_bad_input="skip")
    assert found == [("notes/a.txt:1", "a"), ("1", "b"), ("3", "d")]
    assert [row["id"] for row in read_rejects(Path("out.jsonl"))] == ["2"]


def test_a_record_that_cannot_be_read_gets_no_id_of_another(emulator: Emulator) -> None:
    Path("in.csv").write_text('id,text\n10,ok\n11,"bad" quote\n0,zero\n1,one\n12,x,y\n', "utf-8")
    assert embed(emulator, "in.csv", on_bad_input="skip") == [("10", "ok"), ("0", "zero"), ("1", "one")]
    rejects = read_rejects(Path("out.jsonl"))
    assert [(row["id"], row["place"]) for row in rejects] == [(None, "in.csv:3"), (None, "in.csv:6")]


def test_a_nested_field_that_is_missing_is_answered_with_those_beside_it(emulator: Emulator) -> None:
    write_json_lines(Path("in.jsonl"), [{"n": 1, "data": {"text": "a", "lang": "en"}}])
    with pytest.raises(
        InvalidInput, match=r"has no field 'data\.txt'; it has 'data\.text', 'data\.lang': name the one"
    ):
        embed(emulator, "in.jsonl", text_field="data.txt")


def test_a_nested_key_that_stands_twice_is_refused(emulator: Emulator) -> None:
    write_lines(Path("in.jsonl"), ['{"data": {"text": "a", "text": "b"}}'])
    with pytest.raises(InvalidInput, match=r"in\.jsonl:1: has more than one field 'text'"):
        embed(emulator, "in.jsonl", text_field="data.text")


# --- tables and arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "how", "texts"),
    [
        ("in.csv", 'text;n\n"a;b";1\nc;2\n', {"delimiter": ";"}, ["a;b", "c"]),
        ("in.csv", "n\ttext\n1\ta,b\n", {"delimiter": r"\t"}, ["a,b"]),
        ("in.tsv", "n|text\r\n1|a\tb\r\n", {"delimiter": "|"}, ["a\tb"]),
        ("in.tsv", 'n\ttext\n1\t"open\n2\t5" wide\n', {"quoting": "none"}, ['"open', '5" wide']),
        ("in.csv", 'n,text\n1,"quoted"\n', {"quoting": "none"}, ['"quoted"']),
    ],
)
def test_tables_are_read_as_their_programs_write_them(
    name: str, content: str, how: dict[str, Any], texts: list[str], emulator: Emulator
) -> None:
    Path(name).write_bytes(content.encode())
    assert [text for _, text in embed(emulator, name, **how)] == texts


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({"delimiter": ";;"}, "delimiter=';;': expected one character"),
        ({"delimiter": '"'}, "expected one character"),
        ({"delimiter": ""}, "expected one character"),
        ({"quoting": "all"}, 'quoting=\'all\': expected "standard" or "none"'),
    ],
)
def test_options_of_tables_are_checked_before_anything_is_read(how: Any, problem: str, emulator: Emulator) -> None:
    with pytest.raises(InvalidInput, match=problem):
        embed(emulator, "nowhere.csv", **how)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("in.json", b'{"data": [{"text": "a"}]}', "is not a JSON array of objects"),
        ("in.json", b'{"text": "a"}\n{"text": "b"}\n', r"the format jsonl \(format, --format jsonl\)"),
        (
            "in.json",
            b'[{"text": "a"},\n {"text',
            "^in.json:2: is no JSON: Unterminated string starting at at character 3;",
        ),
        ("in.json", b"[" * 100_000, "^in.json:1: is nested too deeply: "),
        ("in.json", b'[{"text": "\xc4\xe3\xba\xc3\xca\xc0\xbd\xe7"}]', "not utf-8, likely gb18030"),
        ("in.md", b"# Title\n", r"in\.md is prose: cut it into passages.*--format txt"),
        ("in.jsonl.gz", b"\x1f\x8b", r"is compressed: .*gzip -dc"),
    ],
)
@pytest.mark.parametrize("on_bad_input", ["fail", "skip"])
def test_what_is_no_list_of_texts_is_refused_with_what_helps(
    name: str, content: bytes, problem: str, on_bad_input: str, emulator: Emulator
) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(InvalidInput, match=problem):
        embed(emulator, name, on_bad_input=on_bad_input)
    assert emulator.requests == 0


def test_elements_that_are_no_objects_are_bad_records(emulator: Emulator) -> None:
    Path("in.json").write_text('[{"text": "a"}, "b", {"text": "c"}]', "utf-8")
    with pytest.raises(InvalidInput, match=r"in\.json:2: is a JSON str, not an object"):
        embed(emulator, "in.json")
    assert embed(emulator, "in.json", on_bad_input="skip") == [(0, "a"), (2, "c")]


def test_a_folder_leaves_out_json_and_prose_and_says_so(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    Path("docs").mkdir()
    write_lines(Path("docs/a.txt"), ["a"])
    for name in ("package.json", "notes.md"):
        Path("docs", name).write_text("{}", "utf-8")
    assert len(embed(emulator, "docs")) == 1
    notice = "not read from a folder, name them to read them (prose as lines, --format txt):"
    assert f"{notice} {Path('docs/notes.md')}, {Path('docs/package.json')}" in caplog.messages
    caplog.clear()
    Path("docs/package.json").write_text('[{"text": "b"}]', "utf-8")
    assert [text for _, text in embed(emulator, ["docs", "./docs/package.json"])] == ["a", "b"]
    assert f"{notice} {Path('docs/notes.md')}" in caplog.messages
