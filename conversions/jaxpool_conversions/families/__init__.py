"""The families: for each ``model_type``, a config mapping and a conversion table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxpool.errors import UnsupportedArchitectureError
from jaxpool.models.classifier import Backbone
from jaxpool.pooling import Pooling
from jaxpool_conversions.families.fields import Fields
from jaxpool_conversions.rules import Table


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one ``model_type`` become a classifier.

    Attributes:
        name: the family, a module of ``jaxpool.models``.
        backbone: the NNX module class.
        config: reads Hugging Face fields into the family's config dataclass.
        table: conversion rules.
        pooling: how its sequence classifiers pool unless the user says otherwise.
        dense: activation of the head's dense layer, or None.
        head_bias: whether a freshly made head has a bias.
        positions: most positions the backbone can embed, or None if the config's limit is only advice.
        types: whether the backbone reads segment types (pairs).
        prefix_class: start of the Hugging Face class names (``Bert`` of ``BertForSequenceClassification``).
    """

    name: str
    backbone: Backbone
    config: Callable[[Fields], Any]
    table: Table
    pooling: Pooling
    prefix_class: str
    dense: str | None = None
    head_bias: bool = False
    types: bool = False


def families() -> dict[str, Family]:
    """All families by ``model_type``."""
    from jaxpool_conversions.families import bert, decoder, gpt2

    return {**bert.FAMILIES, **gpt2.FAMILIES, **decoder.FAMILIES}


def find(model_type: str, architecture: str | None = None) -> Family:
    """The family of a ``model_type``.

    Raises:
        UnsupportedArchitectureError: naming the architecture and what is supported.
    """
    known = families()
    if model_type not in known:
        name = f"{architecture} (model_type {model_type!r})" if architecture else f"model_type {model_type!r}"
        raise UnsupportedArchitectureError(
            f"{name} is not supported yet. Supported model types: {', '.join(sorted(known))}."
        )
    return known[model_type]
