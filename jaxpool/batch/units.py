"""Units: what is done whole or not at all. A list of files always becomes the same list of units.

A unit is a few row groups of a Parquet file, a few record batches of an Arrow file, a range of bytes of a file of
lines, or a whole file where there is no reading from its middle.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from jaxpool.batch.csv_cuts import row_starts
from jaxpool.batch.inputs import File
from jaxpool.batch.storage import in_words
from jaxpool.errors import InputFileError

UNIT_BYTES = 32 << 20
DELIMITERS = {"csv": ",", "tsv": "\t"}
_SPLITTABLE = ("utf-8", "utf_8", "utf8", "ascii", "latin-1", "latin_1", "iso-8859-", "iso8859-", "cp125")
_FIRST = 1 << 20  # bytes read of a file of lines to see what it is


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of one file.

    Attributes:
        index: place in the job's list, from 0; names its part.
        file: the file.
        first, last: row groups, record batches, or bytes (where a line or row begins); ``last`` is one past. Both 0
            for a whole file that cannot be entered in its middle.
        rows: how many it has, or None where only reading tells.
        size: bytes, about.
    """

    index: int
    file: File
    first: int
    last: int
    rows: int | None
    size: int

    @property
    def name(self) -> str:
        """The stem of its part's name."""
        return f"part-{self.index:06d}"

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a receipt or another process."""
        return asdict(self)

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Unit:
        """The inverse of `as_json`."""
        return cls(**{**values, "file": File(**values["file"])})


class _Piece(NamedTuple):
    first: int
    last: int
    rows: int | None
    size: int


def cut(files: Sequence[File], columns: Sequence[str], size: int = UNIT_BYTES, encoding: str = "utf-8") -> list[Unit]:
    """The units of ``files``, in order.

    Args:
        files: see ``inputs.expand``.
        columns: text column and maybe pair column; every file is checked to have them.
        size: bytes of a unit, about; a row group that is larger stays whole.
        encoding: of files of lines.

    Raises:
        InputFileError: a file cannot be read or lacks a column.
    """
    with ThreadPoolExecutor(16, thread_name_prefix="look") as threads:  # a look at a file in a bucket is a wait
        pieces = list(threads.map(lambda file: list(_pieces(file, columns, size, encoding)), files))
    found: Iterator[tuple[File, _Piece]] = ((file, piece) for file, some in zip(files, pieces) for piece in some)
    return [Unit(index, file, *piece) for index, (file, piece) in enumerate(found)]


def _pieces(file: File, columns: Sequence[str], size: int, encoding: str) -> Iterator[_Piece]:
    with in_words(file.url, InputFileError):
        if file.format == "parquet":
            yield from _row_groups(file, columns, size)
        elif file.format == "arrow":
            yield from _record_batches(file, columns, size)
        else:
            yield from _ranges(file, columns, size, encoding)


def _together(sizes: Sequence[tuple[int, int]], size: int) -> Iterator[_Piece]:
    """Neighbours of ``(rows, bytes)`` in groups of about ``size`` bytes."""
    first, rows, held = 0, 0, 0
    for index, (more, weight) in enumerate(sizes):
        if index > first and held + weight > size:
            yield _Piece(first, index, rows, held)
            first, rows, held = index, 0, 0
        rows += more
        held += weight
    if sizes:
        yield _Piece(first, len(sizes), rows, held)


def _row_groups(file: File, columns: Sequence[str], size: int) -> Iterator[_Piece]:
    with file.open() as raw, pq.ParquetFile(raw) as opened:
        check_schema(file.url, opened.schema_arrow, columns)
        groups = [opened.metadata.row_group(index) for index in range(opened.num_row_groups)]
        yield from _together([(group.num_rows, group.total_byte_size) for group in groups], size)


def _record_batches(file: File, columns: Sequence[str], size: int) -> Iterator[_Piece]:
    with file.open() as raw:
        try:
            opened = pa.ipc.open_file(raw)
        except pa.ArrowInvalid:
            raw.seek(0)
            check_schema(file.url, pa.ipc.open_stream(raw).schema, columns)
            yield _Piece(0, 0, None, file.size)  # a stream has no table of contents
            return
        check_schema(file.url, opened.schema, columns)
        count = max(opened.num_record_batches, 1)
        batches = [opened.get_batch(index) for index in range(opened.num_record_batches)]
        yield from _together([(batch.num_rows, file.size // count) for batch in batches], size)


def check_schema(name: str, schema: Any, columns: Sequence[str]) -> None:
    """Raises InputFileError where a table lacks a column, or it holds no texts."""
    for column in columns:
        if column not in schema.names:
            raise missing(name, column, schema.names)
        kind = schema.field(column).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
            raise InputFileError(f"{name}: column {column!r} is of type {kind}; texts (string) were expected")


def missing(name: str, column: str, seen: Sequence[str]) -> InputFileError:
    """The error for a file without a column."""
    shown = ", ".join(map(repr, seen[:20])) + (f" and {len(seen) - 20} more" if len(seen) > 20 else "")
    return InputFileError(f"{name}: there is no column {column!r}; the columns are {shown or '(none)'}")


def _ranges(file: File, columns: Sequence[str], size: int, encoding: str) -> Iterator[_Piece]:
    whole = _Piece(0, 0, None, file.size)
    if file.format == "txt":
        if len(columns) > 1:
            raise InputFileError(f"{file.url}: plain text has one column, but a pair was asked for")
    elif file.format in DELIMITERS:
        header_of(file, columns, encoding)
    if file.compression or file.size <= size or not encoding.lower().startswith(_SPLITTABLE):
        yield whole
        return
    edges: list[int] | None = list(range(0, file.size, size))
    if file.format in DELIMITERS:
        with file.open() as raw:
            edges = row_starts(raw, size, DELIMITERS[file.format])
    if not edges:
        yield whole
        return
    if file.size - edges[-1] < size // 4 and len(edges) > 1:
        edges.pop()  # no crumbs
    for first, last in itertools.pairwise([*edges, file.size]):
        yield _Piece(first, last, None, last - first)


def beginning(file: File) -> Any:
    """A stream of a file's bytes, decompressed, from its beginning."""
    raw = file.open()
    return pa.CompressedInputStream(raw, file.compression) if file.compression else raw


def header_of(file: File, columns: Sequence[str], encoding: str) -> list[str]:
    """Column names of a CSV or TSV file, checked."""
    with in_words(file.url, InputFileError), beginning(file) as stream:
        text = bytes(stream.read(_FIRST)).decode(encoding, "replace").removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[file.format])
    names = next((fields for fields in reader if fields), [])
    for column in columns:
        if column not in names:
            raise missing(file.url, column, names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputFileError(f"{file.url}: there are several columns {twice!r}")
    return names


def is_file(info: Any) -> bool:
    """Whether a ``FileInfo`` is one of a file."""
    return bool(info.type == fs.FileType.File)
