"""``kill -9`` at fifty random moments: every row is there exactly once, labelled as if nothing had happened."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from batch_jobs import MODEL, labelled, rejected, rows, write_jsonl

KILLS = 50
RUNNER = Path(__file__).parents[2] / "support" / "killed_batch.py"


class Runner:
    """A process that runs jobs in forks of itself."""

    def __init__(self) -> None:
        command = [sys.executable, str(RUNNER)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, source: Path, output: Path, after: int | None) -> str:
        settings = {"unit_bytes": 700, "output_format": "parquet" if output.name.endswith("p") else "jsonl"}
        order = {"inputs": [str(source)], "output": str(output), "model": MODEL, "settings": settings, "after": after}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


def test_fifty_kills(tmp_path: Path) -> None:
    records: list[dict[str, object]] = list(rows(80))
    records[7] = {"id": 7, "text": 7}  # one that goes aside
    source = write_jsonl(tmp_path / "a.jsonl", records)
    chance = random.Random(14)
    runner = Runner()
    try:
        undisturbed = tmp_path / "undisturbed"
        word, lines = runner.run(source, undisturbed, None).split()
        assert word == "done"
        expected = labelled(undisturbed)
        assert [row["id"] for row in expected] == [i for i in range(80) if i != 7]
        units = len(list((undisturbed / "receipts").iterdir()))
        assert units > 4
        kills = jobs = survived = 0
        while kills < KILLS:
            output = tmp_path / f"job-{jobs}-{'pj'[jobs % 2]}"
            done = len(list((output / "receipts").glob("part-*"))) if output.exists() else 0
            survived = max(survived, done)
            left = max(int(lines) * (units - done) // units, int(lines) // 8)
            answer = runner.run(source, output, chance.randint(1, left))
            if answer == "killed":
                kills += 1
                continue
            assert answer.startswith("done"), answer
            check(output, expected)
            jobs += 1
        if runner.run(source, output, None).startswith("done"):
            check(output, expected)
        assert survived, "no unit ever survived a kill, so that nothing was resumed"
    finally:
        runner.close()


def check(output: Path, expected: list[dict[str, object]]) -> None:
    found = labelled(output)
    assert [row["id"] for row in found] == [row["id"] for row in expected], "rows lost or doubled"
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    for row, one in zip(found, expected):
        assert row["probs"] == pytest.approx(one["probs"], abs=1e-6)
    assert len(rejected(output)) == 1
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["rows"], manifest["rejected"]) == (len(expected), 1)
    assert not list(output.rglob("*.tmp")), "what a dead process left half-written stays"
