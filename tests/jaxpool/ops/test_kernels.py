"""Every attention kernel against the plain formula, the table that chooses, and what is never computed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoConfig

from jaxpool.engine.buckets import Bucket
from jaxpool.engine.engine import Row
from jaxpool.engine.opening import open_engine
from jaxpool.errors import ValidationError
from jaxpool.ops.attention import ByDistance, attend
from jaxpool.ops.kernels import KERNELS, Call, Implementation, available, choose
from jaxpool.ops.layout import Layout

INTERPRETED = Implementation("tpu", "splash", interpreted=True)
FORMS = {"dense": Implementation("cpu", "dense"), "blocks": Implementation("cpu", "blocks"), "splash": INTERPRETED}
SEGMENTS = [(0, 130), (130, 1), (131, 90), (221, 23)]


def padded(rows: int, width: int) -> Layout:
    return Layout.padded(jnp.array([width, width - 57][:rows]), width)


def packed(rows: int, width: int) -> Layout:
    segment = np.zeros((rows, width), np.int32)
    for number, (start, length) in enumerate(SEGMENTS, 1):
        segment[:, start : start + length] = number
    starts, lengths = (jnp.array([[part[i] for part in SEGMENTS]] * rows) for i in (0, 1))
    return Layout.packed(jnp.array(segment), starts, lengths)


def by_hand(q: Any, k: Any, v: Any, allowed: np.ndarray, scale: float, softcap: float | None, sinks: Any) -> np.ndarray:
    group = q.shape[2] // k.shape[2]
    k, v = (np.repeat(np.asarray(y, np.float64), group, axis=2) for y in (k, v))
    scores = np.einsum("bthi,bshi->bhts", np.asarray(q, np.float64), k) * scale
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    weights = np.where(allowed[:, None], np.exp(scores), 0.0)
    total = weights.sum(-1, keepdims=True) + (0.0 if sinks is None else np.exp(np.asarray(sinks))[:, None, None])
    return np.einsum("bhts,bshi->bthi", weights / np.maximum(total, 1e-30), v)


@pytest.mark.parametrize("lay", [padded, packed])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "switches",
    [
        {"causal": False},
        {"causal": True, "sinks": True},
        {"causal": True, "window": 40, "kv_heads": 2},
        {"causal": False, "window": 33, "softcap": 2.0},
    ],
    ids=["full", "causal-sinks", "window-grouped", "two-sided-capped"],
)
def test_every_kernel_equals_the_formula(form: str, lay: Callable[..., Layout], switches: dict[str, Any]) -> None:
    rng, width, heads = np.random.default_rng(0), 256, 4
    causal, window, softcap = switches["causal"], switches.get("window"), switches.get("softcap")
    kv_heads = switches.get("kv_heads", heads)
    q, k, v = (rng.normal(size=(2, width, n, 16)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    sinks = rng.normal(size=heads).astype(np.float32) if switches.get("sinks") else None
    layout = lay(2, width)
    run = partial(attend, layout=layout, causal=causal, scale=0.25, window=window, softcap=softcap, sinks_H=sinks)
    ours = jax.jit(partial(run, implementation=FORMS[form]))(q, k, v)
    far = np.arange(width)[:, None] - np.arange(width)[None, :]
    allowed = np.broadcast_to(np.asarray(layout.seen()), (2, width, width))
    allowed = allowed & (far >= 0) if causal else allowed
    allowed = allowed & (np.abs(far) < window) if window else allowed
    real = np.asarray(layout.real_BT)
    theirs = by_hand(q, k, v, allowed, 0.25, softcap, sinks)
    np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], atol=2e-5)


@pytest.mark.parametrize("lay", [padded, packed])
def test_picked_queries_are_those_of_all(lay: Callable[..., Layout]) -> None:
    rng, width = np.random.default_rng(0), 256
    q, k, v = (rng.normal(size=(2, width, n, 16)).astype(np.float32) for n in (4, 2, 2))
    layout = lay(2, width)
    bias = ByDistance(jnp.asarray(rng.normal(size=(4, 2 * width - 1)), jnp.float32))
    every = jnp.arange(width)
    for extra in ({"bias_HTS": bias}, {"bias_HTS": bias.of(every, every)}, {"window": 9, "landmarks": 1}):
        run = partial(attend, layout=layout, causal=True, scale=0.3, **extra)
        picked = run(layout.at(jnp.asarray(q), layout.last_BM), k, v, queries=layout.last_BM)
        np.testing.assert_allclose(picked, layout.at(run(q, k, v), layout.last_BM), atol=1e-5)


@pytest.mark.parametrize("length", [1100, 2048])
def test_a_bias_by_distance_is_cut_block_by_block(length: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, length, 2, 4)).astype(np.float32) for _ in range(3))
    bias = ByDistance(jnp.asarray(rng.normal(size=(2, 2 * length - 1)), jnp.float32))
    run = partial(attend, q, k, v, layout=padded(1, length), causal=False, scale=0.5)
    dense = run(bias_HTS=bias, implementation=FORMS["dense"])
    np.testing.assert_allclose(run(bias_HTS=bias), dense, atol=1e-5)


def largest(window: int | None, length: int, causal: bool, **extra: Any) -> int:
    """Most numbers of any array in an attention's compiled program."""
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.bfloat16)
    run = partial(attend, layout=padded(1, length), causal=causal, scale=0.3, window=window, **extra)
    text = jax.jit(run).lower(shape, shape, shape).as_text()
    sizes = re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    return max(int(np.prod([int(n) for n in size.rstrip("x").split("x")])) for size in sizes)


@pytest.mark.parametrize("causal", [True, False])
def test_no_array_grows_with_the_square_of_a_long_text(causal: bool) -> None:
    # Two heads, 512 queries at a time; a text that no block size divides is no exception.
    assert largest(None, 8192, causal) <= 2 * 512 * 8192
    assert largest(None, 8100, causal) <= 2 * 512 * 8192
    # A window of 128: blocks of 128 queries and the keys around them; queries and keys themselves are larger.
    assert largest(128, 8192, causal) <= 8192 * 2 * 16
    assert largest(65, 1024, causal) <= 1024 * 2 * 16 * 2
    assert largest(None, 1024, causal) == 2 * 1024 * 1024, "the check sees what it must not find above"


def call(**changes: Any) -> Call:
    plain = Call(512, 512, False, 64, 64, 16, False, False, None, True, False, False)
    return plain._replace(**changes)


def test_the_table_chooses() -> None:
    tpu, cpu, hopper = Implementation("tpu"), Implementation("cpu"), Implementation("gpu", capability=9.0)
    ampere, forced = Implementation("gpu", capability=8.0), Implementation("tpu", "dense")
    assert choose(call(), tpu) == "splash"
    assert choose(call(queries=256, keys=256), tpu) == "dense"
    assert choose(call(queries=600, keys=600), tpu) == "dense"
    assert choose(call(plain=False), tpu) == "dense"
    assert choose(call(), forced) == "dense"
    assert choose(call(queries=128, keys=128), tpu._replace(forced="splash")) == "splash"
    assert choose(call(picked=True, queries=1), tpu._replace(forced="splash")) == "dense", "it cannot"
    assert choose(call(window=0), tpu) == "dense", "only the device knows the window"
    assert choose(call(), hopper) == "cudnn"
    assert choose(call(bits=32), hopper) == "dense"
    assert choose(call(head_size=256, value_size=256), hopper) == "cudnn"
    assert choose(call(head_size=256, value_size=256), ampere) == "dense"
    assert choose(call(queries=2048, keys=2048, packed=True), hopper) == "blocks"
    assert choose(call(packed=True), hopper) == "cudnn"
    assert choose(call(), cpu) == "dense"
    assert choose(call(queries=8192, keys=8192), cpu) == "blocks"
    assert choose(call(queries=1024, keys=1024, window=65), cpu) == "blocks"
    assert {row.name for row in KERNELS} == {"splash", "cudnn", "blocks", "dense"}
    assert available("cpu") == ("blocks", "dense")


def test_the_user_may_force_a_kernel(caplog: pytest.LogCaptureFixture) -> None:
    folder, row = Path(__file__).parents[2] / "data" / "models" / "bert-cls", Row(np.arange(9, 90))
    config = AutoConfig.from_pretrained(folder)

    def scores(**options: Any) -> np.ndarray:
        engine = open_engine(folder, config, **options)
        try:
            return engine.submit([row], Bucket(1, 128)).result()
        finally:
            engine.close()

    np.testing.assert_allclose(scores(attention_backend="blocks"), scores(), atol=1e-5)
    with pytest.raises(ValidationError, match="must be one of blocks, dense on this CPU, or None; got 'splash'"):
        scores(attention_backend="splash")
    with caplog.at_level(logging.WARNING):
        scores(attention_backend="FLASH_ATTN")
    assert "vLLM's and has no effect" in caplog.text
