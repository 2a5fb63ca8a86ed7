"""The training loop behind ``jaxpool fit``: batches of few shapes, few programs, early stop on the best weights.

Shape letters: N examples, B rows, T tokens, D width, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.batches import Inputs, pad
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.programs import logits, pooled
from jaxpool.errors import EngineError
from jaxpool.models.classifier import Classifier
from jaxpool.text.tokenizer import Encoded
from jaxpool.training import adapter, metrics
from jaxpool.training.recipe import Recipe, label_weights, rates
from jaxpool.training.solved_head import log_likelihood

Leaves = dict[str, jax.Array]

_POOL = 32  # batches' worth of shuffled examples that are sorted by length together: little padding, enough chance


class Texts:
    """Token ids, padded to one of few lengths so that few programs are compiled.

    Attributes:
        lengths: int64 ``[N]``, by which texts of similar cost are batched together.
    """

    def __init__(self, encoded: Sequence[Encoded], menu: Sequence[int], *, types: bool) -> None:
        self._encoded = encoded
        self._ids = [np.asarray(text.ids, np.int32) for text in encoded]
        self._segments = [None if text.types is None else np.asarray(text.types, np.int32) for text in encoded]
        self._menu, self._types = np.sort(np.asarray(menu)), types
        self.lengths = np.array([len(ids) for ids in self._ids])

    def take(self, rows: np.ndarray) -> Texts:
        """The given rows, in the given order."""
        return Texts([self._encoded[i] for i in rows], self._menu.tolist(), types=self._types)

    def batch(self, rows: np.ndarray, size: int) -> Inputs:
        """``Inputs`` with B = ``size``; missing rows have length 1."""
        length = int(self._menu[np.searchsorted(self._menu, self.lengths[rows].max())])
        ids, segments = [self._ids[i] for i in rows], [self._segments[i] for i in rows]
        return pad(ids, segments, [False] * len(rows), Bucket(size, length), self._types)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the training log.

    Attributes:
        number: from 1; 0 is before any training.
        loss: mean training loss; NaN for epoch 0.
        validation_loss: mean cross entropy on the held-out texts with the weights of their labels, without smoothing;
            of numbers half the mean squared error, in units of their variance.
        scores: on the held-out texts.
    """

    number: int
    loss: float
    validation_loss: float
    scores: metrics.Scores | metrics.Errors

    def __str__(self) -> str:
        loss = "" if math.isnan(self.loss) else f"loss {self.loss:.4f}, "
        return f"epoch {self.number}: {loss}validation loss {self.validation_loss:.4f}, {self.scores}"


class Trainer:
    """Compiled functions of one model: gradient, update, predictions. All state is passed in and out."""

    def __init__(self, model: Classifier, spec: Spec, recipe: Recipe) -> None:
        paths, treedef = list(sharding.parameters(model)), jax.tree.structure(model)
        self.recipe, self.labels, self.problem = recipe, spec.num_labels, spec.problem
        self.optimiser = _optimiser(recipe)

        def classifier(leaves: Mapping[str, jax.Array]) -> Classifier:
            leaves = leaves if recipe.lora is None else adapter.applied(leaves)
            return jax.tree.unflatten(treedef, [leaves[path] for path in paths])

        def loss(trained: Leaves, frozen: Leaves, batch: Inputs, target_B: jax.Array, weight_B: jax.Array) -> jax.Array:
            logits_BC = logits(classifier(trained | frozen), batch, spec)
            return jnp.sum(_loss(logits_BC, target_B, spec, recipe) * weight_B) / jnp.sum(weight_B)

        # Two programs, not one: only the gradient depends on the padded length, so the (longer) update is compiled
        # once. The rate is an argument, or else every number of steps would have its own program.
        self.gradient = jax.jit(jax.value_and_grad(loss))

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(trained: Leaves, state: Any, gradient: Leaves, rate: jax.Array) -> tuple[Leaves, Any]:
            change, state = self.optimiser.update(gradient, state, trained)
            return jax.tree.map(lambda leaf, delta: leaf - rate * delta, trained, change), state

        self.update = update
        self.predict = jax.jit(lambda leaves, batch: logits(classifier(leaves), batch, spec))

        @jax.jit
        def features(leaves: Leaves, batch: Inputs) -> jax.Array:
            network = classifier(leaves)
            hidden_BTD = network.backbone(batch.ids, batch.types, batch.layout)
            if spec.late:
                return pooled(network.head.features(hidden_BTD), batch, spec)
            return network.head.features(pooled(hidden_BTD, batch, spec))

        self.features = features

        def apart(
            trained: Leaves, frozen: Leaves, batch: Inputs, alike_BB: jax.Array, counts_BB: jax.Array
        ) -> jax.Array:
            return _pair_loss(features(trained | frozen, batch), alike_BB, counts_BB)

        self.pair_gradient = jax.jit(jax.grad(apart))

    def over(self, run: Callable[[Any, Any], jax.Array], leaves: Leaves, examples: Texts, note: str) -> np.ndarray:
        """``run(leaves, batch)`` for all examples, in their order: ``[N, …]``."""
        order, size = np.argsort(-examples.lengths, kind="stable"), self.recipe.batch_size
        parts = []
        for start in bar(range(0, len(order), size), note):
            rows = order[start : start + size]
            parts.append(np.asarray(run(leaves, examples.batch(rows, size)))[: len(rows)])
        joined = np.concatenate(parts)
        result = np.empty_like(joined)
        result[order] = joined
        return result


@dataclass(slots=True)
class State:
    """Where training stands after an epoch: all that the next one depends on.

    Attributes:
        trained: parameters that training changes, by dotted path.
        moments: of the optimiser, its arrays in their order.
        best: ``trained`` of the epoch with the least validation loss.
        best_epoch: its number.
        history: the log so far.
    """

    trained: dict[str, np.ndarray]
    moments: list[np.ndarray]
    best: dict[str, np.ndarray]
    best_epoch: int
    history: list[Epoch]


def train(
    trainer: Trainer,
    leaves: Leaves,
    training: tuple[Texts, np.ndarray],
    validation: tuple[Texts, np.ndarray] | None,
    log: Callable[[str], object],
    *,
    epochs: int | None = None,
    resumed: State | None = None,
    after: Callable[[State, np.ndarray], object] | None = None,
) -> tuple[Leaves, State]:
    """Trains, and returns the weights of the epoch with the least validation loss, epoch 0 being the start.

    Args:
        trainer: from the same recipe, which must be settled.
        leaves: all parameters, by dotted path.
        training: texts and their targets, see ``Labelled.targets``.
        validation: likewise; decides which epoch is best. None trains for ``epochs`` and keeps the last weights.
        log: gets one line per epoch.
        epochs: stop after so many, on the schedule of all.
        resumed: go on from here.
        after: called after every epoch (and before the first, with no weights yet) with where training stands and the
            logits of the validation texts.

    Returns:
        All parameters, and the state that they are the best of.

    Raises:
        EngineError: the loss is not finite any more.
    """
    recipe = trainer.recipe
    most, patience = recipe.epochs or 1, recipe.patience or 1
    # Copies, so that what the update overwrites is ours, and as jit's own outputs are placed: else the second call
    # would find arguments of another kind than the first, and compile again.
    leaves = {path: jnp.array(np.asarray(leaf)) for path, leaf in leaves.items()}
    trained = {path: leaf for path, leaf in leaves.items() if not _frozen(path, recipe)}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    moments = trainer.optimiser.init(trained)
    texts, targets = training
    weights_N = label_weights(targets, trainer.labels, recipe)
    schedule = rates(recipe, most * len(_order(texts.lengths, recipe, 1)))

    def judged(number: int, loss: float) -> tuple[Epoch | None, np.ndarray | None]:
        if validation is None:
            return None, None
        logits_NC = trainer.over(trainer.predict, trained | frozen, validation[0], "validation")
        return judge(number, loss, logits_NC, validation[1], trainer), logits_NC

    state = resumed
    if state is None:
        state = State({}, [], {}, 0, [])
        epoch, held_NC = judged(0, math.nan)
        if epoch is not None:
            state.history.append(epoch)
            state.best = {path: np.array(leaf) for path, leaf in trained.items()}
            log(f"{epoch} *")
        if after is not None and held_NC is not None:
            after(state, held_NC)
    else:
        trained = {path: jnp.array(state.trained[path]) for path in trained}
        moments = jax.tree.unflatten(jax.tree.structure(moments), [jnp.array(leaf) for leaf in state.moments])
    done = state.history[-1].number if resumed is not None else 0
    for number in range(done + 1, (most if epochs is None else epochs) + 1):
        losses = []
        order = _order(texts.lengths, recipe, number)
        for step, rows in enumerate(bar(order, f"epoch {number}/{most}"), (number - 1) * len(order)):
            target_B = np.zeros((recipe.batch_size, *targets.shape[1:]), targets.dtype)
            weight_B = np.zeros(recipe.batch_size, np.float32)
            target_B[: len(rows)], weight_B[: len(rows)] = targets[rows], weights_N[rows]
            batch = texts.batch(rows, recipe.batch_size)
            value, gradient = trainer.gradient(trained, frozen, batch, target_B, weight_B)
            trained, moments = trainer.update(trained, moments, gradient, schedule[step])
            losses.append(value)
        loss = float(np.mean(jax.device_get(losses)))
        if not math.isfinite(loss):
            raise EngineError(
                f"Training diverged: the loss of epoch {number} is {loss}. "
                f"Lower the learning rate (now {recipe.rate:g})."
            )
        epoch, held_NC = judged(number, loss)
        if epoch is None:
            log(f"epoch {number}: loss {loss:.4f}")
            continue
        better = epoch.validation_loss < min(one.validation_loss for one in state.history)
        state.history.append(epoch)
        if better:
            state.best, state.best_epoch = {path: np.array(leaf) for path, leaf in trained.items()}, number
        log(f"{epoch}{' *' if better else ''}")
        if after is not None and held_NC is not None:
            state.trained = {path: np.asarray(leaf) for path, leaf in trained.items()}
            state.moments = [np.asarray(leaf) for leaf in jax.tree.leaves(moments)]
            after(state, held_NC)
        if number - progress(state.history) >= patience:
            log(f"stopped: neither the loss nor the scores got better in {patience} epochs")
            break
    kept = state.best if validation is not None else trained
    return {path: jnp.asarray(kept[path]) if path in kept else frozen[path] for path in leaves}, state


def judge(number: int, loss: float, logits_NC: np.ndarray, targets: np.ndarray, trainer: Trainer) -> Epoch:
    """The line of the log of an epoch that answers so on held-out texts."""
    weights_N = label_weights(targets, trainer.labels, trainer.recipe)
    likelihood_N = log_likelihood(np.asarray(logits_NC, np.float64), targets, trainer.problem)
    held_loss = -float(np.average(likelihood_N, weights=weights_N))
    return Epoch(number, loss, held_loss, metrics.measure(targets, logits_NC, trainer.problem))


def progress(history: Sequence[Epoch]) -> int:
    """Number of the last epoch that was better than all before it, by loss or by scores."""
    loss, merit, last = math.inf, -math.inf, 0
    for epoch in history:
        if epoch.validation_loss < loss or epoch.scores.merit > merit:
            last = epoch.number
        loss, merit = min(loss, epoch.validation_loss), max(merit, epoch.scores.merit)
    return last


def _pair_loss(features_BD: jax.Array, alike_BB: jax.Array, counts_BB: jax.Array) -> jax.Array:
    """Mean squared distance of cosines from how alike labels are; pairs that are alike weigh as much as the others.

    Args:
        features_BD: what the last layer of the head reads.
        alike_BB: 1 for the same label, 0 for another, between for sets of labels that overlap.
        counts_BB: whether the pair counts; False for a text with itself and for padding.
    """
    unit_BD = features_BD / jnp.maximum(jnp.linalg.norm(features_BD, axis=-1, keepdims=True), 1e-9)
    cosine_BB = unit_BD @ unit_BD.T
    # Texts of other labels may be as unlike as they want.
    error_BB = jnp.where(alike_BB > 0, cosine_BB - alike_BB, jnp.maximum(cosine_BB, 0.0)) ** 2
    near_BB, far_BB = counts_BB & (alike_BB > 0), counts_BB & (alike_BB == 0)
    near, far = (jnp.sum(error_BB * pairs_BB) / jnp.maximum(jnp.sum(pairs_BB), 1) for pairs_BB in (near_BB, far_BB))
    return near + far


def _loss(logits_BC: jax.Array, target_B: jax.Array, spec: Spec, recipe: Recipe) -> jax.Array:
    """Of each text, ``[B]``."""
    if spec.problem == "regression":
        return 0.5 * jnp.sum((logits_BC - target_B) ** 2, -1)
    if spec.problem == "multi":
        smooth_BC = (1 - recipe.label_smoothing) * target_B + recipe.label_smoothing / 2
        return jnp.sum(optax.sigmoid_binary_cross_entropy(logits_BC, smooth_BC), -1)
    target_BC = optax.smooth_labels(jax.nn.one_hot(target_B, spec.num_labels), recipe.label_smoothing)
    return optax.softmax_cross_entropy(logits_BC, target_BC)


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


def _frozen(path: str, recipe: Recipe) -> bool:
    if recipe.lora is not None:
        return not adapter.is_trained(path)
    prefix = {"embeddings": "backbone.tokens.", "backbone": "backbone."}.get(recipe.freeze or "", "/")
    return path.startswith(prefix)


def bar(items: Sequence[Any], note: str) -> Any:
    """``items`` with a progress bar, where somebody looks."""
    return tqdm(items, desc=note, leave=False, disable=None)  # None: only where there is a terminal
