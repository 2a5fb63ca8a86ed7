"""Records in: one reader per format, each a generator over an open text, so that memory does not grow with a file."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from jaxpool.errors import InputFileError

LONGEST = 1 << 26  # characters of a line or field; beyond it, this is no text file, or a quote never closes
DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file.

    Attributes:
        line: number of its (first) line from 1; of an array's entry, its number.
        fields: its fields by name; those of plain text have the name of the column asked for.
        problem: what is wrong with it, for a sentence that begins with its place; empty where nothing is.
    """

    line: int
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class Source(Protocol):
    """What a reader reads."""

    name: str
    """What messages call it."""
    format: str
    columns: tuple[str, ...]
    """Columns that must be there."""
    delimiter: str | None
    """Between the fields of a table; None: to be found out."""

    @property
    def binary(self) -> BinaryIO:
        """The file as bytes, for formats that are no text."""

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The columns to read; None for all."""

    def lines(self) -> Iterator[str]:
        """Decoded lines with their ends, the last one perhaps without."""

    def pieces(self) -> Iterator[str]:
        """Decoded text as it comes."""

    def missing(self, column: str, seen: Sequence[str], trouble: str) -> str:
        """A sentence about a column that is not there; ``trouble`` begins it."""


def lines(source: Source) -> Iterator[Record]:
    """Plain text: a record per line."""
    for number, line in enumerate(source.lines(), 1):
        yield Record(number, {source.columns[0]: line.rstrip("\r\n")})


def json_lines(source: Source) -> Iterator[Record]:
    """A JSON object per line; blank lines mean nothing."""
    for number, line in enumerate(source.lines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Record(number, problem=f"is not JSON ({_detail(error)}); every line must be one JSON object")
            continue
        yield _json_record(source, number, record, "every line")


def _json_record(source: Source, number: int, record: Any, each: str) -> Record:
    if not isinstance(record, dict):
        example = f'{{"{source.columns[0]}": "…"}}'
        return Record(number, problem=f"is a JSON {json_type(record)}; {each} must be an object like {example}")
    absent = next((column for column in source.columns if column not in record), None)
    if absent is not None:
        return Record(number, problem=source.missing(absent, list(record), "has no field"))
    return Record(number, record)


def json_array(source: Source) -> Iterator[Record]:
    """A JSON array of objects, or of texts; read entry by entry.

    Raises:
        InputFileError: it is no array, or damaged: what follows could be anything.
    """
    decoder, pieces = json.JSONDecoder(), source.pieces()
    text, at, number = "", 0, 0
    expected = "["  # what must come next: the bracket, an entry, or what stands between entries

    def more() -> bool:
        """Reads at least as much again as is waiting, so that a long entry is not tried once per piece."""
        nonlocal text, at
        text, at = text[at:], 0
        before = len(text)
        for piece in pieces:
            text += piece
            if len(text) > 2 * before:
                break
        if len(text) > 4 * LONGEST:
            raise InputFileError(f"{source.name}: entry {number + 1} has more than {LONGEST:,} characters; is it JSON?")
        return len(text) > before

    def fail(reason: str) -> InputFileError:
        return InputFileError(f"{source.name}: entry {number + 1} {reason}; the file must be one JSON array of objects")

    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if at == len(text):
            if more():
                continue
            if expected in ("[", "end"):
                return  # nothing at all, or all of it
            raise fail("is cut off")
        if expected == "[":
            if text[at] != "[":
                raise fail("does not follow a '['")
            at, expected = at + 1, "entry or ]"
        elif expected == ", or ]":
            if text[at] not in ",]":
                raise fail("does not follow a comma")
            expected = "end" if text[at] == "]" else "entry"
            at += 1
        elif expected == "end":
            raise fail("comes after the end of the array")
        elif text[at] == "]" and expected == "entry or ]":
            at, expected = at + 1, "end"
        else:
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                if more():
                    continue
                raise fail(f"is not JSON ({_detail(error)})") from error
            length = end - at
            if end == len(text) and more():  # a number might go on
                continue
            number, at, expected = number + 1, at + length, ", or ]"
            if isinstance(value, str) and len(source.columns) == 1:
                value = {source.columns[0]: value}
            yield _json_record(source, number, value, "every entry")


def table(source: Source) -> Iterator[Record]:
    """CSV and its kin: the first line names the columns, every other line is a record.

    Raises:
        InputFileError: the header lacks a column, or has it twice.
    """
    csv.field_size_limit(LONGEST)
    first = skipped = ""
    rows = source.lines()
    for first in rows:
        if first.strip():
            break
        skipped += first
    else:
        raise InputFileError(f"{source.name} is empty; its first line must name the columns")
    delimiter = source.delimiter or ("\t" if source.format == "tsv" else _delimiter(first, source.columns))
    # a malformed quote is refused, not guessed at
    reader = csv.reader(itertools.chain([first], rows), delimiter=delimiter, strict=True)
    offset = skipped.count("\n")
    try:
        header = next(reader)
    except csv.Error as error:
        raise InputFileError(f"{source.name}: line {offset + 1} {_malformed(source.format, error)}") from error
    for column in source.columns:
        if header.count(column) != 1:
            trouble = "there is no column" if column not in header else "there are several columns"
            raise InputFileError(f"{source.name}: {source.missing(column, header, trouble)}")
    names = [name if name not in header[:i] else f"{name}_{i + 1}" for i, name in enumerate(header)]
    while True:
        line = offset + reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield Record(line, problem=_malformed(source.format, error))
            continue
        if values is None:
            return
        if values and len(values) != len(header):
            yield Record(
                line,
                problem=f"has {len(values)} fields, the header {len(header)}; "
                "a separator or line break inside a text needs double quotes around the text",
            )
        elif values:
            yield Record(line, dict(zip(names, values)))


def parquet(source: Source) -> Iterator[Record]:
    """Rows of a Parquet file, a batch of them at a time. Needs pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputFileError(
            f"{source.name}: Parquet needs pyarrow; get it with: pip install 'jaxpool[batch]'"
        ) from error
    try:
        with pq.ParquetFile(source.binary) as file:
            names = file.schema_arrow.names
            for column in source.columns:
                if column not in names:
                    raise InputFileError(f"{source.name}: {source.missing(column, names, 'there is no column')}")
            columns = names if source.wanted is None else list(dict.fromkeys(source.wanted))
            number = 0
            for batch in file.iter_batches(columns=columns, batch_size=1024):
                for values in zip(*(batch[column].to_pylist() for column in columns)):
                    number += 1
                    yield Record(number, dict(zip(columns, values)))
    except (pa.ArrowException, OSError) as error:
        raise InputFileError(f"{source.name} cannot be read as Parquet: {error}") from error


def _malformed(name: str, error: csv.Error) -> str:
    return f'is not valid {name.upper()} ({error}); a quote inside a quoted text is written twice ("")'


def _delimiter(header: str, columns: Sequence[str]) -> str:
    """What separates the columns: a comma, unless the wanted columns are there with another separator only."""

    def names(delimiter: str) -> list[str]:
        return next(csv.reader([header], delimiter=delimiter), [])

    plain = [one for one in DELIMITERS if all(names(one).count(column) == 1 for column in columns)]
    if plain:
        return plain[0]
    return max(DELIMITERS, key=lambda one: len(names(one)))  # for the message that lists the columns


def json_type(value: object) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _detail(error: Exception) -> str:
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
