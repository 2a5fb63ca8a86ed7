"""How to train: every choice with its default, and what "automatic" means for so and so many texts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxpool.errors import ValidationError

FEW = 2000
"""Up to so many training texts the head is solved, after a few steps on pairs, unless the recipe says otherwise."""

UNBALANCED = 3.0
"""From this ratio of the most to the least frequent label on, labels are weighed."""

_STEPS = 300  # updates that training gets at least, however few the texts
_MOST_EPOCHS = 30
_CONTRAST = 60  # steps on pairs


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. The models have no dropout, so there is none to set. None is "automatic", see ``settled``.

    Attributes:
        freeze: ``backbone`` solves the head alone, ``embeddings`` trains all but the token table, ``nothing``
            everything.
        lora: rank of an adapter to train instead of the weights, which stay as they are; None trains weights.
        contrast: steps on pairs of texts before a fresh head is solved, kept where cross-validation says that they
            help; 0 for none.
        contrast_rate: peak of the learning rate of these steps.
        epochs: most passes over the data.
        batch_size: texts per step.
        learning_rate: peak of the schedule; None is 5e-5, and 2e-4 for an adapter.
        schedule: how the rate falls after warm-up, down to zero.
        warmup: share of all steps in which the rate rises.
        weight_decay: AdamW's (Loshchilov and Hutter 2017, arXiv:1711.05101), on matrices only.
        clip: largest global norm of a gradient.
        label_smoothing: probability taken from the true label and spread over all.
        balanced: weigh each text by the inverse frequency of its label.
        patience: stop after so many epochs in which neither the validation loss nor the macro-F1 (R² of numbers) got
            better; the weights with the least validation loss are kept.
        folds: parts of a cross-validation, where no validation texts are given; 0 holds out one part instead.
        max_length: longer texts are cut to so many tokens.
        seed: decides the fresh head, the order of the examples and the split.
    """

    freeze: Literal["nothing", "embeddings", "backbone"] | None = None
    lora: int | None = None
    contrast: int | None = None
    contrast_rate: float = 3e-5
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    label_smoothing: float = 0.0
    balanced: bool | None = None
    patience: int | None = None
    folds: int | None = None
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("freeze", self.freeze in (None, "nothing", "embeddings", "backbone"), "nothing, embeddings or backbone"),
            ("contrast", self.contrast is None or self.contrast >= 0, "at least 0"),
            ("contrast_rate", self.contrast_rate > 0, "above 0"),
            ("epochs", self.epochs is None or self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("lora", self.lora is None or self.lora >= 1, "at least 1"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "above 0"),
            ("schedule", self.schedule in ("linear", "cosine"), "linear or cosine"),
            ("warmup", 0 <= self.warmup < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip", self.clip > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1"),
            ("folds", self.folds is None or self.folds == 0 or self.folds >= 2, "0, or at least 2"),
            ("max_length", self.max_length is None or self.max_length >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
        )
        for name, fits, allowed in rules:
            if not fits:
                raise ValidationError(f"{name} must be {allowed}; got {getattr(self, name)!r}.", parameter=name)

    @property
    def rate(self) -> float:
        """Peak of the learning rate."""
        return self.learning_rate or (5e-5 if self.lora is None else 2e-4)

    def settled(self, texts: int, counts: dict[str, int]) -> Recipe:
        """The recipe with nothing left to decide.

        Args:
            texts: number of training texts.
            counts: texts per label; empty for a regression.

        Returns:
            A solved head for up to ``FEW`` texts, unless epochs were asked for, and 60 steps on pairs before, unless a
            frozen backbone was asked for; else 3 epochs, or as many (30 at most) as make 300 steps; a third of them for
            patience, 2 at least; 3 folds with pairs, 5 with a frozen backbone or (without pairs) up to 200 texts;
            weights by label where one is ``UNBALANCED`` times as frequent as another.

        Raises:
            ValidationError: options contradict each other.
        """
        if self.contrast and (self.freeze is not None or self.epochs is not None):
            raise ValidationError(
                "contrast teaches the whole model and then solves the head, so it goes with neither freeze nor epochs; "
                "leave them out, or set contrast to 0.",
                parameter="contrast",
            )
        if self.lora is not None and (self.contrast or self.freeze not in (None, "nothing")):
            raise ValidationError(
                "An adapter leaves all weights as they are and is trained itself, so lora goes with neither freeze nor "
                "contrast; leave them out.",
                parameter="lora",
            )
        few = self.lora is None and self.freeze is None and texts <= FEW and self.epochs is None
        freeze = "backbone" if few or self.contrast else self.freeze or "nothing"
        contrast = self.contrast if self.contrast is not None else _CONTRAST if few and counts else 0
        steps = math.ceil(texts / self.batch_size)
        epochs = self.epochs or min(_MOST_EPOCHS, max(3, math.ceil(_STEPS / steps)))
        present = [count for count in counts.values() if count]
        unbalanced = bool(present) and max(present) >= UNBALANCED * min(present)
        folds = self.folds
        if folds is None:
            folds = 3 if contrast else 5 if freeze == "backbone" or texts <= 200 else 0
        return replace(
            self,
            freeze=freeze,
            contrast=contrast,
            epochs=epochs,
            patience=self.patience or max(2, math.ceil(epochs / 3)),
            balanced=unbalanced if self.balanced is None else self.balanced,
            folds=folds,
        )


def label_weights(targets: np.ndarray, labels: int, recipe: Recipe) -> np.ndarray:
    """Weight of every text, float32 ``[N]``: 1, or the inverse frequency of its label, 1 on average.

    A text of several labels has the mean of their weights.
    """
    if not recipe.balanced or (targets.ndim == 2 and labels == 1):
        return np.ones(len(targets), np.float32)
    held_NC = targets if targets.ndim == 2 else np.eye(labels)[targets]
    weight_C = len(targets) / (labels * np.maximum(held_NC.sum(0), 1))
    weight_N = held_NC @ weight_C / np.maximum(held_NC.sum(-1), 1)
    weight_N[held_NC.sum(-1) == 0] = 1
    return np.asarray(weight_N / weight_N.mean(), np.float32)


def rates(recipe: Recipe, steps: int) -> np.ndarray:
    """The learning rate of every step, float32 ``[steps]``: up to the peak, then down to almost zero."""
    warm = round(recipe.warmup * steps)
    rise = np.arange(1, warm + 1) / (warm + 1)
    left = 1 - np.arange(steps - warm) / max(1, steps - warm)
    fall = left if recipe.schedule == "linear" else 0.5 - 0.5 * np.cos(np.pi * left)
    return (recipe.rate * np.concatenate([rise, fall])).astype(np.float32)
