"""Requests to the routes beside ``/classify``, answered as vLLM answered them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from one_label import one_label

from jaxpool import LLM
from jaxpool.engine.buckets import Bucket

from .conftest import MODELS, serving

RECORDED = Path(__file__).parent / "recorded"
SERVERS: dict[str, dict[str, Any]] = {
    "scores_bert-cls": {},
    "scores_gpt2-cls": {},
    "tokens_bert-cls": {"pooler_config": {"task": "token_classify"}},
    "embeddings_llama-causal": {"runner": "pooling", "convert": "embed"},
}
DIFFERENT = {
    "truncate left": "vLLM cuts the special token off with the rest",
    "padding": "vLLM pads the second text's type on, transformers and we pad zeros",
    "detokenize 2**62": "in words of our own",
    "classify bad": "the model's name is read before it is known what that model serves",
    "classify unknown model": "the same",
}
DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


@pytest.fixture(scope="module", params=SERVERS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, Any]]:
    model = MODELS / request.param.partition("_")[2]
    if request.param.startswith("scores"):
        model = one_label(model, tmp_path_factory.mktemp("models"))
    answers = json.loads((RECORDED / f"{request.param}.json").read_text(encoding="utf-8"))
    with LLM(model, dtype="float32", **SERVERS[request.param]) as llm:
        llm.engine.buckets = (Bucket(4, 64), Bucket(1, 512))  # two programs are enough here
        yield llm, answers


async def test_answers_are_vllms(recorded: tuple[LLM, Any]) -> None:
    llm, answers = recorded
    wrong = {}
    async with serving(llm) as client:
        for title, expected in answers.items():
            response = await client.request(expected["method"], expected["path"], json=expected["body"])
            if "hex" in expected:
                found = {"status": response.status, "hex": (await response.read()).hex()}
                if "metadata" in response.headers:
                    found["metadata"] = json.loads(response.headers["metadata"])
            else:
                found = {"status": response.status, "json": await response.json()}
            if differences := list(unlike(comparable(expected), comparable(found), title)):
                wrong[title] = differences
    assert wrong.keys() <= DIFFERENT.keys(), wrong


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ: ids made at random, times, the model's name, and the order of a set."""
    kept = {name: answer[name] for name in ("status", "json", "metadata") if name in answer}
    if "hex" in answer:
        kept["values"] = values(answer)
    return without_chance(kept)


def without_chance(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: without_chance(one, key) for key, one in value.items() if key not in ("created", "model")}
    if isinstance(value, list):
        return [without_chance(one) for one in value]
    if name == "data" and isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), np.float32).tolist()
    if name == "id":
        return re.sub("-[0-9a-f]{16,32}$", "", value)
    if name == "message":
        value = re.sub(r"Valid aliases: .*", "Valid aliases", value)
        return re.sub(r"(?<=Supported tasks: )\[.*\]", lambda found: str(sorted(re.findall(r"\w+", found[0]))), value)
    return value


def values(answer: dict[str, Any]) -> list[Any]:
    """The numbers in an answer of bytes."""
    content = bytes.fromhex(answer["hex"])
    if "metadata" not in answer:
        return np.frombuffer(content, np.float32).tolist()
    rows = []
    for item in answer["metadata"]["data"]:
        part = np.frombuffer(content[item["start"] : item["end"]], DTYPES[item["embed_dtype"]])
        if item["endianness"] == "big":
            part = part.view(f"u{part.itemsize}").byteswap().view(part.dtype)
        rows.append(part.astype(np.float32).reshape(item["shape"]).tolist())
    return rows


def unlike(one: Any, other: Any, where: str) -> Iterator[str]:
    """Where two answers differ by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name in one:
            yield from unlike(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other)):
            yield from unlike(a, b, f"{where}.{index}")
    elif isinstance(one, float) and isinstance(other, float):
        # the last place of the smallest type, where rounding went the other way
        if abs(one - other) > (0.13 * abs(one) if "fp8" in where else 2e-4 + 0.008 * abs(one) * ("float16" in where)):
            yield f"{where}: {one} {other}"
    elif one != other:
        yield f"{where}: {str(one)[:300]} {str(other)[:300]}"
