"""BERT-like encoders with something other than plain attention over all tokens: Longformer, BigBird, FNet."""

from __future__ import annotations

from jaxpool.errors import ConfigError
from jaxpool.models.attention import AttentionConfig
from jaxpool.models.bert import BertConfig
from jaxpool.models.fourier import FourierConfig
from jaxpool.models.landmark import LandmarkConfig
from jaxpool_conversions.families.bert import CLASSIFIER, LAYER, NAMES, config, family, padding, table
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.rules import Ignore


def _longformer(fields: Fields) -> BertConfig:
    fields.get("onnx_export")  # how transformers computes the same
    architectures = fields.get("architectures") or ()
    given, layers = fields.get("attention_window"), fields.get("num_hidden_layers")
    windows = list(given) if isinstance(given, list | tuple) else [given] * layers
    if len(windows) != layers or any(window < 2 or window % 2 for window in windows):
        raise ConfigError(
            f"config.json sets attention_window={given!r}; there must be an even number for each of {layers} layers."
        )
    halves = tuple(window // 2 + 1 for window in windows)
    return config(
        fields,
        padding_id=padding(fields),
        windows=halves if len(set(halves)) > 1 else (),
        mixer=LandmarkConfig(
            width=fields.get("hidden_size"),
            heads=fields.get("num_attention_heads"),
            window=max(halves),
            # As the models of transformers set it when nobody says.
            first=not any(name.endswith(("ForTokenClassification", "Model")) for name in architectures),
        ),
    )


_SELF = f"{LAYER}.attention.self"
_LONGFORMER = NAMES | {
    "layers.attention.first_query": f"{_SELF}.query_global",
    "layers.attention.first_key": f"{_SELF}.key_global",
    "layers.attention.first_value": f"{_SELF}.value_global",
}
_GLOBAL = tuple(Ignore(f"{_SELF}.{name}_global.{{rest}}", "for global tokens, which this model has none of")
                for name in ("query", "key", "value"))  # fmt: skip


def _big_bird(fields: Fields) -> BertConfig:
    """Full attention, which transformers computes as well for texts that its sparse attention is too coarse for.

    Longer texts see random blocks there, drawn anew for every padded length; they are refused.
    """
    fields.require("rescale_embeddings", False)
    fields.require("attention_type", "block_sparse", "original_full")
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    full = (5 + 2 * fields.get("num_random_blocks")) * fields.get("block_size")
    attention = AttentionConfig(
        width,
        heads,
        heads,
        width // heads,
        (width // heads) ** -0.5,
        causal=False,
        qkv_bias=fields.get("use_bias"),
        out_bias=True,
    )
    limit = full if fields.get("attention_type") == "block_sparse" else None
    return config(fields, mixer=attention, limit=limit)


def _fnet(fields: Fields) -> BertConfig:
    fields.require("use_tpu_fourier_optimizations", False)
    fields.get("tpu_short_seq_length")  # read with that only
    width = fields.get("hidden_size")
    # There are no heads; this many say that devices may share the work in any number.
    return config(fields, heads=width, positions=fields.get("max_position_embeddings"), embed_width=width,
                  mixer=FourierConfig(head_size=width))  # fmt: skip


_FNET = {ours: theirs for ours, theirs in NAMES.items() if ".attention." not in ours} | {
    "layers.attention_norm": f"{LAYER}.fourier.output.LayerNorm",
    "project": "embeddings.projection",
}

FAMILIES = {
    "longformer": family("Longformer", _longformer, table("longformer.", _LONGFORMER, head=CLASSIFIER, ignore=_GLOBAL)),
    "big_bird": family("BigBird", _big_bird, table("bert.", head=CLASSIFIER), dense="hidden_act"),
    "fnet": family("FNet", _fnet, table("fnet.", _FNET)),
}
