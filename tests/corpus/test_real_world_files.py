"""Files as people have them: encodings, stray quotes, blank lines, odd names, folders with earlier outputs in them."""

from __future__ import annotations

import bz2
import gzip
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import client_for
from corpus_helpers import DIMENSIONS, ENDINGS, read_rejects, read_vectors, write_json_lines, write_lines

from dashscope_embeddings import InvalidInput, corpus
from dashscope_embeddings.corpus.encodings import guess_encoding

if TYPE_CHECKING:
    from dashscope_embeddings.emulator import Emulator


def embed(emulator: Emulator, inputs: Any, output: str | Path, **how: Any) -> corpus.Summary:
    how = {"with_text": True, **how}
    return corpus.embed_corpus(inputs, output, client=client_for(emulator, dimensions=DIMENSIONS), **how)


def texts(output: str | Path) -> list[str | None]:
    return [row.text for row in read_vectors(Path(output))]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- a run never reads what a run wrote ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelled",
    [
        ("", "docs", "../docs", "out.jsonl"),
        ("link", ".", "link", "docs/out.jsonl"),
        ("link", ".", "docs", "link/out.jsonl"),
        ("", ".", "./docs/../docs/*.jsonl", "docs/out.jsonl"),
        ("docs/z.jsonl", ".", "docs", "docs/out.jsonl"),
    ],
)
def test_the_output_is_no_input_however_it_is_spelled(
    spelled: tuple[str, str, str, str], emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, folder, source, output = spelled
    Path("docs").mkdir()
    write_json_lines(Path("docs/a.jsonl"), [{"text": "one"}, {"text": "two"}])
    if link:
        Path(link).symlink_to("docs" if link == "link" else "out.jsonl")
    monkeypatch.chdir(folder)
    for _ in range(3):
        embed(emulator, source, output)
        assert texts(output) == ["one", "two"]
    assert emulator.billed_texts == 2


@pytest.mark.parametrize("ending", ENDINGS[::2])
@pytest.mark.parametrize("known_by", ["its checkpoint", "its columns"])
def test_outputs_of_other_runs_are_left_out_and_named(
    known_by: str, ending: str, tmp_path: Path, emulator: Emulator
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    write_json_lines(docs / "a.jsonl", [{"text": "one"}, {"text": ""}])
    old = docs / f"old{ending}"
    embed(emulator, docs, old, on_bad_input="skip", kind="dense&sparse")
    if known_by == "its columns":
        for beside in docs.glob(f"old{ending}.ledger*"):
            beside.unlink()
    write_json_lines(docs / "a.jsonl", [{"text": "one"}])
    with pytest.warns(UserWarning, match=rf"^not read, because this package wrote it: .*old{ending}") as told:
        embed(emulator, docs, "new.jsonl")
    assert len(told) == 1
    assert texts("new.jsonl") == ["one"]


def test_an_output_that_is_named_alone_is_read_for_its_texts(tmp_path: Path, emulator: Emulator) -> None:
    """Texts are embedded anew with another model from what an earlier run wrote."""
    embed(emulator, write_lines(tmp_path / "in.txt", ["one"]), "old.jsonl")
    embed(emulator, "old.jsonl", "new.jsonl", text_type="query")
    assert texts("new.jsonl") == ["one"]
    (tmp_path / "in.txt").unlink()
    with pytest.raises(
        InvalidInput, match=r"wrote all files that were found, such as .*new\.jsonl.*name the file itself"
    ):
        embed(emulator, tmp_path, tmp_path.parent / "elsewhere.jsonl")


def test_names_that_a_shell_found_may_hold_the_output(tmp_path: Path, emulator: Emulator) -> None:
    write_json_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    embed(emulator, ["a.jsonl"], "out.jsonl")
    with pytest.warns(UserWarning, match=r"not read, because this package wrote it: out\.jsonl"):
        embed(emulator, ["a.jsonl", "out.jsonl"], "out.jsonl")
    assert texts("out.jsonl") == ["one"]
    with pytest.raises(InvalidInput, match=r"out\.jsonl is the output"):
        embed(emulator, "out.jsonl", "out.jsonl")


def test_checkpoints_and_columns_of_others_are_not_mistaken_for_ours(tmp_path: Path, emulator: Emulator) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    write_lines(docs / "accounts.txt", ["one"])
    write_lines(docs / "accounts.ledger", ["2026-11-01 coffee"])
    write_json_lines(docs / "b.jsonl", [{"id": 1, "text": "two", "embedding": [0.5]}])
    embed(emulator, docs, "out.jsonl")
    assert texts("out.jsonl") == ["one", "two"]


def test_a_file_is_read_once_whatever_names_lead_to_it(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "docs").mkdir()
    source = write_lines(tmp_path / "docs" / "a.txt", ["one"])
    Path("soft.txt").symlink_to(source)
    os.link(source, "hard.txt")
    named = ["docs/a.txt", str(source), "docs", "docs/*.txt", "./docs/../docs/a.txt", "soft.txt", "hard.txt"]
    embed(emulator, named, "out.jsonl")
    assert texts("out.jsonl") == ["one"]


def test_what_systems_and_programs_leave_in_folders_is_not_read(tmp_path: Path, emulator: Emulator) -> None:
    docs = tmp_path / "docs"
    for name in (".ipynb_checkpoints", "__MACOSX", "deep"):
        (docs / name).mkdir(parents=True)
        write_lines(docs / name / "a.txt", [name])
    for name in (".hidden.txt", "~$b.txt", "__MACOSX/._c.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "z.txt"):
        write_lines(docs / name, [name])
    embed(emulator, docs, "out.jsonl", format="txt")
    assert texts("out.jsonl") == ["deep", "z.txt"]
    embed(emulator, "docs/**/*.txt", "glob.jsonl")
    assert texts("glob.jsonl") == ["deep", "z.txt"]
    embed(emulator, docs / ".ipynb_checkpoints", "named.jsonl")
    assert texts("named.jsonl") == [".ipynb_checkpoints"]


# --- whole files are never lost as one record ----------------------------------------------------------------

GBK = "编号,内容\r\n1,你好世界这是中文\r\n2,第二行内容\r\n"
WHOLE = [
    ("in.csv", b"id,body\n1,a\n2,b\n", r":1: has no field 'text'; it has 'id', 'body': .*--text-field"),
    ("in.csv", "id,内容😀\n1,a\n".encode(), r":1: has no field 'text'; it has 'id', '内容😀': .*--text-field"),
    (
        "in.csv",
        b"id;text\n1;a\n2;b\n",
        r":1: has semicolons between its fields: set the delimiter \(delimiter, --delimiter \";\"\)",
    ),
    (
        "in.csv",
        b"id;body\n1;a\n2;b\n",
        r":1: has no field 'text'; it has 'id;body': .*\. If semicolons are between its fields, .*--delimiter \";\"",
    ),
    ("in.csv", b"id\ttext\n1\ta\n", r":1: has tabs between its fields: set the delimiter .*--delimiter \"\\t\""),
    ("in.csv", b"id,text,text\n1,a,b\n", r":1: has more than one field 'text': rename or remove"),
    (
        "in.csv",
        b'id,text\n1,"never closed\n2,b\n',
        r":2: a quote that is opened here is never closed: .*written twice.*--quoting none\)",
    ),
    ("in.tsv", b'id\ttext\n1\t"abc\n2\tdef\n3\tghi" x\n4\tok\n', r":2: is no TSV: .*lines up to 4 .*written twice"),
    ("in.csv", GBK.encode("gbk"), r":1: holds bytes that are not utf-8, likely gb18030: .*--encoding gb18030"),
    ("in.txt", "你好\n世界\n".encode("gbk"), r":1: holds bytes that are not utf-8.*gb18030"),
    ("in.txt", "hello\nworld\n".encode("utf-16-le"), r":1: looks like utf-16-le .*--encoding utf-16-le"),
    ("in.txt", "你好\n世界\n".encode("utf-16-be"), r":1: looks like utf-16-be .*--encoding utf-16-be"),
    ("in.jsonl", gzip.compress(b'{"text": "a"}\n'), r":1: is compressed: decompress it, or .* gzip -dc"),
    ("in.txt", bz2.compress(b"a\n"), r":1: is compressed: decompress it, or .* bzip2 -dc"),
    ("in.csv", b"\x28\xb5\x2f\xfd\x24\x0btext\na\n", r":1: is compressed: decompress it, or .* zstd -dc"),
    (
        "in.csv",
        b"PK\x03\x04\x14 [Content_Types].xml \xb3 PK\x03\x04 xl/workbook.xml",
        r":1: is a spreadsheet: save it as",
    ),
    ("in.txt", b"PK\x03\x04\x14 in.txt \xb3", r":1: is an archive: unpack it"),
    ("in.txt", b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n", r":1: is a formatted document: extract its passages"),
    ("in.jsonl", b"PAR1\x15\x04\x15\x10", r":1: is Parquet: let its name end in \.parquet, or .*--format parquet"),
    ("in.txt", bytes(4_096), r":1: is not text: it holds as many control characters as a picture"),
    ("in.csv", bytes(range(256)) * 9, r":1: is not text: it holds as many control characters as a picture"),
    ("in.jsonl", b'[{"text": "a"}, {"text": "b"}]', r":1: is a JSON array: .*the format json \(format, --format json"),
    ("in.jsonl", b'{"text": "a"}\n[{"text": "b"}, {"text": "c"}]\n', r":2: is a JSON array"),
    ("in.jsonl", b'{"text": "a"}\n{"text": "b"}{"text": "c"}\n', r":2: holds several JSON values: .*jq -c \."),
    ("in.jsonl", b'[\n {"text": 1},\n {"text": 2}\n]\n', r":1: begins JSON of several lines: .*--format json\)"),
    ("in.jsonl", b'{"id": 1, "data": {"text": "a"}}\n', r":1: has no field 'text'.*such as data\.text"),
    ("in.jsonl", b'{"text": "a", "text": "b"}\n', r":1: has more than one field 'text': rename or remove"),
]


@pytest.mark.parametrize("on_bad_input", ["fail", "skip"])
@pytest.mark.parametrize("case", WHOLE, ids=[f"{name} {said}" for name, _, said in WHOLE])
def test_a_file_that_gives_nothing_is_an_error_with_skip_too(
    case: tuple[str, bytes, str], on_bad_input: str, tmp_path: Path, emulator: Emulator
) -> None:
    name, content, said = case
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / name).write_bytes(content)
    write_lines(tmp_path / "docs" / "good.txt", ["good"])
    with pytest.raises(InvalidInput, match=rf"{name}{said}.*nothing was sent"):
        embed(emulator, "docs", "out.jsonl", on_bad_input=on_bad_input)
    assert emulator.requests == 0


def test_all_files_that_give_nothing_are_named_at_once(tmp_path: Path, emulator: Emulator) -> None:
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text("body\nx\n", "utf-8")
    with pytest.raises(InvalidInput, match=r"and 2 more") as caught:
        embed(emulator, tmp_path, "out.jsonl", on_bad_input="skip")
    assert [said.partition(".csv:1: ")[0][-1] for said in caught.value.reasons.values()] == ["a", "b", "c"]
    assert "only single records are skipped" in str(caught.value)


def test_a_record_with_a_stray_quote_is_skipped_alone(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "in.tsv").write_text('id\ttext\n1\t"Hello" he said\n2\tnext\n', "utf-8")
    summary = embed(emulator, "in.tsv", "out.jsonl", on_bad_input="skip")
    assert (summary.texts, summary.skipped) == (1, 1)
    assert read_rejects(Path("out.jsonl"))[0]["place"] == "in.tsv:2"


@pytest.mark.parametrize("ids", [{"id_field": None}, {}, {"id_field": "id"}])
def test_a_key_that_stands_twice_is_refused_where_it_is_wanted(
    ids: dict[str, Any], tmp_path: Path, emulator: Emulator
) -> None:
    doubled = '{"text": "a", "id": 1, "id": 2, "more": {"text": "x", "text": "y"}, "note": 1, "note": 2}'
    write_lines(tmp_path / "in.jsonl", ['{"text": "first", "id": 0}', doubled])
    if "id_field" in ids and ids["id_field"] is None:
        assert embed(emulator, "in.jsonl", "out.jsonl", **ids).texts == 2
        return
    with pytest.raises(InvalidInput, match=r"in\.jsonl:2: has more than one field 'id'"):
        embed(emulator, "in.jsonl", "out.jsonl", **ids)


# --- blank lines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_bad_input", ["fail", "skip"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.txt", "\none\n\n \t\ntwo\n\n"),
        ("in.jsonl", '\n{"text": "one"}\n\n  \n{"text": "two"}\n\n'),
        ("in.csv", "\nid,text\n1,one\n\n  \n2,two\n\n"),
        ("in.tsv", "\nid\ttext\r\n1\tone\r\n\r\n2\ttwo\r\n\r\n"),
    ],
)
def test_blank_lines_are_no_records_and_have_no_position(
    name: str, content: str, on_bad_input: str, tmp_path: Path, emulator: Emulator
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    summary = embed(emulator, name, "out.jsonl", on_bad_input=on_bad_input, id_field=None)
    assert (summary.texts, summary.skipped, summary.rejects) == (2, 0, None)
    assert [(row.id, row.text) for row in read_vectors(Path("out.jsonl"))] == [(0, "one"), (1, "two")]


def test_a_record_whose_text_is_blank_is_still_one(tmp_path: Path, emulator: Emulator) -> None:
    """Positions count as in the table that a program wrote, where empty cells are rows."""
    (tmp_path / "in.csv").write_text('text\none\n""\ntwo\n', "utf-8")
    with pytest.raises(InvalidInput, match=r"in\.csv:3: its text is empty or blank"):
        embed(emulator, "in.csv", "out.jsonl")
    embed(emulator, "in.csv", "out.jsonl", on_bad_input="skip")
    assert [row.id for row in read_vectors(Path("out.jsonl"))] == [0, 2]


# --- encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["utf-8", "gb18030", "utf-16", "latin-1"])
@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_goes_before_the_named_encoding(
    mark: str, given: str, tmp_path: Path, emulator: Emulator
) -> None:
    begin = "" if mark in {"utf-8-sig", "utf-16", "utf-32"} else "\ufeff"
    (tmp_path / "in.csv").write_bytes(f"{begin}id,text\n1,你好 🐦\n2,two\n".encode(mark))
    embed(emulator, "in.csv", "out.jsonl", encoding=given, id_field="id")
    assert [(row.id, row.text) for row in read_vectors(Path("out.jsonl"))] == [("1", "你好 🐦"), ("2", "two")]


CHINESE = "编号,内容\n1,你好世界，机器学习模型的训练与推理需要大量的计算资源。\n"
SAMPLES = {
    "gb18030": CHINESE,
    "big5": "編號,內容\n1,你好世界，這是繁體中文的內容，機器學習模型的訓練。\n",
    "shift_jis": "番号,本文\n1,これは日本語の文章です。機械学習の検索に使います。\n",
    "euc_jp": "番号,本文\n1,これは日本語の文章です。機械学習の検索に使います。\n",
    "euc_kr": "번호,내용\n1,안녕하세요 세계, 이것은 한국어 문장입니다.\n",
    "cp1251": "номер,текст\n1,Это русский текст про поиск.\n",
    "koi8-r": "номер,текст\n1,Это русский текст про поиск.\n",
    "cp1252": "id,text\n1,Über die größere Straße, l\u2019été où l\u2019élève français étudie\n",
}


@pytest.mark.parametrize("encoding", SAMPLES)
def test_the_likely_encoding_is_named(encoding: str) -> None:
    raw = SAMPLES[encoding].encode(encoding)
    assert guess_encoding(raw, "utf-8") == encoding
    # What is looked at may end within a character.
    assert guess_encoding(raw[:-4], "utf-8") == encoding


def test_a_damaged_file_is_not_taken_for_another_encoding() -> None:
    assert guess_encoding(CHINESE.encode() + b"\xff\n", "utf-8") is None
    assert guess_encoding(b"\x81\xff\x00\xfe\xff", "utf-8") is None


@pytest.mark.parametrize("more", [b"\xb1\xe0\xba\xc5\xc4\xda", b"\xe9t\xe9 d\xe9j\xe0", b"\xff"])
def test_one_damaged_line_does_not_bring_all_others_into_doubt(more: bytes, tmp_path: Path, emulator: Emulator) -> None:
    """To name another encoding would spoil every other line, without an error."""
    good = "机器学习模型的训练与推理\n".encode() * 4_000
    (tmp_path / "in.txt").write_bytes(good + more + b"\n")
    with pytest.raises(InvalidInput, match=r"in\.txt:4001: holds bytes that are not utf-8: .*or correct the line"):
        embed(emulator, "in.txt", "out.jsonl")


def test_the_encoding_that_was_in_use_is_named(tmp_path: Path, emulator: Emulator) -> None:
    (tmp_path / "in.txt").write_bytes(f"ascii\n{CHINESE}".encode())
    with pytest.raises(InvalidInput, match=r"in\.txt:2: holds bytes that are not big5, likely utf-8: "):
        embed(emulator, "in.txt", "out.jsonl", encoding="big5")
    assert embed(emulator, "in.txt", "out.jsonl", encoding="utf8").texts == 3


def test_characters_as_surrogate_pairs_are_told_with_the_mend_that_works(tmp_path: Path, emulator: Emulator) -> None:
    raw = '{"text":"a\ud83d\udc26"}\n'.encode("utf-8", "surrogatepass")
    (tmp_path / "in.jsonl").write_bytes(raw)
    with pytest.raises(InvalidInput, match=r"in\.jsonl:1: holds surrogate pairs .*CESU-8") as caught:
        embed(emulator, "in.jsonl", "out.jsonl")
    assert '.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16")' in str(caught.value)
    mended = raw.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16")
    (tmp_path / "in.jsonl").write_text(mended, "utf-8")
    write_lines(tmp_path / "escaped.jsonl", ['{"text": "b\\ud83d\\udc26"}'])
    embed(emulator, ["in.jsonl", "escaped.jsonl"], "out.jsonl")
    assert texts("out.jsonl") == ["a🐦", "b🐦"]


# --- names, ids, long texts ----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
@pytest.mark.parametrize("on_bad_input", ["fail", "skip"])
def test_a_file_name_that_is_not_utf8_is_shown_with_escapes(
    on_bad_input: str, tmp_path: Path, emulator: Emulator
) -> None:
    folder = os.fsencode(tmp_path / "docs")
    Path(os.fsdecode(folder)).mkdir()
    path = os.fsdecode(folder + b"/" + "名\x1b[1m".encode("gbk") + b".jsonl")
    write_json_lines(Path(path), [{"text": "one"}, {"text": ""}])
    if on_bad_input == "fail":
        with pytest.raises(InvalidInput, match=r"docs/\\udcc3\\udcfb\\x1b\[1m\.jsonl:2: its text is empty"):
            embed(emulator, "docs", "out.jsonl")
        return
    output = os.fsdecode("出".encode("gbk") + b".jsonl")
    embed(emulator, "docs", output, on_bad_input="skip")
    assert texts(output) == ["one"]
    assert read_rejects(Path(output))[0]["place"] == r"docs/\udcc3\udcfb\x1b[1m.jsonl:2"


@pytest.mark.parametrize(
    ("raw", "said", "kept"),
    [
        (r'"\ud800"', "its id is blank or cannot be written", r"\ud800"),
        (
            "12345678901234567890123",
            "its id is a number of more than 64 bits: write it as a string",
            "12345678901234567890123",
        ),
        ("9" * 5000, "holds a whole number of thousands of digits: write it as a string", None),
        ("1.5", "must be a string or a whole number of 64 bits, not float", "1.5"),
    ],
)
def test_an_id_that_cannot_be_kept_is_told_what_to_do(
    raw: str, said: str, kept: str | None, tmp_path: Path, emulator: Emulator
) -> None:
    write_lines(tmp_path / "in.jsonl", [f'{{"id": {raw}, "text": "a"}}', '{"id": "b", "text": "b"}'])
    with pytest.raises(InvalidInput, match=f"in.jsonl:1: .*{said}"):
        embed(emulator, "in.jsonl", "out.jsonl", id_field="id")
    embed(emulator, "in.jsonl", "out.jsonl", id_field="id", on_bad_input="skip")
    assert [row.id for row in read_vectors(Path("out.jsonl"))] == ["b"]
    assert read_rejects(Path("out.jsonl"))[0]["id"] == kept


def test_a_missing_value_is_not_told_to_be_turned_into_a_string(tmp_path: Path, emulator: Emulator) -> None:
    write_lines(tmp_path / "in.jsonl", ['{"text": "a"}', '{"text": null}', '{"text": NaN}'])
    with pytest.raises(InvalidInput) as caught:
        embed(emulator, "in.jsonl", "out.jsonl")
    assert "in.jsonl:2: has nothing in the field 'text': leave the record out, or fill it" in str(caught.value)
    assert "in.jsonl:3: its text is missing (None or NaN): leave it out, or fill it" in caught.value.reasons[2]
    assert "str(" not in str(caught.value)


# --- what is told although a run goes on ---------------------------------------------------------------------


def test_texts_that_may_be_too_long_are_counted_and_the_first_is_named(
    tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    write_lines(tmp_path / "in.txt", ["short", "word " * 8_000, "茶" * 13_000, "word " * 6_000])
    v3 = "text-embedding-v3"
    corpus.estimate_corpus("in.txt", client=client_for(emulator, model=v3))
    (said,) = caplog.messages
    assert said.startswith("2 texts may be longer than the 8192 tokens that ")
    assert "in.txt:2); the service decides" in said
    caplog.clear()
    corpus.estimate_corpus("in.txt", client=client_for(emulator, model=v3, long_text="truncate"))
    assert not caplog.messages


EMPTY = [
    ("in.txt", b""),
    ("in.txt", b"\n \n"),
    ("in.jsonl", b""),
    ("in.csv", b""),
    ("in.csv", b"text\n"),
    ("in.parquet", b""),
]


@pytest.mark.parametrize(("name", "content"), EMPTY)
def test_an_input_without_records_is_an_error_and_a_file_without_any_is_told(
    name: str, content: bytes, tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    if name == "in.parquet":
        pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").table({"text": []}), name)
    else:
        Path(name).write_bytes(content)
    write_lines(tmp_path / "good.txt", ["good"])
    embed(emulator, [name, "good.txt"], "out.jsonl")
    assert caplog.messages == [f"{name} holds no records"]
    before = Path("out.jsonl").read_bytes()
    with pytest.raises(InvalidInput, match=rf"^{name} holds no records: nothing was sent"):
        embed(emulator, name, "out.jsonl")
    assert Path("out.jsonl").read_bytes() == before
    assert (embed(emulator, "good.txt", "out.jsonl").embedded, emulator.billed_texts) == (0, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_itself_is_no_file(tmp_path: Path, emulator: Emulator) -> None:
    Path("loop.txt").symlink_to("loop.txt")
    with pytest.raises(InvalidInput, match=r"loop\.txt cannot be read: Too many levels of symbolic links"):
        embed(emulator, ["loop.txt"], tmp_path / "out.jsonl")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_linked_folder_inside_a_folder_is_told_unless_it_is_read_through_its_own_name(
    tmp_path: Path, emulator: Emulator
) -> None:
    for name in ("docs", "more"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "in.txt", [name])
    Path("docs/link").symlink_to(tmp_path / "more")
    with pytest.warns(UserWarning, match=r"links to folders are not followed, name them .*: docs/link$"):
        embed(emulator, "docs", "out.jsonl")
    assert texts("out.jsonl") == ["docs"]
    embed(emulator, ["docs", "docs/link"], "both.jsonl")  # a warning would be an error
    assert texts("both.jsonl") == ["docs", "more"]


CARRIAGE_RETURNS = {"a\rb\rc": 1, "a\r": 0, "a\rb\n": 0, "a不b": 0}
"""Content → how often it is told."""


@pytest.mark.parametrize("content", CARRIAGE_RETURNS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_lines_that_end_in_carriage_returns_alone_are_told(
    content: str, encoding: str, tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.txt").write_bytes(content.encode(encoding))
    assert corpus.estimate_corpus("in.txt", client=client_for(emulator), encoding=encoding).texts == 1
    told = [said.startswith("in.txt holds carriage returns and no line feeds") for said in caplog.messages]
    assert told == [True] * CARRIAGE_RETURNS[content]
