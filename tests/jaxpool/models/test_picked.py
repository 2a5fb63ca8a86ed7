"""The last layer computes the pooled tokens alone: the same vectors, for less work."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from packed import FAST, PACKED, PADDED, PLACES, batch, build, texts

from jaxpool.engine.buckets import Bucket
from jaxpool.ops.layout import Layout


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "case", ["bert", "albert", "mpnet", "gpt2", "gemma3", "bloom", "mixtral", "deepseek-v3", "gpt-oss"]
)
def test_picked_tokens_are_those_of_the_whole(case: str, packed: bool) -> None:
    backbone, vocab = build(case)
    assert backbone.picks
    inputs, _ = batch(texts(vocab), PACKED if packed else PADDED, PLACES if packed else None)

    @partial(jax.jit, compiler_options=FAST)
    def both(model, x):
        layout: Layout = x.layout
        whole = layout.at(model(x.ids, x.types, layout), layout.last_BM)
        return whole, model(x.ids, x.types, layout, layout.last_BM), layout.lengths_BM > 0

    whole, picked, real = map(np.asarray, both(backbone, inputs))
    np.testing.assert_allclose(picked[real], whole[real], atol=2e-5 * max(1.0, np.abs(whole[real]).max()), rtol=0)


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_it_is_less_work(case: str) -> None:
    """Two layers: the second one's keys and values, an eighth and more of its products, are all that is left of it."""
    backbone, vocab = build(case)
    inputs, _ = batch(texts(vocab), Bucket(8, 48), None)

    def flops(*at: bool) -> float:
        def run(model, x):
            return model(x.ids, x.types, x.layout, *([x.layout.last_BM] if at else []))

        compiled = jax.jit(run).lower(backbone, inputs).compile()
        layers = len(jax.tree.leaves(backbone.layers)[0])
        # A loop counts once, however often it runs: one layer in it, or one in it and one behind it.
        return compiled.cost_analysis()["flops"] * (layers if not at else 1)

    assert flops(True) < 0.8 * flops()
