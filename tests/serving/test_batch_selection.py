"""The next batch: nearly full where many wait, whoever's turn it is in it, and sound beside one that is not."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpool import LLM, PoolingParams
from jaxpool.engine.buckets import Bucket, CostModel
from jaxpool.engine.engine import Row
from jaxpool.engine.packing import ahead_grid, fits
from jaxpool.errors import EngineError
from jaxpool_serving.batching.batch_selection import BatchSelection
from jaxpool_serving.batching.batcher import Batcher

MODEL = Path(__file__).parents[1] / "data" / "models" / "bert-cls"
FLOPS = 24 * 768 * (4 * 768 + 2 * 3072)


def lengths(rng: np.random.Generator, count: int) -> list[int]:
    return rng.lognormal(np.log(60), 0.8, count).round().clip(3, 512).astype(int).tolist()


@pytest.mark.parametrize(("budget", "speed"), [(1024, 3.3e11), (16384, 1e14), (32768, 2e14)])
def test_batches_of_64_clients_hold_hardly_any_padding(budget: int, speed: float) -> None:
    """Each client sends its next text when it has its answer; two batches are under way."""
    selection = BatchSelection(ahead_grid(512, budget), CostModel(FLOPS, 48 * 768, speed, 4e-4, 1.0))
    rng = np.random.default_rng(0)
    waiting, under_way, real, computed = lengths(rng, 64), [], 0, 0
    for _ in range(300):
        if len(under_way) == 2 or not waiting:
            waiting += lengths(rng, under_way.pop(0))
        rows, bucket, places = selection.best(np.array(waiting))
        assert 0 in rows
        assert fits([waiting[i] for i in rows], bucket, places)
        real, computed = real + sum(waiting[i] for i in rows), computed + bucket.tokens
        waiting = np.delete(waiting, rows).tolist()
        under_way.append(len(rows))
    assert 1 - real / computed <= 0.04


async def test_texts_beside_one_whose_scores_are_not_finite_get_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxpool.engine.opening.pays", lambda *_: True)  # whether or not packing pays on this platform
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][7] = 3e38  # overflows in the first norm
    save_file(tensors, folder / "model.safetensors")
    used: list[Bucket] = []
    ids = [[9 + n, 10, 11, 12 + n] for n in range(24)]
    with LLM(folder, compile="ahead", max_model_len=48, max_num_batched_tokens=256) as llm:
        batcher = Batcher(llm.engine, max_texts=99, max_tokens=9999, on_batch=lambda bucket, *_: used.append(bucket))
        bad = asyncio.ensure_future(batcher.classify([Row([9, 7, 10])]))
        good = await asyncio.gather(*(batcher.classify([Row(row)]) for row in ids))
        with pytest.raises(EngineError, match="not finite"):
            await bad
        await batcher.close()
    assert used[0].segments > 1
    with LLM(MODEL, deterministic=True) as llm:
        outputs = llm.classify(ids, pooling_params=PoolingParams(), use_tqdm=False)
    probs = np.array([output.outputs.probs for output in outputs])
    np.testing.assert_allclose(np.concatenate([one.values for one in good]), probs, atol=1e-5, rtol=0)
