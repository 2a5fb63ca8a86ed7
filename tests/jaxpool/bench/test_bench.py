"""``jaxpool bench``: contenders in their own processes, every figure there, absent peers named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxpool.bench import peers
from jaxpool.bench.contenders import alternate, running
from jaxpool.bench.peers import Peer
from jaxpool.bench.shapes import write
from jaxpool.bench.texts import lengths, mix
from jaxpool.commands.main import main
from jaxpool.errors import JaxpoolError


def test_lengths_are_those_of_the_mix() -> None:
    assert [len(text.split()) for text in mix(200)] == [max(1, n - 2) for n in lengths(200)]


def test_the_command_reports_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setitem(peers.PEERS, "vllm", Peer(("no_such_package",), "pip install vllm", peers._vllm))
    folder, report = write("tiny", tmp_path / "tiny", "float32"), tmp_path / "report.json"
    options = ("--texts", "48", "--max-model-len", "64", "--rounds", "2", "--json", str(report))
    assert main(["bench", "--model", str(folder), *options, "--against", "transformers", "--against", "vllm"]) == 1
    figures = json.loads(report.read_text())
    assert {one["way"] for one in figures["contenders"]} == {"classify", "pipeline", "sorted"}
    for one in figures["contenders"]:
        assert one["texts_per_second"] > 0
        assert one["alone_ms"] > 0
        assert len(one["seconds"]) == 2
    assert figures["contenders"][0]["ratio"] == 1
    assert set(figures["start"]) == {"cold", "warm"}
    assert all(start["load_seconds"] > 0 < start["first_answer_seconds"] for start in figures["start"].values())
    ours = figures["jaxpool"]
    assert 0 <= ours["padding"] < 1
    assert 0 < ours["share_of_matmul"] < 1
    assert ours["predicted_seconds"] > 0
    assert ours["python_microseconds_per_text"] > 0
    assert ours["peak_resident_bytes"] > 1e7
    assert sum(program["calls"] for program in ours["programs"]) >= 1
    assert figures["not_measured"]["vllm"] == "no_such_package not installed; get it with: pip install vllm"
    shown = capsys.readouterr().out
    assert "jaxpool : it" in shown
    assert "not measured: vllm" in shown
    assert "ms measured" in shown


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    task = {"folder": str(tmp_path / "nothing"), "dtype": "float32", "longest": 16, "texts": ["a"]}
    with pytest.raises(JaxpoolError, match=r"jaxpool failed: .*nothing"), running("jaxpool", task):
        pass


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    class One:
        def __init__(self, name: str) -> None:
            self.name, self.about = name, {"ways": ["a", "b"]}

        def bulk(self, way: str) -> float:
            turns.append(f"{self.name} {way}")
            return 1.0

    alternate([One("x"), One("y")], 2)  # type: ignore[list-item]
    assert turns == ["x a", "x b", "y a", "y b"] * 2


def test_bench_serve_still_has_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "serve", "--help"])
    assert stopped.value.code == 0
    assert "--overload" in capsys.readouterr().out
