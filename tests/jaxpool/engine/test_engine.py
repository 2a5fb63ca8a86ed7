"""The engine's promises: one answer whoever sits beside you, no compile after ready, a failure fails only its own."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from patience import PATIENCE
from transformers import AutoConfig

from jaxpool.engine.buckets import Bucket, essential
from jaxpool.engine.compile_cache import enable_cache
from jaxpool.engine.engine import Engine, Row
from jaxpool.engine.opening import open_engine
from jaxpool.engine.packing import ahead_grid
from jaxpool.engine.programs import Programs
from jaxpool.errors import EngineError

MODELS = Path(__file__).parents[2] / "data" / "models"


def opened(name: str, **options: object) -> Engine:
    return open_engine(MODELS / name, AutoConfig.from_pretrained(MODELS / name), **options)


@pytest.fixture(scope="module", params=["bert-cls", "gpt2-cls", "qwen2-cls"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = opened(request.param)
    yield engine
    engine.close()


def rows(count: int, longest: int = 60, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(5, 1500, rng.integers(1, longest + 1))) for _ in range(count)]


def test_a_row_does_not_depend_on_its_neighbours_bit_for_bit(engine: Engine) -> None:
    bucket = Bucket(4, 64)
    me, others, longer = rows(1)[0], rows(3, seed=1), rows(3, longest=64, seed=2)
    alone = engine.submit([me], bucket).result()[0]
    for company in (others, longer, [me] * 3):
        np.testing.assert_array_equal(engine.submit([me, *company], bucket).result()[0], alone)


def test_a_row_does_not_depend_on_its_place_in_the_bucket_bit_for_bit(engine: Engine) -> None:
    batch = rows(4, seed=3)
    forward = engine.submit(batch, Bucket(4, 64)).result()
    backward = engine.submit(batch[::-1], Bucket(4, 64)).result()
    np.testing.assert_array_equal(forward, backward[::-1])


def test_results_do_not_depend_on_order_or_bucket(engine: Engine) -> None:
    many = rows(37, seed=4)
    shuffled = np.random.default_rng(5).permutation(len(many))
    straight = engine.run(many)
    np.testing.assert_allclose(engine.run([many[i] for i in shuffled]), straight[shuffled], atol=2e-5)
    single = np.concatenate([engine.submit([row], Bucket(1, 64)).result() for row in many])
    np.testing.assert_allclose(single, straight, atol=2e-5)


def test_activation_is_chosen_row_by_row(engine: Engine) -> None:
    ids = rows(1)[0].ids
    on, off = engine.submit([Row(ids, None, True), Row(ids, None, False)], Bucket(2, 64)).result()
    np.testing.assert_allclose(on, np.exp(off) / np.exp(off).sum(), atol=1e-6)
    assert abs(off.sum() - 1) > 1e-3


def test_nothing_compiles_after_ready(caplog: pytest.LogCaptureFixture) -> None:
    engine = opened("gpt2-cls", compile="ahead", max_model_len=64, max_num_batched_tokens=256)
    compiled = engine.compiles
    assert compiled == len(engine.buckets)
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING):
            for seed in range(5):
                engine.run(rows(50, longest=64, seed=seed))
    finally:
        jax.config.update("jax_log_compiles", False)
    assert engine.compiles == compiled
    assert [record.message for record in caplog.records if "ompil" in record.message] == []
    with pytest.raises(EngineError, match="no program for Bucket"):
        engine.submit(rows(1), Bucket(3, 61)).result()
    engine.close()


def test_what_is_compiled_behind_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, lower = threading.Event(), Programs.lower

    def slow(self: Programs, bucket: Bucket) -> jax.stages.Lowered:
        if bucket not in few:
            gate.wait(60)
        return lower(self, bucket)

    few = set(essential(ahead_grid(64, 256)))
    monkeypatch.setattr(Programs, "lower", slow)
    monkeypatch.setattr("jaxpool.engine.opening.pays", lambda *_: True)  # whether or not packing pays on this platform
    engine = opened("gpt2-cls", compile="behind", max_model_len=64, max_num_batched_tokens=256)
    try:
        begun = engine.begun
        assert set(engine.usable) == few
        assert len(few) < len(engine.buckets) == begun
        before = engine.run(rows(50, longest=64))
    finally:
        gate.set()
    engine.programs.ensure(engine.buckets)
    assert engine.usable == engine.buckets
    np.testing.assert_allclose(engine.run(rows(50, longest=64)), before, atol=2e-5)
    assert engine.begun == begun
    engine.close()


def test_on_demand_compiles_each_program_once(engine: Engine) -> None:
    for _ in range(6):  # what serves better is compiled behind a call, once
        begun = engine.begun
        engine.run(rows(20))
        engine.programs.wait()
    assert engine.begun == begun
    assert engine.compiles == len(engine.programs.ready())


def test_only_scores_leave_the_device(engine: Engine) -> None:
    bucket = Bucket(2, 64)
    shapes = [tuple(out.shape) for out in jax.tree.leaves(engine.programs.lower(bucket).out_info)]
    assert shapes == [(2, engine.spec.num_labels)]


def test_a_failing_batch_fails_only_its_own_future(engine: Engine) -> None:
    good, bucket = rows(2), Bucket(2, 64)
    before = engine.submit(good, bucket)
    bad = engine.submit([Row(["not a number"])], bucket)
    too_long = engine.submit([Row(range(65))], bucket)
    after = engine.submit(good, bucket)
    with pytest.raises(ValueError, match="invalid literal"):
        bad.result(timeout=PATIENCE)
    with pytest.raises(EngineError, match="do not fit"):
        too_long.result(timeout=PATIENCE)
    np.testing.assert_array_equal(before.result(timeout=PATIENCE), after.result(timeout=PATIENCE))


def test_a_cancelled_batch_costs_nothing_and_blocks_nobody(engine: Engine) -> None:
    futures = [engine.submit(rows(2, seed=i), Bucket(2, 64)) for i in range(30)]
    cancelled = [future for future in futures if future.cancel()]
    assert all(len(f.result(timeout=PATIENCE)) == 2 for f in futures if f not in cancelled)


def test_a_closed_engine_answers_with_an_error() -> None:
    engine = opened("gpt2-cls")
    pending = engine.submit(rows(1), Bucket(1, 64))
    engine.close()
    engine.close()
    assert pending.result(timeout=PATIENCE).shape == (1, 3), "what was submitted before closing is still answered"
    with pytest.raises(EngineError, match="closed"):
        engine.submit(rows(1), Bucket(1, 64)).result()


def test_a_forgotten_engine_is_collected_and_its_threads_end() -> None:
    before = threading.active_count()
    engine = opened("gpt2-cls")
    engine.run(rows(3))
    threads, gone = engine._threads, weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(timeout=PATIENCE)
    assert threading.active_count() <= before + 2, "compile pool threads may linger, engine threads may not"


def test_a_cache_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        shared = tmp_path / "shared" / "xla"
        shared.mkdir(parents=True)
        shared.chmod(0o777)
        monkeypatch.setenv("JAXPOOL_CACHE_DIR", str(shared.parent))
        assert enable_cache() is None
        monkeypatch.setenv("JAXPOOL_CACHE_DIR", str(tmp_path / "mine"))
        assert enable_cache() == tmp_path / "mine" / "xla"
        monkeypatch.setenv("JAXPOOL_CACHE_DIR", "off")
        jax.config.update("jax_compilation_cache_dir", None)
        assert enable_cache() is None
    finally:
        monkeypatch.undo()
        jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()
        enable_cache()


def test_padding_beyond_the_text_changes_nothing(tmp_path: Path) -> None:
    """Same text in buckets of different length and rows, MEAN pooling included."""
    from jaxpool.params import PoolerConfig

    folder = tiny.save(tmp_path, "llama", vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                       intermediate_size=40, max_position_embeddings=64)  # fmt: skip
    config = AutoConfig.from_pretrained(folder)
    for pooling in ("CLS", "LAST", "MEAN"):
        engine = open_engine(folder, config, pooler_config=PoolerConfig(seq_pooling_type=pooling))
        ids = tiny.prompts(60, (11,))[0]
        answers = [engine.submit([Row(ids)], Bucket(n, t)).result()[0] for n, t in ((1, 11), (1, 16), (4, 64))]
        np.testing.assert_allclose(answers[1:], [answers[0]] * 2, atol=1e-6)
        engine.close()
