"""What encoders and encoder-decoders do that no parity case shows: ends of texts, starts, limits, real bucket sizes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from parity_cases import CASES
from transformers import AutoModelForTokenClassification
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from jaxpool import LLM, PoolerConfig, PoolingParams
from jaxpool.models.deberta import table_rows
from jaxpool.ops.layout import Layout
from jaxpool.ops.pooling import pool
from jaxpool.ops.relative import skew


def test_eos_pooling_takes_the_last_end_among_real_tokens() -> None:
    hidden = jnp.arange(4 * 6.0).reshape(4, 6, 1)
    ends = jnp.array([[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], bool)
    layout = Layout.padded(jnp.array([6, 3, 2, 6]), 6)
    assert pool(hidden, layout, "EOS", ends)[:, 0, 0].tolist() == [3.0, 6.0, 13.0, 23.0]
    with pytest.raises(ValueError, match="needs marks_BT"):
        pool(hidden, layout, "EOS")


def logits(folder: Path, ids: list[list[int]], **options: Any) -> np.ndarray:
    params = PoolingParams(use_activation=False)
    with LLM(str(folder), runner="pooling", skip_tokenizer_init=True, **options) as llm:
        outputs = llm.classify(ids, pooling_params=params, use_tqdm=False)
    return np.array([output.outputs.probs for output in outputs])


def test_a_text_without_an_end_is_pooled_at_its_last_token_and_harms_nobody(tmp_path: Path) -> None:
    model_type, config = CASES["bart"]
    folder = tiny.save(tmp_path, model_type, **config)
    ended, endless = [5, 6, 2], [5, 6, 7, 8, 9]
    ours = logits(folder, [ended, endless])
    np.testing.assert_allclose(ours[:1], tiny.torch_logits(folder, [ended]), atol=1e-4, rtol=0)
    last = logits(folder, [endless], pooler_config=PoolerConfig(seq_pooling_type="LAST"))
    np.testing.assert_allclose(ours[1:], last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["plbart", "mbart-uneven-scaled"])
def test_the_decoder_starts_with_the_token_that_torch_starts_with(case: str, tmp_path: Path) -> None:
    """The last token that is not padding, counted as transformers counts: padding tokens may stand anywhere."""
    model_type, config = CASES[case]
    folder, pad, end = tiny.save(tmp_path, model_type, **config), config["pad_token_id"], config["eos_token_id"]
    ids = [[7, end, 8], [pad, 7, 8, end], [7, pad, pad, 8, end, 11], [7, end, pad], [end]]
    np.testing.assert_allclose(logits(folder, ids), tiny.torch_logits(folder, ids), atol=1e-4, rtol=0)


def test_big_bird_refuses_texts_that_it_would_attend_to_sparsely(tmp_path: Path) -> None:
    model_type, config = CASES["big_bird"]
    settings = config | {"max_position_embeddings": 200, "block_size": 4, "num_random_blocks": 2}
    folder = tiny.save(tmp_path, model_type, **settings)
    ids = tiny.prompts(config["vocab_size"], (36,))
    np.testing.assert_allclose(logits(folder, ids), tiny.torch_logits(folder, ids), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="36"):
        logits(folder, tiny.prompts(config["vocab_size"], (37,)))


@pytest.mark.parametrize("case", ["longformer", "modernbert", "deberta-v3", "nomic"])
def test_classifiers_of_tokens_equal_torch(case: str, tmp_path: Path) -> None:
    """Longformer's has no global token, ModernBERT's has its whole head."""
    model_type, config = CASES[case]
    folder, ids = tiny.save(tmp_path, model_type, head="tokens", **config), tiny.prompts(config["vocab_size"], (1, 17))
    model = AutoModelForTokenClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with LLM(str(folder), runner="pooling", skip_tokenizer_init=True) as llm:
        params = PoolingParams(use_activation=False)
        outputs = llm.encode(ids, pooling_task="token_classify", pooling_params=params, use_tqdm=False)
    for output, row in zip(outputs, ids, strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits[0]
        np.testing.assert_allclose(np.asarray(output.outputs.data), theirs.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("buckets", "furthest"), [(256, 512), (32, 128), (16, 33), (512, 512)])
def test_deberta_buckets_are_those_of_torch(buckets: int, furthest: int) -> None:
    states = torch.zeros(1, 600, 1)
    theirs = build_relative_position(states, states, buckets, furthest)[0] + buckets
    config: Any = SimpleNamespace(buckets=buckets, span=buckets, furthest=furthest)
    index = np.arange(600)
    ours = table_rows(config, 600)[index[:, None] - index[None, :] + 599]
    np.testing.assert_array_equal(ours, theirs.clamp(0, 2 * buckets - 1).numpy())


@pytest.mark.parametrize("length", [1, 2, 7])
def test_skew_picks_each_distance(length: int) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 3, length, 2 * length - 1)).astype(np.float32)
    index = np.arange(length)
    picked = scores[:, :, index[:, None], index[None, :] - index[:, None] + length - 1]
    np.testing.assert_array_equal(jax.jit(skew)(scores), picked)


def test_xlnet_tells_segments_apart(tmp_path: Path) -> None:
    """Pairs as its tokenizer makes them: a text, another, and the token that is read, each a segment."""
    model_type, config = CASES["xlnet"]
    folder = tiny.save(tmp_path, model_type, **config)
    [ids] = tiny.prompts(config["vocab_size"], (12,))
    types = [0] * 6 + [1] * 5 + [2]
    theirs = tiny.torch_logits(folder, [ids], [types])
    assert np.abs(theirs - tiny.torch_logits(folder, [ids])).max() > 1e-3
    with LLM(str(folder), skip_tokenizer_init=True) as llm:
        assert (llm.engine.spec.token_types, llm.engine.spec.max_length) == (3, 2048)
        prompt = {"prompt_token_ids": ids, "token_type_ids": types}
        [ours] = llm.classify(prompt, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    np.testing.assert_allclose(ours.outputs.probs, theirs[0], atol=1e-4)
