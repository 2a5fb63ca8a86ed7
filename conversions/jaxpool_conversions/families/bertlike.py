"""Relatives of BERT that run on its backbone with other settings: each is a config function and changed names."""

from __future__ import annotations

from jaxpool.models.bert import BertConfig
from jaxpool_conversions.families.bert import CLASSIFIER, config, family, padding, table
from jaxpool_conversions.families.fields import Fields


def _roberta(fields: Fields) -> BertConfig:
    return config(fields, padding_id=padding(fields))


FAMILIES = {
    "roberta": family("Roberta", _roberta, table("roberta.", head=CLASSIFIER)),
    "xlm-roberta": family("XLMRoberta", _roberta, table("roberta.", head=CLASSIFIER)),
    "camembert": family("Camembert", _roberta, table("roberta.", head=CLASSIFIER)),
    "data2vec-text": family("Data2VecText", _roberta, table("data2vec_text.", head=CLASSIFIER)),
}
