"""One block of each family against torch, at 1e-5: a looser bound on logits could hide an error in a single block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from transformers import AutoConfig

from jaxpool.checkpoints.spec import resolve
from jaxpool.engine import sharding
from jaxpool.engine.programs import abstract
from jaxpool.ops.attention import attend
from jaxpool.ops.kernels import QUERY_BLOCK
from jaxpool.ops.layout import Layout
from jaxpool_conversions.heads import find_head
from jaxpool_conversions.load import load
from jaxpool_conversions.reader import Reader

ONE_BLOCK: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 80, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
             "intermediate_size": 52, "max_position_embeddings": 64},
    "gpt2": {"vocab_size": 80, "n_embd": 48, "n_layer": 1, "n_head": 3, "n_positions": 64},
    "llama": {"vocab_size": 80, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 6,
              "num_key_value_heads": 2, "intermediate_size": 60, "attention_bias": True},
    "qwen3": {"vocab_size": 80, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 60, "use_sliding_window": True,
              "sliding_window": 6, "max_window_layers": 0},
}  # fmt: skip


@pytest.mark.parametrize("model_type", ONE_BLOCK)
def test_hidden_states_after_one_block(model_type: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    folder = tiny.save(tmp_path, model_type, **ONE_BLOCK[model_type])
    ids = np.array(tiny.prompts(80, (19, 19)))
    with torch.no_grad():
        model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        theirs = model(torch.tensor(ids)).last_hidden_state.numpy()
    with Reader(folder) as reader:
        spec = resolve(
            AutoConfig.from_pretrained(folder),
            lambda family, labels, width: find_head(reader, family.table, num_labels=labels, width=width),
        )
        module = abstract(spec)
        arrays = load(reader, spec.family.table, spec.source, sharding.targets(module, sharding.make_mesh()))
    module = jax.tree.unflatten(jax.tree.structure(module), list(arrays.values()))
    layout = Layout.padded(jnp.array([19, 19]), 19)
    ours = jax.jit(lambda m, x: m.backbone(x, jnp.zeros_like(x), layout))(module, jnp.array(ids))
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3, 700])
@pytest.mark.parametrize("length", [7, 3 * QUERY_BLOCK])
def test_attend_equals_the_formula(causal: bool, window: int | None, length: int) -> None:
    """Against a plain numpy softmax, in one piece and in blocks of queries, grouped heads, padded rows."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    lengths = np.array([length, length - 2])
    layout = Layout.padded(jnp.array(lengths), length)
    out = jax.jit(lambda *x: attend(*x, layout=layout, causal=causal, scale=0.3, window=window))(q, k, v)
    far = np.arange(length)[:, None] - np.arange(length)[None, :]
    for row in range(2):
        seen = np.broadcast_to(np.arange(length) < lengths[row], (length, length))
        seen = seen & (far >= 0) if causal else seen
        seen = seen & (np.abs(far) < window) if window else seen
        for head in range(4):
            scores = np.where(seen, 0.3 * q[row, :, head] @ k[row, :, head // 2].T, -np.inf)[: lengths[row]]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            expected = weights / weights.sum(-1, keepdims=True) @ v[row, :, head // 2]
            np.testing.assert_allclose(out[row, : lengths[row], head], expected, atol=1e-5)
