"""Requests recorded from vLLM 0.32, sent again: status and body must be the same, but for a table of decisions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
from replay import GOLDENS, check_all, differences, recorded

from jaxpool import LLM
from jaxpool.engine.buckets import Bucket
from jaxpool_serving.app import init_app

from .conftest import MODELS, serving

DECISIONS: dict[str, tuple[str, ...]] = {
    "POST / is the protocol of Hugging Face Inference Endpoints here": ("GET /",),
    "vLLM's cache has events; there is no such cache here": ("GET /kv_event_sources",),
    "CORS is off until an origin is allowed; then a preflight has an answer": ("OPTIONS /classify",),
    "the message says which character is wrong instead of which type a library expects": ("classify lone surrogate",),
    "[CLS] and [SEP] are never cut off, whichever side is": (
        "bert-cls: classify truncation_side='left'",
        "bert-cls: classify truncation_side='right'",
    ),
    "a message is told its own problem, not those it would have as each of nine types of OpenAI's": (
        "classify chat no role",
        "classify chat null content",
        "classify chat content int",
        "classify chat list of conversations",
    ),
    "padding that was asked for is passed over, as the class was trained": ("gpt2-cls: classify padding max_length",),
    "an image is refused before anybody tries to load it": ("classify chat image part",),
    "tasks are listed in one order for all models": (
        "bert-cls: POST /pooling task=embed",
        "bert-cls: POST /pooling task=token_embed",
    ),
    "the message names routes instead of vLLM's classes": ("POST /invocations bogus",),
}
"""Why an answer differs -> the requests that show it, in both recordings unless a model is named."""

STATUSES = {"GET /": 405, "GET /kv_event_sources": 404, "OPTIONS /classify": 405}
"""Where the status differs too."""

NOT_OURS = {"/kv_event_sources", "/v1/systemone"}
"""Routes of vLLM about its own insides."""


@contextlib.contextmanager
def opened(name: str) -> Iterator[LLM]:
    """A model with the length limit it was recorded with, and few programs: they compile in seconds."""
    with LLM(str(MODELS / name), data_parallel_size=1, dtype="float32") as llm:
        llm.engine.buckets = (Bucket(32, 64), Bucket(2, llm.engine.spec.max_length))
        llm.engine.warm()
        yield llm


@pytest.mark.parametrize(("model", "served_as"), [("gpt2-cls", "gpt2-cls"), ("bert-cls", "bert")])
async def test_every_recorded_answer(model: str, served_as: str) -> None:
    decided = {case.removeprefix(f"{model}: ") for cases in DECISIONS.values() for case in cases}
    with opened(model) as llm:
        async with serving(llm, name=served_as) as client:
            await check_all(client, recorded(f"online_{model}.json"), decided, STATUSES)


@pytest.mark.parametrize("model", ["gpt2-cls", "bert-cls"])
def test_every_route_exists(model: str) -> None:
    ours = {(route.resource.canonical, route.method) for route in init_app({}).router.routes() if route.resource}
    routes = json.loads((GOLDENS / f"routes_{model}.json").read_text(encoding="utf-8"))
    theirs = {(path, method) for path, methods in routes.items() for method in methods if path not in NOT_OURS}
    assert theirs <= ours
    assert not NOT_OURS & {path for path, _ in ours}


def test_the_comparison_bites() -> None:
    entry = recorded("online_gpt2-cls.json")["classify string"]
    answer = entry["response"]["json"]
    headers = {"content-type": "application/json; charset=utf-8"}
    assert differences(entry, 200, headers, json.dumps(answer | {"id": "classify-other", "created": 0}).encode()) == []
    [first, *_] = answer["data"]
    for changed in (
        {**answer, "extra": 1},
        {**answer, "data": []},
        {**answer, "data": [first | {"label": "positive"}]},
        {**answer, "data": [first | {"probs": [value + 2e-4 for value in first["probs"]]}]},
        {**answer, "usage": answer["usage"] | {"prompt_tokens": 14}},
    ):
        assert differences(entry, 200, headers, json.dumps(changed).encode())
    assert differences(entry, 400, headers, json.dumps(answer).encode())
    assert differences(entry, 200, {"content-type": "text/plain"}, json.dumps(answer).encode())
