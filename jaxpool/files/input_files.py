"""Input files: streaming, one record at a time, with errors that name file, line and remedy.

Every format of the table in ``formats``, each also as ``.gz``, or standard input. Blank lines mean nothing in
``.jsonl``, ``.csv`` and ``.tsv`` and are skipped; in ``.txt`` a blank line is a text without words and is kept, so that
the n-th result always belongs to the n-th line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from jaxpool.errors import InputFileError, ValidationError
from jaxpool.files import formats
from jaxpool.files.readers import DELIMITERS, LONGEST, json_type

_CHUNK = 1 << 18  # bytes decoded at a time


@dataclass(frozen=True, slots=True)
class Row:
    """One record of an input file.

    Attributes:
        line: number of its (first) line, from 1; in a JSON array, of the entry.
        values: the asked-for columns in order: strings, or any JSON value from ``.jsonl``.
        others: the other columns, where they are kept.
        problem: why it could not be read, where such rows are passed on; ``values`` is empty then.
    """

    line: int
    values: tuple[Any, ...]
    others: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class TextFile:
    """An input file, iterable once as `Row` objects; memory use does not grow with its size.

    Args:
        path: the file, or None for standard input.
        columns: names of the columns wanted (JSON fields, CSV header names); ``.txt`` has just one, and any
            name will do for it.
        options: the command-line options that name these columns, for messages.
        file_format: a name of ``formats.FORMATS``; None goes by the suffix. A pipe has none: it is read as lines of
            text, unless ``named`` or its first line say that it has columns.
        encoding: of the text; UTF-8 with or without byte order mark by default.
        delimiter: between the columns of a table; None finds it by the header.
        named: whether the caller has named columns, so that lines of text cannot be meant.
        keep: whether rows have the ``others``.
        tolerant: whether a row that cannot be read is passed on with its ``problem``, rather than raised.

    Raises:
        InputFileError: when opened or while iterated: not found, unknown suffix, undecodable bytes, column
            not there, malformed line. The message names file, line and remedy.
    """

    def __init__(
        self,
        path: str | Path | None,
        columns: Sequence[str] = ("text",),
        *,
        options: Sequence[str] = ("--text-column", "--pair-column"),
        file_format: str | None = None,
        encoding: str = "utf-8",
        delimiter: str | None = None,
        named: bool = False,
        keep: bool = False,
        tolerant: bool = False,
    ) -> None:
        self.name = "standard input" if path is None else str(path)
        self.columns = tuple(columns)
        self.delimiter = delimiter
        self._options = tuple(options)
        self._encoding = _codec_name(encoding)
        self.tolerant = tolerant
        self._named, self._keep = named or len(self.columns) > 1, keep
        self._ahead: Iterator[str] | None = None
        self.format = file_format or _format_of(path)
        if self.format and not formats.FORMATS[self.format].named and len(self.columns) > 1:
            raise InputFileError(
                f"{self.name}: plain text has one column, but {_quoted(self.columns)} were asked for; "
                f"use {formats.listed(_NAMED)} for several"
            )
        self._raw, self.size = _open(path)

    def __enter__(self) -> TextFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; standard input is left open."""
        if self._raw is not getattr(sys.stdin, "buffer", None):
            self._raw.close()

    @property
    def position(self) -> int:
        """Bytes read so far (compressed ones), comparable with ``size`` (0 where there is no telling)."""
        try:
            return self._raw.tell() if self.size else 0
        except (OSError, ValueError):
            return 0

    @property
    def status(self) -> os.stat_result | None:
        """What the system knows of the open file, by which it is told apart from others; None if it is none."""
        try:
            return os.fstat(self._raw.fileno())
        except (OSError, io.UnsupportedOperation):
            return None

    @property
    def binary(self) -> BinaryIO:
        """The file as bytes, for formats that are no text."""
        return self._raw

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The columns to read; None for all."""
        return None if self._keep else self.columns

    @property
    def unit(self) -> str:
        """What a row's number counts."""
        return {"json": "entry", "parquet": "row"}.get(self.format, "line")

    def place(self, row: Row) -> str:
        """How messages name a row."""
        return f"{self.name}: {self.unit} {row.line}"

    def __iter__(self) -> Iterator[Row]:
        if not self.format:
            self._look()
        read = formats.FORMATS[self.format].read
        assert read is not None
        wanted = set(self.columns)
        for record in read(self):
            if not record.problem:
                values = tuple(record.fields[column] for column in self.columns)
                kept = self._keep and formats.FORMATS[self.format].named
                others = {name: value for name, value in record.fields.items() if name not in wanted} if kept else {}
                yield Row(record.line, values, others)
                continue
            row = Row(record.line, (), problem=record.problem)
            if not self.tolerant:
                raise InputFileError(f"{self.place(row)} {record.problem}")
            yield row

    def _look(self) -> None:
        """Decides by the first line what a pipe holds; lines of text where nothing speaks against it.

        Raises:
            InputFileError: it seems to have columns, or should have them and has not.
        """
        pieces, seen = self.pieces(), ""
        for piece in pieces:
            seen += piece
            if "\n" in seen.lstrip():
                break
        self._ahead = itertools.chain([seen] if seen else [], pieces)
        self.format = _guess(seen.lstrip().partition("\n")[0].strip(), self.columns, self._named)
        if not self.format:
            raise InputFileError(
                f"{self.name} has no name that tells its format, and its first line names no column "
                f"{_quoted(self.columns)}; say what it is with --format {{{','.join(_NAMED)}}}, and name its column"
            )
        if self.format != "txt" and not self._named:
            raise InputFileError(
                f"{self.name} looks like {self.format.upper()}; say --format {self.format} to read it so, "
                "or --format txt to classify its lines as they are"
            )

    def lines(self) -> Iterator[str]:
        """Decoded lines with their ends; only ``\\n`` ends a line, as text may hold other separators."""
        line, rest = 1, ""
        for text in self.pieces():
            line += text.count("\n")
            *complete, rest = (rest + text).split("\n")
            for each in complete:
                yield each + "\n"
            if len(rest) > LONGEST:
                raise InputFileError(f"{self.name}: line {line} has more than {LONGEST:,} characters; is it text?")
        if rest:
            yield rest

    def pieces(self) -> Iterator[str]:
        """Decoded text as it comes: what a slow pipe has so far, not a full chunk."""
        ahead, self._ahead = self._ahead, None
        return self._decoded() if ahead is None else ahead

    def _decoded(self) -> Iterator[str]:
        stream: Any = gzip.GzipFile(fileobj=self._raw) if formats.packed(Path(self.name)) else self._raw
        decoder = codecs.getincrementaldecoder(self._encoding)()
        line, last = 1, False
        while not last:
            offset = stream.tell() if stream.seekable() else None
            try:
                data = stream.read1(_CHUNK)
            except (OSError, EOFError, zlib.error) as error:
                raise InputFileError(f"{self.name}: cannot be read after line {line}: {error}") from error
            last = not data
            try:
                text = decoder.decode(data, last)
            except UnicodeDecodeError as error:
                raise self._undecodable(error, line, offset, len(data)) from error
            if "\0" in text:
                at = line + text[: text.index("\0")].count("\n")
                raise InputFileError(
                    f"{self.name}: line {at} holds a NUL character, so this is no text in {self._encoding}; "
                    "if it is UTF-16, pass --encoding utf-16"
                )
            line += text.count("\n")
            if text:
                yield text

    def _undecodable(self, error: UnicodeDecodeError, line: int, offset: int | None, read: int) -> InputFileError:
        before = error.object[: error.start]
        line += before.decode(self._encoding, "replace").count("\n")
        where = f"line {line}"
        if offset is not None:  # the decoder may hold bytes back from the chunk before
            where += f", byte {offset - (len(error.object) - read) + error.start}"
        found = " ".join(f"0x{byte:02x}" for byte in error.object[error.start : error.start + 1])
        guess = "utf-16" if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin-1"
        return InputFileError(
            f"{self.name}: {where}: {found} is not valid {self._encoding.removesuffix('-sig')}; "
            f"name the file's encoding, for example --encoding {guess}"
        )

    def missing(self, column: str, seen: Sequence[str], trouble: str) -> str:
        """A sentence, begun by ``trouble``, about a column that is not there."""
        return (
            f"{trouble} {column!r}; the columns are {_quoted(seen) or '(none)'}; "
            f"choose with {self._options[self.columns.index(column)]}"
        )


_NAMED = tuple(name for name in formats.READ if formats.FORMATS[name].named)


def _codec_name(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        codecs.getincrementaldecoder(name)
        "".encode(name)
    except (LookupError, TypeError) as error:
        raise ValidationError(
            f"unknown text encoding {encoding!r}; common ones are utf-8, utf-16, latin-1, cp1252"
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def _format_of(path: str | Path | None) -> str:
    """By the name; empty for a pipe or the like without a name that tells, which is looked into."""
    if path is None:
        return ""
    path = Path(path)
    known = formats.of_path(path)
    if known is not None and known.read is not None:
        return known.name
    suffix = formats.suffix(path)
    if path.exists() and not path.is_file():
        return ""
    raise InputFileError(
        f"{path} has {f'suffix {suffix}' if suffix else 'no suffix'}; jaxpool reads {formats.listed(formats.READ)} "
        "(also .gz); say which one it is with --format"
    )


def _guess(line: str, columns: Sequence[str], named: bool) -> str:
    """The format that begins with ``line``: ``txt`` where nothing speaks for another, empty where it must be one."""
    if line in ("[", "[{"):
        return "json"
    if line.startswith(("{", "[")):
        try:
            whole = json.loads(line)
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, dict):
            return "jsonl"
        if isinstance(whole, list) or (named and line.startswith("[")):
            return "json"
    for delimiter in DELIMITERS:
        names = next(csv.reader([line], delimiter=delimiter), [])
        # without a word from the user it must look like nothing but a header
        if set(columns) <= set(names) and (named or (len(names) > 1 and all(map(str.isidentifier, names)))):
            return "csv"
    return "" if named else "txt"


def _open(path: str | Path | None) -> tuple[BinaryIO, int]:
    if path is None:
        if sys.stdin is None:
            raise InputFileError("standard input is closed; give texts, or name a file with --input")
        return sys.stdin.buffer, 0
    path = Path(path)
    try:
        raw = path.open("rb")
    except FileNotFoundError as error:
        raise InputFileError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise InputFileError(f"{path} is a folder, not a file") from error
    except OSError as error:
        raise InputFileError(f"{path} cannot be opened: {error.strerror}") from error
    return raw, os.fstat(raw.fileno()).st_size


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def as_text(value: object, where: str) -> str:
    """``value`` if it is a text; null counts as an empty one.

    Raises:
        InputFileError: it is a number or the like, or no valid Unicode; ``where`` begins the sentence.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False)[:60]
        raise InputFileError(f"{where} is {shown}, a JSON {json_type(value)}; a text was expected")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(value[error.start]):04X}"
            raise InputFileError(f"{where} is no valid Unicode: it holds {half}, half of a surrogate pair") from error
    return value
