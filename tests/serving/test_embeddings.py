"""``/v1/embeddings``: the vectors of ``LLM.embed`` in every form that OpenAI's and vLLM's clients ask for."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient

from jaxpool import LLM, PoolerConfig, PoolingParams
from jaxpool.engine.buckets import Bucket
from jaxpool.text.prompts import TextPrompt

from .conftest import MODELS, serving

TEXTS = ["Hello world", "a"]
CHAT = [{"role": "user", "content": "Was the food spoiled?"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def embedder() -> Iterator[LLM]:
    overrides = {"is_matryoshka": True}
    with LLM(
        MODELS / "llama-causal", runner="pooling", convert="embed", dtype="float32", hf_overrides=overrides
    ) as llm:
        llm.engine.buckets = (Bucket(4, 64),)
        yield llm


def offline(llm: LLM, texts: Any, **asked: Any) -> np.ndarray:
    outputs = llm.embed(texts, use_tqdm=False, pooling_params=PoolingParams(**asked))
    return np.array([one.outputs.embedding for one in outputs])


async def vectors(client: TestClient, **body: Any) -> np.ndarray:
    response = await client.post(PATH, json=body)
    answer = await response.json()
    assert response.status == 200, answer
    assert answer["object"] == "list"
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    assert answer["id"].startswith("embd-")
    if body.get("encoding_format") == "base64":
        return np.array([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]])
    return np.array([entry["embedding"] for entry in answer["data"]])


async def test_vectors_are_those_of_llm_embed(embedder: LLM) -> None:
    ids = [one.ids for one in embedder.tokenizer.encode(TEXTS)]
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"encoding_format": "base64"}, {}),
        ({"dimensions": 8}, {"dimensions": 8}),
        ({"dimensions": 8, "use_activation": False}, {"dimensions": 8, "use_activation": False}),
    ]
    async with serving(embedder) as client:
        for body, params in asked:
            expected = offline(embedder, TEXTS, **params)
            for given in (TEXTS, ids):
                np.testing.assert_allclose(await vectors(client, input=given, **body), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(await vectors(client, input="a"), offline(embedder, "a"), rtol=0, atol=1e-5)


async def test_conversations(embedder: LLM) -> None:
    text = "user: Was the food spoiled?"
    one = offline(embedder, text)
    both = np.concatenate([one, one])
    async with serving(embedder, chat_template=TEMPLATE) as client:
        for name in ("messages", "input"):
            found = await vectors(client, **{name: CHAT, "add_special_tokens": True})
            np.testing.assert_allclose(found, one, atol=1e-6)
            found = await vectors(client, **{name: [CHAT, CHAT], "add_special_tokens": True})
            np.testing.assert_allclose(found, both, atol=1e-6)


async def test_bytes(embedder: LLM) -> None:
    expected = offline(embedder, TEXTS)
    async with serving(embedder) as client:
        for form in ("bytes", "bytes_only"):
            body = {"input": TEXTS, "encoding_format": form, "endianness": "big"}
            response = await client.post(PATH, json=body)
            found = np.frombuffer(await response.read(), ">f4").reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
            assert ("embd-" in response.headers.get("metadata", "")) is (form == "bytes")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dimensions": 1000}, "dimensions must be from 1 to"),
        ({"late_chunking_params": {"strategy": "mean"}}, "`late_chunking_params` is not supported"),
        ({"late_chunking": True}, "`late_chunking` is not supported"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"normalize": True}, "use `use_activation` instead"),
        ({"input": [[]], "messages": None}, "cannot be empty"),
    ],
)
async def test_what_cannot_be_asked(asked: dict[str, Any], message: str, embedder: LLM) -> None:
    async with serving(embedder) as client:
        response = await client.post(PATH, json={"input": "a"} | asked)
        answer = await response.json()
    assert (response.status, message in answer["error"]["message"]) == (400, True), answer


async def test_a_classifier_has_no_such_route(llm: LLM) -> None:
    async with serving(llm) as client:
        for body in ({"input": "a"}, {}):
            response = await client.post(PATH, json=body)
            assert (response.status, await response.json()) == (404, {"detail": "Not Found"})


async def test_one_that_could_embed_says_so() -> None:
    how: Any = {"runner": "pooling", "convert": "embed", "pooler_config": {"task": "token_embed"}}
    with LLM(MODELS / "llama-causal", dtype="float32", **how) as llm:
        llm.engine.buckets = (Bucket(1, 64),)
        async with serving(llm) as client:
            assert (await client.post(PATH, json={"input": "a"})).status == 501


@pytest.mark.parametrize("name", ["enable_chunked_processing", "max_embed_len"])
def test_long_texts_are_never_embedded_in_pieces_unsaid(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name}=.* is not possible"):
        PoolerConfig(**{name: 1024 if name == "max_embed_len" else True})  # type: ignore[arg-type]


async def test_openais_client(embedder: LLM) -> None:
    import openai

    async with (
        serving(embedder) as client,
        openai.AsyncOpenAI(api_key="x", base_url=str(client.make_url("/v1"))) as own,
    ):
        answer = await own.embeddings.create(model="bert", input=TEXTS, dimensions=8)
    expected = offline(embedder, TEXTS, dimensions=8)
    np.testing.assert_allclose([one.embedding for one in answer.data], expected, rtol=0, atol=1e-5)


COHERE = "/v2/embed"


async def cohere(client: TestClient, **body: Any) -> dict[str, Any]:
    response = await client.post(COHERE, json=body)
    answer = await response.json()
    assert response.status == 200, answer
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["id"].startswith("embd-")
    return dict(answer)


async def test_coheres_form(embedder: LLM) -> None:
    kinds = ["float", "binary", "ubinary", "base64"]
    expected = offline(embedder, TEXTS, dimensions=8)
    async with serving(embedder) as client:
        answer = await cohere(client, texts=TEXTS, output_dimension=8, embedding_types=kinds)
        plain = await cohere(client, texts=["a"])
    found = answer["embeddings"]
    np.testing.assert_allclose(found["float"], expected, rtol=0, atol=1e-5)
    read = [np.frombuffer(base64.b64decode(one), "<f4") for one in found["base64"]]
    np.testing.assert_allclose(read, expected, rtol=0, atol=1e-5)
    bits = [sum((value >= 0) << (7 - i) for i, value in enumerate(row)) for row in expected]
    assert found["ubinary"] == [[one] for one in bits]
    assert found["binary"] == [[one - 128] for one in bits]
    assert answer["texts"] == TEXTS
    tokens = sum(len(one.ids) for one in embedder.tokenizer.encode(TEXTS))
    assert answer["meta"]["billed_units"] == {"input_tokens": tokens, "image_tokens": 0}
    assert plain["embeddings"].keys() == {"float"}


async def test_prompts_of_the_checkpoints_own(embedder: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named ones stand in the place of the default; a chat template has the system say them."""
    monkeypatch.setattr(embedder.tokenizer, "prefix", "default: ")
    monkeypatch.setattr(embedder.tokenizer, "prefixes", {"search_query": "query: ", "none": ""})
    default = offline(embedder, "food")  # offline, too
    monkeypatch.setattr(embedder.tokenizer, "prefix", "")
    bare, query = offline(embedder, ["food", "query: food"])
    monkeypatch.setattr(embedder.tokenizer, "prefix", "default: ")
    async with serving(embedder) as client:
        for named, expected in ((None, default[0]), ("none", bare), ("search_query", query)):
            answer = await cohere(client, texts=["food"], input_type=named)
            np.testing.assert_allclose(answer["embeddings"]["float"], [expected], atol=1e-5, err_msg=str(named))
    async with serving(embedder, chat_template=TEMPLATE) as client:
        parts = {"inputs": [{"content": [{"type": "text", "text": "food"}]}]}
        for body in ({"texts": ["food"]}, parts):
            answer = await cohere(client, **body, input_type="search_query")
            ids = embedder.tokenizer.encode([TextPrompt("system: query: user: food")], {"add_special_tokens": False})
            expected = offline(embedder, [list(ids[0].ids)])
            np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=1e-5)
            assert not np.allclose(expected, query, atol=1e-3)


async def test_what_is_cut(embedder: LLM) -> None:
    text = "the food was spoiled and we went home"
    ids = embedder.tokenizer.encode([text])[0].ids
    async with serving(embedder) as client:
        ends = await cohere(client, texts=[text], max_tokens=4)
        starts = await cohere(client, texts=[text], max_tokens=4, truncate="START")
        refused = await client.post(COHERE, json={"texts": [text], "max_tokens": 4, "truncate": "NONE"})
        assert "exceeds max_tokens=4 with truncate=NONE" in (await refused.json())["error"]["message"]
        assert refused.status == 400
    for answer, side in ((ends, "right"), (starts, "left")):
        cut = embedder.tokenizer.encode([text], {"truncate_prompt_tokens": 4, "truncation_side": side})[0].ids
        assert len(cut) == 4 < len(ids)
        np.testing.assert_allclose(answer["embeddings"]["float"], offline(embedder, [list(cut)]), atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "Exactly one of texts, images, or inputs must be provided"),
        ({"texts": []}, "Exactly one of texts, images, or inputs must be provided"),
        ({"texts": ["a"], "images": ["b"]}, "Exactly one of texts, images, or inputs must be provided"),
        ({"images": ["data:image/png;base64,"]}, "reads text only"),
        ({"texts": ["a"], "input_type": "clustering"}, "does not define any input_type task instructions"),
        ({"texts": ["a"], "embedding_types": ["binary"], "output_dimension": 9}, "must be a multiple of 8"),
        ({"texts": ["a"], "embedding_types": ["int8"]}, "embedding_types"),
        ({"texts": ["a"], "truncate": "MIDDLE"}, "truncate"),
    ],
)
async def test_what_cohere_clients_cannot_ask(asked: dict[str, Any], message: str, embedder: LLM) -> None:
    async with serving(embedder) as client:
        response = await client.post(COHERE, json=asked)
        answer = await response.json()
    assert (response.status, message in answer["error"]["message"]) == (400, True), answer
