"""The families: for each ``model_type``, a config mapping, a head style and a conversion table.

Every module of this package that has a ``FAMILIES`` dict is found by itself; adding a file adds a family. Files are
named for the best known of their models; ``conversions/FAMILIES.md`` lists every model type with its file.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from jaxpool.errors import UnsupportedArchitectureError
from jaxpool.models.classifier import Backbone
from jaxpool.ops.pooling import Pooling
from jaxpool_conversions.families.config_fields import Fields
from jaxpool_conversions.rules import Table


@dataclass(frozen=True, slots=True)
class HeadStyle:
    """How the sequence classifier of transformers gets from hidden states to logits.

    Attributes:
        pooling: which vector of a row it reads, unless the user says otherwise. NOT_PAD is what decoders' classes do;
            it is LAST for whatever was not trained as such a class, and where the config names no padding token.
        dense: activation of a dense layer before the last linear layer, or None for no dense layer.
        dense_bias: whether that layer has a bias.
        norm_eps: epsilon of a LayerNorm after the activation, or None for no norm.
        norm_bias: whether that norm has a bias.
        eos_token: the token whose last occurrence ``pooling="EOS"`` reads, or None.
        late: whether the head reads every token, and logits are pooled instead of hidden states (EuroBERT).
        use_activation: whether scores leave activated where neither the user nor the request says; reward models
            answer raw scores.
        embedding: what embeddings pool, where it is not ``pooling``.
        token_dense: whether a classifier of tokens has the layers before the last one, too.
    """

    pooling: Pooling
    dense: str | None = None
    dense_bias: bool = True
    norm_eps: float | None = None
    norm_bias: bool = True
    eos_token: int | None = None
    late: bool = False
    use_activation: bool = True
    embedding: Pooling | None = None
    token_dense: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one ``model_type`` become a classifier.

    Attributes:
        name: the family, a module of ``jaxpool.models``.
        backbone: the NNX module class.
        config: reads Hugging Face fields into the family's config dataclass.
        head: reads Hugging Face fields into the head's style.
        table: conversion rules.
        table_of: where the rules depend on sizes: makes them from the config dataclass, in place of ``table``.
        prefix_class: start of the Hugging Face class names (``Bert`` of ``BertForSequenceClassification``).
        head_bias: whether a freshly made last linear layer has a bias.
        types: whether the backbone reads segment types (pairs).
        packs: whether rows may hold several texts; not where the model itself shortens rows (Funnel).
    """

    name: str
    backbone: Backbone
    config: Callable[[Fields], Any]
    head: Callable[[Fields], HeadStyle]
    table: Table
    prefix_class: str
    head_bias: bool = False
    types: bool = False
    packs: bool = True
    table_of: Callable[[Any], Table] | None = None


@cache
def _located() -> dict[str, tuple[str, Family]]:
    """``model_type`` -> (module of this package, family)."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    tables = {name: getattr(import_module(f"{__name__}.{name}"), "FAMILIES", {}) for name in names}
    return {kind: (name, family) for name, table in tables.items() for kind, family in table.items()}


@cache
def families() -> dict[str, Family]:
    """All families by ``model_type``."""
    return {kind: family for kind, (_, family) in _located().items()}


def file_of(model_type: str) -> str:
    """Name of the file in this folder that holds a model type, for the index ``conversions/FAMILIES.md``."""
    return f"{_located()[model_type][0]}.py"


def find(model_type: str, architecture: str | None = None) -> Family:
    """The family of a ``model_type``.

    Raises:
        UnsupportedArchitectureError: naming the architecture and what is supported.
    """
    known = families()
    if model_type not in known:
        from jaxpool_conversions.families.not_yet import NOT_YET

        reason = f", because {NOT_YET[model_type]}" if model_type in NOT_YET else ""
        name = f"{architecture} (model_type {model_type!r})" if architecture else f"model_type {model_type!r}"
        raise UnsupportedArchitectureError(
            f"{name} is not supported yet{reason}. Supported model types: {', '.join(sorted(known))}."
        )
    return known[model_type]
