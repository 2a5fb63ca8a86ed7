"""Columns of results beside those of the input, in Arrow and in JSON."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jaxpool.batch.job import Settings
from jaxpool.batch.labelling import Labelled, Labeller
from jaxpool.errors import InputFileError

OTHER_FIELDS = "other_fields"
"""Column of Parquet parts made of ``.jsonl``: fields that have no column of their own, as JSON."""


def label_columns(labeller: Labeller, labelled: Labelled, settings: Settings) -> dict[str, Any]:
    """The columns of results as Arrow arrays: ``label``, ``labels`` where several may hold, and the scores.

    Scores are a struct with a field per label, or of the best alone (``top_k``) a map, best first.
    """
    prefix = settings.prefix
    found = {f"{prefix}label": pa.array(labeller.names(labelled), pa.string())}
    if labeller.several:
        found[f"{prefix}labels"] = pa.array(labeller.all_that_hold(labelled), pa.list_(pa.string()))
    if settings.top_k is None:
        columns = [pa.array(column) for column in labelled.scores.T]
        kinds = [pa.field(label, pa.float32()) for label in labeller.labels]
        found[settings.kind] = pa.StructArray.from_arrays(columns, fields=kinds, mask=pa.array(~labelled.scored))
    else:
        pairs = [None if one is None else list(one.items()) for one in _scores(labeller, labelled, settings.top_k)]
        found[settings.kind] = pa.array(pairs, pa.map_(pa.string(), pa.float32()))
    return found


def label_fields(labeller: Labeller, labelled: Labelled, settings: Settings) -> list[dict[str, Any]]:
    """The same for JSON, a dict per row."""
    prefix, scores = settings.prefix, _scores(labeller, labelled, settings.top_k)
    several = labeller.all_that_hold(labelled) if labeller.several else None
    return [
        {
            f"{prefix}label": name,
            **({} if several is None else {f"{prefix}labels": several[index]}),
            settings.kind: scores[index],
        }
        for index, name in enumerate(labeller.names(labelled))
    ]


def _scores(labeller: Labeller, labelled: Labelled, top_k: int | None) -> list[dict[str, float] | None]:
    """Label -> score of each row; of some only, the highest first."""
    labels = labeller.labels
    order = np.broadcast_to(np.arange(len(labels)), labelled.scores.shape)
    if top_k is not None:
        order = np.argsort(-labelled.scores, axis=1, kind="stable")[:, :top_k]
    return [
        {labels[index]: _short(row[index]) for index in best} if scored else None
        for row, best, scored in zip(labelled.scores.tolist(), order.tolist(), labelled.scored)
    ]


def refuse_taken(name: str, added: Iterable[str], columns: Container[str]) -> None:
    """Raises InputFileError where an input has a column that results are to have."""
    for column in added:
        if column in columns:
            raise InputFileError(
                f"{name} has a column {column!r} of its own; put a prefix before the names of the results (--prefix)"
            )


def _short(value: float) -> float:
    return float(f"{value:.8g}")


def as_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON; what is no number in JSON (NaN, infinity) becomes null."""
    try:
        return json.dumps(row, ensure_ascii=False, default=plain, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, default=plain) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A value that JSON lacks, as text: times in ISO format, bytes in base 64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, decimal.Decimal) else repr(value)


def json_types(records: list[dict[str, Any]]) -> dict[str, str]:
    """Column -> Arrow type for ``.jsonl`` rows in Parquet, from some of them; nested and mixed values become JSON."""
    seen: dict[str, set[type]] = {}
    for record in records:
        for name, value in record.items():
            seen.setdefault(name, set()).update([] if value is None else [type(value)])
    names = {frozenset([str]): "string", frozenset([bool]): "bool", frozenset([int]): "int64"}
    numbers = {frozenset([float]), frozenset([int, float])}
    return {
        name: "double" if frozenset(types) in numbers else names.get(frozenset(types), "json")
        for name, types in seen.items()
    }


_FITS: dict[str, tuple[type, ...]] = {"string": (str,), "bool": (bool,), "int64": (int,), "double": (float, int)}


def _fits(value: Any, kind: str) -> bool:
    if value is None or kind == "json":
        return True
    if type(value) not in _FITS[kind]:
        return False
    return not isinstance(value, int) or abs(value) < (1 << 53 if kind == "double" else 1 << 63)


def table_of(records: list[dict[str, Any]], kinds: Mapping[str, str]) -> Any:
    """``.jsonl`` rows as a table; what does not fit its column is kept beside, and nothing is lost."""
    columns: dict[str, list[Any]] = {name: [] for name in kinds}
    others = []
    for record in records:
        other = {}
        for name, value in record.items():
            if name not in kinds or not _fits(value, kinds[name]):
                other[name] = value
        for name, kind in kinds.items():
            value = None if name in other else record.get(name)
            columns[name].append(
                json.dumps(value, ensure_ascii=False) if kind == "json" and value is not None else value
            )
        others.append(json.dumps(other, ensure_ascii=False) if other else None)
    types = {
        "string": pa.string(),
        "json": pa.string(),
        "bool": pa.bool_(),
        "int64": pa.int64(),
        "double": pa.float64(),
    }
    arrays = {name: pa.array(values, types[kinds[name]]) for name, values in columns.items()}
    return pa.table(arrays | {OTHER_FIELDS: pa.array(others, pa.string())})
