"""The server computes what requests begin with alike once, and tells those apart who must not share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient

from jaxpool import LLM
from jaxpool.engine.costs import Costs
from tests.support.tiny import save

from .conftest import serving

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCAB = 300
BEGINNING = np.random.default_rng(3).integers(1, VOCAB, 118).tolist()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = save(
        tmp_path_factory.mktemp("shared") / "model",
        "qwen2",
        vocab_size=VOCAB,
        num_key_value_heads=2,
        num_labels=3,
        max_position_embeddings=128,
        **SIZES,
    )
    options: Any = {"max_model_len": 128, "max_num_batched_tokens": 128, "compile": "ahead"}
    with LLM(folder, skip_tokenizer_init=True, dtype="float32", **options) as llm:
        # As dear as on a large model: this one computes 118 tokens in less than a call takes.
        llm.engine.costs = Costs(replace(llm.engine.costs.prior, flops_per_second=1e4), learns=False)
        yield llm


def text(seed: int, size: int = 9) -> list[int]:
    return [*BEGINNING, *np.random.default_rng(seed).integers(1, VOCAB, size).tolist()]


async def asked(client: TestClient, ids: Any, **fields: Any) -> dict[str, Any]:
    response = await client.post("/classify", json={"input": ids, **fields})
    assert response.status == 200, await response.text()
    return await response.json()


def cached(answer: dict[str, Any]) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.asyncio
async def test_the_second_request_brings_a_beginning_into_the_store_and_the_third_reads_it(llm: LLM) -> None:
    assert llm.engine.prefixes is not None
    begun, wanted = llm.engine.begun, {}
    for seed in range(6):  # alone, before anything is kept
        wanted[seed] = llm.classify([text(seed)], use_tqdm=False)[0].outputs.probs
    assert len(llm.engine.prefixes.store) == 0
    async with serving(llm, name="shared", enable_prompt_tokens_details=True) as client:
        told = []
        for seed in range(3):
            answer = await asked(client, [text(seed)])
            assert answer["data"][0]["probs"] == pytest.approx(wanted[seed], abs=1e-5)
            assert answer["usage"]["prompt_tokens"] == 127
            told.append(cached(answer))
        assert told == [0, 0, 112], "blocks of 16 tokens"
        three = await asked(client, [text(3), text(4), text(5)])
        assert [one["probs"] for one in three["data"]] == [pytest.approx(wanted[seed], abs=1e-5) for seed in (3, 4, 5)]
        assert cached(three) == 3 * 112
        changed = text(0)
        changed[10] = changed[10] % (VOCAB - 1) + 1
        assert cached(await asked(client, [changed])) == 0
        # Another tenant's beginning is another beginning, though the tokens are the same.
        salted = [cached(await asked(client, [text(seed)], cache_salt="a")) for seed in (0, 1, 2)]
        assert salted == [0, 0, 112]
        page = await (await client.get("/metrics")).text()
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("jaxpool_prefix_cache"))
    name = 'jaxpool_prefix_cache_{}{{model="shared"}}'
    assert float(lines[name.format("entries")]) == 2
    assert float(lines[name.format("bytes")]) == llm.engine.prefixes.store.bytes > 0
    assert float(lines[name.format("misses_total")]) == 2
    assert float(lines[name.format("hits_total")]) >= 3
    assert float(lines[name.format("saved_tokens_total")]) == llm.engine.prefixes.saved == 5 * 112
    assert llm.engine.begun == begun


@pytest.mark.asyncio
async def test_usage_tells_nothing_unless_it_is_asked_to(llm: LLM) -> None:
    async with serving(llm, name="shared") as client:
        answer = await asked(client, [text(1), text(2)])
    assert answer["usage"]["prompt_tokens_details"] is None


@pytest.mark.asyncio
async def test_where_a_beginning_fails_its_texts_are_read_whole(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory")

    wanted = [one.outputs.probs for one in llm.classify([text(8), text(9)], use_tqdm=False)]
    monkeypatch.setattr(llm.engine.prefixes, "computed", fails)
    async with serving(llm, name="shared", enable_prompt_tokens_details=True) as client:
        answer = await asked(client, [text(8), text(9)])
    assert [one["probs"] for one in answer["data"]] == [pytest.approx(one, abs=1e-5) for one in wanted]
    assert cached(answer) == 0
