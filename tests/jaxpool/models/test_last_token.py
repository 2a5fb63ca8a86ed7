"""Which token a decoder's classifier reads: the last that is not padding by id, as the class it was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from parity_cases import CASES, FIRST
from parity_cases.first import LLAMA

from jaxpool import LLM, PoolingParams
from jaxpool.commands.convert import convert

PAD = 7
TEXTS = [[5, 9, PAD], [PAD, 5, 9], [5, PAD, 9, PAD, PAD], [PAD, PAD], [5], [PAD], [5, 9, 11]]
"""Texts whose own tokens include the padding token, at the end, inside, at the start, and nowhere else."""


def logits(folder: Path, **options: Any) -> np.ndarray:
    with LLM(str(folder), skip_tokenizer_init=True, dtype="float32", **options) as llm:
        outputs = llm.classify(TEXTS, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return np.array([output.outputs.probs for output in outputs])


def last_read(folder: Path) -> np.ndarray:
    """torch's logits at the last token of each text, whatever it is."""
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"pad_token_id": -1}))
    theirs = tiny.torch_logits(folder, TEXTS)
    path.write_text(json.dumps(stored))
    return theirs


@pytest.mark.parametrize("model_type", ["qwen3", "gpt2", "jamba", "modernbert-decoder"])
def test_a_trained_classifier_passes_over_padding_tokens(model_type: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, model_type, **CASES[FIRST[model_type]][1] | {"pad_token_id": PAD})
    theirs = tiny.torch_logits(tmp_path, TEXTS)
    assert np.abs(theirs - last_read(tmp_path))[:4].max() > 0.1, "the padding token must make a difference"
    np.testing.assert_allclose(logits(tmp_path), theirs, atol=1e-4, rtol=0)


def test_last_is_last_where_it_was_asked_for(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama", **LLAMA, num_labels=2, pad_token_id=PAD)
    last = last_read(tmp_path)
    np.testing.assert_allclose(logits(tmp_path, pooler_config={"pooling_type": "LAST"}), last, atol=1e-4, rtol=0)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["LlamaForCausalLM"]}))
    np.testing.assert_allclose(logits(tmp_path, convert="classify"), last, atol=1e-4, rtol=0)
    convert(tmp_path, tmp_path / "store", convert="classify")
    np.testing.assert_allclose(logits(tmp_path / "store"), last, atol=1e-4, rtol=0)
