"""Rotary positions (Su et al. 2021, arXiv:2104.09864) and the scalings checkpoints declare.

Shape letters: B rows, T tokens, N heads, h size of one head, R = half of its rotated part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.ops.layout import Layout

RopeKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of one model; every number comes from ``rope_parameters`` in ``config.json``.

    Attributes:
        theta: base of the wavelengths.
        size: width of the rotated part of a head, its first; even.
        kind: how the wavelengths are scaled.
        factor: by how much (unused by ``default`` and ``longrope``).
        original_length: context length before scaling (all but ``default`` and ``linear``).
        low_frequency, high_frequency: ends of the blend (``llama3``).
        beta_fast, beta_slow, truncate: ends of the blend (``yarn``, Peng et al. 2023, arXiv:2309.00071).
        attention_factor: multiplies cosines and sines (``yarn``, ``longrope``).
        short, long: divisors of the frequencies of rows up to ``original_length``, and of longer ones
            (``longrope``, Ding et al. 2024, arXiv:2402.13753).
        rotating: pairs that rotate at all; the rest stand still (``proportional``).
    """

    theta: float
    size: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_length: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    rotating: int = 0


def frequencies(rope: Rope, *, long: bool = False) -> np.ndarray:
    """Angle per position of each rotated pair: float32 ``[R]``; of rows past ``original_length`` if ``long``."""
    # float32 throughout, as transformers computes it: the two must round alike.
    exponents = np.arange(0, rope.size, 2, dtype=np.float32) / np.float32(rope.size)
    wavelengths = np.float32(rope.theta) ** exponents
    base = (1.0 / wavelengths).astype(np.float32)
    match rope.kind:
        case "linear":
            return (base / np.float32(rope.factor)).astype(np.float32)
        case "llama3":
            return _llama3(rope, base)
        case "yarn":
            return _yarn(rope, base)
        case "longrope":
            divisors = np.asarray(rope.long if long else rope.short, np.float32)
            return (1.0 / (divisors * wavelengths)).astype(np.float32)
        case "proportional":
            return (np.where(np.arange(rope.size // 2) < rope.rotating, base, 0.0) / rope.factor).astype(np.float32)
    return base


def _llama3(rope: Rope, base: np.ndarray) -> np.ndarray:
    wavelength = 2 * math.pi / base
    smooth = (rope.original_length / wavelength - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    blended = (1 - smooth) * base / rope.factor + smooth * base
    long = wavelength > rope.original_length / rope.low_frequency
    short = wavelength < rope.original_length / rope.high_frequency
    return np.where(long, base / rope.factor, np.where(short, base, blended)).astype(np.float32)


def _yarn(rope: Rope, base: np.ndarray) -> np.ndarray:
    def dimension(rotations: float) -> float:
        return rope.size * math.log(rope.original_length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    ramp = np.clip((np.arange(rope.size // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
    return (base / rope.factor * ramp + base * (1 - ramp)).astype(np.float32)


def _dynamic(rope: Rope, lengths: jax.Array) -> jax.Array:
    """Frequencies ``[..., R]`` whose base grows with the text's length beyond the original one."""
    length = jnp.maximum(lengths, rope.original_length).astype(jnp.float32)
    grown = rope.factor * length / rope.original_length - (rope.factor - 1)
    theta = rope.theta * grown ** (rope.size / (rope.size - 2))
    return 1.0 / theta[..., None] ** (jnp.arange(0, rope.size, 2, dtype=jnp.float32) / rope.size)


def angles(rope: Rope, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every token's place in its text, float32: ``[T, R]``, shared by all rows.

    ``[B, T, R]`` where rows are packed, or a scaling depends on the text's own length (never on its neighbours', nor
    on padding).
    """
    position = layout.position.astype(jnp.float32)
    if rope.kind not in ("dynamic", "longrope") or layout.width <= rope.original_length:
        angle = position[..., None] * frequencies(rope)
    else:
        if rope.kind == "dynamic":
            frequency_BMR = _dynamic(rope, layout.lengths_BM)
        else:
            is_long_BM = layout.lengths_BM[..., None] > rope.original_length
            frequency_BMR = jnp.where(is_long_BM, frequencies(rope, long=True), frequencies(rope))
        angle = position[..., None] * layout.spread(frequency_BMR)
    return jnp.cos(angle) * rope.attention_factor, jnp.sin(angle) * rope.attention_factor


def sinusoids(position: jax.Array, width: int) -> jax.Array:
    """Fixed positions to add to embeddings, sines first (Vaswani et al. 2017, arXiv:1706.03762).

    float32 ``[..., D]`` of integers ``[...]``.
    """
    frequency = 1.0 / np.float32(10000) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angle = position.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)[..., : width // 2]], axis=-1)


def rotate(x_BTNh: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Rotates the first ``2 R`` numbers of each head; float32 inside.

    Args:
        x_BTNh: queries or keys.
        cos, sin: from ``angles``.
        interleaved: the pairs are neighbours ``(2i, 2i + 1)``, not halves ``(i, i + R)``.
    """
    n_rotated = 2 * cos.shape[-1]
    x, rest = x_BTNh[..., :n_rotated].astype(jnp.float32), x_BTNh[..., n_rotated:]
    cos, sin = cos[..., None, :], sin[..., None, :]
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        y = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    else:
        a, b = jnp.split(x, 2, axis=-1)
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    y = y.astype(x_BTNh.dtype)
    return jnp.concatenate([y, rest], axis=-1) if rest.shape[-1] else y
