"""Random tiny checkpoints made by transformers and torch, and the answers torch gives for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = (1, 2, 7, 16, 17, 40)
"""Tokens of the texts that parity is tested on: one, odd, at and past bucket edges, past every window in use."""

ONE_BUCKET = tuple(range(25, 41))
"""Lengths of texts that are computed together, past every window in use as well."""


def save(
    folder: Path,
    model_type: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    head: str = "sequence",
    **config: Any,
) -> Path:
    """Writes a random checkpoint of ``model_type`` whose every parameter matters; returns its folder.

    Args:
        folder: where to.
        model_type: as in ``config.json``.
        seed: of the weights.
        dtype: of the stored weights.
        head: ``sequence`` (a sequence classifier), ``causal`` (a language model), ``tokens`` (a classifier of tokens),
            ``masked`` (a masked language model), ``encoder`` (the encoder of an encoder-decoder) or ``none`` (a bare
            backbone).
        config: fields of the transformers config.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    kinds = {"causal": "ForCausalLM", "tokens": "ForTokenClassification", "encoder": "ForTextEncoding", "none": "",
             "masked": "ForMaskedLM"}  # fmt: skip
    makers = {kind: getattr(transformers, f"AutoModel{name}") for kind, name in kinds.items()}
    torch.manual_seed(seed)
    settings = AutoConfig.for_model(model_type, **{"pad_token_id": 0, **config})
    settings.dtype = torch.float32
    model = makers[head].from_config(settings) if head in makers else classifier(settings)(settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Far enough from the initial values that no bias, norm or small weight could be forgotten unseen.
            noise = torch.randn(weight.shape) * (0.3 if weight.ndim == 1 else 0.12)
            weight.copy_(weight + noise if "norm" in name.lower() or "ln_" in name else noise)
        for name, bias in model.named_buffers():
            if name.endswith("correction_bias"):  # learned, though not by gradients
                bias.copy_(torch.randn(bias.shape) * 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def classifier(config: Any) -> Any:
    """The sequence classifier class of transformers for a config; made as transformers does where it has none."""
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.modeling_layers import GenericForSequenceClassification

    known = AutoModelForSequenceClassification._model_mapping
    if type(config) in list(known.keys()):  # no `in` of its own
        return known[type(config)]
    model = AutoModel._model_mapping[type(config)]
    name = model.__name__.removesuffix("Model") + "ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, model.__base__), {"config_class": type(config)})


def prompts(vocab: int, lengths: tuple[int, ...] = LENGTHS, seed: int = 1, end: int | None = None) -> list[list[int]]:
    """Random token ids of the given lengths; never 0, which is the padding id.

    Texts end with ``end``, if it is given, except that long ones go on for a little.
    """
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, vocab, n).tolist() for n in lengths]
    if end is not None:
        for row in ids:
            row[-4 if len(row) > 16 else -1] = end
    return ids


class _Uncached:
    """What FlauBERT's class can index where norms come first: there it takes a cache for a list of caches."""

    def get_seq_length(self) -> int:
        return 0

    def __getitem__(self, index: int) -> None:
        return None


def torch_logits(folder: Path, ids: list[list[int]], types: list[list[int]] | None = None) -> np.ndarray:
    """Raw logits of transformers in float32, one text at a time: ``[texts, labels]``."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    # Falcon's own "eager" adds its biases twice.
    implementation = "sdpa" if config.model_type == "falcon" else "eager"
    model = classifier(config).from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation).eval()
    out = []
    with torch.no_grad():
        for i, row in enumerate(ids):
            extra: dict[str, Any] = {} if types is None else {"token_type_ids": torch.tensor([types[i]])}
            extra |= {"cache": _Uncached()} if config.model_type == "flaubert" and config.pre_norm else {}
            out.append(
                model(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), **extra).logits[0]
            )
    return torch.stack(out).float().numpy()


def jaxpool_logits(folder: Path, ids: list[list[int]], dtype: str = "float32") -> np.ndarray:
    """Raw logits of jaxpool through its public API: ``[texts, labels]``."""
    from jaxpool import LLM, PoolingParams

    with LLM(str(folder), runner="pooling", skip_tokenizer_init=True, dtype=dtype) as llm:
        outputs = llm.classify(ids, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return np.array([output.outputs.probs for output in outputs])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of ``[texts, labels]``."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def parameters(folder: Path) -> tuple[Any, Any, Any]:
    """A checkpoint's parameters in float32, with the table and the head they came by: what ``export`` takes."""
    from transformers import AutoConfig

    from jaxpool.checkpoints.spec import resolve
    from jaxpool.engine import sharding
    from jaxpool.engine.programs import abstract
    from jaxpool_conversions.heads import find_head
    from jaxpool_conversions.load import load
    from jaxpool_conversions.reader import Reader

    with Reader(folder) as reader:
        spec = resolve(
            AutoConfig.from_pretrained(folder),
            lambda family, labels, width: find_head(reader, family.table, num_labels=labels, width=width),
            dtype="float32",
        )
        targets = sharding.targets(abstract(spec), sharding.make_mesh())
        return load(reader, spec.family.table, spec.source, targets), spec.family.table, spec.source
