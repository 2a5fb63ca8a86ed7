"""What ``POST /classify`` accepts, answers and refuses."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient

from jaxpool import LLM, PoolingParams

from .conftest import serving

TEXTS = [
    "Hello world",
    "The movie was great, I loved it!",
    "a",
    "This is the worst product I have ever bought.",
]


async def post(client: TestClient, body: object, **headers: str) -> tuple[int, Any]:
    response = await client.post("/classify", json=body, headers=headers)
    return response.status, await response.json()


def probs(answer: dict[str, Any]) -> np.ndarray:
    return np.array([entry["probs"] for entry in answer["data"]])


def offline(llm: LLM, prompts: Any, **kwargs: Any) -> np.ndarray:
    return np.array([output.outputs.probs for output in llm.classify(prompts, use_tqdm=False, **kwargs)])


async def test_the_response_has_exactly_the_shape_of_vllm(llm: LLM) -> None:
    async with serving(llm) as client:
        status, answer = await post(client, {"model": "bert", "input": TEXTS[1], "request_id": "mine"})
    assert status == 200
    assert abs(answer.pop("created") - time.time()) < 60
    [entry] = answer.pop("data")
    assert answer == {
        "id": "classify-mine",
        "object": "list",
        "model": "bert",
        "usage": {
            "prompt_tokens": 16,
            "total_tokens": 16,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }
    # as recorded from vLLM 0.32 on this checkpoint
    assert (entry["index"], entry["label"], entry["num_classes"]) == (0, "neutral", 3)
    np.testing.assert_allclose(entry["probs"], [0.38299862, 0.46893349, 0.14806785], atol=1e-4)
    assert list(entry) == ["index", "label", "probs", "num_classes"]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        (TEXTS[0], [TEXTS[0]]),
        (TEXTS, TEXTS),
        ([5, 6, 7, 8], [[5, 6, 7, 8]]),
        ([[5, 6, 7, 8], [10]], [[5, 6, 7, 8], [10]]),
        (["5", "6"], ["5", "6"]),
    ],
    ids=["string", "strings", "ids", "lists of ids", "numeric strings"],
)
async def test_every_form_of_input_answers_as_offline(llm: LLM, given: object, prompts: Any) -> None:
    async with serving(llm) as client:
        status, answer = await post(client, {"input": given})
    assert status == 200
    assert [entry["index"] for entry in answer["data"]] == list(range(len(prompts)))
    np.testing.assert_allclose(probs(answer), offline(llm, prompts), atol=1e-5)
    labels = [output.outputs.label for output in llm.classify(prompts, use_tqdm=False)]
    assert [entry["label"] for entry in answer["data"]] == labels


async def test_options_of_a_request(llm: LLM) -> None:
    async with serving(llm) as client:
        _, logits = await post(client, {"input": TEXTS, "use_activation": False})
        _, cut = await post(client, {"input": TEXTS[3], "truncate_prompt_tokens": 5})
        _, left = await post(client, {"input": TEXTS[3], "truncate_prompt_tokens": 5, "truncation_side": "left"})
        _, bare = await post(client, {"input": TEXTS[0], "add_special_tokens": False})
        _, ignored = await post(client, {"model": "", "input": TEXTS[0], "user": "ann", "foo": {"bar": 1}})
    raw = offline(llm, TEXTS, pooling_params=PoolingParams(use_activation=False))
    np.testing.assert_allclose(probs(logits), raw, atol=1e-5)
    assert cut["usage"]["prompt_tokens"] == left["usage"]["prompt_tokens"] == 5
    assert not np.allclose(probs(cut), probs(left))
    assert ignored["usage"]["prompt_tokens"] - bare["usage"]["prompt_tokens"] == 2  # [CLS] and [SEP]


async def test_request_ids(llm: LLM) -> None:
    async with serving(llm) as client:
        _, header = await post(client, {"input": "a", "request_id": "body"}, **{"X-Request-Id": "header"})
        _, one = await post(client, {"input": "a"})
        _, other = await post(client, {"input": "a"})
    assert header["id"] == "classify-header"
    assert one["id"] != other["id"]


REFUSED: list[tuple[object, int, str, str, str | None]] = [
    ({"input": []}, 400, "BadRequestError", "You must pass at least one prompt", None),
    ({"input": [[]]}, 400, "BadRequestError", "The decoder prompt cannot be empty", None),
    ({"input": [5, -1]}, 400, "BadRequestError", "Token id -1 is out of vocabulary", None),
    ({"input": [5, 2**70]}, 400, "BadRequestError", f"Token id {2**70} is out of vocabulary", None),
    ({"input": [7] * 50}, 400, "BadRequestError", "maximum context length is 48 tokens", "input_tokens"),
    (
        {"input": ["a", "hello world " * 40]},
        400,
        "BadRequestError",
        "maximum context length is 48",
        "input_tokens",
    ),
    (
        {"input": "a", "truncate_prompt_tokens": 49},
        400,
        "BadRequestError",
        "greater than max_model_len",
        None,
    ),
    ({"input": "a", "model": "nope"}, 404, "NotFoundError", "The model `nope` does not exist.", None),
    ({"input": ["a"] * 9}, 400, "BadRequestError", "9 prompts and the server takes at most 8", "input"),
    ({"input": "a", "normalize": True}, 400, "BadRequestError", "`normalize` was removed", "normalize"),
    ({"input": "a", "task": "encode"}, 400, "BadRequestError", "`encode` task was removed", "task"),
    ({"input": "a", "priority": 1.5}, 400, "Bad Request", "fractional part", "body.priority"),
    ({}, 400, "Bad Request", "2 validation errors:\n  {'type': 'missing', 'loc': 'body.input'", "body.input"),
    ({"input": 5}, 400, "Bad Request", "validation errors:", "body.input"),
    ({"input": ["a", [5]]}, 400, "Bad Request", "'loc': 'body.input.1'", "body.input.0"),
    ({"input": "a", "model": 5}, 400, "Bad Request", "Input should be a valid string", "body.model"),
    ({"input": "a", "truncate_prompt_tokens": -2}, 400, "Bad Request", "'ctx': {'ge': -1}", None),
    (
        {"input": "a", "truncation_side": "middle"},
        400,
        "Bad Request",
        "'left' or 'right'",
        "body.truncation_side",
    ),
    (["a"], 400, "Bad Request", "<list of 1 items>", "body"),
]


async def test_refused_bodies(llm: LLM) -> None:
    async with serving(llm, max_inputs=8) as client:
        for body, status, kind, message, parameter in REFUSED:
            seen, answer = await post(client, body)
            assert (seen, answer["error"]["type"], answer["error"]["code"]) == (status, kind, status), (
                body,
                answer,
            )
            assert message in answer["error"]["message"], (body, answer)
            assert parameter is None or answer["error"]["param"] == parameter, (body, answer)
        assert (await post(client, {"input": "a"}))[0] == 200  # none of them hurt the server


@pytest.mark.parametrize(
    ("data", "content_type", "message"),
    [
        (b'{"input": "a"', "application/json", "'type': 'json_invalid', 'loc': 'body.13'"),
        (b"", "application/json", "Field required"),
        (b"null", "application/json", "Field required"),
        (b'{"input": "a"}', "text/plain", "Unsupported Media Type: Only 'application/json' is allowed"),
        (b'{"input": "a"}', "application/vnd.api+json", "Unsupported Media Type"),
        (b"input=a", "application/x-www-form-urlencoded", "Unsupported Media Type"),
    ],
)
async def test_refused_bytes(llm: LLM, data: bytes, content_type: str, message: str) -> None:
    async with serving(llm) as client:
        response = await client.post("/classify", data=data, headers={"Content-Type": content_type})
        answer = await response.json()
    assert response.status == 400
    assert answer["error"]["type"] == "Bad Request"
    assert message in answer["error"]["message"]


@pytest.mark.parametrize(
    "data", [b'{"input": "\xff\xfe"}', b"[" * 30_000, b"[" * 30_000 + b" " * 70_000, b"[" + b"9" * 5000 + b"]"]
)
async def test_bytes_that_cannot_be_read_at_all(llm: LLM, data: bytes) -> None:
    async with serving(llm) as client:
        response = await client.post("/classify", data=data, headers={"Content-Type": "application/json"})
        assert (response.status, await response.json()) == (400, {"detail": "There was an error parsing the body"})


async def test_charset_and_byte_order_mark_are_fine(llm: LLM) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    async with serving(llm) as client:
        response = await client.post("/classify", data=b'\xef\xbb\xbf{"input": "a"}', headers=headers)
        assert response.status == 200


async def test_routing_and_size_errors(llm: LLM) -> None:
    async with serving(llm, max_body_bytes=1000) as client:
        for method, path, status in [
            ("GET", "/classify", 405),
            ("GET", "/nope", 404),
            ("POST", "/v1/classify", 404),
        ]:
            response = await client.request(method, path)
            assert response.status == status
            assert list(await response.json()) == ["detail"]
        status_, answer = await post(client, {"input": "x" * 2000})
        assert status_ == 413
        assert "1000 bytes" in answer["error"]["message"]


async def test_an_api_key_guards_classify_but_not_the_probes(llm: LLM) -> None:
    async with serving(llm, api_keys=("s3cret", "other")) as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer s3cr\u00e9t"},
        ):
            status, answer = await post(client, {"input": "a"}, **headers)
            assert (status, answer) == (401, {"error": "Unauthorized"})
        for key in ("s3cret", "other"):
            assert (await post(client, {"input": "a"}, Authorization=f"Bearer {key}"))[0] == 200
        for probe in ("/health", "/ready"):
            assert (await client.get(probe)).status == 200


async def test_200_concurrent_texts_answer_as_offline(llm: LLM) -> None:
    texts = [f"{TEXTS[n % 4]} {'again ' * (n % 7)}" for n in range(200)]
    compiles = llm.engine.compiles
    async with serving(llm) as client:
        answers = await asyncio.gather(*(post(client, {"input": text}) for text in texts))
    assert {status for status, _ in answers} == {200}
    np.testing.assert_allclose(np.concatenate([probs(a) for _, a in answers]), offline(llm, texts), atol=1e-5)
    assert llm.engine.compiles == compiles  # a compile after ready is a bug
