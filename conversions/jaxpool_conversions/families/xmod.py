"""X-MOD checkpoints: RoBERTa with an adapter per language, of which the config's default language is used."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxpool.errors import ConfigError
from jaxpool.models.adapter import AdapterConfig
from jaxpool.models.bert import BertConfig
from jaxpool_conversions.families.bert import CLASSIFIER, LAYER, NAMES, config, family, padding, table
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.rules import Ignore, Table


def _config(fields: Fields) -> BertConfig:
    language, languages = fields.get("default_language"), fields.get("languages")
    if language not in languages:
        raise ConfigError(
            f"config.json sets default_language={language!r}; set it to the language of the texts, "
            f"one of {', '.join(languages)}."
        )
    norm: Literal["own", "layer", "none"] = "layer" if fields.get("adapter_reuse_layer_norm") else "none"
    adapter = AdapterConfig(
        language=language,
        width=fields.get("hidden_size"),
        narrow=fields.get("hidden_size") // fields.get("adapter_reduction_factor"),
        activation=fields.get("hidden_act"),
        norm="own" if fields.get("adapter_layer_norm") else norm,
        norm_eps=fields.get("layer_norm_eps"),
        add_normed=fields.get("ln_before_adapter"),
    )
    return config(fields, padding_id=padding(fields), pre_norm=fields.get("pre_norm"), adapter=adapter)


def _table(ours: BertConfig) -> Table:
    assert ours.adapter is not None
    adapter = f"{LAYER}.output.adapter_modules.{ours.adapter.language}"
    names = NAMES | {
        "final_norm": "encoder.LayerNorm",
        "layers.adapter.norm": f"{LAYER}.output.adapter_layer_norm",
        "layers.adapter.down": f"{adapter}.dense1",
        "layers.adapter.up": f"{adapter}.dense2",
    }
    others = Ignore(f"{LAYER}.output.adapter_modules.{{rest}}", "adapter of another language")
    return table("roberta.", names, head=CLASSIFIER, ignore=(others,))


FAMILIES = {
    "xmod": dataclasses.replace(family("Xmod", _config, table("roberta.", head=CLASSIFIER)), table_of=_table),
}
