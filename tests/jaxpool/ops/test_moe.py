"""Mixtures of experts: both ways to compute them agree, on one device and on a mesh; routers by hand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxpool.engine.sharding import make_mesh
from jaxpool.ops import moe
from jaxpool.ops.moe import Experts, Projection, Router, ask, dense, route, sparse

ROWS, TOKENS, WIDTH, INNER, EXPERTS, CHOSEN = 4, 9, 12, 6, 5, 2
LENGTHS = np.array([9, 4, 1, 6])


def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


def case(bias: bool, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array, Experts]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def layer(d_in: int, d_out: int) -> Projection:
        return Projection(normal(EXPERTS, d_in, d_out), normal(EXPERTS, d_out) if bias else None)

    experts = Experts((layer(WIDTH, INNER), layer(WIDTH, INNER)), layer(INNER, WIDTH))
    weights_NK, index_NK = route(normal(ROWS * TOKENS, EXPERTS), Router(EXPERTS, CHOSEN))
    return normal(ROWS, TOKENS, WIDTH), weights_NK, index_NK, experts


def by_hand(x_BTD: jax.Array, weights_NK: jax.Array, index_NK: jax.Array, experts: Experts) -> np.ndarray:
    y = np.zeros(x_BTD.shape)
    for n, (row, token) in enumerate(np.ndindex(ROWS, TOKENS)):
        for weight, e in zip(weights_NK[n], index_NK[n]) if token < LENGTHS[row] else ():
            (gate, up), down = experts
            h = [x_BTD[row, token] @ p.kernel[e] + (0 if p.bias is None else p.bias[e]) for p in (gate, up)]
            y[row, token] += weight * (gated(*h) @ down.kernel[e] + (0 if down.bias is None else down.bias[e]))
    return y


def masked(weights_NK: jax.Array, index_NK: jax.Array) -> tuple[jax.Array, jax.Array]:
    real = (np.arange(TOKENS) < LENGTHS[:, None]).reshape(-1, 1)
    return jnp.where(real, weights_NK, 0.0), jnp.where(real, index_NK, EXPERTS)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", [dense, sparse])
def test_both_forms_equal_the_definition_and_padding_asks_nobody(form: object, bias: bool) -> None:
    x_BTD, weights_NK, index_NK, experts = case(bias)
    out = jax.jit(partial(form, combine=gated))(x_BTD, *masked(weights_NK, index_NK), experts)
    np.testing.assert_allclose(out, by_hand(x_BTD, weights_NK, index_NK, experts), atol=1e-4)
    assert not np.asarray(out)[1, 4:].any()


@pytest.mark.parametrize("form", [dense, sparse])
def test_the_mesh_changes_nothing(form: object) -> None:
    """Four parts of the batch, inner width in two: as the programs of accelerators run, on fake devices."""
    mesh = make_mesh(4, 2)
    x_BTD, weights_NK, index_NK, experts = case(bias=True)
    place = {"enter": (None, None, "model"), "leave": (None, "model", None)}

    def spread(array: jax.Array, *axes: str | None) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    split = Experts(
        tuple(Projection(spread(p.kernel, *place["enter"]), spread(p.bias, None, "model")) for p in experts.enter),
        Projection(spread(experts.leave.kernel, *place["leave"]), spread(experts.leave.bias)),
    )
    routed = masked(weights_NK, index_NK)
    with jax.set_mesh(mesh):
        inputs = (spread(x_BTD, "data"), *(spread(v, "data") for v in routed))
        out = jax.jit(partial(form, combine=gated))(*inputs, split)
    np.testing.assert_allclose(out, dense(x_BTD, *routed, experts, combine=gated), atol=1e-4)


def test_each_platform_compiles_its_own_form() -> None:
    x_BTD, weights_NK, index_NK, experts = case(bias=False)
    traced = jax.jit(partial(ask, combine=gated)).trace(x_BTD, weights_NK, index_NK, jnp.ones((4, 9), bool), experts)
    assert "ragged_dot" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "ragged_dot" in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("tokens", [1, 7, ROWS * TOKENS])
def test_all_experts_answer_in_blocks(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x_BTD, weights_NK, index_NK, experts = case(bias=True)
    routed = masked(weights_NK, index_NK)
    whole = dense(x_BTD, *routed, experts, combine=gated)
    monkeypatch.setattr(moe, "DENSE_NUMBERS", tokens * EXPERTS * INNER)
    np.testing.assert_allclose(dense(x_BTD, *routed, experts, combine=gated), whole, atol=1e-5)


def test_no_expert_at_all_and_one_expert_for_all() -> None:
    """Groups of size zero, before and after the only one that is asked."""
    x_BTD, weights_NK, index_NK, experts = case(bias=True)
    for index in (np.full_like(index_NK, EXPERTS), np.full_like(index_NK, 2), np.full_like(index_NK, EXPERTS - 1)):
        both = [form(x_BTD, weights_NK, jnp.asarray(index), experts, combine=gated) for form in (dense, sparse)]
        np.testing.assert_allclose(*both, atol=1e-4)
        assert np.asarray(both[1]).any() == (index[0, 0] < EXPERTS)


LOGITS = jnp.log(jnp.array([[0.1, 0.4, 0.3, 0.2]]))


@pytest.mark.parametrize(
    ("router", "bias", "chosen"),
    [
        (Router(4, 2), None, {1: 0.4, 2: 0.3}),
        (Router(4, 2, renormalise=True, scale=2.0), None, {1: 2 * 4 / 7, 2: 2 * 3 / 7}),
        (Router(4, 2, "softmax_of_best"), None, {1: 4 / 7, 2: 3 / 7}),
        (Router(4, 2, "sigmoid"), None, {1: 0.4 / 1.4, 2: 0.3 / 1.3}),
        # The bias chooses, it does not weigh.
        (Router(4, 2, "sigmoid"), [9.0, 0.0, 0.0, 0.0], {0: 0.1 / 1.1, 1: 0.4 / 1.4}),
        # The best expert of all is in the first group; the two best together are in the second.
        (Router(4, 2, groups=2, groups_kept=1), None, {0: 0.1, 1: 0.4}),
        (Router(4, 2, groups=2, groups_kept=1, group_score="two_best"), [0.0, 0.0, 0.1, 0.0], {2: 0.3, 3: 0.2}),
        # Nothing is close to the best: each round has one candidate.
        (Router(4, 2, "sparse_mixer", tolerance=0.0), None, {1: 1.0, 2: 1.0}),
    ],
)
def test_routers(router: Router, bias: list[float] | None, chosen: dict[int, float]) -> None:
    weights_NK, index_NK = route(LOGITS, router, None if bias is None else jnp.array(bias))
    got = dict(zip(index_NK[0].tolist(), weights_NK[0].tolist()))
    assert got == pytest.approx(chosen, rel=1e-5)
