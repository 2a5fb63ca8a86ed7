"""Spans, as a collector of OpenTelemetry receives them."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from patience import PATIENCE

from jaxpool import LLM

from .conftest import serving
from .test_classify import post

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector:
    """A server that OTLP exporters send spans to."""

    def __init__(self) -> None:
        self.resource: dict[str, Any] = {}
        self.spans: list[Any] = []
        app = web.Application()
        app.router.add_post("/v1/traces", self.receive)
        self.server = TestServer(app)

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = attributes(resource.resource)
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def attributes(of: Any) -> dict[str, Any]:
    found = {}
    for pair in of.attributes:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind)
    return found


async def test_one_span_per_request(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    collector, log = Collector(), tmp_path / "log"
    async with collector.server:
        endpoint = str(collector.server.make_url("/v1/traces"))
        async with serving(llm, otlp_traces_endpoint=endpoint, access_log=str(log)) as client:
            before = time.time_ns()
            await post(client, {"input": ["Hello world", "a"]}, traceparent=PARENT, **{"X-Request-Id": "mine"})
            await post(client, {"input": 5})
            await client.get("/ready")
        spans = collector.spans  # the application has sent what was left as it ended
    first, second = spans
    assert (first.name, first.trace_id.hex(), first.parent_span_id.hex()) == (
        "POST /classify",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
    )
    assert first.kind == 2  # of a server
    assert before <= first.start_time_unix_nano < first.end_time_unix_nano <= time.time_ns()
    seen = attributes(first)
    times = [seen.pop(f"jaxpool.{part}_seconds") for part in ("tokenise", "queue", "device")]
    assert 0 < sum(times) <= (first.end_time_unix_nano - first.start_time_unix_nano) / 1e9
    assert seen.pop("jaxpool.tokens") > 2
    assert seen == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "url.path": "/classify",
        "http.response.status_code": 200,
        "jaxpool.request_id": "mine",
        "jaxpool.model": "bert",
        "jaxpool.texts": 2,
    }
    assert second.trace_id != first.trace_id
    assert not second.parent_span_id
    assert attributes(second)["http.response.status_code"] == 400
    assert collector.resource["service.name"] == "jaxpool"
    assert collector.resource["deployment.environment"] == "test"
    logged = [json.loads(line)["trace_id"] for line in log.read_text().splitlines()]
    assert logged == [first.trace_id.hex(), second.trace_id.hex()]


async def test_failures_are_marked(tampered: LLM) -> None:
    collector = Collector()
    async with collector.server:
        async with serving(tampered, otlp_traces_endpoint=str(collector.server.make_url("/v1/traces"))) as client:
            assert (await post(client, {"input": [tampered.engine.poison]}))[0] == 500
        [span] = collector.spans
    assert span.status.code == 2


async def test_what_the_caller_does_not_sample_is_not_sent(llm: LLM) -> None:
    collector = Collector()
    async with collector.server:
        async with serving(llm, otlp_traces_endpoint=str(collector.server.make_url("/v1/traces"))) as client:
            await post(client, {"input": "a"}, traceparent=PARENT.removesuffix("01") + "00")
            assert (await post(client, {"input": "a"}, traceparent="nonsense"))[0] == 200
        [span] = collector.spans
    assert not span.parent_span_id


async def test_a_collector_that_is_gone_costs_no_answer_and_no_end(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")  # seconds
    gone = "http://127.0.0.1:1/v1/traces"
    async with asyncio.timeout(PATIENCE), serving(llm, otlp_traces_endpoint=gone) as client:
        assert (await post(client, {"input": "a"}))[0] == 200


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk.resources'] = None\n"
        "from jaxpool_serving.tracing import provider\n"
        "from jaxpool.errors import JaxpoolError\n"
        "try: provider('http://127.0.0.1:4318/v1/traces')\n"
        "except JaxpoolError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'jaxpool[otel]'" in said
