"""Shared beginnings through ``LLM``: the same scores from fewer tokens, and only where it is right and pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from parity_cases import CASES

from jaxpool import LLM, PoolingParams
from jaxpool.engine.beginnings import Beginning
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.costs import Costs
from jaxpool.engine.engine import Row

LOGITS = PoolingParams(use_activation=False)
MODEL, CONFIG = "qwen2", {**CASES["qwen2"][1], "max_position_embeddings": 256}
VOCAB = CONFIG["vocab_size"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("prefixes") / "model", MODEL, **CONFIG)


def opened(folder: Path, **options: Any) -> LLM:
    llm = LLM(str(folder), runner="pooling", skip_tokenizer_init=True, dtype="float32", **options)
    # A machine on which a token of this tiny model costs as much as one of a large model does elsewhere.
    llm.engine.costs = Costs(replace(llm.engine.costs.prior, flops_per_second=1e4), learns=False)
    return llm


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with opened(folder) as llm:
        yield llm


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[LLM]:
    with opened(folder, enable_prefix_caching=False) as llm:
        assert llm.engine.prefixes is None
        yield llm


def logits(llm: LLM, texts: list[list[int]]) -> np.ndarray:
    return np.stack([out.outputs.probs for out in llm.classify(texts, pooling_params=LOGITS, use_tqdm=False)])


def behind(beginning: list[int], sizes: list[int], seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [beginning + rng.integers(1, VOCAB, size).tolist() for size in sizes]


BEGINNING = np.random.default_rng(7).integers(1, VOCAB, 150).tolist()


def test_the_same_scores_from_fewer_tokens(llm: LLM, plain: LLM) -> None:
    texts = behind(BEGINNING, [1, 2, 9, 30, 44, 17]) + behind([], [20, 7])
    assert llm.engine.prefixes is not None
    before = llm.engine.tokens
    np.testing.assert_allclose(logits(llm, texts), logits(plain, texts), atol=1e-5, rtol=0)
    whole = sum(map(len, texts))
    assert llm.engine.tokens - before <= whole - 6 * 128
    assert llm.engine.prefixes.saved >= 5 * 128
    # One text of a later call finds what was kept; a text with another token in it does not.
    hits, saved = llm.engine.prefixes.store.hits, llm.engine.prefixes.saved
    again = behind(BEGINNING, [12], seed=5)
    np.testing.assert_allclose(logits(llm, again), logits(plain, again), atol=1e-5, rtol=0)
    assert llm.engine.prefixes.store.hits == hits + 1
    assert llm.engine.prefixes.saved > saved
    saved = llm.engine.prefixes.saved
    for place in (0, 127):
        changed = [[*again[0][:place], (again[0][place] + 1) % VOCAB, *again[0][place + 1 :]]]
        np.testing.assert_allclose(logits(llm, changed), logits(plain, changed), atol=1e-5, rtol=0)
    assert llm.engine.prefixes.saved == saved


@pytest.mark.parametrize("length", [1, 16, 129, 160])
def test_any_length_of_a_beginning_is_exact(llm: LLM, plain: LLM, length: int) -> None:
    """One token, all but one, the border of a block and of a program's places; asked of the engine itself."""
    assert llm.engine.prefixes is not None
    text = behind(BEGINNING, [11])[0]
    beginning = Beginning.of(np.array(text), length)
    bucket = next(one for one in llm.engine.prefixes.menu(length) if one.length >= 161 - length and one.segments == 1)
    found = llm.engine.submit([Row(text, activated=False, beginning=beginning)], bucket).result()
    np.testing.assert_allclose(found, logits(plain, [text]), atol=1e-5, rtol=0)


def test_devices_that_share_a_model_share_what_is_kept_by_head(folder: Path, plain: LLM) -> None:
    text = behind(BEGINNING, [11])[0]
    with opened(folder, tensor_parallel_size=2, data_parallel_size=2) as llm:
        prefixes = llm.engine.prefixes
        assert prefixes is not None
        beginning = Beginning.of(np.array(text), 129)
        bucket = next(one for one in prefixes.menu(129) if one.length >= 32 and one.segments == 1)
        found = llm.engine.submit([Row(text, activated=False, beginning=beginning)], bucket).result()
        np.testing.assert_allclose(found, logits(plain, [text]), atol=1e-5, rtol=0)
        kept = prefixes.store.get(beginning).notes[0][0]["keys"]
        assert kept.sharding.shard_shape(kept.shape)[2] * 2 == kept.shape[2]
        assert prefixes.store.bytes == sum(shard.data.nbytes for shard in kept.addressable_shards[:1]) * 2


def test_a_batch_of_two_beginnings_is_refused(llm: LLM) -> None:
    assert llm.engine.prefixes is not None
    rows = [Row(text, beginning=Beginning.of(np.array(text), 20)) for text in behind([], [40, 40])]
    bucket = next(one for one in llm.engine.prefixes.menu(20) if one.rows >= 2 and one.length >= 20)
    with pytest.raises(Exception, match="do not fit"):
        llm.engine.submit(rows, bucket).result()
    with pytest.raises(Exception, match="do not fit"):  # nothing of the text's own would be left
        llm.engine.submit([replace(rows[0], ids=rows[0].ids[:20])], bucket).result()


def test_what_a_tiny_model_computes_at_once_is_not_worth_a_compile(folder: Path) -> None:
    with LLM(str(folder), runner="pooling", skip_tokenizer_init=True, dtype="float32") as llm:
        logits(llm, behind(BEGINNING, [5] * 8))
        assert llm.engine.prefixes is not None
        assert llm.engine.prefixes.store.misses == 0


def test_calls_that_come_again_have_their_programs_compiled_behind(folder: Path) -> None:
    """One call does not pay for a compile, thirty do: from the third on beginnings are shared."""
    with opened(folder) as llm:
        prior = llm.engine.costs.prior
        whole = 6 * prior.formula(Bucket(1, 160))
        llm.engine.costs = Costs(replace(prior, seconds_per_compile=3 * whole), learns=False)
        used = []
        for seed in range(4):
            logits(llm, behind(BEGINNING, [5, 9, 3, 8, 4, 6], seed))
            llm.engine.programs.wait()
            used.append(llm.engine.prefixes.saved > 0)  # type: ignore[union-attr]
        assert used == [False, False, True, True]


def test_deterministic_scores_share_nothing(folder: Path) -> None:
    with opened(folder, deterministic=True, enable_prefix_caching=True) as llm:
        assert llm.engine.prefixes is None


def test_only_models_that_read_forwards_and_pool_the_end(tmp_path: Path) -> None:
    bert = tiny.save(tmp_path / "bert", "bert", **CASES["bert"][1])
    with LLM(str(bert), runner="pooling", skip_tokenizer_init=True) as llm:
        assert llm.engine.prefixes is None
    mean = tiny.save(tmp_path / "mean", MODEL, **CONFIG)
    with LLM(str(mean), skip_tokenizer_init=True, pooler_config={"pooling_type": "MEAN"}, convert="embed") as llm:
        assert llm.engine.prefixes is None


def test_nothing_is_compiled_after_ready_and_the_bound_holds(folder: Path) -> None:
    """Everything ahead; the store has room for two beginnings and sees six."""
    options: Any = {"max_model_len": 96, "max_num_batched_tokens": 128, "compile": "ahead"}
    with opened(folder, **options, kv_cache_memory_bytes=160_000) as llm:
        assert llm.engine.prefixes is not None
        begun, store = llm.engine.begun, llm.engine.prefixes.store
        for seed in range(6):
            beginning = np.random.default_rng(100 + seed).integers(1, VOCAB, 70 + seed).tolist()
            logits(llm, behind(beginning, [3, 9, 12, 5, 7, 8], seed))
            assert 0 < store.bytes <= 160_000
        assert store.misses >= 6
        assert store.evictions == store.misses - len(store) > 0
        assert llm.engine.begun == begun


def test_no_beginning_is_computed_that_the_store_has_no_room_for(folder: Path) -> None:
    with opened(folder, kv_cache_memory_bytes=1000) as llm:
        logits(llm, behind(BEGINNING, [3, 9]))
        assert llm.engine.prefixes is not None
        assert llm.engine.prefixes.store.misses == 0
