"""Training an adapter instead of the weights: which layers have one, how it enters the forward pass, how it is kept.

Beside a kernel at ``path`` stand ``path + A``, ``[…, in, r]``, and ``path + B``, ``[…, r, out]``; the kernel that
computes is the sum of both. So training needs nothing of a model but its parameters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.checkpoints.labels import PROBLEM_TYPES
from jaxpool.checkpoints.spec import Spec
from jaxpool_conversions.peft_export import adapted_kernels, adapter_tensors, saved_modules

A, B = ":lora_a", ":lora_b"


def started(leaves: Mapping[str, jax.Array], spec: Spec, rank: int, seed: int) -> dict[str, jax.Array]:
    """Parameters with an untrained adapter beside them, which changes nothing yet: A is random, B is zero.

    Args:
        leaves: every parameter, by dotted path.
        spec: the classifier.
        rank: of the adapter.
        seed: of A.
    """
    out = dict(leaves)
    rng = np.random.default_rng(seed)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    for path in adapted_kernels(spec.family.table, shapes):
        *lead, n_in, n_out = shapes[path]
        bound = n_in**-0.5
        out[path + A] = jnp.asarray(rng.uniform(-bound, bound, (*lead, n_in, rank)), jnp.float32)
        out[path + B] = jnp.zeros((*lead, rank, n_out), jnp.float32)
    return out


def applied(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters that compute: each kernel with its update."""
    return {
        path: leaf + leaves[path + A] @ leaves[path + B] if path + A in leaves else leaf
        for path, leaf in leaves.items()
        if not path.endswith((A, B))
    }


def is_trained(path: str) -> bool:
    """Whether training an adapter changes this parameter: its own, and the head."""
    return path.endswith((A, B)) or path.startswith("head.")


def write(
    folder: Path,
    leaves: Mapping[str, np.ndarray],
    spec: Spec,
    config: Any,
    base: str | os.PathLike[str] | None,
    rank: int,
) -> None:
    """Writes an adapter as PEFT does, with labels beside it in ``config.json``.

    Args:
        folder: exists, and is empty.
        leaves: every parameter on the host, the adapter's included.
        spec: the classifier.
        config: transformers config of the base; changed to have the labels.
        base: name of the base model, as PEFT will look for it.
        rank: of the adapter.

    Raises:
        OSError, SafetensorError: the files cannot be written.
    """
    from safetensors.numpy import save_file

    factors = {path.removesuffix(A): (leaf, leaves[path.removesuffix(A) + B]) for path, leaf in leaves.items()
               if path.endswith(A)}  # fmt: skip
    heads = {path: leaf for path, leaf in leaves.items() if path.startswith("head.")}
    tensors, ranks = adapter_tensors(factors, heads, spec.family.table, spec.source)
    wider = {module: own for module, own in ranks.items() if own != rank}
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": None if base is None else os.fspath(base),
        "r": rank,
        "lora_alpha": rank,  # a factor of 1: the scale is in the weights
        "rank_pattern": wider,
        "alpha_pattern": wider,
        "target_modules": sorted(ranks),
        "modules_to_save": saved_modules(heads, spec.family.table, spec.source),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config.architectures = [f"{spec.family.prefix_class}ForSequenceClassification"]
    config.id2label = dict(enumerate(spec.labels))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = PROBLEM_TYPES[spec.problem]
    vars(config).pop("raw", None)
    config.save_pretrained(folder)
