"""Rotary positions and ALiBi against transformers, kind by kind, and row by row where a text's length matters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxpool.ops.alibi import Alibi, biases
from jaxpool.ops.layout import Layout
from jaxpool.ops.rope import angles, rotate
from jaxpool_conversions.families.bloom_mpt_falcon import slopes
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.rope_fields import rope

SIZE, LONGEST = 12, 32
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.4, 1.8, 2.6], "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0]}
ORIGINAL = {"original_max_position_embeddings": 16}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, **ORIGINAL},
    "longrope": FACTORS | ORIGINAL,
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "proportional": {"factor": 2.0, "partial_rotary_factor": 0.5},
}


def config(kind: str) -> LlamaConfig:
    parameters = {"rope_type": kind, "rope_theta": 500.0, **KINDS[kind]}
    return LlamaConfig(head_dim=SIZE, max_position_embeddings=LONGEST, rope_parameters=parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_turns_as_transformers_turns_it_alone(kind: str) -> None:
    made, lengths = config(kind), [1, 16, 17, 40]
    rotation = angles(rope(Fields(made), SIZE, partial=True), Layout.padded(jnp.array(lengths), 40))
    for row, length in enumerate(lengths):
        frequency, factor = ROPE_INIT_FUNCTIONS[kind](made, seq_len=length)
        angle = np.arange(length)[:, None] * frequency.numpy()
        for ours, theirs in zip(rotation, (np.cos(angle), np.sin(angle))):
            mine = np.asarray(ours if ours.ndim == 2 else ours[row])[:length]
            np.testing.assert_allclose(mine, theirs * factor, atol=3e-6)


def test_only_scalings_by_length_cost_a_table_per_row() -> None:
    for kind in KINDS:
        cos, _ = angles(rope(Fields(config(kind)), SIZE, partial=True), Layout.padded(jnp.array([3, 40]), 40))
        assert cos.ndim == (3 if kind in ("dynamic", "longrope") else 2)
        cos, _ = angles(rope(Fields(config(kind)), SIZE, partial=True), Layout.padded(jnp.array([3, 16]), 16))
        assert cos.ndim == 2, "no row is longer than what the model was trained on"


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_turn_as_complex_numbers_do(interleaved: bool) -> None:
    """Two numbers of a head are a complex number; position ``t`` multiplies it by ``exp(i t frequency)``."""
    rng = np.random.default_rng(0)
    x, angle = rng.normal(size=(2, 5, 3, 10)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    y = np.asarray(rotate(jnp.array(x), np.cos(angle), np.sin(angle), interleaved=interleaved))
    first, second = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(0, 4), slice(4, 8))
    turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angle)[None, :, None]
    np.testing.assert_allclose(y[..., first] + 1j * y[..., second], turned, atol=1e-5)
    np.testing.assert_array_equal(y[..., 8:], x[..., 8:])


@pytest.mark.parametrize("heads", [4, 6, 8, 12])
def test_alibi_as_bloom_and_falcon_build_it(heads: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon

    mask = torch.ones(1, 50, dtype=torch.long)
    for build, rounded in ((bloom, False), (falcon, True)):
        theirs = build(mask, heads, torch.float32).numpy()
        np.testing.assert_allclose(
            biases(Alibi(slopes(heads), bfloat16=rounded), Layout.padded(jnp.ones(3), 50)), theirs, rtol=1e-6
        )
