"""One model over several real processes that speak over loopback gives what one process gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from batch_jobs import MODEL, labelled, rejected, rows, write_jsonl

from jaxpool.batch import run

SETTINGS = ["--max-length", "16", "--batch-tokens", "64", "--unit-mb", "0.001", "--quiet"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def together(source: Path, output: Path, count: int, *more: str) -> list[tuple[int, str]]:
    """Exit status and standard error of each of ``count`` processes."""
    words = ["batch", str(source), "--output", str(output), "--model", MODEL, *SETTINGS, "--mesh", "global", *more]
    words += ["--coordinator", f"127.0.0.1:{free_port()}", "--process-count", str(count)]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxpool", *words, "--process-index", str(index)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    errors = [process.communicate(timeout=400)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors)]


@pytest.mark.parametrize(("count", "shared"), [(2, 2), (4, 1)])
def test_as_one_process(tmp_path: Path, count: int, shared: int) -> None:
    """Two processes that share one copy of the weights; four with a copy each and a quarter of every batch."""
    records: list[dict[str, object]] = list(rows(100, most=8))
    records[11] = {"id": 11, "text": 11}
    source = write_jsonl(tmp_path / "a.jsonl", records)
    run(source, tmp_path / "one", model=MODEL, max_length=16, unit_bytes=1048)
    expected = labelled(tmp_path / "one")
    found = together(source, tmp_path / "all", count, "--tensor-parallel-size", str(shared))
    assert [code for code, _ in found] == [0] * count, found
    assert [row["id"] for row in labelled(tmp_path / "all")] == [row["id"] for row in expected]
    for row, one in zip(labelled(tmp_path / "all"), expected):
        assert row["label"] == one["label"]
        assert row["probs"] == pytest.approx(one["probs"], abs=1e-5)
    assert rejected(tmp_path / "all") == rejected(tmp_path / "one") != []
    assert (tmp_path / "all" / "manifest.json").exists()
    if count == 2:  # what is done is agreed on, too
        victim = sorted((tmp_path / "all" / "receipts").iterdir())[1]
        victim.unlink()
        found = together(source, tmp_path / "all", count, "--tensor-parallel-size", str(shared))
        assert [code for code, _ in found] == [0] * count, found
        assert victim.exists()
