"""Shared beginnings with adapters: each adapter has its own, for as long as it is loaded, and nothing is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft_adapters
import pytest
import tiny
from parity_cases import CASES

from jaxpool import LLM
from jaxpool.engine.adapters import Loaded
from jaxpool.engine.beginnings import Beginning
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.costs import Costs
from jaxpool.engine.engine import Row
from jaxpool.engine.prefixes import Prefixes

CONFIG = {**CASES["qwen2"][1], "max_position_embeddings": 256}
VOCAB = CONFIG["vocab_size"]
ROOM = 160_000
"""Bytes: three beginnings."""

HOW = {"runner": "pooling", "skip_tokenizer_init": True, "dtype": "float32", "enable_lora": True, "max_loras": 2,
       "max_lora_rank": 8, "max_model_len": 96, "max_num_batched_tokens": 128}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base") / "model", "qwen2", **CONFIG)


@pytest.fixture(scope="module")
def paths(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    kinds = [{"target_modules": "all-linear"}, {"target_modules": ["q_proj", "v_proj"], "use_dora": True}]
    folder = tmp_path_factory.mktemp("adapters")
    return [peft_adapters.save(base, folder / str(seed), seed=seed, r=2, **kind) for seed, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def plain(base: Path) -> Iterator[LLM]:
    with LLM(str(base), **HOW, enable_prefix_caching=False) as llm:
        assert llm.engine.prefixes is None
        yield llm


@pytest.fixture(scope="module")
def llm(base: Path) -> Iterator[LLM]:
    with LLM(str(base), **HOW, compile="ahead", kv_cache_memory_bytes=ROOM) as llm:
        # As in test_prefixes: every token costs something.
        llm.engine.costs = Costs(replace(llm.engine.costs.prior, flops_per_second=1e4), learns=False)
        begun = llm.engine.begun
        yield llm
        assert llm.engine.begun == begun, "all was compiled before any adapter came"


def of(llm: LLM) -> Prefixes:
    assert llm.engine.prefixes is not None
    return llm.engine.prefixes


def texts(sizes: Sequence[int], seed: int) -> list[list[int]]:
    """All begin with the same 70 tokens."""
    rng, beginning = np.random.default_rng(seed), np.random.default_rng(3).integers(1, VOCAB, 70).tolist()
    return [beginning + rng.integers(1, VOCAB, size).tolist() for size in sizes]


def run(llm: LLM, ids: list[list[int]], adapters: Sequence[Loaded | None]) -> np.ndarray:
    rows = [Row(text, activated=False, adapter=adapter) for text, adapter in zip(ids, adapters, strict=True)]
    return np.stack(llm.engine.run(rows))


def alone(plain: LLM, ids: list[list[int]], adapters: Sequence[Loaded | None]) -> np.ndarray:
    """The same adapters in an engine without a store, text by text."""
    rows = [Row(text, activated=False, adapter=adapter) for text, adapter in zip(ids, adapters, strict=True)]
    return np.concatenate([plain.engine.submit([row], Bucket(1, 96)).result() for row in rows])


def test_each_adapter_has_beginnings_of_its_own_as_long_as_it_is_loaded(
    llm: LLM, plain: LLM, base: Path, paths: list[Path]
) -> None:
    held, store = llm.engine.adapters, of(llm).store
    one, two = (held.add(name, str(path)) for name, path in zip("ab", paths))
    same = [plain.engine.adapters.add(name, str(path)) for name, path in zip("ab", paths)]
    ids, turns = texts([3, 9, 12, 5, 7, 8, 20, 1, 4, 11, 2, 6] * 2, 1), [0, 1, 2] * 8
    mixed, theirs = [[one, two, None][i] for i in turns], [[*same, None][i] for i in turns]
    wanted = alone(plain, ids, theirs)
    assert np.abs(wanted[:3] - alone(plain, ids[:3], [None, None, same[0]])).max() > 1e-3
    np.testing.assert_allclose(run(llm, ids, mixed), wanted, atol=1e-5, rtol=0)
    assert {key.owner.adapter for key in store._entries} == {one.serial, two.serial, 0}
    assert (store.misses, len(store)) == (3, 3)
    saved = of(llm).saved
    assert saved >= 21 * 70

    again, hits = texts([10, 13, 15] * 4, 2), store.hits
    np.testing.assert_allclose(run(llm, again, mixed[:12]), alone(plain, again, theirs[:12]), atol=1e-5, rtol=0)
    assert (store.misses, store.hits) == (3, hits + 3)
    np.testing.assert_allclose(
        run(llm, again[:4], [two] * 4), peft_adapters.torch_logits(base, paths[1], again[:4]), atol=1e-4, rtol=0
    )

    # Another adapter comes into the same slot under the same name: what was kept is not its own.
    saved, hits, slot, serial = of(llm).saved, store.hits, one.slot, one.serial
    mixed.clear()
    held.drop("a")
    del one
    other = held.add("a", str(paths[1]))
    assert (other.slot, other.name) == (slot, "a")
    np.testing.assert_allclose(run(llm, ids[:8], [other] * 8), alone(plain, ids[:8], [same[1]] * 8), atol=1e-5, rtol=0)
    assert (store.misses, store.hits, of(llm).saved) == (4, hits, saved + 7 * 70)
    assert 0 < store.bytes <= ROOM
    assert store.evictions == 1, "what nobody asks for any more gives way"
    assert serial not in {key.owner.adapter for key in store._entries}


def test_a_batch_is_of_its_beginnings_adapter(llm: LLM, paths: list[Path]) -> None:
    held = llm.engine.adapters.held() or {"b": llm.engine.adapters.add("b", str(paths[1]))}
    [text], adapter = texts([9], 4), held["b"]
    foreign = Beginning.of(np.array(text), 64)
    bucket = of(llm).menu(64)[0]
    row = Row(text, beginning=foreign, adapter=adapter)
    with pytest.raises(Exception, match="do not fit"):
        llm.engine.submit([row], bucket).result()
    with pytest.raises(Exception, match="do not fit"):
        llm.engine.submit(
            [replace(row, beginning=Beginning.of(np.array(text), 64, row.owner), adapter=None)], bucket
        ).result()
