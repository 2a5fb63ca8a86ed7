"""Reading text files: formats, encodings, and one clear sentence for all that can be wrong with them."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from jaxpool.errors import InputFileError, ValidationError
from jaxpool.files import input_files
from jaxpool.files.input_files import Row, TextFile, as_text


def rows(path: Path | None, *columns: str, **options: Any) -> list[Row]:
    with TextFile(path, columns or ("text",), **options) as file:
        return list(file)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path | None, *columns: str, **options: Any) -> str:
    with pytest.raises(InputFileError) as caught:
        rows(path, *columns, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_lines_keep_blank_ones_and_unusual_separators(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one\r\n\n  two\u2028still two\x0b\nthree")
    assert rows(path) == [
        Row(1, ("one",)),
        Row(2, ("",)),
        Row(3, ("  two\u2028still two\x0b",)),
        Row(4, ("three",)),
    ]


def test_json_lines(tmp_path: Path) -> None:
    lines = ['{"text": "caf\\u00e9", "id": 7}', "", '{"id": [1], "text": null}']
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    assert rows(path, "text", "id") == [Row(1, ("café", 7)), Row(3, (None, [1]))]


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables_with_quotes_and_line_breaks(tmp_path: Path, suffix: str, separator: str) -> None:
    lines = [("id", "text"), ("1", '"two\nlines, ""quoted"""'), (), ("2", "plain")]
    path = write(tmp_path, f"a.{suffix}", "\r\n".join(separator.join(line) for line in lines) + "\r\n")
    assert rows(path, "text", "id") == [Row(2, ('two\nlines, "quoted"', "1")), Row(5, ("plain", "2"))]


def test_byte_order_marks_and_other_encodings(tmp_path: Path) -> None:
    for codec, option in (
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf8"),
        ("utf-16", "utf-16"),
        ("cp1252", "cp1252"),
    ):
        path = write(tmp_path, "a.csv", "text\ncafé\n".encode(codec))
        assert rows(path, encoding=option) == [Row(2, ("café",))]


def test_gzip(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(b'{"text": "packed"}\n'))
    assert rows(path) == [Row(1, ("packed",))]
    cut = write(tmp_path, "cut.txt.gz", gzip.compress(b"packed\n" * 10_000)[:-20])
    assert "cannot be read after line" in refusal(cut)
    assert "cannot be read after line 1: Not a gzipped file" in refusal(write(tmp_path, "b.txt.gz", "plain"))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for content, expected in (("a\nb\n", ["a", "b"]), ("", [])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert [row.values[0] for row in rows(None)] == expected
        assert not sys.stdin.buffer.closed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "x"}\n{')))
    assert refusal(None, file_format="jsonl").startswith("standard input: line 2 is not JSON")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 18])
def test_chunk_borders_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(input_files, "_CHUNK", chunk)
    for codec in ("utf-8", "utf-16"):
        path = write(tmp_path, "a.txt", "aé€𝄞\r\n\n日本\n".encode(codec))
        assert [row.values[0] for row in rows(path, encoding=codec)] == ["aé€𝄞", "", "日本"]
    bad = write(tmp_path, "bad.txt", "fine €\nab".encode() + b"\xe2\x82" + b"z\n")
    assert "line 2, byte 11: 0xe2 is not valid utf-8" in refusal(bad)
    cut = write(tmp_path, "cut.txt", b"fine\nab\xe2\x82")
    assert "line 2, byte 7: 0xe2" in refusal(cut)


def test_undecodable_bytes_name_place_and_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, "latin.csv", "text\nfine\ncafé\n".encode("latin-1"))
    assert refusal(path).endswith(
        "latin.csv: line 3, byte 13: 0xe9 is not valid utf-8; name the file's encoding, for example --encoding latin-1"
    )
    assert "--encoding utf-16" in refusal(write(tmp_path, "wide.txt", "wide".encode("utf-16")))
    assert "--encoding utf-16" in refusal(write(tmp_path, "wide.txt", "ok\nwide".encode("utf-16-le")))
    with pytest.raises(ValidationError, match="unknown text encoding 'klingon'"):
        TextFile(path, encoding="klingon")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.txt").endswith("none.txt does not exist")
    (tmp_path / "folder.txt").mkdir()
    assert refusal(tmp_path / "folder.txt").endswith("is a folder, not a file")
    assert "has suffix .xlsx; jaxpool reads .txt, .jsonl, .json, .csv, .tsv and .parquet" in refusal(
        tmp_path / "a.xlsx"
    )
    assert "has no suffix" in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            '{"body": "x", "id": 1}\n',
            "line 1 has no field 'text'; the columns are 'body', 'id'; choose with",
        ),
        ("a.jsonl", '{"text": "x"}\n\n{"text": \n', "line 3 is not JSON (Expecting value, column"),
        ("a.jsonl", '{"text": "x"}\n"y"\n', "line 2 is a JSON string; every line must be an object like"),
        ("a.jsonl", '["x"]\n', "line 1 is a JSON array"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        (
            "a.csv",
            "id,body\n1,x\n",
            "there is no column 'text'; the columns are 'id', 'body'; choose with --text-column",
        ),
        ("a.csv", "text,text\n1,x\n", "there are several columns 'text'"),
        ("a.csv", "", "is empty; its first line must name the columns"),
        ("a.csv", "text,id\nfine,1\nso, so,2\n", "line 3 has 3 fields, the header 2"),
        ("a.csv", "text,id\nfine\n", "line 2 has 1 fields, the header 2"),
        ("a.csv", 'text,id\nfine,1\n"never closed,2\nx,3\n', "line 3 is not valid CSV"),
        ("a.tsv", 'text\tid\n"so" so\t2\n', "line 2 is not valid TSV"),
        ("a.txt", "ok\nbi\0nary\n", "line 2 holds a NUL character"),
    ],
)
def test_malformed_content(tmp_path: Path, name: str, content: str, words: str) -> None:
    message = refusal(write(tmp_path, name, content))
    assert words in message
    assert name in message


def test_plain_text_has_one_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "x\n")
    assert "plain text has one column" in refusal(path, "text", "pair")


def test_values_that_are_no_text() -> None:
    assert as_text("plain", "here") == "plain"
    assert as_text(None, "here") == ""
    for value, words in ((7, "here is 7, a JSON number"), ([1], "array"), (True, "true, a JSON boolean")):
        with pytest.raises(InputFileError, match=words):
            as_text(value, "here")
    with pytest.raises(InputFileError, match=r"U\+D83D, half of a surrogate pair"):
        as_text(json.loads('"\\ud83d"'), "here")


def test_memory_stays_flat_and_progress_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "big.jsonl", b'{"text": "' + b"words and words " * 8 + b'"}\n')
    path.write_bytes(path.read_bytes() * 40_000)  # 6 MB
    tracemalloc.start()
    with TextFile(path) as file:
        seen = [file.position for row in file if row.line % 8_000 == 0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == 5
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == file.size == path.stat().st_size
    assert peak < 2.5e6


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "LONGEST", 1000)
    monkeypatch.setattr(input_files, "_CHUNK", 100)
    path = write(tmp_path, "a.txt", "ok\n" + "x" * 5000)
    assert "line 2 has more than 1,000 characters" in refusal(path)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_found_by_the_header(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path, "a.csv", f'\nid{separator}text\n1{separator}"a, b{separator} c"\n')
    assert rows(path) == [Row(3, (f"a, b{separator} c",))]
    assert rows(path, delimiter=separator) == rows(path)
    assert "there is no column 'text'" in refusal(path, delimiter="#")


def test_json_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"text": "a\n b, ]", "n": [1, {"m": "]"}]}, {"n": 12345, "text": None}, {"text": "é", "n": 1e5}]
    for chunk in (1, 3, 7, 1 << 18):
        monkeypatch.setattr(input_files, "_CHUNK", chunk)
        for indent in (None, 2):
            path = write(tmp_path, "a.json", json.dumps(entries, indent=indent, ensure_ascii=False) + "\n")
            wanted = [Row(i, (entry["text"], entry["n"])) for i, entry in enumerate(entries, 1)]
            assert rows(path, "text", "n") == wanted
        assert rows(write(tmp_path, "a.json", ' [ "x" , "y" ]')) == [Row(1, ("x",)), Row(2, ("y",))]
        assert rows(write(tmp_path, "a.json", "[]")) == rows(write(tmp_path, "a.json", "")) == []
        for damaged, words in (
            ('[{"text": "a"}', "entry 2 is cut off"),
            ('[{"text": "a"} {"text": "b"}]', "entry 2 does not follow a comma"),
            ('[{"text": "a"},]', "entry 2 is not JSON"),
            ('{"text": "a"}', "entry 1 does not follow a '['"),
            ('[{"text": "a"}] x', "entry 2 comes after the end"),
            ('["a", 7]', "entry 2 is a JSON number"),
            ('[{"body": "a"}]', "entry 1 has no field 'text'"),
        ):
            assert words in refusal(write(tmp_path, "a.json", damaged))


@pytest.mark.parametrize(
    ("content", "named", "wanted"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', True, ["a", "b"]),
        ("id;text\n1;a\n2;b\n", True, ["a", "b"]),
        ('[{"text": "a"},\n {"text": "b"}]', True, ["a", "b"]),
        ('[\n  "a",\n  "b"\n]', True, ["a", "b"]),
        ("a\nb\n", True, "its first line names no column 'text'; say what it is with --format"),
        ('{"text": "a"}\n', False, "looks like JSONL; say --format jsonl"),
        ("id,text\n1,a\n", False, "looks like CSV; say --format csv"),
        ("the text, and more of it\n", False, ["the text, and more of it"]),
        ("text\n{a}\n", False, ["text", "{a}"]),
        ("\n\na", False, ["", "", "a"]),
    ],
)
def test_a_pipe_is_looked_into(
    monkeypatch: pytest.MonkeyPatch, content: str, named: bool, wanted: str | list[str]
) -> None:
    """Raw lines of a table or of JSON are never classified in silence."""
    monkeypatch.setattr(input_files, "_CHUNK", 5)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    if isinstance(wanted, str):
        assert wanted in refusal(None, named=named)
    else:
        assert [row.values[0] for row in rows(None, named=named)] == wanted


def test_kept_columns_and_rows_with_problems(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'id,text,id\n1,a,2\n3\n"x"y,b,4\n5,c,6\n')
    got = rows(path, keep=True, tolerant=True)
    assert [row.line for row in got] == [2, 3, 4, 5]
    assert (got[0].values, got[0].others) == (("a",), {"id": "1", "id_3": "2"})
    assert "has 1 fields" in got[1].problem
    assert "is not valid CSV" in got[2].problem
    assert got[3].values == ("c",)
