"""Decoders used as encoders: Llama's bidirectional class, with the pooling its config names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from parity_cases.first import LLAMA

from jaxpool import LLM, PoolingParams
from jaxpool.errors import ConfigError


def bidirectional(folder: Path, model_type: str = "llama_bidirec", **fields: Any) -> Path:
    """A tiny Llama classifier that says it is bidirectional, as NVIDIA's rerankers do."""
    tiny.save(folder, "llama", **LLAMA, num_labels=2)
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"model_type": model_type} | fields
    file.write_text(json.dumps(config | {"architectures": ["LlamaBidirectionalForSequenceClassification"]}))
    return folder


def torch_states(folder: Path, ids: list[int]) -> np.ndarray:
    """Hidden states of the Llama in the folder, without its causal mask."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained(folder)
    config.is_causal = False
    model = LlamaForSequenceClassification.from_pretrained(folder, config=config, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        return model.score(hidden).numpy()


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
def test_pooling_of_the_config(pooling: str, tmp_path: Path) -> None:
    folder = bidirectional(tmp_path, pooling=pooling)
    prompts = tiny.prompts(103, (1, 9, 16))
    with LLM(str(folder), runner="pooling", skip_tokenizer_init=True, dtype="float32") as llm:
        outputs = llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    pick = {"avg": lambda x: x.mean(0), "cls": lambda x: x[0], "last": lambda x: x[-1]}[pooling]
    bidirectional(tmp_path, model_type="llama")  # whose config class transformers has
    theirs = [pick(torch_states(tmp_path, ids)) for ids in prompts]
    np.testing.assert_allclose([output.outputs.probs for output in outputs], theirs, atol=1e-4, rtol=0)


def test_other_poolings_are_refused_by_name(tmp_path: Path) -> None:
    folder = bidirectional(tmp_path, pooling="weighted")
    with pytest.raises(ConfigError, match="pooling='weighted'"):
        LLM(str(folder), runner="pooling", skip_tokenizer_init=True)
