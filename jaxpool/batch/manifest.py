"""The last step: every row of every input is in exactly one part or file of rejected rows, and a list that says so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from jaxpool.batch.parts import PARTS, REJECTED, receipts
from jaxpool.batch.storage import Place, in_words
from jaxpool.batch.units import Unit
from jaxpool.errors import JaxpoolError

MANIFEST = "manifest.json"


def totals(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over receipts."""
    labels = Counter[str]()
    for receipt in found:
        labels.update(receipt["labels"])
    return {
        "rows": sum(receipt["rows"] for receipt in found),
        "rejected": sum(receipt["rejected"] for receipt in found),
        "tokens": sum(receipt["tokens"] for receipt in found),
        "labels": dict(labels.most_common()),
    }


def finish(output: Place, units: Sequence[Unit]) -> dict[str, Any] | None:
    """Checks a job whose units are all done, and writes its manifest; None where some are not.

    Checked are, of each unit, that it is the unit planned, that its part is there with the bytes and (in Parquet) the
    rows that its receipt tells, that these and the rejected ones are the rows of its input, and that ranges of lines
    meet without gap or overlap and end with their file.

    Raises:
        JaxpoolError: something does not add up; the message says what, and that removing a receipt has it done again.
    """
    found = list(receipts(output))
    if len(found) < len(units):
        return None
    sizes = {info.base_name: info.size for info in (output / PARTS).listing()}
    before: Unit | None = None
    end = 0
    for unit, receipt in zip(units, found):
        _check(output, unit, receipt, sizes)
        if unit.first or unit.last:
            follows = before is not None and before.file == unit.file
            start, stop = receipt["span"]
            if unit.rows is None and follows and start != end:
                raise _wrong(output, unit, f"begins at byte {start}, and the unit before ends at {end}")
            end = stop
            if unit.rows is None and unit.last == unit.file.size and stop != unit.file.size:
                raise _wrong(output, unit, f"ends at byte {stop} of {unit.file.size}")
        before = unit
    manifest = totals(found) | {
        "parts": [
            {
                "part": f"{PARTS}/{receipt['part']}",
                "rows": receipt["rows"],
                "bytes": receipt["bytes"],
                "rejected": f"{REJECTED}/{unit.name}.jsonl" if receipt["rejected"] else None,
                "input": unit.file.url,
                "first": unit.first,
                "last": unit.last,
            }
            for unit, receipt in zip(units, found)
        ]
    }
    (output / MANIFEST).write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def _check(output: Place, unit: Unit, receipt: dict[str, Any], sizes: dict[str, int]) -> None:
    if Unit.of_json(receipt["unit"]) != unit:
        raise _wrong(output, unit, "is the receipt of another unit")
    size = sizes.get(receipt["part"])
    if size != receipt["bytes"]:
        state = "is missing" if size is None else f"has {size} bytes instead of {receipt['bytes']}"
        raise _wrong(output, unit, f"names the part {receipt['part']}, which {state}")
    if receipt["part"].endswith(".parquet"):
        part = output / PARTS / receipt["part"]
        with in_words(part), part.filesystem.open_input_file(part.path) as file:
            rows = pq.read_metadata(file).num_rows
        if rows != receipt["rows"]:
            raise _wrong(output, unit, f"tells of {receipt['rows']} rows, and the part has {rows}")
    if unit.rows is not None and receipt["rows"] + receipt["rejected"] != unit.rows:
        both = receipt["rows"] + receipt["rejected"]
        raise _wrong(output, unit, f"tells of {both} rows, and the input has {unit.rows}")


def _wrong(output: Place, unit: Unit, trouble: str) -> JaxpoolError:
    name = f"receipts/{unit.name}.json"
    return JaxpoolError(f"{output}: {name} {trouble}; remove that file and run the job again to redo this unit")


def status(output: Place, job: dict[str, Any]) -> dict[str, Any]:
    """How far a job is: totals, units done, and indices of those that are not (the first hundred)."""
    found = list(receipts(output))
    done = {receipt["unit"]["index"] for receipt in found}
    missing = [index for index in range(job["units"]) if index not in done]
    finished = (output / MANIFEST).read() is not None
    return totals(found) | {
        "units": job["units"],
        "units_done": len(done),
        "missing": missing[:100],
        "finished": finished,
    }
