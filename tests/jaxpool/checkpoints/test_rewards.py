"""Reward models of Qwen2: a head of two layers on every token, steps of a solution scored where they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from parity_cases.first import LLAMA
from safetensors.torch import load_file, save_file
from transformers import Qwen2Model

from jaxpool import LLM, MissingHeadError, PoolingParams, ValidationError
from jaxpool.commands.convert import convert

IDS = [[5, 9, 6, 9], [7, 8, 9], [3]]


def reward_model(folder: Path, architecture: str, labels: int) -> tuple[Path, list[np.ndarray]]:
    """A tiny one as Qwen publishes it, and torch's raw scores of every token."""
    tiny.save(folder, "qwen2", head="none", **LLAMA)
    torch.manual_seed(3)
    score = torch.nn.Sequential(torch.nn.Linear(48, 48), torch.nn.ReLU(), torch.nn.Linear(48, labels))
    model = Qwen2Model.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = [score(model(torch.tensor([row])).last_hidden_state)[0].numpy() for row in IDS]
    tensors = {f"model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors |= {f"score.{name}": tensor for name, tensor in score.state_dict().items()}
    save_file(tensors | {"lm_head.weight": torch.zeros(LLAMA["vocab_size"], 48)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, theirs


def encode(folder: Path, params: PoolingParams | None = None, **options: Any) -> list[np.ndarray]:
    with LLM(str(folder), skip_tokenizer_init=True, dtype="float32", **options) as llm:
        assert llm.supported_tasks == ("token_classify",)
        return [one.outputs.data for one in llm.encode(IDS, params, pooling_task="token_classify", use_tqdm=False)]


def softmax(x: np.ndarray) -> np.ndarray:
    return tiny.softmax(x) if len(x) else x


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


def test_every_token_has_a_raw_reward(tmp_path: Path) -> None:
    folder, theirs = reward_model(tmp_path, "Qwen2ForRewardModel", 1)
    assert_close(encode(folder), theirs)
    assert_close(encode(folder, PoolingParams(use_activation=True)), [1 / (1 + np.exp(-x)) for x in theirs])


def test_steps_are_scored_where_they_end(tmp_path: Path) -> None:
    folder, theirs = reward_model(tmp_path / "source", "Qwen2ForProcessRewardModel", 2)
    ends = [[token == 9 for token in row] for row in IDS]
    ours = encode(folder, pooler_config={"step_tag_id": 9})
    assert_close(ours, [softmax(x[end]) for x, end in zip(theirs, ends)])
    assert [len(x) for x in encode(folder)] == [0, 0, 0], "the step token is 151651 unless it is said"
    assert_close(encode(folder, pooler_config={"pooling_type": "ALL"}), [softmax(x) for x in theirs])
    convert(folder, tmp_path / "store", dtype="float32")
    assert_close(encode(tmp_path / "store", pooler_config={"step_tag_id": 9}), ours)


def test_what_a_reward_model_is_not(tmp_path: Path) -> None:
    folder, _ = reward_model(tmp_path / "wrong", "Qwen2ForProcessRewardModel", 2)
    with LLM(str(folder), skip_tokenizer_init=True) as llm, pytest.raises(ValidationError, match="Classification API"):
        llm.classify(IDS)
    plain = tiny.save(tmp_path / "plain", "qwen2", **LLAMA, num_labels=2)
    overrides = {"architectures": ["Qwen2ForRewardModel"]}
    with pytest.raises(MissingHeadError, match=r"looked for score\.2\.weight"):
        LLM(str(plain), skip_tokenizer_init=True, hf_overrides=overrides)
