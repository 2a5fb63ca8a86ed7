"""``jaxpool batch`` as people and pipes meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_jobs import MODEL, labelled, rows, write_jsonl

from jaxpool.commands.main import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", rows(60))


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> list[dict]:
    """The JSON lines that a run prints."""
    assert main([str(word) for word in words]) == code
    out, err = capsys.readouterr()
    assert code or not err, err
    return [json.loads(line) for line in out.splitlines()]


def test_a_job_told_in_json_lines(capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["batch", source, "--output", out, "--model", MODEL, "--unit-mb", "0.001"]
    [plan] = run(capsys, *words, "--dry-run")
    assert plan["event"] == "plan"
    assert plan["units"] > 2
    assert 40 < plan["rows"] < 90
    assert plan["seconds"] > 0
    assert not out.exists(), "a dry run writes nothing"
    *_, done = run(capsys, *words)
    assert (done["event"], done["rows"], done["complete"], done["units_done"]) == ("done", 60, True, plan["units"])
    assert 0 <= done["padding_waste"] < 1
    assert 0 < done["device_share"] <= 1
    assert sum(done["labels"].values()) == 60
    assert [row["id"] for row in labelled(out)] == list(range(60))
    [again] = run(capsys, *words)
    assert (again["rows"], again["complete"]) == (0, True)
    [status] = run(capsys, "batch", "status", out)
    assert (status["rows"], status["units"], status["units_done"]) == (60, plan["units"], plan["units"])
    assert (status["finished"], status["missing"]) == (True, [])
    (out / "receipts" / "part-000001.json").unlink()
    (out / "manifest.json").unlink()
    [status] = run(capsys, "batch", "status", out, code=3)
    assert (status["finished"], status["missing"]) == (False, [1])


def test_progress_lines(source: Path, tmp_path: Path) -> None:
    import io

    from jaxpool.batch import run as run_job
    from jaxpool.batch.progress import Progress, drawn, duration, lines

    stream = io.StringIO()
    seen: list[Progress] = []
    with lines(stream, every=0) as report:
        run_job(source, tmp_path / "out", model=MODEL, unit_bytes=1000, report=lambda p: (report(p), seen.append(p)))
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["rows"] for line in found] == sorted(line["rows"] for line in found)
    assert found[-1]["rows"] == 60
    assert found[-1]["units_done"] == found[-1]["units"]
    assert found[-1]["eta_seconds"] == 0
    from rich.console import Console

    view = io.StringIO()
    Console(file=view, width=100).print(drawn(seen[-1]))
    assert "60 rows" in view.getvalue()
    assert "100%" in view.getvalue()
    assert (duration(0), duration(61), duration(90_000)) == ("0 s", "1 min 1 s", "1 d 1 h")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["batch", "{in}", "--output", "{out}", "--text-column", "body"],
            "no field 'body'; the fields are 'id', 'text'",
        ),
        (["batch", "{in}.gz", "--output", "{out}"], "does not exist"),
        (["batch", "status", "{out}"], "has no job.json"),
        (["batch", "{in}", "--output", "{in}"], "in.jsonl"),
        (["batch", "{in}", "--output", "{out}", "--model", "{out}"], "no folder"),
        (["batch", "{in}", "--output", "{out}", "--process-count", "3"], "--process-index says which is this"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    filled = [word.replace("{in}", str(source)).replace("{out}", str(tmp_path / "out")) for word in words]
    assert main(filled) == 1
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["--truncate", "--long-text", "window"], ["--window", "8"], ["--unit-mb", "0"]])
def test_wrong_usage(source: Path, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["batch", str(source), "--output", str(tmp_path / "out"), *words])


def test_classify_reads_parquet_and_windows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "body": ["good film", "word " * 200]})
    pq.write_table(table, tmp_path / "a.parquet")
    words = ["classify", "--model", MODEL, "--input", tmp_path / "a.parquet", "--text-column", "body"]
    found = run(capsys, *words, "--max-length", "32", "--long-text", "window", "--aggregate", "max")
    assert [row["text"] for row in found] == table["body"].to_pylist()
    from jaxpool import LLM

    with LLM(MODEL, max_model_len=32) as llm:
        wanted = llm.classify(table["body"].to_pylist(), use_tqdm=False, long_text="window", aggregate="max")
    assert [list(row["probs"].values()) for row in found] == [pytest.approx(one.outputs.probs) for one in wanted]
    assert main([str(word) for word in [*words[:-1], "text"]]) == 1
    assert "there is no column 'text'; the columns are 'id', 'body'" in capsys.readouterr().err
