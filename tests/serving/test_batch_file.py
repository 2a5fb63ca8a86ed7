"""``jaxpool run-batch``: the server's own answers, a line each, in order, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpool import LLM
from jaxpool.commands.main import main
from jaxpool_serving.batch_file import BatchFile

from .conftest import MODELS

BERT = str(MODELS / "bert-cls")


def line(number: int, url: str = "/classify", **body: Any) -> str:
    return json.dumps(
        {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body or {"input": f"text {number}"}}
    )


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]


def run(tmp_path: Path, lines: list[str], *more: str) -> list[dict[str, Any]]:
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["run-batch", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--quiet", *more]
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    return answers(tmp_path / "out.jsonl")


def test_every_line_has_its_answer(tmp_path: Path) -> None:
    lines = [
        line(0, input=["good film", "bad"]),
        "",
        line(1, "/pooling", input="good film"),
        "no json",
        line(2, "/v1/chat/completions", messages=[]),
        line(3, input=5),
        line(4, model="another", input="a"),
        json.dumps({"custom_id": "r5", "method": "GET", "url": "/classify"}),
        line(6, input="good film", long_text="window", window=16),
        "[]",
    ]
    found = run(tmp_path, lines, "--model", BERT, "--max-model-len", "64")
    assert [one["custom_id"] for one in found] == ["r0", "r1", None, "r2", "r3", "r4", "r5", "r6", None]
    statuses = [one["response"]["status_code"] for one in found]
    assert statuses == [200, 200, 400, 400, 400, 404, 400, 200, 400]
    for one in found:
        assert (
            (one["error"] is None) == (one["response"]["status_code"] == 200) == (one["response"]["body"] is not None)
        )
    with LLM(BERT) as llm:
        wanted = [output.outputs.probs for output in llm.classify(["good film", "bad"], use_tqdm=False)]
    body = found[0]["response"]["body"]
    assert [entry["label"] in llm.labels for entry in body["data"]] == [True, True]
    np.testing.assert_allclose([entry["probs"] for entry in body["data"]], wanted, atol=1e-5)
    np.testing.assert_allclose(found[1]["response"]["body"]["data"][0]["data"], wanted[0], atol=1e-5)


def test_embeddings_scores_and_ranks(tmp_path: Path) -> None:
    lines = [
        line(0, "/v1/embeddings", input=["good film", "bad"]),
        line(1, "/score", text_1="good", text_2=["good", "bad"]),
        line(2, "/rerank", query="good", documents=["bad", "good"]),
    ]
    found = run(tmp_path, lines, "--model", BERT, "--convert", "embed", "--max-model-len", "64")
    embeddings, scores, ranks = (one["response"]["body"] for one in found)
    with LLM(BERT, convert="embed") as llm:
        wanted = [output.outputs.embedding for output in llm.embed(["good film", "bad"], use_tqdm=False)]
    assert (embeddings["object"], embeddings["data"][1]["object"]) == ("list", "embedding")
    np.testing.assert_allclose([entry["embedding"] for entry in embeddings["data"]], wanted, atol=1e-5)
    assert scores["data"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert [one["index"] for one in ranks["results"]] == [1, 0]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    count = 3000
    (tmp_path / "in.jsonl").write_text("\n".join(line(number) for number in range(count)))
    out, part = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.part"
    words = ["run-batch", "-i", str(tmp_path / "in.jsonl"), "-o", str(out), "--model", BERT, "--max-model-len", "16"]
    command = [sys.executable, "-m", "jaxpool", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 300
        while time.monotonic() < limit and process.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    with part.open("ab") as file:
        file.write(b'{"id": "half a li')
    kept = part.read_bytes().rpartition(b"\n")[0]
    assert 0 < len(kept.splitlines()) < count
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "answers are there already" in done.stderr
    assert out.read_bytes().startswith(kept), "what was answered is answered again"
    assert [one["custom_id"] for one in answers(out)] == [f"r{number}" for number in range(count)]
    assert {one["response"]["status_code"] for one in answers(out)} == {200}
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]  # noqa: PTH208


def test_another_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(line(0))
    BatchFile(tmp_path / "in.jsonl", tmp_path / "out.jsonl", {"model": "a"})
    (tmp_path / ".out.jsonl.part").write_text("{}\n")
    assert BatchFile(tmp_path / "in.jsonl", tmp_path / "out.jsonl", {"model": "a"}).before == 1
    with pytest.raises(Exception, match="with another model; go on as it was begun"):
        BatchFile(tmp_path / "in.jsonl", tmp_path / "out.jsonl", {"model": "b"})
    (tmp_path / "in.jsonl").write_text(line(0) + "\n" + line(1))
    with pytest.raises(Exception, match="with another input"):
        BatchFile(tmp_path / "in.jsonl", tmp_path / "out.jsonl", {"model": "a"})
    with pytest.raises(Exception, match="does not exist"):
        BatchFile(tmp_path / "none.jsonl", tmp_path / "out.jsonl", {})
