"""Packing: rows are never overfilled, plans are whole and no dearer than padding, scores stay what they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from jaxpool.engine.buckets import Bucket, CostModel, grid, waste
from jaxpool.engine.engine import Engine, Row
from jaxpool.engine.opening import open_engine
from jaxpool.engine.packing import Rows, ahead_grid, doubtful, fits, packed_grid, pays, plan, plan_padded, rows_needed
from jaxpool.engine.prior import SCORE_PRICE

MODELS = Path(__file__).parents[2] / "data" / "models"
BERT_BASE = CostModel(
    flops_per_token=24 * 768 * (4 * 768 + 2 * 3072),
    flops_per_token_pair=48 * 768 * SCORE_PRICE["tpu"],
    flops_per_second=1e14,
    seconds_per_call=4e-4,
    seconds_per_compile=5.0,
)
SIZES = st.lists(st.integers(1, 64), min_size=1, max_size=60)


def mix(count: int, longest: int = 512) -> np.ndarray:
    """Lognormal lengths, as texts have them."""
    return np.random.default_rng(0).lognormal(np.log(60), 0.8, count).round().clip(3, longest).astype(np.int64)


@settings(deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 5))
def test_rows_refuse_only_what_fits_nowhere(sizes: list[int], segments: int, most: int) -> None:
    rows, tokens, texts = Rows(40, segments, most), [0] * most, [0] * most
    for size in sizes:
        place = rows.add(size)
        room = [40 - t if n < segments else 0 for t, n in zip(tokens, texts)]
        if place is None:
            assert max(room) < size
            continue
        assert room[place] >= size
        assert not texts[place] or room[place] == min(r for r, n in zip(room, texts) if n and r >= size), "the fullest"
        tokens[place] += size
        texts[place] += 1


@settings(deadline=None)
@given(SIZES)
def test_rows_are_counted_as_they_will_be_filled(sizes: list[int]) -> None:
    rows, longest_first = Rows(64, 64), sorted(sizes, reverse=True)
    for size in longest_first:
        rows.add(size)
    counted = [(size, sizes.count(size)) for size in dict.fromkeys(longest_first)]
    assert rows_needed(counted, 64) == rows.count


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 500) | st.integers(1, 9), min_size=1, max_size=80),
    st.sampled_from([1e5, 1e8]),
    st.booleans(),
)
def test_plans_hold_every_text_once_and_cost_no_more_than_padding(sizes: list[int], pair: float, ahead: bool) -> None:
    cost = CostModel(1.7e8, pair, 1e13, 4e-4, 0.1)
    padded = grid(512, 2048, per_octave=4)
    buckets = (*padded, *packed_grid(512, 2048))
    compiled = buckets if ahead else ()
    batches = plan(sizes, buckets, cost, compiled, sealed=ahead)
    assert sorted(int(i) for batch in batches for i in batch.rows) == list(range(len(sizes)))
    for batch in batches:
        assert fits([sizes[i] for i in batch.rows], batch.bucket, batch.places)

    def seconds(of: list) -> float:
        new = {batch.bucket for batch in of} - set(compiled)
        return sum(cost.seconds(batch.bucket) for batch in of) + len(new) * 0.1 / cost.plans_per_program

    assert seconds(batches) <= 1.0001 * seconds(plan_padded(sizes, padded, cost, compiled, sealed=ahead))


def test_ten_thousand_texts_waste_next_to_nothing_with_few_programs() -> None:
    menu, sizes = ahead_grid(512, 16384), mix(10_000)
    assert len(menu) <= 24
    assert len(ahead_grid(512, 32768)) <= 24
    assert len(ahead_grid(512, 1024)) <= 24
    assert waste(plan(sizes, menu, BERT_BASE, menu, sealed=True), sizes) <= 0.015
    assert waste(plan(sizes, (*grid(512, 16384), *menu), BERT_BASE), sizes) <= 0.0151  # and on demand, all included


def test_packing_is_left_where_it_does_not_pay() -> None:
    packed, padded = ahead_grid(512, 16384), grid(512, 16384, per_octave=2, row_factor=4)
    assert pays(packed, padded, BERT_BASE)
    quadratic = CostModel(1e6, 1e6, 1e13, 1e-5, 1.0)  # attention is all there is
    assert not pays(packed, padded, quadratic)
    long = np.full(64, 512)
    assert {batch.bucket.segments for batch in plan(long, (*padded, *packed), BERT_BASE)} == {1}


def test_who_sits_beside_a_number_that_is_none_is_doubtful() -> None:
    fine, bad = np.ones(2), np.array([1.0, np.nan])
    assert doubtful([fine, bad, fine, fine], np.array([0, 0, 1, 1])).tolist() == [0, 1]
    assert doubtful([fine, bad, fine], np.array([0, 1, 0])).tolist() == []  # alone in its row, and what it is
    assert doubtful([fine, bad], None).tolist() == []


def test_what_does_not_fit_is_refused() -> None:
    bucket = Bucket(2, 16, 3)
    assert fits([8, 8, 4], bucket, np.array([0, 0, 1]))
    for lengths, places in (([8, 9], [0, 0]), ([1] * 4, [0] * 4), ([1], [2]), ([17], [0]), ([1, 1], [0]), ([1], [-1])):
        assert not fits(lengths, bucket, np.array(places))
    assert not fits([1] * 3, bucket)


def opened(folder: Path, **options: object) -> Engine:
    return open_engine(folder, AutoConfig.from_pretrained(folder), **options)


def rows(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(9, 1500, rng.integers(1, 31))) for _ in range(count)]


PLACES = np.array([0, 1, 0, 1, 1, 0, 0])


@pytest.mark.parametrize("name", ["bert-cls", "gpt2-cls", "qwen2-cls"])
def test_packed_scores_are_those_of_rows_of_their_own(name: str) -> None:
    engine, texts = opened(MODELS / name), rows(7)
    alone = np.concatenate([engine.submit([text], Bucket(1, 64)).result() for text in texts])
    packed = engine.submit(texts, Bucket(2, 128, 16), PLACES).result()
    np.testing.assert_allclose(packed, alone, atol=1e-5, rtol=0)
    flags = [Row(text.ids, None, bool(i % 2)) for i, text in enumerate(texts)]
    mixed = engine.submit(flags, Bucket(2, 128, 16), PLACES).result()
    np.testing.assert_allclose(mixed[1::2], packed[1::2], atol=1e-6)
    assert np.abs(mixed[::2].sum(1) - 1).min() > 1e-3, "every other one is a logit"
    engine.close()


def test_each_token_of_packed_texts_has_its_own_scores() -> None:
    from jaxpool.params import PoolerConfig

    engine, texts = opened(MODELS / "bert-cls", pooler_config=PoolerConfig(task="token_classify")), rows(7)
    alone = [engine.submit([text], Bucket(1, 64)).result()[0] for text in texts]
    for one, other in zip(engine.submit(texts, Bucket(2, 128, 16), PLACES).result(), alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    engine.close()


def test_a_neighbour_of_nan_changes_nothing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "bert-cls", tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][7] = 3e38  # overflows in the first norm; what is not finite in a file is refused
    save_file(tensors, folder / "model.safetensors")
    engine, texts = opened(folder, max_num_batched_tokens=256), rows(40)
    engine.buckets = packed_grid(128, 256)
    clean = engine.run(texts)
    assert np.isfinite(clean).all()
    poisoned = [*texts[:11], Row([9, 7, 10]), *texts[11:]]
    calls = engine.programs.compiles
    found = engine.run(poisoned)
    assert np.isnan(found[11]).all()
    np.testing.assert_allclose(np.delete(found, 11, axis=0), clean, atol=1e-5, rtol=0)
    assert engine.programs.compiles <= calls + 1, "what runs again runs in a program that is there"
    engine.close()


def test_deterministic_models_and_those_that_cannot_be_packed_have_no_packed_shape() -> None:
    assert any(bucket.segments > 1 for bucket in opened(MODELS / "bert-cls").buckets)
    assert {bucket.segments for bucket in opened(MODELS / "bert-cls", deterministic=True).buckets} == {1}
