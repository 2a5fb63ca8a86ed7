"""Adapters beside a checkpoint: where one is, what it makes of the model's labels, and how it answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from jaxpool.checkpoints.labels import PROBLEM_TYPES, Problem, activation_of, config_field, label_names, problem_of
from jaxpool.checkpoints.location import label_map, locate
from jaxpool.ops.pooling import Activation
from jaxpool_conversions.families import find
from jaxpool_conversions.peft_folder import CONFIG, PeftAdapter, read_peft
from jaxpool_conversions.rules import Table

CLASSES = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""PEFT's ``task_type`` -> end of the name of the class that the adapter was trained with."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What logits mean: names of the labels, what becomes of logits, and whether labels exclude one another."""

    labels: tuple[str, ...]
    activation: Activation
    problem: Problem


def open_adapter(
    path: str | os.PathLike[str],
    *,
    token: bool | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PeftAdapter:
    """Reads the adapter in a folder, or of a hub id; errors as ``locate`` and ``read_peft``."""
    return read_peft(locate(path, token=token, cache_dir=cache_dir, holds=CONFIG))


def own_labels(adapter: PeftAdapter, table: Table) -> int | None:
    """How many labels the adapter's own head has; None where it has none."""
    for name, values in adapter.replaced.items():
        if name.endswith(".weight") and name.removesuffix(".weight") in table.head_names:
            return len(values)
    return None


def answers(adapter: PeftAdapter, table: Table, base: Answers) -> Answers:
    """How the adapter's logits are to be read.

    PEFT keeps no labels. A ``config.json`` in the adapter's folder says them, if it has as many as the head; else the
    base model's names and activation hold where the counts agree.
    """
    count = own_labels(adapter, table)
    own = dict(adapter.config)
    names = own.get("id2label")
    if isinstance(names, Mapping) and len(names) == (len(base.labels) if count is None else count):
        said = SimpleNamespace(id2label=label_map(names), problem_type=own.get("problem_type"))
        activation = activation_of(said) if said.problem_type else base.activation
        problem = problem_of(said) if said.problem_type else base.problem
        if not said.problem_type and count != len(base.labels):
            activation, problem = "classify", "single"
        return Answers(label_names(said, len(names)), activation, problem)
    if count is None or count == len(base.labels):
        return base
    return Answers(tuple(f"LABEL_{i}" for i in range(count)), "classify", "single")


def as_classifier(config: Any) -> None:
    """Has a base model read texts as the class that its adapters were trained with."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if not architecture.endswith(tuple(CLASSES.values())) and not config_field(config, "classifier_from_token"):
        config.architectures = [find(config.model_type, architecture or None).prefix_class + CLASSES["SEQ_CLS"]]


def adapt(config: Any, adapter: PeftAdapter) -> None:
    """Changes the config of a base model into that of the model which the adapter is merged into."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    family = find(config.model_type, architecture or None)
    end = CLASSES.get(adapter.task or "", "")
    if end and not architecture.endswith(end):
        config.architectures = [family.prefix_class + end]
    count = own_labels(adapter, family.table)
    if count is None and not adapter.config:
        return
    base = Answers(label_names(config, config.num_labels), activation_of(config), problem_of(config))
    meant = answers(adapter, family.table, base)
    if meant.problem != base.problem or len(meant.labels) != len(base.labels):
        config.problem_type = PROBLEM_TYPES[meant.problem] if meant.problem != "single" else None
    config.num_labels = len(meant.labels)
    config.id2label = dict(enumerate(meant.labels))
    config.label2id = {label: index for index, label in config.id2label.items()}
