"""Rotary positions (Su et al. 2021, arXiv:2104.09864) and the scalings checkpoints declare.

Shape letters: B rows, T tokens, N heads, h size of one head, R = half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of one model; every number comes from ``rope_parameters`` in ``config.json``.

    Attributes:
        theta: base of the wavelengths.
        kind: how the wavelengths are scaled.
        factor: by how much (unused by ``default``).
        original_length: context length before scaling (``llama3``, ``yarn``).
        low_frequency, high_frequency: ends of the blend (``llama3``).
        beta_fast, beta_slow, truncate: ends of the blend (``yarn``, Peng et al. 2023, arXiv:2309.00071).
        attention_factor: multiplies cosines and sines (``yarn``).
    """

    theta: float
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_length: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def frequencies(rope: Rope, head_size: int) -> np.ndarray:
    """Angle per position of each rotated pair: float32 ``[head_size / 2]``."""
    # float32 throughout, as transformers computes it: the two must round alike.
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    base = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        return (base / np.float32(rope.factor)).astype(np.float32)
    if rope.kind == "llama3":
        return _llama3(rope, base)
    if rope.kind == "yarn":
        return _yarn(rope, base, head_size)
    return base


def _llama3(rope: Rope, base: np.ndarray) -> np.ndarray:
    wavelength = 2 * math.pi / base
    smooth = (rope.original_length / wavelength - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    blended = (1 - smooth) * base / rope.factor + smooth * base
    long = wavelength > rope.original_length / rope.low_frequency
    short = wavelength < rope.original_length / rope.high_frequency
    return np.where(long, base / rope.factor, np.where(short, base, blended)).astype(np.float32)


def _yarn(rope: Rope, base: np.ndarray, head_size: int) -> np.ndarray:
    def dimension(rotations: float) -> float:
        return head_size * math.log(rope.original_length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    ramp = np.clip((np.arange(head_size // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
    return (base / rope.factor * ramp + base * (1 - ramp)).astype(np.float32)


def angles(rope: Rope, head_size: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of positions 0 to ``length - 1``: two float32 ``[T, R]``, shared by all layers."""
    angle_TR = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies(rope, head_size)
    return jnp.cos(angle_TR) * rope.attention_factor, jnp.sin(angle_TR) * rope.attention_factor


def rotate(x_BTNh: jax.Array, cos_TR: jax.Array, sin_TR: jax.Array) -> jax.Array:
    """Rotates each head's pairs ``(i, i + h/2)``, the layout of Hugging Face checkpoints; float32 inside."""
    a, b = jnp.split(x_BTNh.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_TR[None, :, None, :], sin_TR[None, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNh.dtype)
