"""Models whose checkpoints came with code of their own, written again in plain torch from what that code computes.

Each takes the tensors (without prefix), the fields of ``config.json`` and the ids of one text, and returns its hidden
states, ``[T, D]``. Nothing here is ours or transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm, linear, relu, softmax

Tensors = dict[str, torch.Tensor]
Fields = dict[str, Any]


def _linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def _norm(tensors: Tensors, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def _slopes(heads: int) -> list[float]:
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start * start**i for i in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    return _slopes(lower) + _slopes(2 * lower)[0::2][: heads - lower]


def jina_bert(tensors: Tensors, fields: Fields, ids: list[int]) -> torch.Tensor:
    """https://huggingface.co/jinaai/jina-bert-implementation: no positions, scores that fall with distance, a GLU."""
    heads, eps = fields["num_attention_heads"], fields["layer_norm_eps"]
    words, types = (tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type"))
    x = _norm(tensors, "embeddings.LayerNorm", words[torch.tensor(ids)] + types[0], eps)
    place = torch.arange(len(ids))
    distance = (place[None] - place[:, None]).abs()
    bias = torch.stack([-slope * distance for slope in _slopes(heads)])
    activation = {"geglu": gelu, "reglu": relu}[fields["feed_forward_type"]]
    for i in range(fields["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        q, k, v = (
            _linear(tensors, f"{at}.attention.self.{part}", x).unflatten(-1, (heads, -1)).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        seen = softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias, dim=-1) @ v
        attended = _linear(tensors, f"{at}.attention.output.dense", seen.transpose(0, 1).flatten(1))
        x = _norm(tensors, f"{at}.attention.output.LayerNorm", attended + x, eps)
        gated, plain = _linear(tensors, f"{at}.mlp.gated_layers", x).chunk(2, dim=-1)
        x = _norm(tensors, f"{at}.mlp.layernorm", _linear(tensors, f"{at}.mlp.wo", activation(gated) * plain) + x, eps)
    return x


def nomic_moe(tensors: Tensors, fields: Fields, ids: list[int]) -> torch.Tensor:
    """https://huggingface.co/nomic-ai/nomic-bert-2048 as nomic-embed-text-v2-moe sets it: every other MLP a mixture."""
    heads, eps, inner = fields["n_head"], fields["layer_norm_epsilon"], fields["n_inner"]
    words, types = (tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type"))
    x = _norm(tensors, "emb_ln", words[torch.tensor(ids)] + types[0], eps)
    half = fields["n_embd"] // heads // 2
    angle = torch.arange(len(ids))[:, None] / fields["rotary_emb_base"] ** (torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()

    def rotated(y: torch.Tensor) -> torch.Tensor:
        first, second = y.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    for i in range(fields["n_layer"]):
        at = f"encoder.layers.{i}"
        parts = _linear(tensors, f"{at}.attn.Wqkv", x).unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        q, k, v = rotated(parts[0]), rotated(parts[1]), parts[2]
        seen = softmax(q @ k.transpose(1, 2) / math.sqrt(2 * half), dim=-1) @ v
        x = _norm(
            tensors, f"{at}.norm1", _linear(tensors, f"{at}.attn.out_proj", seen.transpose(0, 1).flatten(1)) + x, eps
        )
        if i % fields["moe_every_n_layers"] == 1:
            chances = softmax(_linear(tensors, f"{at}.mlp.router.layer", x), dim=-1)
            weights, chosen = chances.topk(fields["moe_top_k"], dim=-1)
            w1, w2 = (tensors[f"{at}.mlp.experts.mlp.{w}"].unflatten(0, (-1, inner)) for w in ("w1", "w2"))
            y = torch.zeros_like(x)
            for token, (weight, which) in enumerate(zip(weights, chosen)):
                for share, expert in zip(weight, which):
                    y[token] += share * (gelu(w1[expert] @ x[token]) @ w2[expert])
            y = y + tensors[f"{at}.mlp.experts.bias"]
        else:
            y = _linear(tensors, f"{at}.mlp.fc2", gelu(_linear(tensors, f"{at}.mlp.fc1", x)))
        x = _norm(tensors, f"{at}.norm2", y + x, eps)
    return x


OWN: dict[str, Callable[[Tensors, Fields, list[int]], torch.Tensor]] = {
    "jina_bert": jina_bert,
    "nomic_moe": nomic_moe,
}
"""Name of a change of ``hub_folders.CHANGES`` -> what its code computes."""
