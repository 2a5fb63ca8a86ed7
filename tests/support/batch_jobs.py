"""For tests of batch jobs: a tiny model, rows to label, and what an undisturbed look at a job's folder finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

MODEL = str(Path(__file__).parents[1] / "data" / "models" / "bert-cls")
WORDS = [
    "good",
    "bad",
    "film",
    "food",
    "the",
    "worst",
    "a",
    "service",
    "great",
    "not",
    "never",
    "again",
    "would",
    "hello",
    "world",
]


def rows(count: int, most: int = 12) -> list[dict[str, Any]]:
    """Rows of different lengths, each text another."""
    return [
        {"id": i, "text": " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(1 + i % most))}
        for i in range(count)
    ]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def labelled(output: Path) -> list[dict[str, Any]]:
    """Every row of every part, in the order of the parts."""
    found: list[dict[str, Any]] = []
    for part in sorted((output / "parts").iterdir()):
        if part.name.startswith("."):
            continue
        if part.suffix == ".parquet":
            found += pq.read_table(part).to_pylist()
        else:
            found += [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    return found


def rejected(output: Path) -> list[dict[str, Any]]:
    files = sorted((output / "rejected").glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
