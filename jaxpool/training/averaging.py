"""One more encoder layer that makes the first token the mean of all: mean pooling that every reader of the file does.

Classifiers of BERT's kind read the first token, but sentence encoders are trained to be averaged, and their first
token knows much less. A layer whose queries are zero attends to all tokens alike; with identities for values it adds
their mean to the first token, ``WEIGHT`` times, and the norm after it leaves little else. It is an ordinary layer in
an ordinary checkpoint, so it can be trained on.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.models.bert import Bert, BertConfig
from jaxpool.ops.layout import Layout
from jaxpool.ops.pooling import pool

WEIGHT = 16.0
"""How much the mean counts against the first token's own vector."""

_SPREAD = 0.02  # of what must not be zero, or else it would stay zero for ever: every gradient has it as a factor


def suits(spec: Spec) -> bool:
    """Whether a model is built such that a layer of this kind can be added to it, and reads its first token."""
    config = spec.config
    if spec.family.backbone is not Bert or not isinstance(config, BertConfig) or spec.pooling != "CLS" or spec.late:
        return False
    plain = BertConfig(**{name: getattr(config, name) for name in BertConfig.__slots__ if name not in _OF_LAYERS})
    return config == plain


_OF_LAYERS = ("pre_norm", "shared", "relative", "rope", "rotations", "adapter", "mixer", "groups", "pointwise")
"""Fields of ``BertConfig`` that make layers of another kind, which must have their defaults."""


def averaged(hidden_BTD: jax.Array, layout: Layout, eps: float) -> jax.Array:
    """What the layer makes of the first token, ``[B, D]``, until it is trained."""
    x_BD = hidden_BTD[:, 0].astype(jnp.float32) + WEIGHT * pool(hidden_BTD, layout, "MEAN")[:, 0]
    for _ in range(2):  # the norm after attention and the one after the (still empty) MLP
        x_BD = x_BD - x_BD.mean(-1, keepdims=True)
        x_BD = x_BD / jnp.sqrt((x_BD**2).mean(-1, keepdims=True) + eps)
    return x_BD


def tensors(spec: Spec, layer: int, seed: int) -> dict[str, np.ndarray]:
    """The layer under the names of the checkpoint, float32.

    Args:
        spec: of a model that it ``suits``.
        layer: its number, from 0.
        seed: of the weights that training alone gives a meaning.
    """
    c, rng = spec.config, np.random.default_rng(seed)
    eye = np.eye(c.width)
    values: dict[str, Any] = {
        "attention.query.kernel": np.zeros((c.width, c.width)),
        "attention.key.kernel": rng.normal(0, _SPREAD, (c.width, c.width)),
        "attention.value.kernel": eye,
        "attention.out.kernel": WEIGHT * eye,
        "up.kernel": rng.normal(0, _SPREAD, (c.width, c.mlp)),
        "down.kernel": np.zeros((c.mlp, c.width)),
        "attention_norm.scale": np.ones(c.width),
        "mlp_norm.scale": np.ones(c.width),
        "up.bias": np.zeros(c.mlp),
    }
    named: dict[str, np.ndarray] = {}
    written: set[str] = set()
    for rule in spec.family.table.rules:
        place = rule.target.removeprefix("backbone.layers.")
        if place == rule.target or place in written:  # of another name for the same module the first will do
            continue
        written.add(place)
        value = values.get(place, np.zeros(c.width))
        name = re.sub(r"\{layer\}", str(layer), rule.source)
        named[spec.family.table.prefix + name] = np.asarray(value.T if rule.steps else value, np.float32, order="C")
    return named
