"""The access log and the server's own log: JSON lines that no client can forge."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from patience import PATIENCE

from jaxpool import LLM
from jaxpool_serving.logs import AccessLog, JsonFormatter
from jaxpool_serving.state import RequestRecord

from .conftest import MODELS, serving
from .test_classify import post
from .test_lifecycle import SMALL, server

FORGED = 'x\r\n{"status": 200, "path": "/forged"}\u2028\u0085\x1b[31m'


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


async def test_one_line_per_request(llm: LLM, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with serving(llm, access_log=str(log), api_keys=("s3cret",)) as client:
        key = {"Authorization": "Bearer s3cret"}
        _, answer = await post(client, {"input": ["Hello world", "a"]}, **{"X-Request-Id": "mine"}, **key)
        await post(client, {"input": "a", "request_id": "theirs"}, **key)
        await post(client, {"input": "a"})
        for probe in ("/health", "/ready", "/metrics"):
            await client.get(probe)  # not logged, or they would be most of the log
        await client.get("/nope?secret=1", headers=key)
    first, second, third, fourth = lines(log)
    assert abs(datetime.fromisoformat(first["time"]) - datetime.now(UTC)) < timedelta(seconds=60)
    assert first["ms"] >= first["tokenise_ms"] + first["queue_ms"] + first["device_ms"] > 0
    tokens = answer["usage"]["prompt_tokens"]
    assert {name: first[name] for name in ("method", "path", "status", "request_id", "model", "texts", "tokens")} == {
        "method": "POST", "path": "/classify", "status": 200, "request_id": "mine",
        "model": "bert", "texts": 2, "tokens": tokens,
    }  # fmt: skip
    assert second["request_id"] == "theirs"
    assert (third["status"], "model" in third) == (401, False)
    assert (fourth["status"], fourth["path"]) == (404, "/nope")
    assert "s3cret" not in log.read_text()


async def test_no_client_can_forge_a_line(llm: LLM, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with serving(llm, access_log=str(log), enable_request_id_headers=True) as client:
        response = await client.post("/classify", json={"input": "a", "request_id": FORGED})
        assert response.status == 200
        assert response.headers["X-Request-Id"].startswith('x%0D%0A{"status":%20200')
        await client.get("/" + quote(FORGED, safe=""))
        await client.get("/a", headers={"X-Request-Id": "é" + "x" * 1000})
    found = lines(log)
    assert len(found) == len(log.read_bytes().splitlines()) == 3
    assert found[0]["request_id"] == FORGED
    assert {entry["path"] for entry in found[1:]} == {"/" + FORGED, "/a"}
    assert len(found[2]["request_id"]) == 256


async def test_request_ids_are_sent_back_if_asked_for(llm: LLM) -> None:
    async with serving(llm, enable_request_id_headers=True) as client:
        response = await client.post("/classify", json={"input": "a"}, headers={"X-Request-Id": "mine"})
        assert response.headers["X-Request-Id"] == "mine"
        response = await client.post("/classify", json={"input": "a"})
        assert (await response.json())["id"] == f"classify-{response.headers['X-Request-Id']}"
        one, other = [(await client.get("/nope")).headers["X-Request-Id"] for _ in range(2)]
        assert one != other
    async with serving(llm) as client:
        assert "X-Request-Id" not in (await client.get("/health", headers={"X-Request-Id": "mine"})).headers


async def test_errors_are_logged_as_one_line(
    tampered: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError(FORGED)

    monkeypatch.setattr(tampered.tokenizer, "encode", explode)
    monkeypatch.setattr(caplog.handler, "formatter", JsonFormatter())
    with caplog.at_level(logging.ERROR, "jaxpool.serving"):
        async with serving(tampered) as client:
            assert (await post(client, {"input": "a"}))[0] == 500
    [line] = caplog.text.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"]) == ("error", "jaxpool.serving")
    assert entry["message"].startswith("POST /classify")
    assert FORGED in entry["exception"]


def test_every_line_is_written_before_the_end(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"))
    for _ in range(20_000):
        log.answered(None, RequestRecord("id", "GET", "/", "unknown"))  # type: ignore[arg-type]
    log.close()
    log._thread.join(PATIENCE)  # it may have given up waiting for a machine that is busy; nothing is lost
    assert not log._thread.is_alive()
    assert len(lines(tmp_path / "log")) == 20_000


def test_a_reader_that_stops_reading_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines pile up to a bound, the rest is counted; closing does not wait for ever."""
    monkeypatch.setattr("jaxpool_serving.logs.MAX_WAITING", 500)
    read, write = os.pipe()
    log = AccessLog(f"/dev/fd/{write}")
    os.close(write)
    record = RequestRecord("id", "GET", "/" + "x" * 1000, "unknown")
    for _ in range(2000):
        log.answered(None, record)  # type: ignore[arg-type]
    log.close()  # a pipe holds 64 KiB
    assert log._thread.is_alive()
    seen = bytearray()
    with os.fdopen(read, "rb") as pipe:
        reader = threading.Thread(target=lambda: seen.extend(pipe.read()))
        reader.start()
        log._thread.join(PATIENCE)
        reader.join(PATIENCE)
    found = [json.loads(line) for line in bytes(seen).splitlines()]
    lost = sum(entry.get("lost_lines", 0) for entry in found)
    assert lost >= 1000
    assert len([entry for entry in found if "path" in entry]) == 2000 - lost


async def test_a_full_disk_is_said_once_and_costs_no_answer(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "jaxpool.serving"):
        async with serving(llm, access_log="/dev/full") as client:
            for _ in range(3):
                assert (await post(client, {"input": "a"}))[0] == 200
                await asyncio.sleep(0.15)
    assert len([r for r in caplog.records if "access log cannot be written" in r.getMessage()]) == 1


async def test_the_command_logs_errors_as_json() -> None:
    with server("--model", str(MODELS / "gpt2-cls"), *SMALL, "--access-log", "off") as (process, address):
        host, port = address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health HTTP/1.1\r\nbroken header\x00\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.0 400")
        assert b"Traceback" not in answer
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    [logged] = [json.loads(line) for line in said if not line.startswith("jaxpool serve: ")]
    assert (logged["logger"], logged["level"]) == ("jaxpool.serving", "warning")
    assert "broken" not in str(logged)  # a malformed line may hold a key
    assert "exception" not in logged
