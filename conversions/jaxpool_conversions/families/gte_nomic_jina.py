"""Encoders with rotary positions: EuroBERT, GTE, Nomic BERT, jina-embeddings-v3.

EuroBERT (Boizard et al. 2025, arXiv:2503.05500) is a Llama that looks both ways. The others normalise sums as BERT
does; transformers writes their checkpoints with the names their authors gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jaxpool.errors import ConfigError
from jaxpool.models.bert import BertConfig
from jaxpool.models.decoder import Decoder, DecoderConfig
from jaxpool.models.mlp import MlpConfig
from jaxpool.models.moe import MoeConfig
from jaxpool.models.norms import NormConfig
from jaxpool.ops.moe import Router
from jaxpool_conversions.families import Family, HeadStyle, bert
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import ATTENTION, MLP, fused, llama_like, llama_table, qkv
from jaxpool_conversions.families.rope_fields import rope
from jaxpool_conversions.families.table_rows import linear, rows
from jaxpool_conversions.rules import Ignore, Part, Rule, Table, Transpose


def _eurobert(fields: Fields) -> DecoderConfig:
    fields.get("mask_token_id")  # for the tokenizer
    bias = fields.get("attention_bias")
    attention = {"causal": False, "qkv_bias": bias, "out_bias": bias}
    return llama_like(fields, attention=attention, mlp={"bias": fields.get("mlp_bias")})


def _eurobert_head(fields: Fields) -> HeadStyle:
    kind = fields.get("classifier_pooling")
    if kind not in ("bos", "mean", "late"):
        raise ConfigError(f"config.json sets classifier_pooling={kind!r}; EuroBERT has 'bos', 'mean' and 'late'.")
    return HeadStyle("CLS" if kind == "bos" else "MEAN", dense="gelu", late=kind == "late")


def _nomic(fields: Fields) -> DecoderConfig:
    """v1 gates without biases; v2-moe has biases, no gates, and mixtures in some layers."""
    if not fields.get("plain_mlp"):
        return _post_norm(fields, bias=False, mlp={"down_bias": False})
    width, inner, activation = (fields.get(name) for name in ("hidden_size", "intermediate_size", "hidden_act"))
    plain = MlpConfig(width, inner, activation, gated=False, bias=True)
    router = Router(fields.get("num_experts") or 0, fields.get("moe_top_k", 1))
    mixed = MoeConfig(width, inner, activation, router, gated=False, out_bias=True)
    step, layers = fields.get("moe_every_n_layers") or 0, range(fields.get("num_hidden_layers"))
    return _post_norm(fields, bias=True, mlp=tuple(mixed if step and i % step == 1 else plain for i in layers))


def _nomic_table(config: DecoderConfig) -> Table:
    plain = fused(f"{_NOMIC_LAYER}.attn.Wqkv", qkv(ATTENTION))
    if not isinstance(config.mlp, tuple):
        return _table("nomic_bert.", _NOMIC, plain)
    place = f"{_NOMIC_LAYER}.mlp"
    names = {ours: theirs for ours, theirs in _NOMIC.items() if ours != "layers.mlp.gate"}
    names |= {"layers.mlp.up": f"{place}.fc1", "layers.mlp.router": f"{place}.router.layer"}
    count = next((kind.router.experts for kind in config.mlp if isinstance(kind, MoeConfig)), 0)
    experts = (
        rule
        for i in range(count)
        for rule in (
            Rule(f"{place}.experts.mlp.w1", f"{MLP}.experts.up.kernel", (Part(0, i, count), Transpose()), expert=i),
            Rule(f"{place}.experts.mlp.w2", f"{MLP}.experts.down.kernel", (Part(0, i, count),), expert=i),
        )
    )
    bias = Rule(f"{place}.experts.bias", f"{MLP}.bias")
    return _table("nomic_bert.", names, (*plain, *experts, bias))


def _post_norm(fields: Fields, *, bias: bool, mlp: Any) -> DecoderConfig:
    """BERT with rotary positions: norms on sums, segment types, and usually gates."""
    norm = NormConfig("layer", fields.get("layer_norm_eps"), bias=True)
    size = fields.get("head_dim") or fields.get("hidden_size") // fields.get("num_attention_heads")
    return llama_like(
        fields,
        norm=norm,
        norms="sum",
        final_norm=None,
        embedding_norm=norm,
        ropes=(rope(fields, size, parameters=_without_ntk(fields, size)),),
        types=fields.get("type_vocab_size"),
        attention={"causal": False, "qkv_bias": bias, "out_bias": bias},
        mlp=mlp,
    )


def _without_ntk(fields: Fields, size: int) -> dict[str, Any]:
    """Rotary parameters in transformers' words; the code that GTE came with scaled its base and all its angles."""
    given = dict(fields.get("rope_parameters"))
    if fields.model_type != "gte" or given["rope_type"] != "ntk" or "mixed_b" in given:
        return given
    factor = given["factor"]
    return {"rope_type": "linear", "rope_theta": given["rope_theta"] * factor, "factor": factor ** (2 / size)}


def _jina(fields: Fields) -> BertConfig:
    size = fields.get("hidden_size") // fields.get("num_attention_heads")
    return bert.config(fields, positions=None, rope=rope(fields, size))


_EMBEDDINGS = {"tokens": "embeddings.word_embeddings", "types": "embeddings.token_type_embeddings"}
_NOMIC_LAYER, _GTE_LAYER = "encoder.layers.{layer}", "encoder.layer.{layer}"
_NOMIC = _EMBEDDINGS | {
    "embedding_norm": "emb_ln",
    "layers.attention.out": f"{_NOMIC_LAYER}.attn.out_proj",
    "layers.attention_norm": f"{_NOMIC_LAYER}.norm1",
    "layers.mlp.up": f"{_NOMIC_LAYER}.mlp.fc11",
    "layers.mlp.gate": f"{_NOMIC_LAYER}.mlp.fc12",
    "layers.mlp.down": f"{_NOMIC_LAYER}.mlp.fc2",
    "layers.mlp_norm": f"{_NOMIC_LAYER}.norm2",
}
_GTE = _EMBEDDINGS | {
    "embedding_norm": "embeddings.LayerNorm",
    "layers.attention.out": f"{_GTE_LAYER}.attention.o_proj",
    "layers.attention_norm": f"{_GTE_LAYER}.attn_ln",
    "layers.mlp.down": f"{_GTE_LAYER}.mlp.down_proj",
    "layers.mlp_norm": f"{_GTE_LAYER}.mlp_ln",
}
_JINA = _EMBEDDINGS | {
    "norm": "emb_ln",
    "layers.attention.out": f"{_NOMIC_LAYER}.mixer.out_proj",
    "layers.attention_norm": f"{_NOMIC_LAYER}.norm1",
    "layers.up": f"{_NOMIC_LAYER}.mlp.fc1",
    "layers.down": f"{_NOMIC_LAYER}.mlp.fc2",
    "layers.mlp_norm": f"{_NOMIC_LAYER}.norm2",
}
_UP_GATE = [(f"{MLP}.up", Part(0, 0, 2)), (f"{MLP}.gate", Part(0, 1, 2))]


def _table(
    prefix: str,
    names: Mapping[str, str],
    more: tuple[Rule, ...],
    head: Any = bert.POOLER,
    other_prefixes: tuple[str, ...] = (),
) -> Table:
    return Table(
        prefix=prefix,
        other_prefixes=other_prefixes,
        rules=(*rows(names), *more),
        head=head[0],
        head_names=head[1],
        ignore=(*bert.IGNORED, *(() if head is bert.POOLER else (bert.UNUSED_POOLER,))),
        embedding="embeddings.word_embeddings.weight",
    )


def _family(
    prefix_class: str,
    config: Callable[[Fields], DecoderConfig],
    table: Table,
    table_of: Callable[[DecoderConfig], Table] | None = None,
) -> Family:
    return Family(
        name="decoder",
        backbone=Decoder,
        config=config,
        head=lambda _: HeadStyle("CLS", dense="tanh"),
        table=table,
        table_of=table_of,
        prefix_class=prefix_class,
        head_bias=True,
        types=True,
    )


def _with_adapters(table: Table) -> Table:
    """jina-embeddings-v3 as it was first published: adapters of its tasks, which are not read, beside every weight."""
    weights = [rule for rule in table.rules if rule.source.endswith(".weight")]
    original = (replace(rule, source=f"{rule.source[:-7]}.parametrizations.weight.original") for rule in weights)
    ignored = (Ignore(f"{{rest}}.lora_{part}", "an adapter of one task") for part in ("A", "B", "dropout_mask"))
    return replace(table, rules=(*table.rules, *original), ignore=(*table.ignore, *ignored))


_EUROBERT_TABLE = llama_table()

FAMILIES = {
    "eurobert": Family(
        name="decoder",
        backbone=Decoder,
        config=_eurobert,
        head=_eurobert_head,
        table=Table(
            prefix=_EUROBERT_TABLE.prefix,
            rules=_EUROBERT_TABLE.rules,
            head=linear("dense", "head.dense"),
            head_names=("classifier", "score"),
            outside=("dense",),
            ignore=(*_EUROBERT_TABLE.ignore, Ignore("lm_head.{rest}", "masked-language-model head")),
            embedding=_EUROBERT_TABLE.embedding,
        ),
        prefix_class="EuroBert",
        head_bias=True,
    ),
    "gte": _family(
        "Gte",
        lambda fields: _post_norm(fields, bias=True, mlp={"down_bias": True}),
        _table(
            "gte.",
            _GTE,
            (
                *fused(f"{_GTE_LAYER}.attention.qkv_proj", qkv(ATTENTION)),
                *fused(f"{_GTE_LAYER}.mlp.up_gate_proj", _UP_GATE),
            ),
            other_prefixes=("new.",),
        ),
    ),
    "nomic_bert": _family("NomicBert", _nomic, Table(prefix="", rules=()), _nomic_table),
    "jina_embeddings_v3": bert.family(
        "JinaEmbeddingsV3",
        _jina,
        _with_adapters(
            _table("roberta.", _JINA, fused(f"{_NOMIC_LAYER}.mixer.Wqkv", qkv(ATTENTION)), head=bert.CLASSIFIER)
        ),
    ),
}
