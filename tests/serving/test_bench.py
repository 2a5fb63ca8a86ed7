"""``jaxpool bench serve``: the load it makes, the figures it reports."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from jaxpool.bench.texts import mix
from jaxpool.commands.main import main
from jaxpool_serving.bench.load import LOST, closed_loop, connect, open_loop

from .conftest import MODELS


def test_the_mix_of_lengths_is_that_of_the_description() -> None:
    lengths = np.array([len(text.split()) + 2 for text in mix(20_000)])
    assert 57 < np.median(lengths) < 63
    assert lengths.max() == 512
    assert abs(np.log(lengths[lengths > 3]).std() - 0.8) < 0.05
    assert mix(10) == mix(10)


async def test_a_closed_loop_keeps_so_many_requests_in_flight() -> None:
    in_flight: list[int] = []
    now = 0

    async def count(_: web.Request) -> web.Response:
        nonlocal now
        now += 1
        in_flight.append(now)
        await asyncio.sleep(0.01)
        now -= 1
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/classify", count)
    async with TestServer(app) as server, connect(str(server.make_url("/"))) as session:
        sample = await closed_loop(session, ["It was great."], clients=4, seconds=0.5)
    assert set(sample.statuses) == {200}
    assert len(sample.latencies) == sample.statuses[200] == len(in_flight)
    assert max(in_flight) == 4
    # Little's law: clients = rate x mean latency
    assert sample.rate * np.mean(sample.latencies) == pytest.approx(4, rel=0.5)


async def test_arrivals_do_not_wait_for_answers_and_latency_counts_from_when_they_were_due() -> None:
    async def slow(_: web.Request) -> web.Response:
        time.sleep(0.01)
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/classify", slow)
    async with TestServer(app) as server, connect(str(server.make_url("/"))) as session:
        sample = await open_loop(session, ["a"], rate=400, seconds=0.5)
    assert 150 < sample.statuses[200] < 250
    assert sample.rate < 105
    assert sample.percentile(99) > 1000  # the last of 200 waits for the 150 before it


async def test_a_server_that_is_gone_loses_requests() -> None:
    async with TestServer(web.Application()) as server:
        url = str(server.make_url("/"))
    async with connect(url) as session:
        sample = await open_loop(session, ["a"], rate=50, seconds=0.2)
    assert set(sample.statuses) == {LOST}
    assert np.isnan(sample.percentile(50))


def test_the_command_starts_a_server_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    options = ("--model", str(MODELS / "gpt2-cls"), "--max-model-len", "16", "--seconds", "0.3", "--rounds", "1")
    load = ("--clients", "1,4", "--ramp", "--overload", "3", "--overload-seconds", "0.5", "--output", str(report))
    assert main(["bench", "serve", *options, *load]) == 0
    figures = json.loads(report.read_text())
    assert figures["ready_seconds"] > 0
    closed_loops = [figure for figure in figures["load"] if figure["load"].endswith("clients")]
    assert [figure["load"] for figure in closed_loops] == ["1 clients", "4 clients"]
    for figure in figures["load"]:
        assert figure["texts_per_second"] > 0
        assert figure["p50_ms"] <= figure["p99_ms"]
        assert set(figure["statuses"]) <= {"200", "429"}
    for figure in closed_loops:
        assert 1 <= figure["texts_per_batch"] <= 4
        assert 0 <= figure["padding"] < 1
    assert any("resident_mib" in figure for figure in figures["load"])
    assert "p99 ms" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--model", str(MODELS / "no-such-model")]) == 1
    assert "the server did not start" in capsys.readouterr().err
