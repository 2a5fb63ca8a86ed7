"""Text files in: streaming, one record at a time, with errors that name file, line and remedy.

``.txt`` (one text per line), ``.jsonl``, ``.csv``, ``.tsv``, each also as ``.gz``, or standard input. Blank
lines mean nothing in ``.jsonl``, ``.csv`` and ``.tsv`` and are skipped; in ``.txt`` a blank line is a text
without words and is kept, so that the n-th result always belongs to the n-th line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jaxpool.errors import InputFileError, ValidationError

FORMATS = {"txt": "txt", "text": "txt", "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "tsv"}
_CHUNK = 1 << 18  # bytes decoded at a time
_LONGEST = 1 << 26  # characters of a line or field; beyond it, this is no text file, or a quote never closes


@dataclass(frozen=True, slots=True)
class Row:
    """One record of an input file.

    Attributes:
        line: number of its (first) line, from 1.
        values: the asked-for columns in order: strings, or any JSON value from ``.jsonl``.
    """

    line: int
    values: tuple[Any, ...]


class TextFile:
    """An input file, iterable once as `Row` objects; memory use does not grow with its size.

    Args:
        path: the file, or None for standard input.
        columns: names of the columns wanted (JSON fields, CSV header names); ``.txt`` has just one, and any
            name will do for it.
        options: the command-line options that name these columns, for messages.
        file_format: ``txt``, ``jsonl``, ``csv`` or ``tsv``; None goes by the suffix, and takes standard input
            for ``txt``.
        encoding: of the text; UTF-8 with or without byte order mark by default.

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
    ) -> None:
        self.name = "standard input" if path is None else str(path)
        self.format = file_format or ("txt" if path is None else _format_of(Path(path)))
        self.columns = tuple(columns)
        self._options = tuple(options)
        self._encoding = _codec_name(encoding)
        if self.format == "txt" and len(self.columns) > 1:
            raise InputFileError(
                f"{self.name}: plain text has one column, but {_quoted(self.columns)} were asked for; "
                "use .jsonl, .csv or .tsv for several"
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

    def __iter__(self) -> Iterator[Row]:
        lines = self._lines()
        if self.format == "txt":
            return (Row(number, (line.rstrip("\r\n"),)) for number, line in enumerate(lines, 1))
        return self._json_rows(lines) if self.format == "jsonl" else self._csv_rows(lines)

    def _lines(self) -> Iterator[str]:
        """Decoded lines with their ends; only ``\\n`` ends a line, as text may hold other separators."""
        stream: Any = gzip.GzipFile(fileobj=self._raw) if self.name.endswith(".gz") else self._raw
        decoder = codecs.getincrementaldecoder(self._encoding)()
        line, rest, last = 1, "", False
        while not last:
            offset = stream.tell() if stream.seekable() else None
            try:
                data = stream.read1(_CHUNK)  # what a slow pipe has so far, not a full chunk
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
            *complete, rest = (rest + text).split("\n")
            for each in complete:
                yield each + "\n"
            if len(rest) > _LONGEST:
                raise InputFileError(f"{self.name}: line {line} has more than {_LONGEST:,} characters; is it text?")
        if rest:
            yield rest

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

    def _json_rows(self, lines: Iterator[str]) -> Iterator[Row]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                detail = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise InputFileError(
                    f"{self.name}: line {number} is not JSON ({detail}); every line must be one JSON object"
                ) from error
            if not isinstance(record, dict):
                raise InputFileError(
                    f"{self.name}: line {number} is a JSON {_json_type(record)}; every line must be an object"
                    f' like {{"{self.columns[0]}": "…"}}'
                )
            for column in self.columns:
                if column not in record:
                    raise self._missing(column, list(record), f"line {number} has no field")
            yield Row(number, tuple(record[column] for column in self.columns))

    def _csv_rows(self, lines: Iterator[str]) -> Iterator[Row]:
        csv.field_size_limit(_LONGEST)
        dialect = "excel-tab" if self.format == "tsv" else "excel"
        reader = csv.reader(lines, dialect, strict=True)  # a malformed quote is refused, not guessed at
        start = 1
        try:
            header = next(reader, None)
            while header == []:
                header = next(reader, None)
            if header is None:
                raise InputFileError(f"{self.name} is empty; its first line must name the columns")
            for column in self.columns:
                if header.count(column) != 1:
                    trouble = "there is no column" if column not in header else "there are several columns"
                    raise self._missing(column, header, trouble)
            wanted = [header.index(column) for column in self.columns]
            start = reader.line_num + 1
            for fields in reader:
                if fields:
                    if len(fields) != len(header):
                        raise InputFileError(
                            f"{self.name}: line {start} has {len(fields)} fields, the header {len(header)}; "
                            "a separator or line break inside a text needs double quotes around the text"
                        )
                    yield Row(start, tuple(fields[i] for i in wanted))
                start = reader.line_num + 1
        except csv.Error as error:
            raise InputFileError(
                f"{self.name}: line {start} is not valid {self.format.upper()} ({error}); a quote inside a "
                'quoted text is written twice ("")'
            ) from error

    def _missing(self, column: str, seen: Sequence[str], trouble: str) -> InputFileError:
        return InputFileError(
            f"{self.name}: {trouble} {column!r}; the columns are {_quoted(seen) or '(none)'}; "
            f"choose with {self._options[self.columns.index(column)]}"
        )


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


def _format_of(path: Path) -> str:
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        seen = f"suffix .{suffix}" if suffix else "no suffix"
        raise InputFileError(
            f"{path} has {seen}; jaxpool reads .txt, .jsonl, .csv and .tsv (also .gz); "
            "say which one it is with --format"
        )
    return FORMATS[suffix]


def _open(path: str | Path | None) -> tuple[BinaryIO, int]:
    if path is None:
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


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def as_text(value: object, where: str) -> str:
    """``value`` if it is a text; null counts as an empty one.

    Raises:
        InputFileError: it is a number or the like, or no valid Unicode; ``where`` begins the sentence.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False)[:60]
        raise InputFileError(f"{where} is {shown}, a JSON {_json_type(value)}; a text was expected")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(value[error.start]):04X}"
            raise InputFileError(f"{where} is no valid Unicode: it holds {half}, half of a surrogate pair") from error
    return value
