"""Labelled text from files: .jsonl, .csv, .tsv (also .gz) and .parquet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxpool.errors import InputFileError
from jaxpool.files.input_files import Row, TextFile
from jaxpool.training.data import Label, Labelled, Text

if TYPE_CHECKING:
    from jaxpool.checkpoints.labels import Problem

Asked = Literal["auto", "single", "multi", "regression"]
"""What the labels are to be taken for."""

_HOLDS = {True: True, False: False, "1": True, "0": False, "true": True, "false": False}
"""Values of a column of its own for one of several labels (1 and 1.0 are True to Python)."""


def read_labelled(
    path: str | os.PathLike[str],
    text_column: str = "text",
    label_column: str | Sequence[str] = "label",
    pair_column: str | None = None,
    problem: Asked = "auto",
) -> Labelled:
    """Reads labelled text.

    Args:
        path: the file.
        text_column: column or field of the text.
        label_column: that of the label; several names are one column of 0 and 1 for each of several labels.
        pair_column: that of a second text, for a model of pairs.
        problem: ``auto`` takes lists of labels (also as JSON in a table) and several columns for ``multi``, numbers
            of which one has a fraction for ``regression``, and anything else for ``single``.

    Raises:
        InputFileError: what ``TextFile`` refuses, an empty text or label, labels of several kinds, no rows.
    """
    path = Path(path)
    columns = [label_column] if isinstance(label_column, str) else list(label_column)
    texts_from = [text_column] if pair_column is None else [text_column, pair_column]
    texts: list[Text] = []
    values: list[tuple[int, list[Any]]] = []
    for row in _rows(path, texts_from, columns):
        parts = row.values[: len(texts_from)]
        for column, text in zip(texts_from, parts):
            if not isinstance(text, str) or not text.strip():
                raise InputFileError(
                    f"{path}: line {row.line}: {column!r} is {text!r}; it must be a text that is not empty"
                )
        texts.append(parts[0] if pair_column is None else (parts[0], parts[1]))
        values.append((row.line, list(row.values[len(texts_from) :])))
    if not texts:
        raise InputFileError(f"{path} holds no labelled texts")
    if len(columns) > 1:
        return Labelled(texts, _of_columns(path, columns, values), str(path), "multi", tuple(columns))
    one = [(line, _parsed(cells[0])) for line, cells in values]
    kind = _guess([value for _, value in one]) if problem == "auto" else problem
    read = {"single": _single, "multi": _multi, "regression": _number}[kind]
    return Labelled(texts, [read(path, line, columns[0], value) for line, value in one], str(path), kind)


def _rows(path: Path, texts: list[str], labels: list[str]) -> Iterator[Row]:
    columns = [*texts, *labels]
    options = ["--text-column", "--pair-column"][: len(texts)] + ["--label-column"] * len(labels)
    with TextFile(path, columns, options=options) as file:
        yield from file


def _parsed(value: Any) -> Any:
    """A list of labels that a table holds as JSON becomes one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except ValueError:
            return value
        return parsed if isinstance(parsed, list) else value
    return value


def _guess(values: list[Any]) -> Problem:
    if any(isinstance(value, list) for value in values):
        return "multi"
    numbers = [_as_float(value) for value in values]
    if all(number is not None for number in numbers) and any(number != int(number) for number in numbers):  # type: ignore[arg-type]
        return "regression"
    return "single"


def _as_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _single(path: Path, line: int, column: str, value: Any) -> Label:
    if not isinstance(value, str | int) or not str(value).strip():
        raise InputFileError(f"{path}: line {line}: {column!r} is {value!r}; a label is a string or a whole number")
    return str(value)


def _multi(path: Path, line: int, column: str, value: Any) -> Label:
    if not isinstance(value, list) or not all(isinstance(one, str | int) and str(one).strip() for one in value):
        raise InputFileError(
            f"{path}: line {line}: {column!r} is {value!r}; where a text may have several labels, all rows have "
            'lists of strings or whole numbers, such as ["fast", "cheap"] or []'
        )
    return tuple(dict.fromkeys(map(str, value)))


def _number(path: Path, line: int, column: str, value: Any) -> Label:
    number = _as_float(value)
    if number is None:
        raise InputFileError(f"{path}: line {line}: {column!r} is {value!r}; a finite number was expected")
    return number


def _of_columns(path: Path, columns: list[str], values: list[tuple[int, list[Any]]]) -> list[Label]:
    labels: list[Label] = []
    for line, cells in values:
        for column, cell in zip(columns, cells):
            if (cell.lower() if isinstance(cell, str) else cell) not in _HOLDS:
                raise InputFileError(f"{path}: line {line}: {column!r} is {cell!r}; it must be 0 or 1")
        held = [_HOLDS[cell.lower() if isinstance(cell, str) else cell] for cell in cells]
        labels.append(tuple(column for column, holds in zip(columns, held) if holds))
    return labels
