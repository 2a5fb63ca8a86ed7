"""Fields of ``POST /classify`` that vLLM does not have: pairs, top_k, threshold, return_logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient

from jaxpool import LLM, PoolingParams
from jaxpool.engine.buckets import Bucket

from .conftest import MODELS, serving

TEXTS = ["Hello world", "The movie was great, I loved it!", "a"]
PLAIN = ["index", "label", "probs", "num_classes"]


async def classify(client: TestClient, given: Any = TEXTS, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post("/classify", json={"input": given, **fields})
    answer = await response.json()
    assert response.status == 200, answer
    return answer["data"]


def offline(llm: LLM, activated: bool | None) -> list[list[float]]:
    outputs = llm.classify(TEXTS, pooling_params=PoolingParams(use_activation=activated), use_tqdm=False)
    return [output.outputs.probs for output in outputs]


async def test_pairs_answer_as_offline(llm: LLM) -> None:
    pairs = [{"text": "a premise", "text_pair": "a hypothesis"}, {"text": "one text"}, "another"]
    prompts: list[Any] = [{"prompt": "a premise", "text_pair": "a hypothesis"}, "one text", "another"]
    wanted = [output.outputs.probs for output in llm.classify(prompts, use_tqdm=False)]
    async with serving(llm) as client:
        found = await classify(client, pairs)
        joined = await classify(client, [{"text": "a premise a hypothesis"}])
    np.testing.assert_allclose([entry["probs"] for entry in found], wanted, atol=1e-5)
    assert not np.allclose(joined[0]["probs"], wanted[0], atol=1e-4)  # read as two texts, not as one


@pytest.mark.parametrize(
    ("given", "where", "message"),
    [
        ([{"text": "a", "pair": "b"}], "body.input.0.pair", "Extra inputs are not permitted"),
        ([{"text_pair": "b"}], "body.input.0.text", "Field required"),
        ([{"text": 5}], "body.input.0.text", "Input should be a valid string"),
        ([{"text": "a"}, [5]], "body.input.1", "Input should be a valid dictionary"),
    ],
)
async def test_pairs_that_are_none(llm: LLM, given: Any, where: str, message: str) -> None:
    async with serving(llm) as client:
        response = await client.post("/classify", json={"input": given})
        error = (await response.json())["error"]
    assert (response.status, error["type"]) == (400, "Bad Request")
    assert f"'loc': '{where}'" in error["message"]
    assert message in error["message"]


async def test_top_k(llm: LLM) -> None:
    async with serving(llm) as client:
        for k, most in ((1, 1), (2, 2), (50, 3)):
            for entry in await classify(client, top_k=k):
                named = dict(zip(llm.labels, entry["probs"], strict=True))
                best = sorted(named, key=lambda label: -named[label])[:most]
                assert entry["top_k"] == [{"label": label, "score": named[label]} for label in best]
                assert entry["top_k"][0]["label"] == entry["label"]
                assert list(entry) == [*PLAIN, "top_k"]


async def test_equal_scores_keep_the_order_of_the_labels(llm: LLM) -> None:
    async with serving(llm) as client:
        [entry] = await classify(client, "a", top_k=3)
    scores = [one["score"] for one in entry["top_k"]]
    assert scores == sorted(scores, reverse=True)


async def test_threshold_names_every_label_that_reaches_it(llm: LLM) -> None:
    async with serving(llm) as client:
        for entry in await classify(client, threshold=0.3):
            assert entry["labels"] == [n for n, p in zip(llm.labels, entry["probs"], strict=True) if p >= 0.3]
        for entry in await classify(client, threshold=2, use_activation=False):
            assert entry["labels"] == [n for n, p in zip(llm.labels, entry["probs"], strict=True) if p >= 2]
        [entry] = await classify(client, "a")
        [again] = await classify(client, "a", threshold=entry["probs"][1])  # what is shown reaches itself
        assert llm.labels[1] in again["labels"]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"problem_type": "multi_label_classification"},
        {"problem_type": "regression"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
    ],
    ids=["softmax", "sigmoid", "none", "tanh"],
)
async def test_logits_beside_probabilities_are_those_of_the_device(overrides: dict[str, Any]) -> None:
    with LLM(str(MODELS / "bert-cls"), hf_overrides=overrides, data_parallel_size=1) as llm:
        llm.engine.buckets = (Bucket(4, 32),)
        llm.engine.warm()
        exact = {"rtol": 4e-7, "atol": 1e-7}
        for activated in (None, True, False):
            probs, logits = offline(llm, activated), offline(llm, False)
            async with serving(llm) as client:
                found = await classify(client, return_logits=True, use_activation=activated)
            np.testing.assert_allclose([entry["logits"] for entry in found], logits, **exact)
            np.testing.assert_allclose([entry["probs"] for entry in found], probs, **exact)
            assert [np.argmax(entry["probs"]) for entry in found] == [llm.labels.index(e["label"]) for e in found]


async def test_logits_cost_no_second_computation(tampered: LLM) -> None:
    async with serving(tampered) as client:
        assert list((await classify(client, "a", return_logits=True))[0]) == [*PLAIN, "logits"]
    assert [len(batch) for batch in tampered.engine.batches] == [1]  # type: ignore[attr-defined]


async def test_without_these_fields_a_response_has_vllms_alone(llm: LLM) -> None:
    async with serving(llm) as client:
        assert list((await classify(client, "a", top_k=None, threshold=None, return_logits=False))[0]) == PLAIN


@pytest.mark.parametrize(
    "fields",
    [{"top_k": 0}, {"top_k": "x"}, {"threshold": "x"}, {"threshold": float("nan")}, {"return_logits": 2}],
)
async def test_values_that_are_refused(llm: LLM, fields: dict[str, Any]) -> None:
    async with serving(llm) as client:
        response = await client.post("/classify", json={"input": "a", **fields})
        assert response.status == 400
        assert (await response.json())["error"]["param"] == f"body.{next(iter(fields))}"


async def test_the_example_of_the_page(llm: LLM) -> None:
    page = Path(__file__).parents[2] / "serving" / "README.md"
    [example] = re.findall(r"^```json\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    async with serving(llm) as client:
        body = json.loads(example)
        [entry] = await classify(client, body.pop("input"), **body)
    assert list(entry) == [*PLAIN, "top_k", "labels", "logits"]
    assert len(entry["top_k"]) == 2


LONG = {"long_text": "window", "window": 16, "overlap": 3}


@pytest.mark.parametrize("aggregate", [None, "mean", "max", "first"])
async def test_long_texts_answer_as_offline(llm: LLM, aggregate: Any) -> None:
    texts = ["The movie was great, I loved it! " * 30, "a"]
    wanted = llm.classify(texts, use_tqdm=False, **LONG, aggregate=aggregate)  # type: ignore[arg-type]
    async with serving(llm) as client:
        found = await classify(client, texts, **LONG, aggregate=aggregate)
        response = await client.post("/classify", json={"input": texts, **LONG})
        used = (await response.json())["usage"]["prompt_tokens"]
    np.testing.assert_allclose(
        [entry["probs"] for entry in found], [output.outputs.probs for output in wanted], atol=1e-5
    )
    assert used == sum(len(output.prompt_token_ids) for output in wanted)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"long_text": "window", "window": 4, "max": 3}, "windows and the server takes at most 3"),
        ({"long_text": "window", "window": 10**6}, "is more than the"),
        ({"window": 16}, "long_text='window' only"),
        ({"long_text": "window", "return_logits": True}, "not both"),
        ({"long_text": "slide"}, "Input should be 'error', 'truncate' or 'window'"),
        ({"long_text": "truncate", "truncate_prompt_tokens": 3}, "contradict each other"),
    ],
)
async def test_long_texts_that_are_refused(llm: LLM, fields: dict[str, Any], words: str) -> None:
    most = fields.pop("max", 256)
    async with serving(llm, max_windows_per_request=most) as client:
        response = await client.post("/classify", json={"input": "word " * 30, **fields})
        error = (await response.json())["error"]
        assert (await client.post("/classify", json={"input": "a"})).status == 200
    assert response.status == 400
    assert words in error["message"]
