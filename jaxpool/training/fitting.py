"""From a base and labelled text to trained weights: which pooling, which head, how long, and how good by validation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.checkpoints.location import locate
from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import compile_cache
from jaxpool.training import averaging, solved_head
from jaxpool.training.base import BIAS, KERNEL, Base
from jaxpool.training.contrast import contrast
from jaxpool.training.data import Labelled, folds, split
from jaxpool.training.loop import Epoch, Leaves, State, Texts, judge, train
from jaxpool.training.recipe import Recipe, label_weights
from jaxpool.training.report import Report
from jaxpool.training.resume import Saved
from jaxpool.training.solved_head import Linear

_SAMPLE = 4000  # texts that choose the penalty and the pooling, and that a head is solved on before training
_HELD = 200  # validation texts that are held out at least, but never more than 30 % of all


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights on the host, and all that is to be known of them.

    Attributes:
        leaves: every parameter, by dotted path.
        spec: the classifier.
        config: transformers config that goes with it.
        base: folder of the checkpoint it came from.
        history: one entry per epoch, epoch 0 being the head as it was solved or found.
        best: number of the epoch whose weights these are.
        fresh: whether the head was made anew.
        report: what validation showed.
    """

    leaves: dict[str, np.ndarray]
    spec: Spec
    config: Any
    base: Path
    history: list[Epoch]
    best: int
    fresh: bool
    report: Report


@dataclass(frozen=True, slots=True)
class _Solver:
    """Solves heads of one base; its penalty is chosen by cross-validation."""

    base: Base
    recipe: Recipe
    penalty: float

    def __call__(self, features_ND: np.ndarray, targets: np.ndarray) -> Linear:
        spec, old = self.base.spec, self.base.head()
        weights_N = label_weights(targets, spec.num_labels, self.recipe)
        return solved_head.solve(
            *(features_ND, targets, weights_N, spec.problem, spec.num_labels, self.penalty),
            bias=spec.head.bias,
            offset_NC=None if old is None else old(features_ND),
        )


def run(
    model: str | os.PathLike[str] | None,
    training: Labelled,
    held: Labelled | None,
    recipe: Recipe,
    *,
    fraction: float | None = None,
    saved: Callable[[Recipe, tuple[Labelled, ...], Path], Saved] | None = None,
    resume: bool = False,
    log: Callable[[str], object] = print,
) -> Trained:
    """Trains a classifier.

    Args:
        model: as for ``jaxpool.fit``.
        training: labelled texts, checked.
        held: validation texts; None for a cross-validation, or a part of ``training``, as the recipe says.
        recipe: how to train.
        fraction: how large that part is; None for a tenth, more of few texts.
        saved: where training stands between epochs.
        resume: go on where an interrupted training stood.
        log: gets lines.
    """
    compile_cache.enable_cache()
    recipe = recipe.settled(len(training), training.counts())
    parts: list[np.ndarray] = []
    if held is None and (fraction is not None or not recipe.folds):
        share = fraction or max(0.1, min(0.3, _HELD / len(training)))
        training, held = split(training, share, recipe.seed)
    elif held is None:
        parts = folds(training, recipe.folds or 2, recipe.seed)
    how = f"{len(parts)}-fold cross-validation" if held is None else f"{len(held)} texts held out"
    log(f"training on {len(training)} texts{_counted(training)}, validation: {how}{_counted(held)}")
    base = Base(locate(model), training, recipe)
    texts, cut = base.texts(training)
    if cut:
        log(f"{cut} of {len(training)} texts are longer than {base.longest} tokens and are cut there (--max-length)")
    scale = _Scale.of(training, base)
    targets = scale(training.targets(base.spec.labels))
    whole = recipe.freeze == "backbone" or held is None
    base, features_ND, rows, solver = _choose(base, training, texts, targets, recipe, log, whole=whole)
    if held is not None:
        held_texts = base.texts(held)[0]
        held_targets = scale(held.targets(base.spec.labels))
    if recipe.contrast and base.fresh and base.spec.problem != "regression":
        trial = parts or folds(training, 3, recipe.seed, strict=False)
        plain = _solved_by_folds(base, features_ND, targets, solver, trial)
        outcome = _contrasted_by_folds(base, texts, targets, recipe, trial, plain, log)
        if held is not None:
            outcome = _judged(base, outcome.leaves, held_texts, held_targets)
    elif recipe.freeze == "backbone" and held is None:
        outcome = _solved_by_folds(base, features_ND, targets, solver, parts)
    elif recipe.freeze == "backbone":
        outcome = _judged(base, base.with_head(solver(features_ND, targets)), held_texts, held_targets)
    elif held is None:
        outcome = _trained_by_folds(base, texts, features_ND, targets, solver, parts, log)
    else:
        state = saved(recipe, (training, held), base.folder) if saved is not None else None
        start = base.with_head(solver(features_ND, targets[rows]) if base.fresh else None)
        outcome = _trained(base, start, (texts, targets), (held_texts, held_targets), state, resume, log)
    kept = outcome.history[outcome.best]
    report = Report.of(
        *(how, base.spec.problem, base.spec.labels, kept.validation_loss),
        *(scale.back(outcome.targets), scale.back(np.asarray(outcome.logits))),
    )
    host = {path: np.asarray(leaf) for path, leaf in scale.undone(outcome.leaves).items()}
    return Trained(host, base.spec, base.config, base.folder, outcome.history, outcome.best, base.fresh, report)


@dataclass(frozen=True, slots=True)
class _Outcome:
    leaves: Leaves
    history: list[Epoch]
    best: int
    logits: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class _Scale:
    """Numbers are learnt in units of their spread, and the last layer is scaled back at the end."""

    centre: float
    spread: float

    @staticmethod
    def of(data: Labelled, base: Base) -> _Scale:
        """That of the numbers; of labels none. A number that a head predicts already keeps its unit."""
        if data.problem != "regression" or not base.fresh:
            return _Scale(0.0, 1.0)
        values = np.array(data.labels, np.float64)
        return _Scale(float(values.mean()) if base.spec.head.bias else 0.0, float(values.std()) or 1.0)

    def __call__(self, targets: np.ndarray) -> np.ndarray:
        return targets if self == _Scale(0.0, 1.0) else ((targets - self.centre) / self.spread).astype(np.float32)

    def back(self, values: np.ndarray) -> np.ndarray:
        """To the numbers' own unit."""
        return values if self == _Scale(0.0, 1.0) else values * self.spread + self.centre

    def undone(self, leaves: Leaves) -> Leaves:
        """Weights that predict in the numbers' own unit."""
        if self == _Scale(0.0, 1.0):
            return leaves
        changed = {KERNEL: leaves[KERNEL] * self.spread}
        if BIAS in leaves:
            changed[BIAS] = leaves[BIAS] * self.spread + self.centre
        return leaves | changed


def _choose(
    base: Base,
    training: Labelled,
    texts: Texts,
    targets: np.ndarray,
    recipe: Recipe,
    log: Callable[[str], object],
    *,
    whole: bool,
) -> tuple[Base, np.ndarray, np.ndarray, _Solver]:
    """Pooling and penalty, by cross-validation of solved heads on a sample of texts.

    Returns:
        The base with that pooling, the features of some texts (of all, if ``whole``), which texts these are, and what
        solves a head on them.
    """
    everything = np.arange(len(training))
    if recipe.freeze != "backbone" and not base.fresh:
        return base, np.empty((0, 0)), everything[:0], _Solver(base, recipe, solved_head.PENALTIES[0])
    few = np.random.default_rng(recipe.seed).permutation(everything)[:_SAMPLE]
    rows = everything if whole else few
    candidates = base.features(texts.take(rows), averages=base.fresh and _may_average(base, recipe))
    parts = folds(training.take(few), 5, recipe.seed, strict=False)
    spec, old = base.spec, base.head()
    found = []
    for features_ND in candidates:
        sample_ND = features_ND[few] if whole else features_ND
        found.append(
            solved_head.cross_validate(
                *(sample_ND, targets[few], label_weights(targets[few], spec.num_labels, recipe)),
                *(spec.problem, spec.num_labels, parts),
                bias=spec.head.bias,
                offset_NC=None if old is None else old(sample_ND),
            )
        )
    best = int(np.argmin([loss for _, _, loss in found]))
    if best == 1:
        base = Base(base.folder, training, recipe, average=True)
    kind = "fresh" if base.fresh else "existing"
    pooling = ", on the mean of all tokens" if best == 1 else ""
    log(f"the {kind} head for {', '.join(base.spec.labels)}{pooling}")
    return base, candidates[best], rows, _Solver(base, recipe, found[best][0])


def _may_average(base: Base, recipe: Recipe) -> bool:
    """Whether the head may read the mean of all tokens: an adapter cannot bring a layer that the base has not."""
    return recipe.lora is None and averaging.suits(base.spec)


def _solved_by_folds(
    base: Base, features_ND: np.ndarray, targets: np.ndarray, solver: _Solver, parts: list[np.ndarray]
) -> _Outcome:
    """The head solved on all texts, judged by heads solved without each part of them."""
    old, logits_NC = base.head(), np.zeros((len(features_ND), base.spec.num_labels))
    for rows in parts:
        rest = np.setdiff1d(np.arange(len(features_ND)), rows)
        added = 0.0 if old is None else old(features_ND[rows])
        logits_NC[rows] = solver(features_ND[rest], targets[rest])(features_ND[rows]) + added
    epoch = judge(0, math.nan, logits_NC, targets, base.trainer)
    return _Outcome(base.with_head(solver(features_ND, targets)), [epoch], 0, logits_NC, targets)


def _contrasted_by_folds(
    base: Base,
    texts: Texts,
    targets: np.ndarray,
    recipe: Recipe,
    parts: list[np.ndarray],
    plain: _Outcome,
    log: Callable[[str], object],
) -> _Outcome:
    """Steps on pairs, then a head, with all texts; or ``plain``, if doing so without each part of them was no better.

    The penalty is chosen by texts that neither the steps nor the head have seen: on those that they have, no head can
    be wrong.
    """
    spec, trainer = base.spec, base.trainer
    held_NC = np.zeros((len(solved_head.PENALTIES), len(targets), spec.num_labels))

    def heads(rows: np.ndarray, note: str) -> tuple[Leaves, list[Linear]]:
        leaves = contrast(trainer, base.leaves, texts.take(rows), targets[rows], recipe, note)
        features_ND = trainer.over(trainer.features, leaves, texts.take(rows), "features").astype(np.float64)
        return leaves, [_Solver(base, recipe, penalty)(features_ND, targets[rows]) for penalty in solved_head.PENALTIES]

    for number, rows in enumerate(parts, 1):
        log(f"pairs, fold {number} of {len(parts)}")
        rest = np.setdiff1d(np.arange(len(targets)), rows)
        leaves, found = heads(rest, f"fold {number}/{len(parts)}")
        features_ND = trainer.over(trainer.features, leaves, texts.take(rows), "features").astype(np.float64)
        for i, layer in enumerate(found):
            held_NC[i, rows] = layer(features_ND)
    epochs = [judge(0, math.nan, logits_NC, targets, trainer) for logits_NC in held_NC]
    best = int(np.argmin([epoch.validation_loss for epoch in epochs]))
    before, after = plain.history[0].validation_loss, epochs[best].validation_loss
    log(f"cross-validated loss {before:.4f} of the base as it is, {after:.4f} after steps on pairs")
    if after >= before:
        return plain
    log("pairs, all texts")
    leaves, found = heads(np.arange(len(targets)), "all texts")
    return _Outcome(base.with_head(found[best], leaves), [epochs[best]], 0, held_NC[best], targets)


def _judged(base: Base, leaves: Leaves, texts: Texts, targets: np.ndarray) -> _Outcome:
    """Weights that are final, measured on held-out texts."""
    logits_NC = base.trainer.over(base.trainer.predict, leaves, texts, "validation")
    return _Outcome(leaves, [judge(0, math.nan, logits_NC, targets, base.trainer)], 0, logits_NC, targets)


def _trained_by_folds(
    base: Base,
    texts: Texts,
    features_ND: np.ndarray,
    targets: np.ndarray,
    solver: _Solver,
    parts: list[np.ndarray],
    log: Callable[[str], object],
) -> _Outcome:
    """Trained on all texts, for as many epochs as were best on average when each part was held out."""
    answers: list[list[np.ndarray]] = []

    def start(rows: np.ndarray) -> Leaves:
        return base.with_head(solver(features_ND[rows], targets[rows]) if base.fresh else None)

    for number, rows in enumerate(parts, 1):
        log(f"fold {number} of {len(parts)}")
        rest, seen = np.setdiff1d(np.arange(len(targets)), rows), list[np.ndarray]()
        answers.append(seen)

        def after(_state: State, logits_NC: np.ndarray, seen: list[np.ndarray] = seen) -> None:
            seen.append(logits_NC)

        train(
            *(base.trainer, start(rest), (texts.take(rest), targets[rest]), (texts.take(rows), targets[rows]), log),
            after=after,
        )
    history, held = [], list[np.ndarray]()
    for number in range(min(map(len, answers))):
        logits_NC = np.zeros((len(targets), base.spec.num_labels), np.float32)
        for rows, seen in zip(parts, answers):
            logits_NC[rows] = seen[number]
        held.append(logits_NC)
        history.append(judge(number, math.nan, logits_NC, targets, base.trainer))
    best = min(history, key=lambda epoch: epoch.validation_loss).number
    log(f"{history[best]} over all folds; training on all texts")
    whole = (texts, targets)
    leaves, _ = train(base.trainer, start(np.arange(len(targets))), whole, None, log, epochs=best)
    return _Outcome(leaves, history, best, held[best], targets)


def _trained(
    base: Base,
    start: Leaves,
    training: tuple[Texts, np.ndarray],
    held: tuple[Texts, np.ndarray],
    saved: Saved | None,
    resume: bool,
    log: Callable[[str], object],
) -> _Outcome:
    """Trained with held-out texts to stop by."""
    resumed = saved.load() if saved is not None and resume else None
    if resumed is not None:
        log(f"going on after epoch {resumed.history[-1].number}")

    def after(state: State, _logits_NC: np.ndarray) -> None:
        if saved is not None and state.trained:
            saved.save(state)

    leaves, state = train(base.trainer, start, training, held, log, resumed=resumed, after=after)
    logits_NC = base.trainer.over(base.trainer.predict, leaves, held[0], "validation")
    return _Outcome(leaves, state.history, state.best_epoch, logits_NC, held[1])


def _counted(data: Labelled | None) -> str:
    if data is None or data.problem == "regression":
        return ""
    shown = [f"{count} {label}" for label, count in data.counts().items()]
    return f" ({', '.join(shown[:8])}{', …' if len(shown) > 8 else ''})"
