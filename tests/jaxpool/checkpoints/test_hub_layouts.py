"""Checkpoints as they lie on the hub, by name: the same answers as transformers' torch, or refused by name."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from hub_folders import make
from hub_layouts import LAYOUTS
from hub_table import PAGE, PARTS, ours, row

from jaxpool import LLM, CheckpointError
from jaxpool.checkpoints.location import locate


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = LAYOUTS[name]
    theirs = make(tmp_path, layout)
    caplog.set_level(logging.WARNING, "jaxpool")
    if layout.refused:
        with pytest.raises(CheckpointError, match=layout.refused):
            LLM(str(tmp_path), skip_tokenizer_init=True, runner="pooling" if layout.head == "none" else "auto")
    else:
        assert np.ptp(theirs, axis=0).max() > 1e-2, "the checkpoint must tell texts apart"
        np.testing.assert_allclose(ours(tmp_path, layout), theirs, atol=1e-4, rtol=0)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("jaxpool")]
    assert bool(said) is bool(layout.warned), said
    assert layout.warned in "".join(said)


def test_enough_of_them() -> None:
    assert len([name for name in LAYOUTS if "/" in name]) >= 60


def test_the_page_is_of_these_layouts() -> None:
    """``python tests/support/hub_table.py`` writes it; here all but its figures, which must be small."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = [re.fullmatch(r"(\| .* \|) (\d\.\de[-+]\d+|—) \|", line) for line in lines]
    expected = [row(name, layout, "") for part in PARTS.values() for name, layout in part.items()]
    assert [f"{match[1]}  |" for match in found if match] == expected
    assert all(match[2] == "—" or float(match[2]) <= 1e-4 for match in found if match)
    assert {name for part in PARTS.values() for name in part} == LAYOUTS.keys()


def test_the_model_may_lie_below_its_modules(tmp_path: Path) -> None:
    make(tmp_path, LAYOUTS["sentence-transformers/msmarco-distilbert-base-v2"])
    assert locate(tmp_path) == tmp_path / "0_Transformer"
