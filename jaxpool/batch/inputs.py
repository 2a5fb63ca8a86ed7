"""What INPUT names mean: files, folders, globs and URLs, each file with its format, size and time."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec.utils
from pyarrow import fs

from jaxpool.batch.storage import Place, place
from jaxpool.errors import InputFileError

FORMATS = {"txt": "txt", "text": "txt", "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "tsv"}
FORMATS |= {"parquet": "parquet", "pq": "parquet", "arrow": "arrow", "feather": "arrow", "ipc": "arrow"}
COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}
KINDS = ("txt", "jsonl", "csv", "tsv", "parquet", "arrow")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class File:
    """One input file.

    Attributes:
        url: its name, which says how to reach it.
        size: bytes.
        changed: nanoseconds since 1970 of its last change, 0 where that is unknown.
        format: one of `KINDS`.
        compression: "gzip", "zstd" or None.
    """

    url: str
    size: int
    changed: int
    format: str
    compression: str | None = None

    @property
    def place(self) -> Place:
        """Where it is."""
        return place(self.url)

    def open(self) -> Any:
        """A pyarrow file of its bytes, as they are stored; InputFileError where it changed since it was listed."""
        where = self.place
        info = where.info()
        if info.type != fs.FileType.File:
            raise InputFileError(f"{self.url} has vanished")
        if info.size != self.size:
            raise InputFileError(f"{self.url} has changed: {self.size} bytes when the job began, {info.size} now")
        return where.filesystem.open_input_file(where.path)


def expand(inputs: Sequence[str | os.PathLike[str]], file_format: str | None = None) -> list[File]:
    """The files that ``inputs`` name, in order, each once; those of a folder or a glob sorted by name.

    Of a folder, at any depth, the files of known suffixes are taken; hidden ones (``.x``, ``_x``) and empty ones never.

    Args:
        inputs: paths, folders, globs (``*``, ``?``, ``[…]``, ``**``) or URLs.
        file_format: one of `KINDS`, for all; None goes by suffix.

    Raises:
        InputFileError: a name leads nowhere, a suffix is unknown, or nothing is left.
    """
    found: dict[str, File] = {}
    for name in inputs:
        word = os.fspath(name)
        for where, info, named in _files(word):
            kind, compression = _kind(where.path, file_format)
            if kind is None:
                if not named:
                    continue
                raise InputFileError(
                    f"{word}: no format known by this suffix; jaxpool batch reads .txt, .jsonl, .csv, .tsv (also .gz, "
                    ".zst), .parquet and .arrow; say which one it is with --input-format"
                )
            if info.size:
                changed = info.mtime_ns or 0
                found.setdefault(str(where), File(str(where), info.size, changed, kind, compression))
    if not found:
        words = ", ".join(str(one) for one in inputs)
        raise InputFileError(f"no file with anything in it: {words or '(no input)'}")
    return list(found.values())


def _files(word: str) -> list[tuple[Place, Any, bool]]:
    """Files that one name stands for, with their info, and whether the name is theirs alone."""
    whole = place(word)
    info = whole.info()
    if info.type == fs.FileType.File:
        return [(whole, info, True)]
    if info.type == fs.FileType.Directory:
        base, pattern = whole, None
    else:
        magic = _MAGIC.search(whole.path)
        if magic is None:
            raise InputFileError(f"{word} does not exist")
        base = Place(whole.filesystem, whole.path[: magic.start()].rpartition("/")[0] or "/", whole.root)
        pattern = re.compile(fsspec.utils.glob_translate(whole.path))
    found = []
    for one in base.listing(recursive=True):
        inside = one.path.removeprefix(base.path).strip("/")
        hidden = any(part.startswith((".", "_")) for part in inside.split("/"))
        meant = pattern is not None and whole.path.rpartition("/")[2].startswith((".", "_"))
        if (pattern is None or pattern.match(one.path)) and (meant or not hidden):
            found.append((Place(base.filesystem, one.path, base.root), one, pattern is not None))
    if not found:
        raise InputFileError(f"{word}: {'nothing matches' if pattern else 'the folder holds no files'}")
    return found


def _kind(path: str, file_format: str | None) -> tuple[str | None, str | None]:
    """Format and compression by suffix."""
    *_, before, last = ("", "", *path.rsplit("/", 1)[-1].lower().split("."))
    compression = COMPRESSIONS.get(last)
    kind = file_format or FORMATS.get(before if compression else last)
    return kind, None if kind in ("parquet", "arrow") else compression
