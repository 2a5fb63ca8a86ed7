"""Every family: a text's hidden states are the same in a row of its own and packed between others."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES, FIRST
from transformers import AutoConfig

from jaxpool.engine.buckets import Bucket
from jaxpool.engine.programs import Inputs, fill
from jaxpool.ops.kernels import ANYWHERE
from jaxpool_conversions.families import find
from jaxpool_conversions.families.config_fields import Fields

LENGTHS, PLACES = (7, 19, 1, 17, 30, 2), (0, 0, 0, 0, 1, 1)
PACKED, PADDED = Bucket(2, 44, 5), Bucket(6, 31)
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def build(case: str) -> tuple[Any, int]:
    """A backbone with random weights, and the size of its vocabulary."""
    model_type, fields = CASES[case]
    family = find(model_type)
    config = family.config(Fields(AutoConfig.for_model(model_type, **{"pad_token_id": 0, **fields})))
    abstract = jax.eval_shape(lambda: family.backbone(config, jnp.dtype("float32"), ANYWHERE))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, abstract), config.vocab


def texts(vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, vocab, n) for n in LENGTHS]


def batch(ids: list[np.ndarray], bucket: Bucket, places: tuple[int, ...] | None) -> tuple[Inputs, np.ndarray]:
    kinds = [np.arange(len(row)) % 2 for row in ids]
    return fill(ids, kinds, [True] * len(ids), bucket, with_types=True, places=places)


@pytest.mark.parametrize("case", [case for kind, case in FIRST.items() if find(kind).packs])
def test_packed_equals_alone_and_neighbours_change_nothing(case: str) -> None:
    backbone, vocab = build(case)
    ids = texts(vocab)

    @partial(jax.jit, compiler_options=FAST)
    def both(model: Any, one: Inputs, other: Inputs) -> tuple[jax.Array, jax.Array]:
        return tuple(model(x.ids, x.types, x.layout) for x in (one, other))

    padded, packed, where = (*(batch(ids, PADDED, None)[:1]), *batch(ids, PACKED, PLACES))
    alone, together = map(np.asarray, both(backbone, padded, packed))
    for i, (row, _, start) in enumerate(where):
        size = np.abs(alone[i, : LENGTHS[i]]).max()
        ours = together[row, start : start + LENGTHS[i]]
        np.testing.assert_allclose(ours, alone[i, : LENGTHS[i]], atol=1e-5 * max(1, size), rtol=0, err_msg=str(i))
    others = [ids[0], *((row + 1) % vocab for row in ids[1:])]
    _, changed = both(backbone, padded, batch(others, PACKED, PLACES)[0])
    np.testing.assert_array_equal(changed[0, : LENGTHS[0]], together[0, : LENGTHS[0]])
    assert np.abs(np.asarray(changed)[0, LENGTHS[0] : 26] - together[0, LENGTHS[0] : 26]).max() > 1e-3
