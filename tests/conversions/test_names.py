"""Tables name tensors as transformers does: what is exported is what a fresh torch model has, name by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity_cases import bertlike, bertlike_convolution, first
from transformers import AutoConfig, AutoModelForSequenceClassification

from jaxpool import sharding
from jaxpool.programs import abstract
from jaxpool.resolve import resolve
from jaxpool_conversions.accounting import account
from jaxpool_conversions.export import export
from jaxpool_conversions.rules import HeadSource

CASES = bertlike.CASES | bertlike_convolution.CASES


@pytest.mark.parametrize("case", CASES)
def test_every_exported_tensor_has_a_place_in_the_torch_model(case: str) -> None:
    model_type, fields = CASES[case]
    config = AutoConfig.for_model(model_type, **({"pad_token_id": 0} | fields))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config.architectures = [type(model).__name__]
    last = next(name for name in ("classifier.out_proj", "classifier") if f"{name}.weight" in theirs)
    head = HeadSource(f"{last}.weight", f"{last}.bias", config.num_labels)
    spec = resolve(config, lambda family, labels, width: head)
    targets = sharding.targets(abstract(spec), sharding.make_mesh())

    leaves = {path: np.zeros(target.shape, np.float32) for path, target in targets.items()}
    ours = {name: tensor.shape for name, tensor in export(leaves, spec.family.table, head).items()}

    ignored = account(theirs, spec.family.table, head, {path: leaf.shape for path, leaf in leaves.items()}).ignored
    assert ours == {name: shape for name, shape in theirs.items() if name not in ignored}


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
