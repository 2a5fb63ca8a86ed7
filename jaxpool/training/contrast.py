"""A few steps that move texts of one label together and others apart, before a head is solved on them.

Few labelled texts make many pairs, which is why this teaches an encoder more than as many steps of classification
(SetFit: Tunstall et al. 2022, arXiv:2209.11055). All pairs of a batch count. Shape letters: B texts, N all texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxpool.training.loop import Leaves, Texts, Trainer, bar
from jaxpool.training.recipe import Recipe, rates

_PER_LABEL = 4  # texts of one label in a batch, at least, so that there are pairs to move together


def contrast(
    trainer: Trainer, leaves: Leaves, texts: Texts, targets: np.ndarray, recipe: Recipe, note: str = "pairs"
) -> Leaves:
    """The weights after ``recipe.contrast`` steps on pairs of these texts.

    The head's last layer stays as it was, and so does the token table: few texts have few of its words.

    Args:
        trainer: of the model.
        leaves: all parameters, by dotted path.
        texts: the texts.
        targets: as ``Labelled.targets`` gives them, of labels.
        recipe: settled; its seed decides the batches.
        note: what a progress bar is called.
    """
    steps, size = recipe.contrast or 0, recipe.batch_size
    copied = {path: jnp.array(np.asarray(leaf)) for path, leaf in leaves.items()}
    frozen = {path: leaf for path, leaf in copied.items() if path.startswith(("head.out.", "backbone.tokens."))}
    trained = {path: leaf for path, leaf in copied.items() if path not in frozen}
    moments = trainer.optimiser.init(trained)
    pick = _batches(targets, size, np.random.default_rng(recipe.seed))
    for rate in bar(rates(replace(recipe, learning_rate=recipe.contrast_rate), steps).tolist(), note):
        rows = pick()
        gradient = trainer.pair_gradient(trained, frozen, texts.batch(rows, size), *_alike(targets[rows], size))
        trained, moments = trainer.update(trained, moments, gradient, np.float32(rate))
    return {path: trained[path] if path in trained else frozen[path] for path in leaves}


def _alike(targets: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """``alike_BB`` and ``counts_BB`` of the texts of a batch, padded to ``size``."""
    count = len(targets)
    alike_BB, counts_BB = np.zeros((size, size), np.float32), np.zeros((size, size), np.bool_)
    if targets.ndim == 1:
        alike_BB[:count, :count] = targets[:, None] == targets[None, :]
    else:
        common = targets @ targets.T
        either = targets.sum(-1)[:, None] + targets.sum(-1)[None, :] - common
        alike_BB[:count, :count] = np.where(either > 0, common / np.maximum(either, 1), 1)
    counts_BB[:count, :count] = ~np.eye(count, dtype=bool)
    return alike_BB, counts_BB


def _batches(targets: np.ndarray, size: int, rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """Draws rows of a batch: as many of each label, of as many labels as leave a few texts to each."""
    if targets.ndim == 2:
        return lambda: rng.choice(len(targets), min(size, len(targets)), replace=False)
    by_label = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    labels = max(2, min(len(by_label), size // _PER_LABEL))

    def pick() -> np.ndarray:
        chosen = rng.choice(len(by_label), min(labels, len(by_label)), replace=False)
        each = size // len(chosen)
        parts = [rng.choice(by_label[i], min(each, len(by_label[i])), replace=False) for i in chosen]
        return np.concatenate(parts)

    return pick
