"""What the planner that learns promises: little padding soon, few compiles for texts alone, batches before all came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from jaxpool.bench.texts import lengths
from jaxpool.engine.buckets import Bucket, CostModel, grid, on_demand, waste
from jaxpool.engine.chips import CHIPS, Chip, chip_of
from jaxpool.engine.engine import Engine, Row
from jaxpool.engine.feeding import Planner
from jaxpool.engine.opening import TOKEN_BUDGET, open_engine
from jaxpool.engine.prior import SPILL, fast_tokens

MODELS = Path(__file__).parents[2] / "data" / "models"


class BertBase:
    layers, width = 12, 768
    flops_per_token = 2.0 * 12 * 768 * (4 * 768 + 2 * 3072)
    flops_per_pair = 4.0 * 12 * 768


def prior(chip: Chip) -> CostModel:
    return CostModel(
        BertBase.flops_per_token,
        BertBase.flops_per_pair,
        chip.flops("bfloat16"),
        chip.call + BertBase.flops_per_token / chip.bandwidth,
        chip.compile,
        fast_tokens=fast_tokens(BertBase, chip, 2),
        spill=SPILL,
    )


def platform(name: str) -> str:
    return "cpu" if name == "CPU" else "tpu" if name.startswith("v") else "gpu"


def one_row(size: int) -> Bucket:
    """One row of the next power of two."""
    return Bucket(1, 1 << max(4, (size - 1).bit_length()))


@pytest.mark.parametrize("name", CHIPS)
def test_the_third_call_wastes_little_and_texts_alone_run_in_one_row(name: str) -> None:
    """Simulated by each chip's prior; what compiles behind a call is there at the next."""
    chip = replace(CHIPS[name], peak=2 * CHIPS[name].peak) if name == "CPU" else CHIPS[name]
    cost, menu = prior(chip), on_demand(grid(512, TOKEN_BUDGET[platform(name)]))
    planner, ready, sizes = Planner(menu, name == "CPU"), frozenset[Bucket](), lengths(512)

    def call(sizes: np.ndarray, few: bool) -> list:
        nonlocal ready
        planner.calls += 1
        batches = planner.now(sizes, cost, ready, sealed=False, few=few)
        ready |= {*(b.bucket for b in batches), *planner.behind(sizes, cost, batches, ready, few=few)}
        return batches

    wasted = [waste(call(sizes, few=False), sizes) for _ in range(3)]
    assert wasted[-1] <= 0.10
    bulk, ratios = ready, []
    for size in lengths(40, seed=3):
        spent = sum(cost.seconds(batch.bucket) for batch in call(np.array([size]), few=True))
        ratios.append(spent / cost.seconds(one_row(int(size))))
    assert np.median(ratios) <= 1.3
    assert len(ready - bulk) <= 6


def test_a_first_call_that_is_soon_over_compiles_nothing_behind() -> None:
    cost, menu = prior(CHIPS["v5e"]), on_demand(grid(512, 16384))
    planner, sizes = Planner(menu, shared=False), lengths(64)
    planner.calls = 1
    batches = planner.now(sizes, cost, frozenset(), sealed=False, few=False)
    assert not planner.behind(sizes, cost, batches, frozenset(), few=False)
    planner.calls = 2
    assert planner.behind(sizes, cost, batches, frozenset(), few=False)


@pytest.mark.parametrize(
    ("kind", "on", "name"),
    [
        ("TPU v4", "tpu", "v4"),
        ("TPU v5 lite", "tpu", "v5e"),
        ("TPU v5", "tpu", "v5p"),
        ("TPU v5p", "tpu", "v5p"),
        ("TPU v6 lite", "tpu", "v6e"),
        ("TPU7x", "tpu", "v7x"),
        ("NVIDIA A100-SXM4-80GB", "gpu", "A100"),
        ("NVIDIA H100 80GB HBM3", "gpu", "H100"),
        ("NVIDIA H200", "gpu", "H200"),
        ("TPU v99", "tpu", "v5e"),
        ("cpu", "cpu", "CPU"),
    ],
)
def test_every_kind_of_device_has_a_prior(kind: str, on: str, name: str) -> None:
    assert chip_of(kind, on).name == name
    assert all(chip.source for chip in CHIPS.values())


def test_models_of_berts_size_stay_in_fast_memory_and_others_are_not_charged() -> None:
    assert 8192 <= fast_tokens(BertBase, CHIPS["v5e"], 2) < 16384
    wide = type("Wide", (), {"layers": 24, "width": 2048, "flops_per_token": 2.0 * 24 * 12 * 2048**2})
    assert fast_tokens(wide, CHIPS["v5e"], 2) == float("inf")
    assert fast_tokens(BertBase, CHIPS["H100"], 2) == float("inf")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXPOOL_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("JAXPOOL_MEASURE")
    return tmp_path


def opened() -> Engine:
    folder = MODELS / "gpt2-cls"
    return open_engine(folder, AutoConfig.from_pretrained(folder), max_model_len=64, max_num_batched_tokens=256)


def rows(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(5, 1500, rng.integers(1, 65))) for _ in range(count)]


def test_batches_start_before_the_last_text_came_and_answers_keep_their_order() -> None:
    engine, many, sent = opened(), rows(200), []
    submit = engine.submit

    def counted(batch: list[Row], bucket: Bucket, places: np.ndarray | None = None) -> object:
        sent.append(len(batch))
        return submit(batch, bucket, places)

    engine.submit = counted  # type: ignore[method-assign, assignment]
    before: list[int] = []

    def parts() -> Iterator[list[Row]]:
        for start in range(0, 200, 50):
            before.append(sum(sent))
            yield many[start : start + 50]

    streamed = engine.stream(parts())
    assert before[0] == 0 < before[1] < before[-1]
    assert sum(sent) == 200
    np.testing.assert_allclose(streamed, engine.run(many), atol=2e-5)
    engine.close()


def test_parts_that_fail_fail_the_call_and_nothing_hangs() -> None:
    def parts() -> Iterator[list[Row]]:
        yield rows(50)
        raise KeyError("the third line")

    engine = opened()
    with pytest.raises(KeyError, match="third line"):
        engine.stream(parts())
    assert engine.run(rows(3)).shape == (3, 3)
    assert engine.stream(iter(())).shape == (0, 3)
    engine.close()


def test_forty_texts_alone_compile_six_programs_at_most() -> None:
    engine, ran = opened(), []
    engine.run(rows(100))
    engine.programs.wait()
    before, submit = engine.begun, engine.submit

    def noted(batch: list[Row], bucket: Bucket, places: np.ndarray | None = None) -> object:
        ran.append((len(batch[0].ids), bucket))
        return submit(batch, bucket, places)

    engine.submit = noted  # type: ignore[method-assign, assignment]
    for row in rows(40, seed=1):
        engine.run([row])
        engine.programs.wait()
    assert engine.begun - before <= 6
    prior = engine.costs.prior
    ratios = [prior.seconds(bucket) / prior.seconds(one_row(size)) for size, bucket in ran]
    assert np.median(ratios) <= 1.3
    engine.close()


def test_what_a_process_measured_and_compiled_the_next_one_knows(cached: Path) -> None:
    engine = opened()
    for _ in range(3):
        engine.run(rows(60))
    engine.close()
    known = engine.costs.seconds()
    assert known
    [file] = (cached / "measured").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    again = opened()
    assert again.costs.seconds().keys() == known.keys()
    assert again.cost.seconds_per_compile == engine.cost.seconds_per_compile
    again.close()
    file.write_bytes(b"damaged")
    last = opened()
    assert last.cost.known == {}
    assert last.cost.on_disk == frozenset()
    last.close()
