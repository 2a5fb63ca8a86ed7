"""The selective scan: both forms against the recurrence in numpy, and what padding may not do."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool.ops.layout import Layout
from jaxpool.ops.ssm import CHUNK, UNROLL, Steps, causal_conv, chunked, selective_scan, serial, unrolled


def steps(n_tokens: int, rows: int = 2, inner: int = 6, states: int = 3) -> tuple[Steps, jax.Array]:
    rng = np.random.default_rng(n_tokens)
    sizes = ((n_tokens, rows, inner),) * 2 + ((n_tokens, rows, states),) * 2
    x, dt, b, c = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    return Steps(x, jax.nn.softplus(dt), b, c), -jnp.exp(jnp.asarray(rng.normal(size=(states, inner)), jnp.float32))


def by_hand(tokens: Steps, a_NI: jax.Array) -> np.ndarray:
    """The definition, one number after another, in float64."""
    x, dt, b, c, a = (np.asarray(v, np.float64) for v in (*tokens[:4], a_NI))
    y, h = np.zeros(x.shape), np.zeros((x.shape[1], *a.shape))
    for t in range(len(x)):
        for row, state, channel in np.ndindex(h.shape):
            step = dt[t, row, channel]
            kept = np.exp(step * a[state, channel]) * h[row, state, channel]
            h[row, state, channel] = kept + step * b[t, row, state] * x[t, row, channel]
            y[t, row, channel] += c[t, row, state] * h[row, state, channel]
    return y


@pytest.mark.parametrize("n_tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("form", [serial, unrolled, chunked])
def test_both_forms_equal_the_definition(form: object, n_tokens: int) -> None:
    tokens, a_NI = steps(n_tokens)
    np.testing.assert_allclose(jax.jit(form)(tokens, a_NI)[0], by_hand(tokens, a_NI), atol=2e-5, rtol=1e-5)


def test_long_memories_survive_the_chunks() -> None:
    """A state that hardly decays carries the first token through hundreds of others."""
    tokens, _ = steps(40 * CHUNK, rows=1)
    tokens = tokens._replace(x=tokens.x.at[1:].set(0.0), dt=jnp.full_like(tokens.dt, 1e-3))
    a_NI = jnp.full((3, 6), -0.5, jnp.float32)
    first, last = (np.abs(by_hand(tokens, a_NI)[t]).max() for t in (0, -1))
    assert last > 0.1 * first > 0, "or the comparison says nothing"
    for form in (serial, chunked):
        np.testing.assert_allclose(form(tokens, a_NI)[0][-1], by_hand(tokens, a_NI)[-1], rtol=1e-4, atol=1e-8)


def test_each_platform_compiles_its_own_form() -> None:
    shapes = [
        jax.ShapeDtypeStruct(size, jnp.float32) for size in ((2, 64, 6), (2, 64, 6), (3, 6), (2, 64, 3), (2, 64, 3))
    ]
    layout, trips = Layout.padded(jnp.array([64, 64]), 64), {}
    for platform in ("cpu", "tpu", "cuda"):
        text = (
            jax.jit(partial(selective_scan, layout=layout))
            .trace(*shapes)
            .lower(lowering_platforms=(platform,))
            .as_text()
        )
        assert text.count("stablehlo.while") == 1, "one form, not both behind a switch"
        trips[platform] = next(n for n in (64, 64 // CHUNK, 64 // UNROLL) if f"dense<{n}> : tensor<i32>" in text)
    assert trips == {"cpu": 64, "tpu": 64 // UNROLL, "cuda": 64 // CHUNK}


def test_convolution_is_causal_and_channels_keep_to_themselves() -> None:
    rng = np.random.default_rng(0)
    x_BTI, kernel_LI, bias_I = (rng.normal(size=size).astype(np.float32) for size in ((2, 9, 4), (3, 4), (4,)))
    layout = Layout.padded(jnp.array([9, 9]), 9)
    y_BTI = np.asarray(causal_conv(jnp.asarray(x_BTI), jnp.asarray(kernel_LI), jnp.asarray(bias_I), layout))
    for row, token, channel in np.ndindex(y_BTI.shape):
        past = [kernel_LI[2 - i, channel] * x_BTI[row, token - i, channel] for i in range(3) if token >= i]
        np.testing.assert_allclose(y_BTI[row, token, channel], sum(past) + bias_I[channel], atol=1e-5)
