"""Relatives of BERT that run on its backbone with other settings: each is a config function and changed names."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from jaxpool.models.bert import BertConfig
from jaxpool_conversions.families.bert import CLASSIFIER, LAYER, NAMES, config, family, padding, table
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.families.decoder_tables import fused, qkv
from jaxpool_conversions.families.table_rows import linear, rows
from jaxpool_conversions.rules import Ignore, Table


def _roberta(fields: Fields, **changes: bool) -> BertConfig:
    return config(fields, padding_id=padding(fields), **changes)


def _distilbert(fields: Fields) -> BertConfig:
    fields.get("sinusoidal_pos_embds")  # how the table of positions was initialised; it is stored
    return config(
        fields,
        types=0,
        width=fields.get("dim"),
        layers=fields.get("n_layers"),
        heads=fields.get("n_heads"),
        mlp=fields.get("hidden_dim"),
        activation=fields.get("activation"),
        norm_eps=1e-12,
    )


_DISTIL = "transformer.layer.{layer}"
_DISTILBERT = NAMES | {
    "layers.attention.query": f"{_DISTIL}.attention.q_lin",
    "layers.attention.key": f"{_DISTIL}.attention.k_lin",
    "layers.attention.value": f"{_DISTIL}.attention.v_lin",
    "layers.attention.out": f"{_DISTIL}.attention.out_lin",
    "layers.attention_norm": f"{_DISTIL}.sa_layer_norm",
    "layers.up": f"{_DISTIL}.ffn.lin1",
    "layers.down": f"{_DISTIL}.ffn.lin2",
    "layers.mlp_norm": f"{_DISTIL}.output_layer_norm",
}


def _electra(fields: Fields) -> BertConfig:
    for name in ("summary_type", "summary_use_proj", "summary_activation"):  # of the multiple-choice model only
        fields.get(name)
    narrow = fields.get("embedding_size")
    return config(fields, embed_width=None if narrow == fields.get("hidden_size") else narrow)


def _albert(fields: Fields) -> BertConfig:
    inner = fields.get("inner_group_num")
    return config(fields, embed_width=fields.get("embedding_size"), shared=fields.get("num_hidden_groups"), inner=inner)


def _albert_table(config: BertConfig) -> Table:
    """A group's layers run one after the other wherever the group does; each has rows of its own."""
    whole = table(
        "albert.",
        _ALBERT,
        head=(linear("pooler", "head.dense"), ("classifier",)),
        ignore=(
            Ignore("predictions.{rest}", "masked-language-model head"),
            Ignore("sop_classifier.{rest}", "sentence-order head"),
        ),
    )
    count, of_all = config.inner, tuple(rule for rule in whole.rules if "{layer}" not in rule.source)
    layers = (rule for rule in whole.rules if "{layer}" in rule.source)
    each = (
        replace(rule, source=rule.source.replace("albert_layers.0", f"albert_layers.{i}"), every=count, first=i)
        for rule in layers
        for i in range(count)
    )
    return replace(whole, rules=(*of_all, *each))


_GROUP = "encoder.albert_layer_groups.{layer}.albert_layers.0"
_ALBERT = NAMES | {
    "project": "encoder.embedding_hidden_mapping_in",
    "layers.attention.query": f"{_GROUP}.attention.query",
    "layers.attention.key": f"{_GROUP}.attention.key",
    "layers.attention.value": f"{_GROUP}.attention.value",
    "layers.attention.out": f"{_GROUP}.attention.dense",
    "layers.attention_norm": f"{_GROUP}.attention.LayerNorm",
    "layers.up": f"{_GROUP}.ffn",
    "layers.down": f"{_GROUP}.ffn_output",
    "layers.mlp_norm": f"{_GROUP}.full_layer_layer_norm",
}


def _mpnet(fields: Fields) -> BertConfig:
    fields.require("relative_attention_num_buckets", 32)  # transformers computes 32, whatever the table holds
    return config(fields, types=0, padding_id=1, relative=32)  # 1 as well, whatever pad_token_id says


_MPNET = NAMES | {
    "relative": "encoder.relative_attention_bias",
    "layers.attention.query": f"{LAYER}.attention.attn.q",
    "layers.attention.key": f"{LAYER}.attention.attn.k",
    "layers.attention.value": f"{LAYER}.attention.attn.v",
    "layers.attention.out": f"{LAYER}.attention.attn.o",
    "layers.attention_norm": f"{LAYER}.attention.LayerNorm",
}


def _ernie(fields: Fields) -> BertConfig:
    task_types = fields.get("task_type_vocab_size")
    return config(fields, extra=task_types if fields.get("use_task_id") else 0)


def _rembert(fields: Fields) -> BertConfig:
    fields.get("output_embedding_size")  # of the masked-language-model head
    return config(fields, embed_width=fields.get("input_embedding_size"))


def _luke(fields: Fields) -> BertConfig:
    for name in ("entity_vocab_size", "entity_emb_size", "use_entity_aware_attention"):  # texts come without entities
        fields.get(name)
    return _roberta(fields)


def _ibert(fields: Fields) -> BertConfig:
    fields.require("quant_mode", False)
    fields.get("force_dequant")  # which parts stay in float in quant mode
    fields.require("hidden_act", "gelu")
    return _roberta(fields)


_IBERT_BUFFERS = (
    "weight_integer", "weight_scaling_factor", "bias_integer", "fc_scaling_factor", "act_scaling_factor", "x_min",
    "x_max", "shift",
)  # fmt: skip

_MEGATRON = NAMES | {
    "layers.attention_norm": f"{LAYER}.attention.ln",
    "layers.mlp_norm": f"{LAYER}.ln",
    "final_norm": "encoder.ln",
}
_PRELAYERNORM = NAMES | {
    "layers.attention_norm": f"{LAYER}.attention.LayerNorm",
    "layers.mlp_norm": f"{LAYER}.intermediate.LayerNorm",
    "final_norm": "LayerNorm",
}
_XLM_ROBERTA_XL = NAMES | {
    "layers.attention_norm": f"{LAYER}.attention.self_attn_layer_norm",
    "layers.mlp_norm": f"{LAYER}.LayerNorm",
    "final_norm": "encoder.LayerNorm",
}

_ROBERTA_TABLE = table("roberta.", head=CLASSIFIER)

_FLASH = "encoder.layers.{layer}"
_FLASH_NAMES = {
    "norm": "emb_ln",
    "layers.attention.out": f"{_FLASH}.mixer.out_proj",
    "layers.attention_norm": f"{_FLASH}.norm1",
    "layers.up": f"{_FLASH}.mlp.fc1",
    "layers.down": f"{_FLASH}.mlp.fc2",
    "layers.mlp_norm": f"{_FLASH}.norm2",
}
"""XLM-RoBERTa's modules under the names of Jina's own code (jina-reranker-v2)."""
_XLM_ROBERTA_TABLE = replace(
    _ROBERTA_TABLE,
    rules=(
        *_ROBERTA_TABLE.rules,
        *rows(_FLASH_NAMES),
        *fused(f"{_FLASH}.mixer.Wqkv", qkv("backbone.layers.attention")),
    ),
)

FAMILIES = {
    "roberta": family("Roberta", _roberta, _ROBERTA_TABLE),
    "xlm-roberta": family("XLMRoberta", _roberta, _XLM_ROBERTA_TABLE),
    "camembert": family("Camembert", _roberta, _ROBERTA_TABLE),
    "data2vec-text": family("Data2VecText", _roberta, table("data2vec_text.", head=CLASSIFIER)),
    "distilbert": family(
        "DistilBert",
        _distilbert,
        replace(
            table(
                "distilbert.",
                _DISTILBERT,
                head=(linear("pre_classifier", "head.dense"), ("classifier",)),
                ignore=(Ignore("vocab_{rest}", "masked-language-model head"),),
            ),
            outside=("pre_classifier",),
        ),
        dense="relu",
        types=False,
    ),
    "electra": family(
        "Electra",
        _electra,
        table(
            "electra.",
            NAMES | {"project": "embeddings_project"},
            head=CLASSIFIER,
            ignore=(
                Ignore("discriminator_predictions.{rest}", "head of pretraining"),
                Ignore("generator_{rest}", "head of pretraining"),
            ),
        ),
        dense="gelu",
    ),
    "albert": replace(family("Albert", _albert, table("albert.", _ALBERT)), table_of=_albert_table),
    "mpnet": family("MPNet", _mpnet, table("mpnet.", _MPNET, head=CLASSIFIER), types=False),
    "ernie": family("Ernie", _ernie, table("ernie.", NAMES | {"extra": "embeddings.task_type_embeddings"})),
    "megatron-bert": family(
        "MegatronBert", partial(config, pre_norm=True, embed_norm=False), table("bert.", _MEGATRON)
    ),
    "roberta-prelayernorm": family(
        "RobertaPreLayerNorm",
        partial(_roberta, pre_norm=True),
        table("roberta_prelayernorm.", _PRELAYERNORM, head=CLASSIFIER),
    ),
    "xlm-roberta-xl": family(
        "XLMRobertaXL",
        partial(_roberta, pre_norm=True, embed_norm=False),
        table("roberta.", _XLM_ROBERTA_XL, head=CLASSIFIER),
    ),
    "rembert": family(
        "RemBert", _rembert, table("rembert.", NAMES | {"project": "encoder.embedding_hidden_mapping_in"})
    ),
    "luke": family(
        "Luke",
        _luke,
        table(
            "luke.",
            ignore=(
                Ignore("entity_{rest}", "for entity inputs, which texts come without"),
                *(
                    Ignore(f"{LAYER}.attention.self.{x}_query.{{rest}}", "for entity inputs")
                    for x in ("w2e", "e2w", "e2e")
                ),
            ),
        ),
    ),
    "ibert": family(
        "IBert",
        _ibert,
        table(
            "ibert.",
            head=CLASSIFIER,
            ignore=tuple(Ignore(f"{{rest}}.{name}", "a buffer of quant mode") for name in _IBERT_BUFFERS),
        ),
    ),
}
