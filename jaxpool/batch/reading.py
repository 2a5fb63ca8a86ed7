"""A unit's rows, a chunk at a time: all columns as they are, and the texts of those that are to be classified."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxpool.batch.storage import in_words
from jaxpool.batch.units import DELIMITERS, Unit, beginning, check_schema, header_of
from jaxpool.errors import InputFileError
from jaxpool.files.input_files import as_text

CHUNK = 4096
"""Rows planned together, at most."""
CHUNK_BYTES = 16 << 20
_BLOCK = 1 << 20  # bytes read at a time
_LONGEST = 1 << 26  # bytes of a line
_NAME_IT = "name the file's encoding with --encoding"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be classified.

    Attributes:
        where: its place in its file.
        reason: a sentence.
        row: what is there: columns, or the line.
    """

    where: str
    reason: str
    row: Any


@dataclass(slots=True)
class Chunk:
    """Some rows of a unit, in order.

    Attributes:
        rows: a ``pyarrow.Table``, or of ``.jsonl`` a list of dicts.
        columns: the texts of every row, one list per column that is classified.
        places: where each row is, for messages.
        rejected: what stood between these rows and is none.
    """

    rows: Any
    columns: list[list[str]]
    places: Sequence[int]
    rejected: list[Rejected] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.places)


def texts_of(table: Any, columns: Sequence[str]) -> list[list[str]]:
    """The texts of a table, one list a column; null counts as an empty one."""
    return [pc.fill_null(table[column].cast(pa.large_string()), "").to_pylist() for column in columns]


class Reading:
    """One pass over a unit.

    Attributes:
        count: rows so far, those that are rejected included.
        span: for a range of lines the positions of its first line and after its last one.
    """

    def __init__(self, unit: Unit, columns: Sequence[str], encoding: str = "utf-8") -> None:
        self.unit, self.columns, self.count = unit, tuple(columns), 0
        self.span = (unit.first, unit.last)
        name = codecs.lookup(encoding).name
        self._encoding = "utf-8-sig" if name == "utf-8" else name

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks; at least one, which may be empty, as it says what columns there are.

        Raises:
            InputFileError: the file has vanished or changed, is damaged, or lacks a column.
        """
        kind = self.unit.file.format
        read = {"parquet": self._parquet, "arrow": self._arrow, "jsonl": self._json, "txt": self._text}
        with in_words(self.unit.file.url, InputFileError):
            for chunk in read.get(kind, self._csv)():
                self.count += len(chunk) + len(chunk.rejected)
                yield chunk

    def name(self, place: int) -> str:
        """Where a row is, in words."""
        lines = self.unit.file.format in ("jsonl", "txt")
        return f"{self.unit.file.url}, {'byte' if lines else 'row'} {place}"

    def _table(self, table: Any, places: Sequence[int]) -> Chunk:
        return Chunk(table, texts_of(table, self.columns), places)

    def _tables(self, batches: Iterator[Any], schema: Any) -> Iterator[Chunk]:
        check_schema(self.unit.file.url, schema, self.columns)
        done = 0
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for start in range(0, len(table), CHUNK):
                piece = table.slice(start, CHUNK)
                yield self._table(piece, range(done, done + len(piece)))
                done += len(piece)
        if not done:
            yield self._table(schema.empty_table(), range(0))

    def _parquet(self) -> Iterator[Chunk]:
        unit = self.unit
        with unit.file.open() as raw, pq.ParquetFile(raw, buffer_size=_BLOCK) as opened:
            row = unit.size // max(unit.rows or 1, 1) + 1  # bytes
            many = max(1, min(CHUNK, CHUNK_BYTES // row))
            batches = opened.iter_batches(many, row_groups=range(unit.first, unit.last))
            yield from self._tables(batches, opened.schema_arrow)

    def _arrow(self) -> Iterator[Chunk]:
        unit = self.unit
        with unit.file.open() as raw:
            if unit.rows is None:
                stream = pa.ipc.open_stream(raw)
                yield from self._tables(iter(stream), stream.schema)
            else:
                opened = pa.ipc.open_file(raw)
                batches = (opened.get_batch(index) for index in range(unit.first, unit.last))
                yield from self._tables(batches, opened.schema)

    def _csv(self) -> Iterator[Chunk]:
        """Fields as they stand there: nothing is taken for a number, a date or a null, and no quote is guessed at."""
        unit = self.unit
        names = header_of(unit.file, self.columns, self._encoding)
        encoding = self._encoding.removesuffix("-sig") if unit.first else self._encoding
        csv.field_size_limit(_LONGEST)
        with beginning(unit.file) as raw:
            stream = raw.get_stream(unit.first, unit.last - unit.first) if unit.last else raw
            text = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
            reader = filter(None, csv.reader(text, delimiter=DELIMITERS[unit.file.format], strict=True))
            done = 0
            try:
                if not unit.first:
                    next(reader)  # the header
                while some := list(itertools.islice(reader, CHUNK)):
                    yield self._fields(names, some, done)
                    done += len(some)
            except csv.Error as error:
                raise InputFileError(
                    f"{self.name(done)} or one of the next {CHUNK} is no valid {unit.file.format.upper()} ({error}); a "
                    'quote inside a quoted text is written twice ("")'
                ) from error
            if not done:
                yield self._fields(names, [], 0)

    def _fields(self, names: list[str], rows: list[list[str]], done: int) -> Chunk:
        good: list[list[str]] = []
        places, rejected = [], []
        for place, fields in enumerate(rows, done):
            try:
                if len(fields) != len(names):
                    raise InputFileError(f"the row has {len(fields)} fields, the header {len(names)}")
                "".join(fields).encode()
            except ValueError as error:
                reason = str(error)
                if isinstance(error, UnicodeEncodeError):
                    byte = ord(error.object[error.start]) & 0xFF
                    reason = f"byte 0x{byte:02x} is not valid {self._encoding.removesuffix('-sig')}; {_NAME_IT}"
                shown = [field.encode("utf-8", "replace").decode() for field in fields]
                rejected.append(Rejected(self.name(place), reason, shown))
                continue
            good.append(fields)
            places.append(place)
        columns = zip(*good) if good else [()] * len(names)
        table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns)})
        chunk = self._table(table, places)
        chunk.rejected += rejected
        return chunk

    def _text(self) -> Iterator[Chunk]:
        [column] = self.columns
        for lines, rejected in self._line_chunks():
            places = [place for place, _ in lines]
            chunk = self._table(pa.table({column: pa.array([line for _, line in lines], pa.string())}), places)
            chunk.rejected += rejected
            yield chunk

    def _json(self) -> Iterator[Chunk]:
        for lines, rejected in self._line_chunks(skip_blank=True):
            chunk = Chunk([], [[] for _ in self.columns], [], rejected)
            places: list[int] = []
            for place, line in lines:
                try:
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise InputFileError("the line is JSON, but no object")
                    texts = [self._field(record, column) for column in self.columns]
                    if "\\u" in line:
                        json.dumps(
                            record, ensure_ascii=False
                        ).encode()  # halves of surrogate pairs: nobody can write them
                except (ValueError, RecursionError) as error:
                    reason = str(error) if isinstance(error, InputFileError) else f"the line is not JSON ({error})"
                    if isinstance(error, UnicodeEncodeError):
                        reason = "the line holds half of a surrogate pair, which is no valid Unicode"
                    chunk.rejected.append(Rejected(self.name(place), reason, line))
                    continue
                chunk.rows.append(record)
                places.append(place)
                for values, text in zip(chunk.columns, texts):
                    values.append(text)
            chunk.places = places
            yield chunk

    @staticmethod
    def _field(record: dict[str, Any], column: str) -> str:
        if column not in record:
            seen = ", ".join(map(repr, list(record)[:20])) or "none"
            raise InputFileError(f"there is no field {column!r}; the fields are {seen}")
        return as_text(record[column], f"field {column!r}")

    def _line_chunks(self, skip_blank: bool = False) -> Iterator[tuple[list[tuple[int, str]], list[Rejected]]]:
        """Decoded lines without their ends, with their positions; a blank line is a row unless it is skipped."""
        lines: list[tuple[int, str]] = []
        rejected: list[Rejected] = []
        held, some = 0, False
        for place, raw in self._raw_lines():
            try:
                line = raw.decode(self._encoding if place == 0 else self._encoding.removesuffix("-sig"))
            except UnicodeDecodeError as error:
                rejected.append(Rejected(self.name(place), _undecodable(error), raw.decode("utf-8", "replace")))
                continue
            line = line.rstrip("\r\n")
            if skip_blank and not line.strip():
                continue
            lines.append((place, line))
            held += len(raw)
            if len(lines) == CHUNK or held > CHUNK_BYTES:
                yield lines, rejected
                lines, rejected, held, some = [], [], 0, True
        if lines or rejected or not some:
            yield lines, rejected

    def _raw_lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines that begin inside the unit, with their positions (in the decompressed file)."""
        unit = self.unit
        with beginning(unit.file) as stream:
            if codecs.lookup(self._encoding).name.startswith(("utf-16", "utf-32")):
                yield from self._wide_lines(stream)
                return
            at = unit.first
            if at:
                stream.seek(at - 1)
            rest, began, last = b"", not at, unit.last or None
            at -= not began
            while True:
                block = bytes(stream.read(_BLOCK))
                *complete, rest = (rest + block).split(b"\n")
                if len(rest) > _LONGEST:
                    raise InputFileError(f"{self.name(at)}: a line has more than {_LONGEST:,} bytes; is this text?")
                for line in complete:
                    if began:
                        if last is not None and at >= last:
                            self.span = (self.span[0], at)
                            return
                        yield at, line
                    at += len(line) + 1
                    if not began:
                        began, self.span = True, (at, at)
                if not block:
                    break
            if rest and began and (last is None or at < last):
                yield at, rest
                at += len(rest)
            self.span = (self.span[0], at) if began else (at + len(rest), at + len(rest))

    def _wide_lines(self, stream: Any) -> Iterator[tuple[int, bytes]]:
        """Lines of encodings in which a newline is no single byte, as if they were UTF-8."""
        decoder = codecs.getincrementaldecoder(self._encoding)()
        self._encoding = "utf-8-sig"
        rest, at, block = "", 0, b"-"
        while block:
            block = bytes(stream.read(_BLOCK))
            try:
                *complete, rest = (rest + decoder.decode(block, not block)).split("\n")
            except UnicodeDecodeError as error:
                raise InputFileError(f"{self.name(at)}: {_undecodable(error)}") from error
            for line in complete:
                yield at, line.encode()
                at += len(line) + 1
        if rest:
            yield at, rest.encode()


def _undecodable(error: UnicodeDecodeError) -> str:
    name = error.encoding.removesuffix("-sig")
    return f"byte 0x{error.object[error.start]:02x} is not valid {name}; {_NAME_IT}"
