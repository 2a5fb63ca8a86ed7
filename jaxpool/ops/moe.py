"""Mixtures of experts (Shazeer et al. 2017, arXiv:1701.06538): which experts a token asks, and what they answer.

Shape letters: N tokens of all rows, D width, E experts, K experts per token, F inner width of an expert, G groups of
experts, P = N * K (token, expert) pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

DENSE_NUMBERS = 1 << 25
"""Tokens are answered by all experts in blocks of at most this many numbers (tokens * experts * inner width)."""


@dataclass(frozen=True, slots=True)
class Router:
    """How scores become experts and their weights.

    Attributes:
        experts: how many there are.
        per_token: how many a token asks.
        scoring: ``softmax`` over all experts, then the best (Jiang et al. 2024, arXiv:2401.04088); ``softmax_of_best``:
            the best, then softmax over them; ``sigmoid`` of each (DeepSeek-V3, arXiv:2412.19437); ``sparse_mixer``: two
            rounds of softmax over experts close to the best (Liu et al. 2024, arXiv:2409.12136).
        renormalise: whether the weights of the chosen are divided by their sum.
        scale: factor on the weights.
        groups, groups_kept: experts are in this many equal groups, of which the best so many are eligible.
        group_score: a group's score is its best expert's, or the sum of its two best.
        tolerance: how close to the best, relatively, ``sparse_mixer`` looks.
    """

    experts: int
    per_token: int
    scoring: Literal["softmax", "softmax_of_best", "sigmoid", "sparse_mixer"] = "softmax"
    renormalise: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_score: Literal["best", "two_best"] = "best"
    tolerance: float = 0.0


def route(logits_NE: jax.Array, router: Router, bias_E: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The experts of each token: weights, float32 ``[N, K]``, and indices, int32 ``[N, K]``.

    Args:
        logits_NE: router scores; computed with in float32.
        router: the rule.
        bias_E: added to the scores when experts are chosen, not to their weights (load balancing without a loss).
    """
    logits_NE = logits_NE.astype(jnp.float32)
    if router.scoring == "sparse_mixer":
        return _sparse_mixer(logits_NE, router)
    if router.scoring == "softmax_of_best":
        best_NK, index_NK = jax.lax.top_k(logits_NE, router.per_token)
        return jax.nn.softmax(best_NK, axis=-1) * router.scale, index_NK
    scores_NE = jax.nn.sigmoid(logits_NE) if router.scoring == "sigmoid" else jax.nn.softmax(logits_NE, axis=-1)
    choice_NE = scores_NE if bias_E is None else scores_NE + bias_E
    if router.groups > 1:
        choice_NE = jnp.where(_eligible(choice_NE, router), choice_NE, -jnp.inf)
    index_NK = jax.lax.top_k(choice_NE, router.per_token)[1]
    weights_NK = jnp.take_along_axis(scores_NE, index_NK, axis=-1)
    if router.renormalise:
        weights_NK = weights_NK / (weights_NK.sum(-1, keepdims=True) + 1e-20)
    return weights_NK * router.scale, index_NK


def _eligible(choice_NE: jax.Array, router: Router) -> jax.Array:
    """Bool ``[N, E]``: experts of the best groups."""
    choice_NGe = choice_NE.reshape(len(choice_NE), router.groups, -1)
    best_NG = jax.lax.top_k(choice_NGe, 1 if router.group_score == "best" else 2)[0].sum(-1)
    kept = jax.lax.top_k(best_NG, router.groups_kept)[1]
    kept_NG = jax.nn.one_hot(kept, router.groups, dtype=jnp.bool_).any(-2)
    return jnp.repeat(kept_NG, choice_NGe.shape[-1], axis=-1)


def _sparse_mixer(logits_NE: jax.Array, router: Router) -> tuple[jax.Array, jax.Array]:
    weights, chosen = [], []
    left_NE = logits_NE
    for _ in range(router.per_token):
        best_N1 = left_NE.max(-1, keepdims=True)
        index_N1 = left_NE.argmax(-1, keepdims=True)
        # Distances are to the original scores, and the chosen are out of the softmax, not out of the distance.
        far_NE = (best_N1 - logits_NE) / jnp.maximum(jnp.abs(logits_NE), best_N1) > 2 * router.tolerance
        mixed_NE = jax.nn.softmax(jnp.where(far_NE, -jnp.inf, left_NE), axis=-1)
        weights.append(jnp.take_along_axis(mixed_NE, index_N1, axis=-1))
        chosen.append(index_N1)
        left_NE = jnp.where(jax.nn.one_hot(index_N1[:, 0], router.experts, dtype=jnp.bool_), -jnp.inf, left_NE)
    return jnp.concatenate(weights, -1) * router.scale, jnp.concatenate(chosen, -1)


class Projection(NamedTuple):
    """One linear layer of every expert: kernel ``[E, in, out]``, bias ``[E, out]`` or None."""

    kernel: jax.Array
    bias: jax.Array | None = None


class Experts(NamedTuple):
    """The weights of all experts: what enters (gate and up, or both in one), and what leaves."""

    enter: tuple[Projection, ...]
    leave: Projection


Combine = Callable[..., jax.Array]
"""Joins what entered: ``activation(gate) * up``, say."""


def ask(
    x_BTD: jax.Array,
    weights_NK: jax.Array,
    index_NK: jax.Array,
    real_BT: jax.Array,
    experts: Experts,
    combine: Combine,
) -> jax.Array:
    """Each token's experts' answers, weighted and summed: ``[B, T, D]`` in the dtype of ``x_BTD``.

    On the CPU every expert answers every token and weights choose, in three dense products: ``ragged_dot`` costs the
    same there, and more. Elsewhere tokens are sorted by expert and only the chosen experts answer.

    Args:
        x_BTD: hidden states.
        weights_NK, index_NK: from :func:`route`, N = B * T.
        real_BT: False for padding, which asks no expert and gets zeros.
        experts: their weights.
        combine: joins what entered.
    """
    weights_NK = jnp.where(real_BT.reshape(-1, 1), weights_NK, 0.0)
    index_NK = jnp.where(real_BT.reshape(-1, 1), index_NK, len(experts.leave.kernel))
    return jax.lax.platform_dependent(
        x_BTD,
        weights_NK,
        index_NK,
        experts,
        cpu=partial(dense, combine=combine),
        default=partial(sparse, combine=combine),
    )


def dense(
    x_BTD: jax.Array, weights_NK: jax.Array, index_NK: jax.Array, experts: Experts, *, combine: Combine
) -> jax.Array:
    """All experts on all tokens. An index of E asks nobody."""
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    n_experts, inner = experts.leave.kernel.shape[:2]
    weights_NE = jnp.einsum("nk,nke->ne", weights_NK, jax.nn.one_hot(index_NK, n_experts, dtype=weights_NK.dtype))
    answer = partial(_all_answer, experts=experts, combine=combine)
    block = max(1, DENSE_NUMBERS // (n_experts * inner))
    if len(x_ND) <= block:
        return answer(x_ND, weights_NE).reshape(x_BTD.shape)
    pad = -len(x_ND) % block
    blocks = [jnp.pad(v, ((0, pad), (0, 0))).reshape(-1, block, v.shape[-1]) for v in (x_ND, weights_NE)]
    y_ND = jax.lax.map(lambda one: answer(*one), blocks).reshape(-1, x_ND.shape[-1])
    return y_ND[: len(x_ND)].reshape(x_BTD.shape)


def _all_answer(x_ND: jax.Array, weights_NE: jax.Array, *, experts: Experts, combine: Combine) -> jax.Array:
    def project(layer: Projection) -> jax.Array:
        y_ENF = jnp.einsum("nd,edf->enf", x_ND, layer.kernel)
        return y_ENF if layer.bias is None else y_ENF + layer.bias[:, None]

    h_ENF = combine(*map(project, experts.enter))
    # Weighted before the last product, which then sums over experts as well.
    h_ENF = h_ENF * weights_NE.T[..., None].astype(h_ENF.dtype)
    y_ND = jnp.einsum("enf,efd->nd", h_ENF, experts.leave.kernel)
    if experts.leave.bias is not None:
        y_ND = y_ND + weights_NE.astype(y_ND.dtype) @ experts.leave.bias
    return y_ND


def sparse(
    x_BTD: jax.Array, weights_NK: jax.Array, index_NK: jax.Array, experts: Experts, *, combine: Combine
) -> jax.Array:
    """Only the chosen experts. An index of E asks nobody.

    On a mesh every part of the batch sorts its own tokens, so that no token travels; weights stay split over the
    inner width F, where products of sorted groups divide as plain ones do. (Split by expert they would be gathered
    whole on every device, says the TPU compiler's HLO.)
    """
    run = partial(_grouped, combine=combine)
    mesh = jax.sharding.get_abstract_mesh()
    if "data" in mesh.axis_names and mesh.shape["data"] > 1:
        rows, whole = PartitionSpec("data"), PartitionSpec()
        run = jax.shard_map(run, in_specs=(rows, rows, rows, whole), out_specs=rows, axis_names={"data"})
    return run(x_BTD, weights_NK, index_NK, experts)


def _grouped(
    x_BTD: jax.Array, weights_NK: jax.Array, index_NK: jax.Array, experts: Experts, *, combine: Combine
) -> jax.Array:
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    (n_tokens, per_token), n_experts = index_NK.shape, len(experts.leave.kernel)
    expert_P = index_NK.reshape(-1)
    order_P = jnp.argsort(expert_P)
    token_P, expert_P = order_P // per_token, expert_P[order_P]
    # Counted by comparison: a scatter is slow on accelerators, and one the TPU v5p compiler fails on.
    sizes_E = jnp.sum(expert_P[:, None] == jnp.arange(n_experts), axis=0, dtype=jnp.int32)
    # Rows beyond the last group hold whatever the device left there.
    asked_P1 = (expert_P < n_experts)[:, None]

    def project(x_PD: jax.Array, layer: Projection) -> jax.Array:
        y_PF = jax.lax.ragged_dot(x_PD, layer.kernel, sizes_E)
        if layer.bias is not None:
            y_PF = y_PF + jnp.take(layer.bias, expert_P, axis=0, mode="clip")
        return jnp.where(asked_P1, y_PF, 0)

    x_PD = x_ND[token_P]
    y_PD = project(combine(*(project(x_PD, layer) for layer in experts.enter)), experts.leave)
    weights_P1 = weights_NK.reshape(-1)[order_P][:, None].astype(y_PD.dtype)
    y_NKD = (y_PD * weights_P1)[jnp.argsort(order_P)].reshape(n_tokens, per_token, -1)
    return y_NKD.sum(1).reshape(x_BTD.shape)
