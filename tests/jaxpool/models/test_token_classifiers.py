"""Scores of every token: all classifiers of tokens that transformers has for our model types, equal to torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from parity_cases import CASES, FIRST
from transformers import AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES as OF_TRANSFORMERS

from jaxpool import LLM, ConfigError, PoolingParams
from jaxpool_conversions.families import families

REFUSED = {"funnel": "FunnelForTokenClassification ends in layers that bring back the tokens' own states"}
"""Model type -> why not."""


def test_what_is_refused_is_refused_in_words(tmp_path: Path) -> None:
    for model_type, words in REFUSED.items():
        _, config = CASES[FIRST[model_type]]
        tiny.save(tmp_path, model_type, head="tokens", **config)
        with pytest.raises(ConfigError, match=words):
            LLM(str(tmp_path), skip_tokenizer_init=True)


@pytest.mark.parametrize("model_type", sorted(OF_TRANSFORMERS.keys() & families().keys() - REFUSED.keys()))
def test_token_classifiers_equal_torch(model_type: str, tmp_path: Path) -> None:
    _, config = CASES[FIRST[model_type]]
    tiny.save(tmp_path, model_type, head="tokens", **config | {"num_labels": 5, "problem_type": None})
    ids = tiny.prompts(config["vocab_size"], (17, 23, 30), end=config.get("eos_token_id"))

    kind = "sdpa" if model_type == "falcon" else "eager"  # as in tiny.torch_logits
    model = AutoModelForTokenClassification.from_pretrained(tmp_path, attn_implementation=kind).eval()
    with torch.no_grad():
        theirs = [model(torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0].numpy() for row in ids]
    assert np.ptp(np.concatenate(theirs), axis=0).min() > 1e-2, "all tokens alike would prove nothing"

    with LLM(str(tmp_path), skip_tokenizer_init=True, dtype="float32") as llm:
        assert llm.supported_tasks[0] == "token_classify"
        raw = PoolingParams(use_activation=False)
        ours = llm.encode(ids, raw, pooling_task="token_classify", use_tqdm=False)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.outputs.data, other, atol=1e-4, rtol=0)
