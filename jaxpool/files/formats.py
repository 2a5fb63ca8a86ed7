"""The table of file formats: what each is called, how it is read, how it is written. A new one is a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpool.files import readers, writers

if TYPE_CHECKING:
    from jaxpool.files.readers import Record, Source
    from jaxpool.files.writers import Writer


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file.

    Attributes:
        name: for ``--format``, and the suffix that stands for it.
        read: records of an open input; None where it is not read.
        write: makes the function that writes one result; None where it is not written.
        others: further suffixes.
        named: whether records have named fields, so that there are columns to choose from and to keep.
        header: whether its first line settles the columns of all that follow.
    """

    name: str
    read: Callable[[Source], Iterator[Record]] | None
    write: Writer | None
    others: tuple[str, ...] = ()
    named: bool = True
    header: bool = False


FORMATS = {
    one.name: one
    for one in (
        Format("txt", readers.lines, None, ("text",), named=False),
        Format("jsonl", readers.json_lines, writers.json_lines, ("ndjson",)),
        Format("json", readers.json_array, writers.json_array),
        Format("csv", readers.table, writers.table, header=True),
        Format("tsv", readers.table, writers.tab_table, header=True),
        Format("parquet", readers.parquet, None, ("pq",)),
    )
}
_BY_SUFFIX = {suffix: one for one in FORMATS.values() for suffix in (one.name, *one.others)}
READ = tuple(one.name for one in FORMATS.values() if one.read)
WRITTEN = tuple(one.name for one in FORMATS.values() if one.write)


def packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() == ".gz"


def of_path(path: Path) -> Format | None:
    """The format that a file's name tells, ``.gz`` aside; None if it tells none."""
    return _BY_SUFFIX.get(suffix(path).removeprefix("."))


def suffix(path: Path) -> str:
    """``.csv`` of ``a.csv`` and of ``a.CSV.gz``; empty where there is none."""
    return (path.with_suffix("") if packed(path) else path).suffix.lower()


def listed(names: tuple[str, ...]) -> str:
    """Formats as a reader of messages knows them: ``.jsonl, .json and .csv``."""
    *first, last = (f".{name}" for name in names)
    return f"{', '.join(first)} and {last}"
