"""What a job will cost: rows counted or guessed, and the planner's own prediction for a sample of its texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpool.batch.job import Settings
from jaxpool.batch.labelling import Labeller
from jaxpool.batch.reading import Reading
from jaxpool.batch.units import Unit
from jaxpool.engine.buckets import plan

SAMPLES = 8
"""Units looked at, spread evenly; the first chunk of each."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of some units.

    Attributes:
        rows: how many; ``exact`` says whether they were counted.
        tokens: about.
        seconds: of computing, as the planner predicts with every program compiled; more than 0.
    """

    rows: int
    exact: bool
    tokens: int
    seconds: float


def estimate(units: Sequence[Unit], settings: Settings, options: dict[str, Any]) -> Estimate:
    """Looks at a sample of units with the model's tokenizer; compiles and computes nothing.

    Args:
        units: at least one.
        settings: of the job.
        options: for ``LLM``.
    """
    step = max(1, len(units) // SAMPLES)
    sample = units[::step][:SAMPLES]
    with settings.open_model(**options) as llm:
        labeller, engine = Labeller(llm, settings), llm.engine
        seen, seconds, tokens, rows, weight = 0, 0.0, 0, 0.0, 0
        for unit in sample:
            chunks = iter(Reading(unit, settings.columns, settings.encoding))
            chunk = next(chunks)
            chunks.close()  # type: ignore[attr-defined]  # a generator
            prepared = labeller.prepare(chunk.columns)
            lengths = np.array([len(one.ids) for text in prepared.prompts for one in text.windows], np.int64)
            if len(lengths):
                batches = plan(lengths, engine.buckets, engine.cost, frozenset(engine.buckets), False)
                seconds += sum(engine.cost.seconds(batch.bucket) for batch in batches)
            tokens += int(lengths.sum())
            seen += len(chunk)
            rows += unit.rows if unit.rows is not None else _guess(unit, chunk)
            weight += unit.size
    exact = all(unit.rows is not None for unit in units)
    size = sum(unit.size for unit in units)
    counted = sum(unit.rows or 0 for unit in units) if exact else round(rows * size / max(weight, 1))
    scale = counted / max(seen, 1)
    return Estimate(counted, exact, round(tokens * scale), max(seconds * scale, 1e-9))


def _guess(unit: Unit, chunk: Any) -> float:
    """Rows of a unit of lines, by the length of its first chunk's texts (and a little for whatever is beside them)."""
    if unit.file.format in ("txt", "jsonl") and len(chunk) > 1:
        row = (chunk.places[-1] - chunk.places[0]) / (len(chunk) - 1)
    else:
        row = sum(map(len, chunk.columns[0])) / max(len(chunk), 1) + 16
    unpacked = unit.size * (3 if unit.file.compression else 1)
    return max(unpacked / max(row, 1), float(len(chunk)))
