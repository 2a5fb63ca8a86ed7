"""The training loop behind ``jaxpool fit``: batches of few shapes, few programs, early stop on the best weights.

Shape letters: N examples, B rows, T tokens, D width, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.programs import Inputs, logits, pad, pooled
from jaxpool.errors import EngineError, ValidationError
from jaxpool.models.classifier import Classifier
from jaxpool.text.tokenizer import Encoded
from jaxpool.training import metrics

Leaves = dict[str, jax.Array]

_POOL = 32  # batches' worth of shuffled examples that are sorted by length together: little padding, enough chance


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. The models have no dropout, so there is none to set.

    Attributes:
        freeze: ``backbone`` trains the head alone, ``embeddings`` all but the token table, ``nothing`` everything.
        epochs: most passes over the data.
        batch_size: texts per step.
        learning_rate: peak of the schedule; None: 1e-3 with a frozen backbone, else 5e-5.
        schedule: how the rate falls after warm-up, down to zero.
        warmup: share of all steps in which the rate rises.
        weight_decay: AdamW's (Loshchilov and Hutter 2017, arXiv:1711.05101), on matrices only.
        clip: largest global norm of a gradient.
        label_smoothing: probability taken from the true label and spread over all.
        balanced: weigh each text by the inverse frequency of its label.
        patience: stop after so many epochs without a better validation macro-F1 (or, at the same macro-F1, a
            lower validation loss); the best weights are kept.
        max_length: longer texts are cut to so many tokens; None: 512 or the model's limit, whichever is less.
        seed: decides the fresh head, the order of the examples and the split.
    """

    freeze: Literal["nothing", "embeddings", "backbone"] = "nothing"
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    label_smoothing: float = 0.0
    balanced: bool = False
    patience: int = 2
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("freeze", self.freeze in ("nothing", "embeddings", "backbone"), "nothing, embeddings or backbone"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "above 0"),
            ("schedule", self.schedule in ("linear", "cosine"), "linear or cosine"),
            ("warmup", 0 <= self.warmup < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip", self.clip > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            ("patience", self.patience >= 1, "at least 1"),
            ("max_length", self.max_length is None or self.max_length >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
        )
        for name, fits, allowed in rules:
            if not fits:
                raise ValidationError(f"{name} must be {allowed}; got {getattr(self, name)!r}.", parameter=name)

    @property
    def peak(self) -> float:
        """The learning rate after warm-up."""
        return self.learning_rate or (1e-3 if self.freeze == "backbone" else 5e-5)


class Examples(Protocol):
    """What is batched: token ids, or pooled vectors where the backbone never changes."""

    lengths: np.ndarray
    """Int64 ``[N]``, by which examples of similar cost are batched together."""

    def batch(self, rows: np.ndarray, size: int) -> Any:
        """The model's input for the examples ``rows``, padded to ``size`` rows."""


class Texts:
    """Token ids, padded to one of few lengths so that few programs are compiled."""

    def __init__(self, encoded: Sequence[Encoded], menu: Sequence[int], *, types: bool) -> None:
        self._ids = [np.asarray(text.ids, np.int32) for text in encoded]
        self._segments = [None if text.types is None else np.asarray(text.types, np.int32) for text in encoded]
        self._menu, self._types = np.sort(np.asarray(menu)), types
        self.lengths = np.array([len(ids) for ids in self._ids])

    def batch(self, rows: np.ndarray, size: int) -> Inputs:
        """``Inputs`` with B = ``size``; missing rows have length 1."""
        length = int(self._menu[np.searchsorted(self._menu, self.lengths[rows].max())])
        ids, segments = [self._ids[i] for i in rows], [self._segments[i] for i in rows]
        return pad(ids, segments, [False] * len(rows), Bucket(size, length), self._types)


class Vectors:
    """Pooled vectors, computed once: what a head on a frozen backbone is trained on."""

    def __init__(self, pooled_ND: np.ndarray) -> None:
        self._pooled_ND = pooled_ND
        self.lengths = np.ones(len(pooled_ND), np.int64)

    def batch(self, rows: np.ndarray, size: int) -> np.ndarray:
        """``[size, D]``; missing rows are zero."""
        x_BD = np.zeros((size, self._pooled_ND.shape[1]), self._pooled_ND.dtype)
        x_BD[: len(rows)] = self._pooled_ND[rows]
        return x_BD


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the training log.

    Attributes:
        number: from 1.
        loss: mean training loss.
        validation_loss: mean cross entropy on the held-out texts, without smoothing or label weights.
        scores: on the held-out texts.
    """

    number: int
    loss: float
    validation_loss: float
    scores: metrics.Scores

    @property
    def merit(self) -> tuple[float, float]:
        """What epochs are compared by: macro-F1, and where that is equal the surer probabilities."""
        return self.scores.macro_f1, -self.validation_loss


class Trainer:
    """Compiled functions of one model: gradient, update, predictions. All state is passed in and out."""

    def __init__(self, model: Classifier, spec: Spec, recipe: Recipe) -> None:
        paths, treedef = list(sharding.parameters(model)), jax.tree.structure(model)
        self.recipe, self.labels = recipe, spec.num_labels
        self.optimiser = _optimiser(recipe)

        def classifier(leaves: Mapping[str, jax.Array]) -> Classifier:
            return jax.tree.unflatten(treedef, [leaves[path] for path in paths])

        def forward(leaves: Mapping[str, jax.Array], batch: Inputs | jax.Array) -> jax.Array:
            if isinstance(batch, Inputs):
                return logits(classifier(leaves), batch, spec)
            return classifier(leaves).head(batch)

        def loss(trained: Leaves, frozen: Leaves, batch: Any, truth_B: jax.Array, weight_B: jax.Array) -> jax.Array:
            target_BC = optax.smooth_labels(jax.nn.one_hot(truth_B, self.labels), recipe.label_smoothing)
            loss_B = optax.softmax_cross_entropy(forward(trained | frozen, batch), target_BC)
            return jnp.sum(loss_B * weight_B) / jnp.sum(weight_B)

        # Two programs, not one: only the gradient depends on the padded length, so the (longer) update is compiled
        # once. The rate is an argument, or else every number of steps would have its own program.
        self.gradient = jax.jit(jax.value_and_grad(loss))

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(trained: Leaves, state: Any, gradient: Leaves, rate: jax.Array) -> tuple[Leaves, Any]:
            change, state = self.optimiser.update(gradient, state, trained)
            return jax.tree.map(lambda leaf, delta: leaf - rate * delta, trained, change), state

        self.update = update
        self.predict = jax.jit(lambda leaves, batch: jax.nn.log_softmax(forward(leaves, batch)))
        self.pooled = jax.jit(
            lambda leaves, batch: pooled(classifier(leaves).backbone(batch.ids, batch.types, batch.layout), batch, spec)
        )

    def over(self, run: Callable[[Any, Any], jax.Array], leaves: Leaves, examples: Examples, note: str) -> np.ndarray:
        """``run(leaves, batch)`` for all examples, in their order: ``[N, …]``."""
        order, size = np.argsort(-examples.lengths, kind="stable"), self.recipe.batch_size
        parts = []
        for start in _bar(range(0, len(order), size), note):
            rows = order[start : start + size]
            parts.append(np.asarray(run(leaves, examples.batch(rows, size)))[: len(rows)])
        joined = np.concatenate(parts)
        result = np.empty_like(joined)
        result[order] = joined
        return result


def train(
    trainer: Trainer,
    leaves: Leaves,
    training: tuple[Examples, np.ndarray],
    validation: tuple[Examples, np.ndarray],
    log: Callable[[str], object],
) -> tuple[Leaves, list[Epoch], int]:
    """Trains, and returns the weights of the best epoch.

    Args:
        trainer: from the same recipe.
        leaves: all parameters, by dotted path.
        training: examples and their int32 label indices.
        validation: likewise; decides which epoch is best.
        log: gets one line per epoch.

    Returns:
        All parameters, the log, and the number of the best epoch.

    Raises:
        EngineError: the loss is not finite any more.
    """
    recipe = trainer.recipe
    # Copies, so that what the update overwrites is ours, and as jit's own outputs are placed: else the second call
    # would find arguments of another kind than the first, and compile again.
    leaves = {path: jnp.array(np.asarray(leaf)) for path, leaf in leaves.items()}
    trained = {path: leaf for path, leaf in leaves.items() if not _frozen(path, recipe)}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    state = trainer.optimiser.init(trained)
    examples, truth = training
    label_weight = _label_weight(truth, trainer.labels, recipe)
    schedule = iter(rates(recipe, recipe.epochs * len(_order(examples.lengths, recipe, 1))))
    history: list[Epoch] = []
    best: dict[str, np.ndarray] = {}
    best_epoch = 0
    for number in range(1, recipe.epochs + 1):
        losses = []
        for rows in _bar(_order(examples.lengths, recipe, number), f"epoch {number}/{recipe.epochs}"):
            truth_B, weight_B = np.zeros(recipe.batch_size, np.int32), np.zeros(recipe.batch_size, np.float32)
            truth_B[: len(rows)], weight_B[: len(rows)] = truth[rows], label_weight[truth[rows]]
            batch = examples.batch(rows, recipe.batch_size)
            value, gradient = trainer.gradient(trained, frozen, batch, truth_B, weight_B)
            trained, state = trainer.update(trained, state, gradient, next(schedule))
            losses.append(value)
        loss = float(np.mean(jax.device_get(losses)))
        if not math.isfinite(loss):
            raise EngineError(
                f"Training diverged: the loss of epoch {number} is {loss}. "
                f"Lower the learning rate (now {recipe.peak:g})."
            )
        log_p_NC = trainer.over(trainer.predict, trained | frozen, validation[0], "validation")
        scores = metrics.score(validation[1], log_p_NC.argmax(-1), trainer.labels)
        held_loss = -float(np.mean(np.take_along_axis(log_p_NC, validation[1][:, None], -1)))
        history.append(Epoch(number, loss, held_loss, scores))
        better = not best or history[-1].merit > history[best_epoch - 1].merit
        if better:
            best, best_epoch = {path: np.array(leaf) for path, leaf in trained.items()}, number
        log(
            f"epoch {number}: loss {loss:.4f}, validation loss {held_loss:.4f}, accuracy {scores.accuracy:.4f}, "
            f"macro-F1 {scores.macro_f1:.4f}{' *' if better else ''}"
        )
        if number - best_epoch >= recipe.patience:
            log(f"stopped: no better in {recipe.patience} epochs")
            break
    return {path: jnp.asarray(best[path]) if path in best else frozen[path] for path in leaves}, history, best_epoch


def _order(lengths: np.ndarray, recipe: Recipe, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: every example once, similar lengths together, in an order of chance."""
    rng = np.random.default_rng([recipe.seed, epoch])
    shuffled = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(shuffled), _POOL * recipe.batch_size):
        part = shuffled[start : start + _POOL * recipe.batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + recipe.batch_size] for i in range(0, len(part), recipe.batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW but for the learning rate, which the step takes as an argument."""
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.scale_by_adam(),
        # By name: in stacked layers a bias is a matrix too.
        optax.add_decayed_weights(
            recipe.weight_decay, lambda leaves: {path: path.endswith((".kernel", ".table")) for path in leaves}
        ),
    )


def rates(recipe: Recipe, steps: int) -> np.ndarray:
    """The learning rate of every step, float32 ``[steps]``: up to the peak, then down to almost zero."""
    warm = round(recipe.warmup * steps)
    rise = np.arange(1, warm + 1) / (warm + 1)
    left = 1 - np.arange(steps - warm) / max(1, steps - warm)
    fall = left if recipe.schedule == "linear" else 0.5 - 0.5 * np.cos(np.pi * left)
    return (recipe.peak * np.concatenate([rise, fall])).astype(np.float32)


def _frozen(path: str, recipe: Recipe) -> bool:
    prefix = {"nothing": "/", "embeddings": "backbone.tokens.", "backbone": "backbone."}[recipe.freeze]
    return path.startswith(prefix)


def _label_weight(truth: np.ndarray, labels: int, recipe: Recipe) -> np.ndarray:
    if not recipe.balanced:
        return np.ones(labels, np.float32)
    counts = np.bincount(truth, minlength=labels)
    return (len(truth) / (labels * np.maximum(counts, 1))).astype(np.float32)


def _bar(items: Sequence[Any], note: str) -> Any:
    return tqdm(items, desc=note, leave=False, disable=None)  # None: only where there is a terminal
