"""Results out: one writer per format. Each is given an open text and the columns, and is left when all is written."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TextIO

Result = Mapping[str, Any]
"""``index``, ``text``, maybe ``pair``, kept columns of the input, ``label``, for multi-label models ``labels``, and
``probs`` or ``logits``, which map label names to numbers."""

Write = Callable[[Result], None]
Writer = Callable[[TextIO, Sequence[str]], AbstractContextManager[Write]]


def as_json(result: Result) -> str:
    """One JSON line, readable in any script."""
    return json.dumps(result, ensure_ascii=False)


@contextlib.contextmanager
def json_lines(file: TextIO, _columns: Sequence[str]) -> Iterator[Write]:
    """An object per line."""
    yield lambda result: print(as_json(result), file=file)


@contextlib.contextmanager
def json_array(file: TextIO, _columns: Sequence[str]) -> Iterator[Write]:
    """An array with an object per line."""
    between = ""
    file.write("[")

    def write(result: Result) -> None:
        nonlocal between
        file.write(f"{between}\n{as_json(result)}")
        between = ","

    yield write
    file.write("\n]\n")


@contextlib.contextmanager
def table(file: TextIO, columns: Sequence[str], *, delimiter: str = ",") -> Iterator[Write]:
    """CSV: what a result nests is found under ``key_subkey``, lists are joined by ``;``, what is absent stays empty."""
    rows = csv.writer(file, lineterminator="\n", delimiter=delimiter)
    rows.writerow(columns)

    def write(result: Result) -> None:
        flat: dict[str, Any] = {}
        for key, value in result.items():
            if isinstance(value, Mapping) and key not in columns:
                flat |= {f"{key}_{sub}": number for sub, number in value.items()}
            else:
                flat[key] = _cell(key, value)
        rows.writerow([flat.get(column) for column in columns])

    yield write


tab_table = partial(table, delimiter="\t")


def _cell(key: str, value: Any) -> Any:
    """A list of label names is joined; anything else that JSON nests stays JSON."""
    if key == "labels" and isinstance(value, list):
        return ";".join(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | Mapping | bool) else value
