"""Several processes share a job without talking: who does what, and what becomes of the share of one that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_jobs import MODEL, labelled, rows, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from jaxpool.batch.inputs import File
from jaxpool.batch.share import Share, found_share
from jaxpool.batch.units import Unit
from jaxpool.errors import ValidationError

FILE = File("a.txt", 1, 0, "txt")


def units(count: int) -> list[Unit]:
    return [Unit(index, FILE, 0, 0, None, 1) for index in range(count)]


@given(st.integers(0, 40), st.integers(1, 7))
def test_shares_tile_the_units(count: int, processes: int) -> None:
    shares = [Share(index, processes) for index in range(processes)]
    together = [unit.index for share in shares for unit in share.own(units(count))]
    assert sorted(together) == list(range(count))
    for share in shares:
        both = [unit.index for unit in share.own(units(count)) + share.others(units(count))]
        assert sorted(both) == list(range(count))


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_whatever_is_left_is_done_once_there_is_somebody(count: int, events: list[tuple[int, bool]]) -> None:
    """Three processes take turns and may die before a unit's receipt; in the end one that steals does all the rest."""
    receipts: list[int] = []
    running = {i: Share(i, 3).todo(units(count), set(), False, lambda unit: unit.index in receipts) for i in range(3)}
    for who, dies in events:
        unit = next(running[who], None)
        if dies:
            running[who] = Share(who, 3).todo(units(count), set(receipts), False, lambda unit: unit.index in receipts)
        elif unit is not None:
            receipts.append(unit.index)
    helper = Share(1, 3).todo(units(count), set(receipts), True, lambda unit: unit.index in receipts)
    receipts += [unit.index for unit in helper]
    assert sorted(receipts) == list(range(count))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, (2, 4)),
        (
            {
                "TPU_WORKER_ID": "1",
                "TPU_WORKER_HOSTNAMES": "a,b",
                "MEGASCALE_SLICE_ID": "2",
                "MEGASCALE_NUM_SLICES": "3",
            },
            (5, 6),
        ),
        ({"JOB_COMPLETION_INDEX": "3", "JAXPOOL_PROCESS_COUNT": "5"}, (3, 5)),
        (
            {"JAXPOOL_PROCESS_INDEX": "0", "JAXPOOL_PROCESS_COUNT": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "9"},
            (0, 2),
        ),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "6"}, (4, 6)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "9",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "4",
                "SLURM_ARRAY_TASK_COUNT": "3",
            },
            (2, 3),
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "4"}, (1, 4)),
    ],
)
def test_clusters_are_recognised(environment: dict[str, str], expected: tuple[int, int]) -> None:
    found = found_share(environment=environment)
    assert (found.index, found.count) == expected


def test_flags_come_first() -> None:
    environment = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    assert found_share(3, 4, environment) == Share(3, 4, "--process-index and --process-count")
    assert found_share(None, 4, {"JOB_COMPLETION_INDEX": "2"}).index == 2


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({"JOB_COMPLETION_INDEX": "3"}, (None, None), "nobody says of how many"),
        ({}, (2, None), "nobody says of how many"),
        ({}, (None, 2), "--process-index says which is this"),
        ({}, (2, 2), "counted from 0 to count - 1"),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "2"}, (None, None), "a Slurm step: invalid literal"),
    ],
)
def test_half_an_answer(environment: dict[str, str], flags: tuple[int | None, int | None], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        found_share(*flags, environment)


def begin(source: Path, output: Path, index: int, *more: str) -> subprocess.Popen[str]:
    words = ["batch", str(source), "--output", str(output), "--model", MODEL, "--unit-mb", "0.002", "--quiet", *more]
    environment = os.environ | {"SKYPILOT_NODE_RANK": str(index), "SKYPILOT_NUM_NODES": "4"}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxpool", *words], env=environment, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def done(output: Path, index: int) -> int:
    return sum(int(path.stem.split("-")[1]) % 4 == index for path in output.glob("receipts/part-*.json"))


def test_four_processes_one_killed_and_begun_again(tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "a.jsonl", rows(1500)), tmp_path / "out"
    processes = [begin(source, output, index) for index in range(4)]
    limit = time.monotonic() + 300
    while not done(output, 2) and time.monotonic() < limit:
        time.sleep(0.002)
    processes[2].send_signal(signal.SIGKILL)
    processes[2].communicate()
    assert processes[2].returncode == -signal.SIGKILL, "it ended before it could be killed"
    for index in (0, 1, 3):
        end(processes[index])
    assert not (output / "manifest.json").exists()
    missing = 1500 - len(labelled(output))
    assert missing > 0
    victim = sorted(path.name for path in output.glob("receipts/part-*.json"))
    end(begin(source, output, 2))
    assert (output / "manifest.json").exists()
    assert [row["id"] for row in labelled(output)] == list(range(1500))
    # what one that is left over does, if asked: the units of a process that never comes back
    for path in list(output.glob("receipts/part-*.json")):
        if path.name not in victim:
            path.unlink()
    (output / "manifest.json").unlink()
    end(begin(source, output, 0, "--steal"))
    assert (output / "manifest.json").exists()
    assert [row["id"] for row in labelled(output)] == list(range(1500))
