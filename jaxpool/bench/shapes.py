"""Checkpoints of known shapes with random weights, made here: speed does not depend on what the weights say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.bench.texts import WORDS

BLOCK = 1 << 20
"""Random numbers that are drawn; larger weights repeat them."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

_BERT = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 30522,
         "max_position_embeddings": 512}  # fmt: skip
_QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"], "vocab_size": 151936,
         "max_position_embeddings": 32768, "num_key_value_heads": 2, "tie_word_embeddings": True,
         "pad_token_id": 0}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "bert-base": {**_BERT, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                  "intermediate_size": 3072},
    "bert-large": {**_BERT, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                   "intermediate_size": 4096},
    "modernbert-base": {"model_type": "modernbert", "architectures": ["ModernBertForSequenceClassification"],
                        "vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
                        "intermediate_size": 1152, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3,
                        "bos_token_id": 2, "eos_token_id": 3},
    "qwen2.5-0.5b": {**_QWEN, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                     "intermediate_size": 4864},
    "qwen2.5-1.5b": {**_QWEN, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
                     "intermediate_size": 8960},
    "tiny-decoder": {**_QWEN, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
                     "intermediate_size": 512},
    "tiny": {**_BERT, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}  # fmt: skip
"""Name -> config.json."""


def write(name: str, folder: Path, dtype: str = "bfloat16") -> Path:
    """A checkpoint of one of `SHAPES` in ``folder``, with a tokenizer that makes one token of each word of the mix.

    That of Qwen spells the first word of a text.

    Needs torch, which knows the names and shapes of a model's weights (nothing is computed with it).
    """
    import torch
    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    about = {**SHAPES[name], "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    save_file(dict(_weights(model.state_dict(), dtype)), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(folder, bert=SHAPES[name]["model_type"] != "qwen2")
    return folder


def _weights(shapes: dict[str, Any], dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    block = (np.random.default_rng(0).standard_normal(BLOCK) * 0.02).astype(kind)
    for name, like in shapes.items():
        if not like.dtype.is_floating_point:
            continue  # buffers
        shape = tuple(like.shape)
        ones = len(shape) == 1 and "norm" in name.lower() and name.endswith("weight")
        yield name, np.ones(shape, kind) if ones else np.resize(block, shape)


def _tokenizer(folder: Path, *, bert: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if not bert:  # transformers reads whatever Qwen's folder has as a byte-level BPE
        merges = dict.fromkeys(("Ġ" + word[:i], word[i]) for word in WORDS for i in range(len(word)))
        pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
        backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if bert:
        ends = [(one, words[one]) for one in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names).save_pretrained(folder)
