"""Units tile their files: every row in exactly one of them, whatever is in the texts."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool.batch.csv_cuts import row_starts
from jaxpool.batch.inputs import File, expand
from jaxpool.batch.reading import Reading
from jaxpool.batch.units import Unit, cut
from jaxpool.errors import InputFileError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


def texts(files: list[File], size: int, columns: tuple[str, ...] = ("text",), encoding: str = "utf-8") -> list[str]:
    """The texts of all units, in order."""
    found: list[str] = []
    for unit in cut(files, columns, size, encoding):
        for chunk in Reading(unit, columns, encoding):
            assert not chunk.rejected
            found += chunk.columns[0]
    return found


@settings(deadline=None)
@given(
    lines=st.lists(TEXTS.map(lambda text: text.replace("\n", " ")), min_size=1),
    size=st.integers(1, 60),
    end=st.booleans(),
)
def test_lines_are_read_once(tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, end: bool) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(("\n".join(lines) + "\n" * end).encode())
    if not path.stat().st_size:
        return
    expected = path.read_bytes().decode().split("\n")
    expected = expected[:-1] if expected[-1] == "" else expected
    expected[0] = expected[0].removeprefix("\ufeff")
    assert texts(expand([path]), size) == expected


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1), size=st.integers(1, 80), ending=st.sampled_from(["\n", "\r\n"])
)
def test_csv_rows_are_read_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], size: int, ending: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator=ending)
        table.writerows([("text", "other"), *rows])
    [file] = expand([path])
    assert texts([file], size) == [text for text, _ in rows]


@settings(deadline=None)
@given(rows=st.lists(st.lists(TEXTS, min_size=2, max_size=2), min_size=1), step=st.integers(1, 50))
def test_cuts_are_where_a_parser_says_that_rows_begin(rows: list[list[str]], step: int) -> None:
    written = io.StringIO()
    edges = []
    for row in rows:
        csv.writer(written, lineterminator="\n").writerow(row)
        edges.append(len(written.getvalue().encode()))
    found = row_starts(io.BytesIO(written.getvalue().encode()), step, ",")
    assert found is not None
    assert set(found) <= set(edges[:-1])
    assert found[:1] == edges[:1][: len(rows) - 1]


@pytest.mark.parametrize("text", ['a,5" pipe\nb,c\n', 'a,"b" c\n', 'a"b,c\n'])
def test_quotes_in_odd_places_are_not_guessed_at(text: str) -> None:
    assert row_starts(io.BytesIO(text.encode()), 1, ",") is None


def test_every_kind_of_file(tmp_path: Path) -> None:
    wanted = [f"text {i}" for i in range(50)]
    table = pa.table({"id": list(range(50)), "text": wanted})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=11)
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=11)
    lines = "".join(f'{{"text": "{text}"}}\n\n' for text in wanted).encode()
    (tmp_path / "d.jsonl").write_bytes(lines)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.CompressedOutputStream(str(tmp_path / "f.ndjson.zst"), "zstd") as file:
        file.write(lines)
    (tmp_path / "g.tsv").write_text("id\ttext\n" + "".join(f"0\t{text}\n" for text in wanted))
    (tmp_path / "h.txt").write_text("\n".join(wanted))
    (tmp_path / "i.txt.gz").write_bytes(gzip.compress("\n".join(wanted).encode()))
    (tmp_path / "_SUCCESS").write_text("x")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty.csv").write_text("")
    files = expand([tmp_path])
    assert [Path(file.url).name[0] for file in files] == list("abcdefghi")
    for file in files:
        assert texts([file], 120) == wanted, file.url
        units = cut([file], ["text"], 120)
        splittable = file.compression is None and not file.url.endswith("c.arrow")
        assert (len(units) > 1) == splittable, file.url
    assert cut(files, ["text"], 120) == cut(expand([tmp_path / "[a-i].*", tmp_path / "a.parquet"]), ["text"], 120)


def test_other_encodings(tmp_path: Path) -> None:
    wanted = ["Café", "naïve", "10 €"] * 20
    for encoding in ("utf-16", "cp1252"):
        (tmp_path / f"{encoding}.txt").write_text("\n".join(wanted), encoding=encoding)
        assert texts(expand([tmp_path / f"{encoding}.txt"]), 20, encoding=encoding) == wanted
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"1,{text}\n" for text in wanted), encoding="cp1252")
    assert texts(expand([tmp_path / "a.csv"]), 40, encoding="cp1252") == wanted


def test_units_survive_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    [unit] = cut(expand([tmp_path / "a.txt"]), ["text"])
    assert Unit.of_json(unit.as_json()) == unit


def test_object_stores_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/in/a.txt", b"one\ntwo\nthree\n")
    files = expand(["memory://bucket/in/*.txt"])
    assert [file.url for file in files] == ["memory:///bucket/in/a.txt"]
    assert texts(files, 5) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,body\n1,x\n", "there is no column 'text'; the columns are 'id', 'body'"),
        ("a.csv", b"text,text\n1,x\n", "several columns 'text'"),
        ("a.xyz", b"x", "no format known by this suffix"),
        ("a.parquet", b"no parquet at all", "a.parquet: "),
        ("a.arrow", b"no arrow at all", "a.arrow: "),
    ],
)
def test_wrong_files_are_refused_in_words(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputFileError, match=message.replace("(", r"\(")):
        cut(expand([tmp_path / name]), ["text"])


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(InputFileError, match="column 'text' is of type int64; texts"):
        cut(expand([tmp_path / "a.parquet"]), ["text"])


@pytest.mark.parametrize("names", [["missing.csv"], ["*.csv"], ["nowhere://x"], []])
def test_names_that_lead_nowhere(tmp_path: Path, names: list[str]) -> None:
    from jaxpool.errors import JaxpoolError

    with pytest.raises(JaxpoolError):
        expand([name if "://" in name else tmp_path / name for name in names])
