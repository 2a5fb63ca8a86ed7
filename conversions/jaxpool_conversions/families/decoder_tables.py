"""What decoder families share: an architecture is a function from Hugging Face fields to ``DecoderConfig``, and rows.

``llama_like`` reads the field names most decoders use; the architectures are in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxpool.models.attention import AttentionConfig
from jaxpool.models.decoder import AttentionKind, Decoder, DecoderConfig, MlpKind
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.norms import NormConfig
from jaxpool.ops.pooling import Pooling
from jaxpool.ops.rope import Rope
from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.rope_fields import rope
from jaxpool_conversions.families.table_rows import norm
from jaxpool_conversions.rules import Ignore, Part, Rule, Table, Transpose

Switches = Mapping[str, Any]


def rms(fields: Fields, *, field: str = "rms_norm_eps", offset: float = 0.0, late: bool = False) -> NormConfig:
    """The RMS norm most decoders use; ``late``: scaled in float32, as also every norm with an ``offset``."""
    return NormConfig("rms", fields.get(field), offset=offset, scale_in_float32=late or offset != 0)


def llama_like(
    fields: Fields,
    *,
    norm: NormConfig | None = None,
    attention: Switches | AttentionKind = {},  # noqa: B006 - never written to
    mlp: Switches | MlpKind | tuple[MlpKind, ...] = {},  # noqa: B006
    ropes: tuple[Rope, ...] | None = None,
    partial_rope: bool = False,
    **switches: Any,
) -> DecoderConfig:
    """A decoder whose config has Llama's field names.

    Args:
        fields: of ``config.json``.
        norm: of the layers and at the end; None: the usual RMS norm.
        attention, mlp: what differs from Llama's, by name; or another kind altogether (of each layer, if a tuple).
        ropes: rotary tables; None: one, from ``rope_parameters``.
        partial_rope: whether the architecture honours ``partial_rotary_factor``.
        switches: what differs from Llama in ``DecoderConfig``.
    """
    norm = norm or rms(fields)
    width = fields.get("hidden_size")
    fields.get("max_position_embeddings")  # a limit, not a size: resolve.py reads it
    of_attention = attention_like(fields, attention) if isinstance(attention, Mapping) else attention
    if isinstance(mlp, Mapping):
        usual = {"width": width}
        usual |= {} if "inner" in mlp else {"inner": fields.get("intermediate_size")}
        usual |= {} if "activation" in mlp else {"activation": fields.get("hidden_act")}
        mlp = MlpConfig(**usual | dict(mlp))
    settings: dict[str, Any] = {"vocab": fields.get("vocab_size"), "layers": fields.get("num_hidden_layers")}
    settings |= {"norm": norm, "final_norm": norm} | switches
    if not fields.get("is_causal", True):
        # transformers counts a window's far end as seen when it looks both ways, and only then.
        settings["windows"] = tuple(w and w + 1 for w in settings.get("windows", ()))
    ropes = (rope(fields, of_attention.head_size, partial=partial_rope),) if ropes is None else ropes
    return DecoderConfig(width=width, attention=of_attention, mlp=mlp, ropes=ropes, **settings)


def attention_like(fields: Fields, switches: Switches) -> AttentionConfig:
    """An attention whose config has Llama's field names; ``switches`` are what differs from Llama's."""
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    head_size = fields.get("head_dim") or width // heads
    usual = {
        "width": width,
        "heads": heads,
        "kv_heads": fields.get("num_key_value_heads") or heads,
        "head_size": head_size,
        "scale": head_size**-0.5,
        # vLLM's switch, honoured here as well: a decoder used as a bidirectional encoder.
        "causal": fields.get("is_causal", True) and not _bidirectional(fields),
        "qkv_bias": False,
        "out_bias": False,
    }
    return AttentionConfig(**usual | dict(switches))


def _bidirectional(fields: Fields) -> bool:
    """Whether the class is a decoder made an encoder (``LlamaBidirectionalForSequenceClassification``)."""
    return any("Bidirectional" in name for name in fields.get("architectures") or ())


def _head(fields: Fields) -> HeadStyle:
    if not _bidirectional(fields):
        return HeadStyle("NOT_PAD")
    fields.require("temperature", None, 1.0)
    kinds: dict[str, Pooling] = {"avg": "MEAN", "cls": "CLS", "last": "LAST"}
    fields.require("pooling", *kinds)
    return HeadStyle(kinds[fields.get("pooling", "avg")])


def layer_windows(fields: Fields) -> tuple[int | None, ...]:
    """Windows per layer from ``layer_types`` and ``sliding_window``."""
    for folded in ("use_sliding_window", "max_window_layers"):  # into layer_types, by transformers
        fields.get(folded)
    window = fields.get("sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in fields.get("layer_types"))


def linear(source: str, target: str, *, transpose: bool = True) -> tuple[Rule, Rule]:
    """Rows of a linear layer, weight and bias; without ``transpose`` for Conv1D, which keeps ``[in, out]``."""
    steps = (Transpose(),) if transpose else ()
    return Rule(f"{source}.weight", f"{target}.kernel", steps), Rule(f"{source}.bias", f"{target}.bias")


def fused(source: str, parts: Iterable[tuple[str, Part]], *, transpose: bool = True) -> tuple[Rule, ...]:
    """Rows of several linear layers that a checkpoint keeps as one; each part lies along the output axis."""
    return tuple(
        rule
        for target, part in parts
        for rule in (
            Rule(f"{source}.weight", f"{target}.kernel", (part, Transpose()) if transpose else (part,)),
            Rule(f"{source}.bias", f"{target}.bias", (Part(0, part.index, part.count, part.width, part.groups),)),
        )
    )


def qkv(target: str, *, heads: int = 1, kv_heads: int = 1, groups: int = 1, axis: int = 0) -> list[tuple[str, Part]]:
    """Parts of a fused query, key, value: ``heads`` units of query, then ``kv_heads`` of each of the others."""
    count = heads + 2 * kv_heads
    return [
        (f"{target}.query", Part(axis, 0, count, heads, groups)),
        (f"{target}.key", Part(axis, heads, count, kv_heads, groups)),
        (f"{target}.value", Part(axis, heads + kv_heads, count, kv_heads, groups)),
    ]


def by_head(source: str, heads: int) -> tuple[Rule, ...]:
    """Rows of an attention whose queries, keys and values alternate head by head in one tensor."""
    return (
        *fused(f"{source}.query_key_value", qkv(ATTENTION, groups=heads)),
        *linear(f"{source}.dense", f"{ATTENTION}.out"),
    )


ATTENTION = "backbone.layers.attention"
MLP = "backbone.layers.mlp"
BUFFER = "a buffer: rotary frequencies, computed from the config"
LM_HEAD = Ignore("lm_head.{rest}", "vocabulary projection, not used by classification")

LLAMA_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
LLAMA_ATTENTION = (
    *linear("layers.{layer}.self_attn.q_proj", f"{ATTENTION}.query"),
    *linear("layers.{layer}.self_attn.k_proj", f"{ATTENTION}.key"),
    *linear("layers.{layer}.self_attn.v_proj", f"{ATTENTION}.value"),
    *linear("layers.{layer}.self_attn.o_proj", f"{ATTENTION}.out"),
    *norm("layers.{layer}.self_attn.q_norm", f"{ATTENTION}.query_norm"),
    *norm("layers.{layer}.self_attn.k_norm", f"{ATTENTION}.key_norm"),
)
LLAMA_MLP = (
    *linear("layers.{layer}.mlp.gate_proj", f"{MLP}.gate"),
    *linear("layers.{layer}.mlp.up_proj", f"{MLP}.up"),
    *linear("layers.{layer}.mlp.down_proj", f"{MLP}.down"),
)


def llama_table(
    *,
    norms: Mapping[str, str] = LLAMA_NORMS,
    attention: tuple[Rule, ...] = LLAMA_ATTENTION,
    mlp: tuple[Rule, ...] = LLAMA_MLP,
    final_norm: str = "norm",
    prefix: str = "model.",
    other_prefixes: tuple[str, ...] = (),
    embedding: str = "embed_tokens",
    embedding_norm: str = "embedding_norm",
    layers: str = "layers",
    ignore: tuple[Ignore, ...] = (),
    more: tuple[Rule, ...] = (),
) -> Table:
    """The rows of a decoder with Llama's names.

    Args:
        norms: name in the checkpoint's layers -> norm of ``Layer``.
        attention, mlp: rows of those.
        final_norm: name of the norm after the last layer.
        prefix, other_prefixes: before backbone names.
        embedding, embedding_norm: names of the token embedding and of a norm on it.
        layers: name of the layers.
        ignore, more: further rows.
    """
    return Table(
        prefix=prefix,
        other_prefixes=other_prefixes,
        rules=(
            Rule(f"{embedding}.weight", "backbone.tokens.table"),
            *(
                row
                for name, ours in norms.items()
                for row in norm(f"{layers}.{{layer}}.{name}", f"backbone.layers.{ours}")
            ),
            *attention,
            *mlp,
            *norm(embedding_norm, "backbone.embedding_norm"),
            *norm(final_norm, "backbone.norm"),
            *more,
        ),
        ignore=(
            Ignore("layers.{layer}.self_attn.rotary_emb.inv_freq", BUFFER),
            Ignore("rotary_emb.inv_freq", BUFFER),
            LM_HEAD,
            *ignore,
        ),
        embedding=f"{embedding}.weight",
    )


def family(
    prefix_class: str,
    config: Callable[[Fields], DecoderConfig],
    table: Table | Callable[[DecoderConfig], Table],
    *,
    head_bias: bool = False,
) -> Family:
    """A decoder's ``Family``; ``table`` may depend on sizes, where a checkpoint fuses layers of unequal width."""
    return Family(
        name="decoder",
        backbone=Decoder,
        config=config,
        head=_head,
        table=table if isinstance(table, Table) else Table(prefix="", rules=()),
        table_of=None if isinstance(table, Table) else table,
        prefix_class=prefix_class,
        head_bias=head_bias,
    )
