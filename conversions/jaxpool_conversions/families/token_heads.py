"""Heads on every token that belong to a class, not to its family: reward models, BERT as a masked language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.table_rows import linear, norm


@dataclass(frozen=True, slots=True)
class Reward:
    """What such a class fixes, whatever the config says.

    Attributes:
        labels: scores of a token.
        use_activation: whether they leave as probabilities, unless asked otherwise.
        step_token: the token whose scores are kept, unless asked otherwise; None for every token.
    """

    labels: int
    use_activation: bool
    step_token: int | None


REWARDS = {
    "Qwen2ForRewardModel": Reward(1, use_activation=False, step_token=None),
    "Qwen2ForProcessRewardModel": Reward(2, use_activation=True, step_token=151651),
}
"""Architecture -> its head, as vLLM has it."""


def with_reward_head(family: Family, style: HeadStyle, reward: Reward) -> tuple[Family, HeadStyle]:
    """The family with the head ``score.0``, ReLU, ``score.2`` in place of its own."""
    table = replace(family.table, head=linear("score.0", "head.dense"), head_names=("score.2",))
    style = replace(style, dense="relu", token_dense=True, use_activation=reward.use_activation)
    return replace(family, table=table), style


def with_masked_head(family: Family, style: HeadStyle, config: Any) -> tuple[Family, HeadStyle]:
    """The family with BERT's head of masked language models: a dense layer, a norm, and a row per token.

    The rows are those of the token embedding where the file does not hold them again. ``config`` is the family's own.
    """
    top = "cls.predictions"
    table = replace(
        family.table,
        head=(
            *linear(f"{top}.transform.dense", "head.dense"),
            *norm(f"{top}.transform.LayerNorm", "head.norm"),
        ),
        head_names=(f"{top}.decoder", family.table.embedding.removesuffix(".weight")),
        head_bias=f"{top}.bias",
        outside=(*family.table.outside, "cls"),
    )
    style = replace(style, dense=config.activation, norm_eps=config.norm_eps, token_dense=True)
    return replace(family, table=table), style
