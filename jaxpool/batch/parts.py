"""What a unit leaves behind: a part, a file of rejected rows if there are any, and the receipt that makes it count.

The receipt is written last. A part without one is done again and replaced, which is harmless.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxpool.batch.columns import as_line, label_columns, label_fields, plain, refuse_taken, table_of
from jaxpool.batch.job import Settings
from jaxpool.batch.labelling import Labelled, Labeller
from jaxpool.batch.reading import Chunk, Reading, Rejected
from jaxpool.batch.storage import Place, in_words
from jaxpool.batch.units import Unit
from jaxpool.errors import JaxpoolError

PARTS, RECEIPTS, REJECTED = "parts", "receipts", "rejected"
_ROW_GROUP = 1 << 16  # rows
_ROW_GROUP_BYTES = 32 << 20


def part_name(unit: Unit, settings: Settings) -> str:
    """Name of a unit's part in ``parts``."""
    return f"{unit.name}.{settings.output_format}"


def done_units(output: Place) -> set[int]:
    """Indices of units that have a receipt."""
    return {int(info.base_name.split("-")[1].split(".")[0]) for info in _receipts(output)}


def _receipts(output: Place) -> list[Any]:
    return [info for info in (output / RECEIPTS).listing() if info.base_name.startswith("part-")]


def is_done(output: Place, unit: Unit) -> bool:
    """Whether a unit has a receipt now."""
    return (output / RECEIPTS / f"{unit.name}.json").read() is not None


def receipts(output: Place) -> Iterator[dict[str, Any]]:
    """All receipts, in the order of their units."""
    names = [info.base_name for info in _receipts(output)]
    with ThreadPoolExecutor(16, thread_name_prefix="receipts") as threads:  # one in a bucket is a wait
        for content in threads.map(lambda name: (output / RECEIPTS / name).read(), names):
            if content is not None:
                yield json.loads(content)


class Part:
    """The part of one unit while it is written; use as a context manager, and ``commit`` inside.

    Args:
        output: the job's folder.
        reading: of the unit.
        settings: of the job.
        labeller: names labels.
        json_columns: see ``job.describe``.

    Attributes:
        rows: written so far.
        rejected: rows that went to the side file.
        last_rejected: where the last of them was, and why.
        labels: label -> rows.
    """

    def __init__(
        self,
        output: Place,
        reading: Reading,
        settings: Settings,
        labeller: Labeller,
        json_columns: Mapping[str, str],
    ) -> None:
        self._output, self._reading, self._settings, self._labeller = output, reading, settings, labeller
        self._json_columns = dict(json_columns)
        self.rows, self.tokens, self.rejected, self.labels = 0, 0, 0, Counter[str]()
        self.last_rejected = ""
        self._stack = contextlib.ExitStack()
        self._place = output / PARTS / part_name(reading.unit, settings)
        self._path: Path | None = None
        self._writer: Any = None
        self._side: TextIO | None = None
        self._waiting: list[Any] = []

    def __enter__(self) -> Part:
        with in_words(self._output):
            for folder in (PARTS, RECEIPTS, REJECTED):
                self._output.filesystem.create_dir((self._output / folder).path, recursive=True)
        self._path = self._stack.enter_context(self._place.appearing())
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None and self._writer is not None:
            with contextlib.suppress(Exception):  # the error that brought us here is the one to report
                self._writer.close()
        self._stack.__exit__(*error)

    def add(self, chunk: Chunk, labelled: Labelled) -> None:
        """Writes a chunk's rows with their labels; those that have none for a reason go to the side file."""
        self._reject(chunk.rejected)
        kept = np.ones(len(chunk), bool)
        kept[list(labelled.refused)] = False
        if labelled.refused:
            refused = list(labelled.refused)
            listed = isinstance(chunk.rows, list)
            rows = [chunk.rows[index] for index in refused] if listed else chunk.rows.take(refused).to_pylist()
            places = (self._reading.name(chunk.places[index]) for index in labelled.refused)
            self._reject([Rejected(*one) for one in zip(places, labelled.refused.values(), rows)])
        names = self._labeller.names(labelled)
        self.labels.update(name for name, wanted in zip(names, kept) if wanted and name is not None)
        self.tokens += labelled.tokens
        self.rows += int(kept.sum())
        with in_words(self._place):
            self._write(chunk, labelled, kept)

    def _reject(self, rejected: list[Rejected]) -> None:
        if not rejected:
            return
        if self._side is None:
            place = self._output / REJECTED / f"{self._reading.unit.name}.jsonl"
            path = self._stack.enter_context(place.appearing())
            self._side = self._stack.enter_context(path.open("w", encoding="utf-8"))
        self.rejected += len(rejected)
        self.last_rejected = f"{rejected[-1].where}: {rejected[-1].reason}"
        for one in rejected:
            line = json.dumps(asdict(one), ensure_ascii=False, default=plain)
            self._side.write(line.encode("utf-8", "replace").decode() + "\n")

    def _write(self, chunk: Chunk, labelled: Labelled, kept: np.ndarray) -> None:
        if self._settings.output_format == "jsonl":
            self._write_json(chunk, label_fields(self._labeller, labelled, self._settings), kept)
            return
        table = chunk.rows if isinstance(chunk.rows, pa.Table) else table_of(chunk.rows, self._json_columns)
        added = label_columns(self._labeller, labelled, self._settings)
        refuse_taken(self._reading.unit.file.url, added, table.column_names)
        for name, values in added.items():
            table = table.append_column(name, values)
        self._waiting.append(table if kept.all() else table.filter(pa.array(kept)))
        held = sum(table.nbytes for table in self._waiting)
        if self._writer is None or held > _ROW_GROUP_BYTES or sum(map(len, self._waiting)) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            assert self._path is not None
            self._writer = pq.ParquetWriter(self._path, self._waiting[0].schema, compression="zstd")
            return  # the schema is known, the rows can wait for company
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting.clear()

    def _write_json(self, chunk: Chunk, fields: list[dict[str, Any]], kept: np.ndarray) -> None:
        if self._writer is None:
            assert self._path is not None
            self._writer = self._path.open("w", encoding="utf-8")
        rows = chunk.rows if isinstance(chunk.rows, list) else chunk.rows.to_pylist()
        for index in np.flatnonzero(kept).tolist():
            refuse_taken(self._reading.unit.file.url, fields[index], rows[index])
            row = rows[index] | fields[index]
            self._writer.write(as_line(row))

    def commit(self) -> dict[str, Any]:
        """Makes the part appear, and then its receipt, which is returned.

        Raises:
            JaxpoolError: rows were read that were neither written nor rejected, or the disk is full.
        """
        unit, reading = self._reading.unit, self._reading
        expected = reading.count if unit.rows is None else unit.rows
        if self.rows + self.rejected != expected:
            raise JaxpoolError(
                f"{unit.file.url}: {expected} rows in {unit.name}, but {self.rows} labelled and {self.rejected} "
                "rejected; please report this"
            )
        with in_words(self._place):
            if self._waiting:
                self._flush()
            self._writer.close()
        self._stack.close()
        receipt = {
            "unit": unit.as_json(),
            "part": self._place.path.rsplit("/", 1)[-1],
            "bytes": self._place.info().size,
            "rows": self.rows,
            "rejected": self.rejected,
            "tokens": self.tokens,
            "span": list(reading.span),
            "labels": dict(sorted(self.labels.items())),
        }
        content = json.dumps(receipt, ensure_ascii=False) + "\n"
        (self._output / RECEIPTS / f"{unit.name}.json").write(content.encode())
        return receipt
