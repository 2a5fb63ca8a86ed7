"""Encoder-decoders: BART, mBART, PLBART, MVP; T5, mT5, umT5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxpool.errors import ConfigError
from jaxpool.models.attention import AttentionConfig
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.norms import NormConfig
from jaxpool.models.seq2seq import Relative, Seq2Seq, Seq2SeqConfig, Side
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.table_rows import embedding, linear, norm
from jaxpool_conversions.rules import Ignore, Rule, Table

SIDES = ("encoder", "decoder")


def _token(fields: Fields, name: str) -> int:
    """A token id that transformers would fail without."""
    token = fields.get(name)
    if not isinstance(token, int):
        raise ConfigError(f"config.json sets {name}={token!r}; model_type {fields.model_type!r} needs one token id.")
    return token


def _encoder_alone(fields: Fields) -> bool:
    """Whether the class is T5's encoder (``T5EncoderModel``, ``T5ForTokenClassification``)."""
    t5 = fields.model_type.endswith("t5")
    return t5 and any(x.endswith(("EncoderModel", "ForTokenClassification")) for x in fields.get("architectures") or ())


def _common(fields: Fields) -> None:
    for name in ("prompt_length", "prompt_mid_dim"):  # MVP's prompts, off unless use_prompt
        fields.get(name)
    fields.require("is_encoder_decoder", True, *((False,) if _encoder_alone(fields) else ()))
    fields.require("is_decoder", False)
    # One embedding serves both sides; untied ones would be two.
    fields.require("tie_word_embeddings", True)
    fields.require("use_prompt", False)


def _bart(fields: Fields, *, wraps: bool = False, pre_norm: bool = False) -> Seq2SeqConfig:
    """BART; ``wraps``: the decoder starts with the text's last token."""
    _common(fields)
    width = fields.get("d_model")

    def side(name: str) -> Side:
        heads = fields.get(f"{name}_attention_heads")
        size = width // heads
        return Side(
            layers=fields.get(f"{name}_layers"),
            attention=AttentionConfig(
                width, heads, heads, size, size**-0.5, causal=name == "decoder", qkv_bias=True, out_bias=True
            ),
            mlp=MlpConfig(
                width, fields.get(f"{name}_ffn_dim"), fields.get("activation_function"), gated=False, bias=True
            ),
        )

    return Seq2SeqConfig(
        vocab=fields.get("vocab_size"),
        width=width,
        encoder=side("encoder"),
        decoder=side("decoder"),
        norm=NormConfig("layer", 1e-5, bias=True),
        pre_norm=pre_norm,
        embedding_norm=True,
        final_norm=pre_norm,
        embedding_scale=width**0.5 if fields.get("scale_embedding") else 1.0,
        positions=fields.get("max_position_embeddings"),
        position_offset=2,
        start=None if wraps else _token(fields, "decoder_start_token_id"),
        padding_id=_token(fields, "pad_token_id") if wraps else None,
    )


def _t5(fields: Fields, *, per_layer: bool = False) -> Seq2SeqConfig:
    _common(fields)
    width, heads, size = fields.get("d_model"), fields.get("num_heads"), fields.get("d_kv")
    gated, _, activation = fields.get("feed_forward_proj").rpartition("-")
    # As transformers reads it: "gated-gelu" means the tanh approximation.
    mlp = MlpConfig(
        width, fields.get("d_ff"), "gelu_new" if gated and activation == "gelu" else activation, bool(gated)
    )

    def side(layers: str, *, causal: bool) -> Side:
        # Scores are not scaled: the initial weights are.
        attention = AttentionConfig(width, heads, heads, size, 1.0, causal=causal, qkv_bias=False, out_bias=False)
        return Side(fields.get(layers), attention, mlp)

    decoder = side("num_decoder_layers", causal=True)
    alone = _encoder_alone(fields)
    return Seq2SeqConfig(
        vocab=fields.get("vocab_size"),
        width=width,
        encoder=side("num_layers", causal=False),
        decoder=None if alone else decoder,
        norm=NormConfig("rms", fields.get("layer_norm_epsilon"), scale_in_float32=False),
        pre_norm=True,
        embedding_norm=False,
        final_norm=True,
        relative=Relative(
            fields.get("relative_attention_num_buckets"), fields.get("relative_attention_max_distance"), per_layer
        ),
        start=None if alone else _token(fields, "decoder_start_token_id"),
    )


_TOKENS = (
    *embedding("shared", "backbone.tokens"),
    *(Rule(f"{side}.embed_tokens.weight", "backbone.tokens.table", copy=True) for side in SIDES),
)


def _bart_rows() -> Iterator[Rule]:
    yield from _TOKENS
    for side in SIDES:
        theirs, ours = f"{side}.layers.{{layer}}", f"backbone.{side}.layers"
        yield from embedding(f"{side}.embed_positions", f"backbone.{side}.positions")
        yield from norm(f"{side}.layernorm_embedding", f"backbone.{side}.embedding_norm")
        yield from norm(f"{side}.layer_norm", f"backbone.{side}.norm")
        for block, module in (("self_attn", "attention"), ("encoder_attn", "cross")):
            for name, part in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
                yield from linear(f"{theirs}.{block}.{name}", f"{ours}.{module}.{part}")
            yield from norm(f"{theirs}.{block}_layer_norm", f"{ours}.{module}_norm")
        yield from norm(f"{theirs}.final_layer_norm", f"{ours}.mlp_norm")
        yield from linear(f"{theirs}.fc1", f"{ours}.mlp.up")
        yield from linear(f"{theirs}.fc2", f"{ours}.mlp.down")


def _t5_rows(*, per_layer: bool, gated: bool) -> Iterator[Rule]:
    yield from _TOKENS
    for side in SIDES:
        theirs, ours = f"{side}.block.{{layer}}.layer", f"backbone.{side}.layers"
        parts = (("SelfAttention", "attention"), ("EncDecAttention", "cross"))[: 1 + (side == "decoder")]
        for number, (block, module) in enumerate(parts):
            for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
                yield from linear(f"{theirs}.{number}.{block}.{name}", f"{ours}.{module}.{part}")
            yield from norm(f"{theirs}.{number}.layer_norm", f"{ours}.{module}_norm")
        mlp = f"{theirs}.{len(parts)}"
        yield from norm(f"{mlp}.layer_norm", f"{ours}.mlp_norm")
        for name, part in (*((("wi_0", "gate"), ("wi_1", "up")) if gated else (("wi", "up"),)), ("wo", "down")):
            yield from linear(f"{mlp}.DenseReluDense.{name}", f"{ours}.mlp.{part}")
        table = f"{theirs if per_layer else f'{side}.block.0.layer'}.0.SelfAttention.relative_attention_bias"
        yield from embedding(table, f"{ours if per_layer else f'backbone.{side}'}.relative")
        yield from norm(f"{side}.final_layer_norm", f"backbone.{side}.norm")


_IGNORED = (
    *(Ignore(f"{side}.version", "a version number") for side in SIDES),
    Ignore("final_logits_bias", "of the vocabulary projection"),
    Ignore("lm_head.{rest}", "vocabulary projection, not used by classification"),
    # Some old checkpoints have it; transformers never computed with it.
    Ignore("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", "a bias that nobody reads"),
)


_UNREAD = Ignore("decoder.{rest}", "the decoder, which this class does not have")


def _table(prefix: str, rules: Iterator[Rule], ignore: tuple[Ignore, ...] = ()) -> Table:
    return Table(
        prefix=prefix,
        rules=tuple(rules),
        head=linear("classification_head.dense", "head.dense"),
        head_names=("classification_head.out_proj", "score"),
        ignore=(*_IGNORED, *ignore),
        embedding="shared.weight",
    )


def _family(prefix_class: str, table: Table, read: Any, **more: Any) -> Family:
    return Family(
        name="seq2seq",
        backbone=Seq2Seq,
        config=read,
        head=lambda fields: HeadStyle("EOS", dense="tanh", eos_token=_token(fields, "eos_token_id")),
        table=table,
        prefix_class=prefix_class,
        head_bias=True,
        **more,
    )


def _bart_family(prefix_class: str, **switches: bool) -> Family:
    return _family(prefix_class, _table("model.", _bart_rows()), lambda fields: _bart(fields, **switches))


def _t5_family(prefix_class: str, *, per_layer: bool = False) -> Family:
    def table_of(config: Seq2SeqConfig) -> Table:
        rules = _t5_rows(per_layer=per_layer, gated=config.encoder.mlp.gated)
        return _table("transformer.", rules, () if config.decoder else (_UNREAD,))

    nothing = _table("transformer.", iter(()))
    return _family(prefix_class, nothing, lambda fields: _t5(fields, per_layer=per_layer), table_of=table_of)


FAMILIES = {
    "bart": _bart_family("Bart"),
    "mvp": _bart_family("Mvp"),
    "plbart": _bart_family("PLBart", wraps=True),
    "mbart": _bart_family("MBart", wraps=True, pre_norm=True),
    "t5": _t5_family("T5"),
    "mt5": _t5_family("MT5"),
    "umt5": _t5_family("UMT5", per_layer=True),
}
