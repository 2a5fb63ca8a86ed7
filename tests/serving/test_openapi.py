"""The OpenAPI document: complete, and true whatever is sent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from one_label import one_label
from patience import PATIENCE
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jaxpool import LLM
from jaxpool.engine.buckets import Bucket
from jaxpool_serving.app import init_app
from jaxpool_serving.openapi import ROUTES
from jaxpool_serving.options import Options

from .conftest import MODELS, serving
from .test_tokens import TEMPLATE


def nothing_failed(_: object, response: schemathesis.Response, __: schemathesis.Case) -> None:
    """504 is no failure: deadlines are among what is tried."""
    assert response.status_code < 500 or response.status_code == 504, response.text


CHECKS = (
    nothing_failed,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of a server in a thread of its own, whose model serves every route; and its document."""
    folder = one_label(MODELS / "bert-cls", tmp_path_factory.mktemp("models"))
    with LLM(folder, dtype="float32", max_model_len=64) as llm:
        llm.engine.buckets = (Bucket(4, 64),)
        app = init_app({"cross": llm}, Options(chat_template=TEMPLATE))
        with running(app) as address:
            yield address, requests.get(f"{address}/openapi.json", timeout=PATIENCE).json()


@contextlib.contextmanager
def running(app: web.Application) -> Iterator[str]:
    loop, address = asyncio.new_event_loop(), []
    listening = threading.Event()

    async def listen() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}")
        listening.set()

    runner = web.AppRunner(app)
    loop.create_task(listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert listening.wait(10)
    yield address[0]
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


WITH_BODIES = [path for path, described in ROUTES.items() if described.request is not None]


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in ROUTES),
        *((path, GenerationMode.NEGATIVE) for path in WITH_BODIES),
    ],
)
def test_every_answer_is_one_that_the_document_promises(
    server: tuple[str, dict[str, Any]], path: str, mode: GenerationMode
) -> None:
    address, document = server
    schema = schemathesis.openapi.from_dict(document)
    for method in schema[path]:
        operation = schema[path][method]

        @settings(
            max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answered(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=address, checks=CHECKS)

        answered()


async def test_the_document_has_every_route(llm: LLM) -> None:
    async with serving(llm) as client:
        document = await (await client.get("/openapi.json")).json()
        served = {(route.resource.canonical, route.method.lower()) for route in client.app.router.routes()}
    assert served == {(path, method) for path, methods in document["paths"].items() for method in methods}
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"].endswith(".")


async def test_what_needs_a_key_says_so(llm: LLM) -> None:
    async with serving(llm, api_keys=("secret",)) as client:
        assert (await client.get("/docs")).status == 401
        answer = await client.get("/openapi.json", headers={"Authorization": "Bearer secret"})
        paths = (await answer.json())["paths"]
    assert paths["/classify"]["post"]["security"] == [{"bearer": []}]
    assert "401" in paths["/classify"]["post"]["responses"]
    assert "security" not in paths["/health"]["get"]


async def test_the_page_for_people_needs_nothing_else(llm: LLM) -> None:
    async with serving(llm) as client:
        response = await client.get("/docs")
        text = await response.text()
        paths = (await (await client.get("/openapi.json")).json())["paths"]
    assert (response.status, response.content_type) == (200, "text/html")
    assert not re.search(r"<script|<link|<img|//|@import", text)
    for path, methods in paths.items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in text
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= anchors
    assert {"ClassifyRequest", "ErrorResponse"} <= anchors
    assert "`" not in text
