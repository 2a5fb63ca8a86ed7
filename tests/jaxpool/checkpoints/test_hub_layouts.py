"""Checkpoints as they lie on the hub, by name: the same answers as transformers' torch, or refused by name."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hub_folders import ids_of, make
from hub_layouts import LAYOUTS

from jaxpool import LLM, CheckpointError, PoolingParams
from jaxpool.checkpoints.location import locate


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = LAYOUTS[name]
    theirs = make(tmp_path, layout)
    caplog.set_level(logging.WARNING, "jaxpool")
    dtype = "auto" if layout.dtype == "float16" else "float32"
    if layout.refused:
        with pytest.raises(CheckpointError, match=layout.refused):
            LLM(str(tmp_path), skip_tokenizer_init=True, runner="pooling" if layout.head == "none" else "auto")
    else:
        with LLM(str(tmp_path), skip_tokenizer_init=True, dtype=dtype) as llm:
            ids, raw = ids_of(layout), PoolingParams(use_activation=None if layout.head == "none" else False)
            outputs = llm.encode(ids, raw, pooling_task=llm.pooling_task, use_tqdm=False)
            assert llm.engine.spec.max_length <= 64
        ours = [output.outputs.data for output in outputs]
        ours = np.concatenate(ours) if layout.per_token else np.array(ours)
        assert np.ptp(theirs, axis=0).max() > 1e-2, "the checkpoint must tell texts apart"
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("jaxpool")]
    assert bool(said) is bool(layout.warned), said
    assert layout.warned in "".join(said)


def test_enough_of_them() -> None:
    assert len([name for name in LAYOUTS if "/" in name]) >= 60


def test_the_model_may_lie_below_its_modules(tmp_path: Path) -> None:
    make(tmp_path, LAYOUTS["sentence-transformers/msmarco-distilbert-base-v2"])
    assert locate(tmp_path) == tmp_path / "0_Transformer"
