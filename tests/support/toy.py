"""Sentences of one opinion word among others, and a tiny random BERT that reads their words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxpool.training.data import Labelled

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["good", "fine", "nice", "bad", "poor", "sad"],
    *["the", "a", "film", "food", "very", "is", "was", "it", "and", "so"],
]
WIDTH, LAYERS = 16, 2


def toy(count: int, seed: int, *, neutral: bool = False, words: int = 13) -> Labelled:
    """Sentences of one opinion word among others, together at most ``words`` (with special tokens 2 more)."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        kind = i % (3 if neutral else 2)
        filler = list(rng.choice(WORDS[10:], rng.integers(2, words)))
        opinion = [rng.choice(WORDS[4:7]), rng.choice(WORDS[7:10]), "so"][kind]
        filler.insert(rng.integers(len(filler)), opinion)
        texts.append(" ".join(filler))
        labels.append(["good", "bad", "unsure"][kind])
    return Labelled(texts, labels)


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_bert(folder: Path) -> Path:
    """A tiny random BERT without head and without pooler, in a folder that is made if need be."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (64, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part, n_out, n_in in (
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", 4 * WIDTH, WIDTH),
            ("output.dense", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"{name}.{part}.weight": (n_out, n_in), f"{name}.{part}.bias": (n_out,)}
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = ["embeddings.LayerNorm"]
    norms += [f"encoder.layer.{i}.{part}.output.LayerNorm" for i in range(LAYERS) for part in ("attention",)]
    norms += [f"encoder.layer.{i}.output.LayerNorm" for i in range(LAYERS)]
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 4 * WIDTH,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder
