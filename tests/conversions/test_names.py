"""Tables name tensors as transformers does: what is exported is the file that transformers wrote, name by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from parity_cases import CASES, FIRST, first
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from jaxpool.checkpoints.spec import resolve
from jaxpool.engine import sharding
from jaxpool.engine.programs import abstract
from jaxpool_conversions.accounting import account
from jaxpool_conversions.export import export
from jaxpool_conversions.rules import HeadSource


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
def test_a_checkpoint_comes_back_as_it_was(case: str, tmp_path: Path) -> None:
    """Every tensor under its own name with its own values, but for those that are ignored for a reason."""
    model_type, config = CASES[case]
    tiny.save(tmp_path, model_type, **config)
    leaves, table, head = tiny.parameters(tmp_path)
    ours = export(leaves, table, head)
    # transformers 5 writes ESM's norms under TensorFlow's names, and reads both.
    stored = load_file(tmp_path / "model.safetensors").items()
    theirs = {name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): x for name, x in stored}
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    ignored = account(shapes, table, head, {path: leaf.shape for path, leaf in leaves.items()}).ignored
    assert ours.keys() == theirs.keys() - ignored.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def test_norms_may_be_called_gamma_and_beta() -> None:
    """As in the .bin files that were converted from TensorFlow."""
    model_type, fields = first.CASES["bert"]
    config = AutoConfig.for_model(model_type, architectures=["BertForSequenceClassification"], **fields)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    shapes = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.shape
        for name, tensor in model.state_dict().items()
    }
    head = HeadSource("classifier.weight", "classifier.bias", config.num_labels)
    spec = resolve(config, lambda family, labels, width: head)
    targets = sharding.targets(abstract(spec), sharding.make_mesh())
    fills = account(shapes, spec.family.table, head, {path: target.shape for path, target in targets.items()}).fills
    assert [one.name for one in fills["backbone.norm.scale"].sources.values()] == ["bert.embeddings.LayerNorm.gamma"]
    last = [one.name for one in fills["backbone.layers.mlp_norm.bias"].sources.values()]
    assert last == [f"bert.encoder.layer.{i}.output.LayerNorm.beta" for i in range(3)]
