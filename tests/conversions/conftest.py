"""A small made-up checkpoint that needs every kind of rule, and the table that converts it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpool_conversions.rules import Ignore, Part, Rule, Table, Transpose

LAYERS, WIDTH, MLP, VOCAB, LABELS = 3, 8, 12, 20, 4

TABLE = Table(
    prefix="net.",
    rules=(
        Rule("embed.weight", "backbone.tokens.table"),
        Rule("layer.{layer}.up.weight", "backbone.layers.up.kernel", (Transpose(),)),
        Rule("layer.{layer}.up.bias", "backbone.layers.up.bias"),
        *(
            Rule("layer.{layer}.qkv.weight", f"backbone.layers.{name}.kernel", (Part(0, i, 3), Transpose()))
            for i, name in enumerate("qkv")
        ),
        *(
            Rule("layer.{layer}.qkv.bias", f"backbone.layers.{name}.bias", (Part(0, i, 3),))
            for i, name in enumerate("qkv")
        ),
        Rule("layer.{layer}.norm.weight", "backbone.layers.norm.scale"),
        Rule("layer.{layer}.norm.gamma", "backbone.layers.norm.scale"),  # the name that old checkpoints use
    ),
    head=(Rule("pooler.dense.weight", "head.dense.kernel", (Transpose(),)),),
    head_names=("score", "classifier"),
    ignore=(
        Ignore("layer.{layer}.mask", "a buffer"),
        Ignore("lm_head.weight", "vocabulary projection"),
        Ignore("cls.{rest}", "another task"),
    ),
    embedding="embed.weight",
)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of one random checkpoint, float32, with prefix."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (VOCAB, WIDTH), "pooler.dense.weight": (WIDTH, WIDTH)}
    for i in range(LAYERS):
        shapes |= {
            f"layer.{i}.up.weight": (MLP, WIDTH),
            f"layer.{i}.up.bias": (MLP,),
            f"layer.{i}.qkv.weight": (3 * WIDTH, WIDTH),
            f"layer.{i}.qkv.bias": (3 * WIDTH,),
            f"layer.{i}.norm.weight": (WIDTH,),
        }
    made = {f"net.{name}": rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    made["score.weight"] = rng.standard_normal((LABELS, WIDTH), dtype=np.float32)
    made["score.bias"] = rng.standard_normal(LABELS, dtype=np.float32)
    return made


def targets(dtype: Any = np.float32, **changes: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What the model wants: stacked leaves, on the first device."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.tokens.table": (VOCAB, WIDTH),
        "backbone.layers.up.kernel": (LAYERS, WIDTH, MLP),
        "backbone.layers.up.bias": (LAYERS, MLP),
        "backbone.layers.norm.scale": (LAYERS, WIDTH),
        "head.dense.kernel": (WIDTH, WIDTH),
        "head.out.kernel": (WIDTH, LABELS),
        "head.out.bias": (LABELS,),
    }
    for name in "qkv":
        shapes[f"backbone.layers.{name}.kernel"] = (LAYERS, WIDTH, WIDTH)
        shapes[f"backbone.layers.{name}.bias"] = (LAYERS, WIDTH)
    shapes |= changes
    return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items() if shape is not None}


def write(folder: Path, values: dict[str, np.ndarray], shards: int = 1) -> Path:
    """Write tensors as safetensors, in one file or sharded with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(values, folder / "model.safetensors")
        return folder
    index = {}
    for i in range(shards):
        part = {name: values[name] for name in sorted(values)[i::shards]}
        save_file(part, folder / f"model-{i + 1:05}-of-{shards:05}.safetensors")
        index |= dict.fromkeys(part, f"model-{i + 1:05}-of-{shards:05}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.fixture
def made() -> SimpleNamespace:
    """The checkpoint's table, and functions that make its parts."""
    return SimpleNamespace(
        table=TABLE,
        tensors=tensors,
        targets=targets,
        write=write,
        layers=LAYERS,
        width=WIDTH,
        labels=LABELS,
        vocab=VOCAB,
    )
