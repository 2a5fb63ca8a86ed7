"""``POST /predict`` as Text Embeddings Inference and ``POST /`` as Hugging Face's endpoints answer."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient
from huggingface_hub import AsyncInferenceClient, InferenceClient, close_session
from huggingface_hub.errors import BadRequestError

from jaxpool import LLM, PoolingParams

from .conftest import serving

TEXT = "It was great."


async def post(client: TestClient, path: str, **body: Any) -> tuple[int, Any]:
    response = await client.post(path, json=body)
    return response.status, await response.json()


def expected(llm: LLM, prompt: Any, activation: bool | None = None) -> list[tuple[str, Any]]:
    params = PoolingParams(use_activation=activation)
    [output] = llm.classify(prompt, pooling_params=params, use_tqdm=False)
    ranked = sorted(zip(llm.labels, output.outputs.probs), key=lambda pair: -pair[1])
    return [(label, pytest.approx(score, abs=1e-5)) for label, score in ranked]


def seen(entries: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(entry["label"], entry["score"]) for entry in entries]


async def test_predict_reads_a_text_a_pair_and_batches(llm: LLM) -> None:
    pair = {"prompt": TEXT, "text_pair": "a"}
    async with serving(llm) as client:
        for inputs, prompt in ((TEXT, TEXT), ([TEXT], TEXT), ([TEXT, "a"], pair)):
            status, answer = await post(client, "/predict", inputs=inputs)
            assert (status, seen(answer)) == (200, expected(llm, prompt))
        _, batch = await post(client, "/predict", inputs=[[TEXT], [TEXT, "a"], ["b"]])
        assert [seen(answer) for answer in batch] == [expected(llm, prompt) for prompt in (TEXT, pair, "b")]
        _, raw = await post(client, "/predict", inputs=TEXT, raw_scores=True)
        assert seen(raw) == expected(llm, TEXT, activation=False)
        for wrong in ([], [[]], [["a", "b", "c"]], ["a", "b", "c"], ["a", ["b"]], 5, None):
            status, answer = await post(client, "/predict", inputs=wrong)
            assert (status, answer["error"]["type"]) == (400, "Bad Request")


async def test_predict_truncates_where_it_is_told_to(llm: LLM) -> None:
    long = "good " * 60 + "bad " * 60
    async with serving(llm) as client:
        status, answer = await post(client, "/predict", inputs=long)
        assert (status, answer["error"]["param"]) == (400, "input_tokens")
        found = {
            side: (await post(client, "/predict", inputs=long, truncate=True, truncation_direction=side))[1]
            for side in ("Left", "Right", "left", "right")
        }
    assert found["Left"] == found["left"] != found["Right"] == found["right"]
    kwargs = {"truncate_prompt_tokens": -1, "truncation_side": "left"}
    [output] = llm.classify(long, use_tqdm=False, tokenization_kwargs=kwargs)
    assert found["Left"][0]["score"] == pytest.approx(max(output.outputs.probs), abs=1e-5)


async def test_inference_client_works_unchanged(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it would not even call this machine
    async with serving(llm) as client:
        inference = InferenceClient(str(client.make_url("/")))

        def ask(**options: Any) -> list[tuple[str, float]]:
            return [(one.label, one.score) for one in inference.text_classification(TEXT, **options)]

        everything = await asyncio.to_thread(ask)
        best = await asyncio.to_thread(ask, top_k=1)
        names = ("sigmoid", "softmax", "none")
        functions = {name: await asyncio.to_thread(ask, function_to_apply=name) for name in names}
        async with AsyncInferenceClient(str(client.make_url(""))) as unchanged:
            again = [(one.label, one.score) for one in await unchanged.text_classification(TEXT)]
        with pytest.raises(BadRequestError, match="maximum context length is 48"):
            await asyncio.to_thread(inference.text_classification, "good " * 60)
        close_session()
    logits = expected(llm, TEXT, activation=False)
    for found in (everything, again, functions["softmax"]):
        assert found == expected(llm, TEXT)
    assert best == everything[:1]
    assert functions["none"] == logits
    scores = 1 / (1 + np.exp([-score for _, score in functions["none"]]))
    assert functions["sigmoid"] == [(label, pytest.approx(one, abs=1e-5)) for (label, _), one in zip(logits, scores)]


async def test_inference_form_with_lists_and_pairs(llm: LLM) -> None:
    pair = {"prompt": TEXT, "text_pair": "a"}
    async with serving(llm) as client:
        _, answer = await post(client, "/", inputs=[TEXT, {"text": TEXT, "text_pair": "a"}, {"text": "b"}])
        assert [seen(entry) for entry in answer] == [expected(llm, prompt) for prompt in (TEXT, pair, "b")]
        for wrong in (
            {"inputs": []},
            {"inputs": [5]},
            {"inputs": TEXT, "parameters": {"top_k": 0}},
            {"inputs": TEXT, "parameters": {"function_to_apply": "tanh"}},
            {"inputs": {"text_pair": "a"}},
        ):
            status, refusal = await post(client, "/", **wrong)
            assert (status, refusal["error"]["type"]) == (400, "Bad Request")
        assert (await post(client, "/", inputs=TEXT, model="nope"))[0] == 404
