"""Fresh heads of every style: what training starts from fits the model, norms start as ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from parity_cases import CASES
from transformers import AutoConfig

from jaxpool.engine import programs, sharding
from jaxpool.training.new_head import open_for_training
from jaxpool_conversions.load import load


@pytest.mark.parametrize("case", ["bert", "modernbert", "modernbert-mean-biases", "bart", "eurobert", "llama-gqa"])
@pytest.mark.parametrize("bare", [True, False])
def test_a_fresh_head_fits_the_model(case: str, bare: bool, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    folder = tiny.save(tmp_path, model_type, **config)
    if bare:
        from transformers import AutoModel

        AutoModel.from_pretrained(folder).save_pretrained(folder)
    reader, spec, fresh = open_for_training(folder, AutoConfig.from_pretrained(folder), ("a", "b", "c", "d"), 0, None)
    with reader:
        targets = sharding.targets(programs.abstract(spec), sharding.make_mesh())
        leaves = load(reader, spec.family.table, spec.source, targets)
    assert fresh
    assert leaves["head.out.kernel"].shape == (spec.config.width, 4)
    assert np.std(leaves["head.out.kernel"]) > 0.01
    if bare and "head.norm.scale" in leaves:
        assert (np.asarray(leaves["head.norm.scale"]) == 1).all()
    if bare and "head.dense.kernel" in leaves and "pooler" not in "".join(reader.names()):
        assert 0.01 < np.std(leaves["head.dense.kernel"]) < 0.03
