"""A job from beginning to end, in one process: the same labels as ``LLM.classify``, and clear words when it stops."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_jobs import MODEL, labelled, rejected, rows, write_jsonl

from jaxpool import LLM, JaxpoolError
from jaxpool.batch import run


def job(llm: LLM, source: Any, output: Path, **settings: Any) -> Any:
    return run(source, output, model=MODEL, llm=llm, **{"unit_bytes": 1500, **settings})


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("source", ["a.jsonl", "a.csv", "a.parquet"])
def test_labels_are_those_of_classify(llm: LLM, tmp_path: Path, source: str, kind: str) -> None:
    records = rows(120)
    table = pa.Table.from_pylist(records)
    write_jsonl(tmp_path / "a.jsonl", records)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in records))
    summary = job(llm, tmp_path / source, tmp_path / "out", output_format=kind, text_column="text")
    found = labelled(tmp_path / "out")
    assert [(int(row["id"]), row["text"]) for row in found] == [(row["id"], row["text"]) for row in records]
    for row, expected in zip(found, llm.classify([row["text"] for row in records], use_tqdm=False)):
        assert row["label"] == expected.outputs.label
        assert list(row["probs"]) == list(llm.labels)
        assert list(row["probs"].values()) == pytest.approx(expected.outputs.probs, abs=1e-6)
    assert summary.manifest["rows"] == 120
    assert len(summary.manifest["parts"]) >= 3
    assert sum(summary.manifest["labels"].values()) == 120


def test_logits_pairs_top_k_and_a_prefix(llm: LLM, tmp_path: Path) -> None:
    records = [{"one": row["text"], "two": f"is {row['id']}", "label": 1} for row in rows(10)]
    settings = {"text_column": "one", "pair_column": "two", "logits": True, "top_k": 2, "prefix": "my_"}
    job(llm, write_jsonl(tmp_path / "a.jsonl", records), tmp_path / "out", **settings)
    from jaxpool import PoolingParams

    prompts = [{"prompt": row["one"], "text_pair": row["two"]} for row in records]
    expected = llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    for row, output in zip(labelled(tmp_path / "out"), expected):
        best = sorted(zip(llm.labels, output.outputs.probs), key=lambda pair: -pair[1])[:2]
        assert list(row["my_logits"]) == [name for name, _ in best]
        assert list(row["my_logits"].values()) == pytest.approx([value for _, value in best], abs=1e-5)
        assert (row["my_label"], row["label"]) == (best[0][0], 1)


def test_several_labels(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))
    records = rows(20)
    run(write_jsonl(tmp_path / "a.jsonl", records), tmp_path / "out", model=folder, output_format="parquet")
    with LLM(folder) as llm:
        expected = llm.classify([row["text"] for row in records], use_tqdm=False)
    found = labelled(tmp_path / "out")
    assert [row["labels"] for row in found] == [output.outputs.labels for output in expected]


def test_rows_of_any_shape_survive_parquet(llm: LLM, tmp_path: Path) -> None:
    records = [{"text": "good", "n": 1, "deep": {"a": [1]}, "x": 0.5}, {"text": "bad", "n": 2, "deep": None, "x": 1}]
    late = [{"text": "late", "n": "three", "new": True}]
    path = write_jsonl(tmp_path / "a.jsonl", records * 2100 + late)
    job(llm, path, tmp_path / "out", output_format="parquet", unit_bytes=1 << 20)
    first, *_, last = labelled(tmp_path / "out")
    assert (first["n"], json.loads(first["deep"]), first["x"], first["other_fields"]) == (1, {"a": [1]}, 0.5, None)
    assert last["n"] is None
    assert json.loads(last["other_fields"]) == {"n": "three", "new": True}


def test_what_cannot_be_classified_goes_aside(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "good"}', b"no json", b'{"text": 5}', b'{"other": "x"}', b'{"text": "\xff"}', b"[1]"]
    lines += [json.dumps({"text": "word " * 600}).encode(), b'{"text": " "}', b'{"text": null}', b'{"text": "bad"}']
    path.write_bytes(b"\n".join(lines))
    summary = job(llm, path, tmp_path / "out")
    assert [row["text"] for row in labelled(tmp_path / "out")] == ["good", " ", None, "bad"]
    assert [row["label"] is None for row in labelled(tmp_path / "out")] == [False] * 4
    reasons = [row["reason"] for row in rejected(tmp_path / "out")]
    for reason, word in zip(reasons, ["not JSON", "5, a JSON number", "no field 'text'", "0xff", "no object", "513"]):
        assert word in " ".join(reasons), reason
    assert len(reasons) == 6
    assert (summary.manifest["rows"], summary.manifest["rejected"]) == (4, 6)
    with pytest.raises(JaxpoolError, match="--max-errors is 2"):
        job(llm, path, tmp_path / "strict", max_errors=2)
    job(llm, path, tmp_path / "cut", long_text="truncate")
    assert len(rejected(tmp_path / "cut")) == 5


def test_values_that_json_lacks(llm: LLM, tmp_path: Path) -> None:
    import datetime

    day = datetime.datetime(2026, 11, 24)
    table = pa.table({"text": ["good"], "x": [float("nan")], "when": [day], "raw": [b"ab"], "deep": [{"y": [1e999]}]})
    pq.write_table(table, tmp_path / "a.parquet")
    job(llm, tmp_path / "a.parquet", tmp_path / "out", output_format="jsonl")
    [row] = labelled(tmp_path / "out")
    assert (row["x"], row["when"], row["raw"], row["deep"]) == (None, "2026-11-24T00:00:00", "YWI=", {"y": [None]})
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n{"text": "good", "x": "\\ud800"}\n')
    job(llm, tmp_path / "b.jsonl", tmp_path / "two")
    assert "half of a surrogate pair" in rejected(tmp_path / "two")[0]["reason"]


def test_csv_rows_that_are_none_go_aside(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,good\n2,x,y\n3,\xff\n4,bad\n")
    job(llm, tmp_path / "a.csv", tmp_path / "out")
    assert [row["id"] for row in labelled(tmp_path / "out")] == ["1", "4"]
    assert [row["reason"].split(";")[0] for row in rejected(tmp_path / "out")] == [
        "the row has 3 fields, the header 2",
        "byte 0xff is not valid utf-8",
    ]


@pytest.mark.parametrize("row", ['3,"never closed', '3,"closed" too early'])
def test_quotes_that_would_swallow_rows_are_refused(llm: LLM, tmp_path: Path, row: str) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n1,good\n{row}\n4,bad\n5,x\n")
    with pytest.raises(JaxpoolError, match="is no valid CSV"):
        job(llm, tmp_path / "a.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_done_units_are_not_done_again(llm: LLM, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(100))
    first = job(llm, path, tmp_path / "out")
    before = {part: part.stat().st_mtime_ns for part in (tmp_path / "out" / "parts").iterdir()}
    victim = sorted(before)[2]
    (tmp_path / "out" / "receipts" / f"{victim.stem}.json").unlink()
    again = job(llm, path, tmp_path / "out")
    after = {part: part.stat().st_mtime_ns for part in (tmp_path / "out" / "parts").iterdir()}
    assert {part for part in before if before[part] != after[part]} == {victim}
    assert again.progress.units_done == 1
    assert again.manifest == first.manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_column": "id2"}, 'text_column was "text" and is "id2"'),
        ({"top_k": 1}, "top_k was null and is 1"),
        ({"model": None}, "model was"),
        ({"unit_bytes": 7000}, "unit_bytes was 1500 and is 7000"),
        ("input", "a.jsonl had"),
        ("weights", "the model's files have other contents"),
    ],
)
def test_another_job_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    from jaxpool.batch.job import Settings
    from jaxpool.batch.local import plan

    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    records = [row | {"id2": "x"} for row in rows(50)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    settings = {"model": str(model), "output_format": "jsonl", "unit_bytes": 1500}
    plan([path], tmp_path / "out", Settings(**settings)).open()
    plan([path], tmp_path / "out", Settings(**settings)).open()
    if change == "input":
        write_jsonl(path, records[:40])
    elif change == "weights":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    other = settings | (change if isinstance(change, dict) else {})
    with pytest.raises(JaxpoolError, match="holds another job") as caught:
        plan([path], tmp_path / "out", Settings(**other)).open()
    assert words in str(caught.value)


def test_manifest_refuses_what_does_not_add_up(llm: LLM, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows(90)), tmp_path / "a.parquet", row_group_size=30)
    job(llm, tmp_path / "a.parquet", tmp_path / "out")
    part = sorted((tmp_path / "out" / "parts").iterdir())[1]
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(JaxpoolError, match=f"{part.name}, which has {len(whole) - 1} bytes"):
        job(llm, tmp_path / "a.parquet", tmp_path / "out")
    part.unlink()
    with pytest.raises(JaxpoolError, match="which is missing"):
        job(llm, tmp_path / "a.parquet", tmp_path / "out")
    (tmp_path / "out" / "receipts" / f"{part.stem}.json").unlink()
    assert job(llm, tmp_path / "a.parquet", tmp_path / "out").manifest["rows"] == 90


def test_a_truncated_gzip_keeps_what_is_done(llm: LLM, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows(50))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes())[:-30])
    with pytest.raises(JaxpoolError, match=r"b.jsonl.gz: Truncated compressed stream") as caught:
        job(llm, [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"], tmp_path / "out", unit_bytes=9000)
    assert re.search(r"[1-9] of \d units are done, and the same command again goes on", str(caught.value))
    assert [row["id"] for row in labelled(tmp_path / "out")] == list(range(50))
    assert not list((tmp_path / "out" / "parts").glob(".*"))


def test_an_input_that_vanishes(llm: LLM, tmp_path: Path) -> None:
    from jaxpool.batch.job import Settings
    from jaxpool.batch.local import plan, work

    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", rows(20))
    settings = Settings(model=MODEL, output_format="jsonl")
    planned = plan([tmp_path], tmp_path / "out", settings)
    planned.open()
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(JaxpoolError, match=r"b.jsonl has vanished"):
        work(planned, llm)
    assert len(labelled(tmp_path / "out")) == 20


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes stands for it: the same failing write, at the same place."""
    path = write_jsonl(tmp_path / "a.jsonl", rows(400, most=40))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from jaxpool.commands.main import main\n"
        "import jaxpool.engine.opening as opening; opening.enable_cache = lambda: None\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["batch", str(path), "--output", str(tmp_path / "out"), "--model", MODEL, "--unit-mb", "0.02"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list((tmp_path / "out" / "parts").iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 9000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(llm: LLM, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(5))
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(JaxpoolError, match="may not be read or written"):
        job(llm, path, tmp_path / "out")


def test_parts_in_an_object_store(llm: LLM, tmp_path: Path) -> None:
    import fsspec

    path = write_jsonl(tmp_path / "a.jsonl", rows(60))
    job(llm, path, "memory://jobs/one")  # type: ignore[arg-type]
    job(llm, path, tmp_path / "out")
    memory = fsspec.filesystem("memory")
    names = sorted(memory.ls("/jobs/one/parts", detail=False))
    found = [json.loads(line) for name in names for line in memory.cat(name).decode().splitlines()]
    assert found == labelled(tmp_path / "out")
    assert not [name for name in memory.find("/jobs/one") if name.endswith(".tmp")]
