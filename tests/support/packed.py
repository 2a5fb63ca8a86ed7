"""Backbones with random weights, and one batch of texts for them, padded and packed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from parity_cases import CASES
from parity_cases.first import BERT
from transformers import AutoConfig

from jaxpool.engine.batches import Inputs, fill
from jaxpool.engine.buckets import Bucket
from jaxpool.ops.kernels import ANYWHERE
from jaxpool_conversions.families import find
from jaxpool_conversions.families.config_fields import Fields

LENGTHS, PLACES = (7, 19, 1, 17, 30, 2), (0, 0, 0, 0, 1, 1)
PACKED, PADDED = Bucket(2, 44, 5), Bucket(6, 31)
OWN = {"jina-bert": ("bert", BERT | {"position_embedding_type": "alibi", "feed_forward_type": "geglu"})}
"""Models that transformers does not have, by name, as ``CASES``."""
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def build(case: str) -> tuple[Any, int]:
    """A backbone with random weights, and the size of its vocabulary."""
    model_type, fields = (CASES | OWN)[case]
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
