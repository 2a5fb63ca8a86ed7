"""Every family: a text's hidden states are the same in a row of its own and packed between others."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from packed import FAST, LENGTHS, OWN, PACKED, PADDED, PLACES, batch, build, texts
from parity_cases import FIRST

from jaxpool.engine.batches import Inputs
from jaxpool_conversions.families import find


@pytest.mark.parametrize("case", [*OWN, *(case for kind, case in FIRST.items() if find(kind).packs)])
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
