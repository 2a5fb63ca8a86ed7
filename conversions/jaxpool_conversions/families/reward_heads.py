"""Reward models with a head of their own on every token: two linear layers and a ReLU between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxpool_conversions.families import Family, HeadStyle
from jaxpool_conversions.families.table_rows import linear


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
