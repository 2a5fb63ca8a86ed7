"""``POST /invocations``: requests of every kind, told by their fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from one_label import one_label

from jaxpool import LLM
from jaxpool.engine.buckets import Bucket

from .conftest import MODELS, serving

Opened = Callable[..., LLM]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens models with one small program, and closes them after the test."""
    models = []

    def open_llm(folder: Path, **arguments: Any) -> LLM:
        models.append(llm := LLM(folder, dtype="float32", data_parallel_size=1, **arguments))
        llm.engine.buckets = (Bucket(4, 32),)
        llm.engine.warm()
        return llm

    yield open_llm
    for llm in models:
        llm.close()


async def both(client: TestClient, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """The answers of ``/invocations`` and of ``path``, less what differs from one request to the next."""
    answers = []
    for one in ("/invocations", path):
        response = await client.post(one, json=body)
        answer = await response.json()
        if isinstance(answer, dict):
            answer = {key: value for key, value in answer.items() if key not in ("id", "created")}
        answers.append((response.status, answer))
    return answers[0], answers[1]


async def test_requests_for_a_classifier(opened: Opened) -> None:
    async with serving(opened(MODELS / "qwen2-cls")) as client:
        for path, body in (
            ("/classify", {"input": "a"}),
            ("/classify", {"input": ["a", "b"], "top_k": 1}),
            ("/classify", {"messages": [{"role": "user", "content": "a"}]}),
            ("/classify", {"input": "a", "model": "nope"}),  # understood, and refused
            ("/classify", {"input": "a", "normalize": True}),
            ("/classify", {"input": []}),
            ("/", {"inputs": "a"}),
        ):
            found, wanted = await both(client, path, body)
            assert found == wanted


async def test_requests_for_a_classifier_of_tokens(opened: Opened) -> None:
    async with serving(opened(MODELS / "gpt2-cls", pooler_config={"task": "token_classify"})) as client:
        found, wanted = await both(client, "/pooling", {"input": "Hello world"})
    assert found == wanted
    assert found[0] == 200


async def test_requests_for_a_cross_encoder(opened: Opened, tmp_path: Path) -> None:
    async with serving(opened(one_label(MODELS / "bert-cls", tmp_path))) as client:
        for path, body in (
            ("/score", {"queries": "a", "documents": ["b", "c"]}),
            ("/rerank", {"query": "a", "documents": ["b", "c"], "top_n": 1}),
        ):
            found, wanted = await both(client, path, body)
            assert found == wanted
            assert found[0] == 200


@pytest.mark.parametrize("body", [{}, {"bogus": 1}, {"input": {"a": 1}}, {"queries": "a", "documents": ["b"]}])
async def test_requests_that_nobody_understands(llm: LLM, body: dict[str, Any]) -> None:
    async with serving(llm) as client:
        response = await client.post("/invocations", json=body)
        error = (await response.json())["error"]
    assert (response.status, error["type"]) == (400, "BadRequestError")
    assert error["message"].startswith("Cannot find suitable handler for request. Expected one of: ['classify', ")


async def test_bodies_that_are_none(llm: LLM) -> None:
    async with serving(llm) as client:
        for data, content_type in ((b"{", "application/json"), (b"[]", "application/json"), (b"{}", "text/plain")):
            response = await client.post("/invocations", data=data, headers={"Content-Type": content_type})
            assert (response.status, (await response.json())["error"]["type"]) == (400, "Bad Request")
