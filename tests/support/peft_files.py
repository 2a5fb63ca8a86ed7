"""PEFT folders written tensor by tensor, for what PEFT itself would not write, and where torch is not wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def write(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """An adapter of these tensors, named without ``base_model.model.``; returns its folder."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "SEQ_CLS", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder


def of_bert(folder: Path, base: Path, seed: int, labels: int | None = None, **config: Any) -> Path:
    """A random adapter of every query of a BERT checkpoint, with a head of its own of ``labels``, if given."""
    rng = np.random.default_rng(seed)
    shape = json.loads((base / "config.json").read_text())
    width = shape["hidden_size"]

    def random(*size: int) -> np.ndarray:
        return rng.normal(size=size).astype(np.float32) * 0.3

    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        module = f"bert.encoder.layer.{layer}.attention.self.query"
        tensors |= {f"{module}.lora_A.weight": random(2, width), f"{module}.lora_B.weight": random(width, 2)}
    if labels is not None:
        tensors |= {"classifier.weight": random(labels, width), "classifier.bias": random(labels)}
    return write(folder, tensors, **config)
