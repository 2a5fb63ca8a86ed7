"""Funnel Transformer: the other way in which transformers computes distances, segments, and states of every token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from parity_cases import CASES
from transformers import FunnelConfig

from jaxpool.errors import ConfigError
from jaxpool_conversions.families import find
from jaxpool_conversions.families.config_fields import Fields


@pytest.mark.parametrize("case", ["funnel", "funnel-pooled-first"])
def test_relative_shift_equals_torch(case: str, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    folder = tiny.save(tmp_path, model_type, **(config | {"attention_type": "relative_shift"}))
    ids = tiny.prompts(config["vocab_size"], (12, 13, 16, 17, 40))
    np.testing.assert_allclose(tiny.jaxpool_logits(folder, ids), tiny.torch_logits(folder, ids), atol=1e-4, rtol=0)


def test_pairs_with_a_first_token_of_its_own_segment_equal_torch(tmp_path: Path) -> None:
    from jaxpool import LLM, PoolingParams

    model_type, config = CASES["funnel"]
    folder = tiny.save(tmp_path, model_type, **config)
    ids = tiny.prompts(config["vocab_size"], (9, 14))
    types = [[2, *[0] * 4, *[1] * (len(row) - 5)] for row in ids]
    prompts = [{"prompt_token_ids": row, "token_type_ids": kinds} for row, kinds in zip(ids, types)]
    with LLM(str(folder), runner="pooling", skip_tokenizer_init=True) as llm:
        outputs = llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    ours = np.array([output.outputs.probs for output in outputs])
    theirs = tiny.torch_logits(folder, ids, types)
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)
    assert np.abs(theirs - tiny.torch_logits(folder, ids)).max() > 2e-3


@pytest.mark.parametrize("architecture", ["FunnelForTokenClassification", "FunnelModel"])
def test_models_with_the_decoder_are_refused(architecture: str) -> None:
    with pytest.raises(ConfigError, match=f"{architecture} ends in layers"):
        find("funnel").config(Fields(FunnelConfig(architectures=[architecture])))
