"""The checkpoint that training starts from: its weights, its texts as tokens, what its head reads of them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from jaxpool.checkpoints.location import read_config
from jaxpool.engine import programs, sharding
from jaxpool.engine.batches import Inputs
from jaxpool.engine.buckets import grid
from jaxpool.engine.programs import pooled
from jaxpool.errors import CheckpointError
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import lower_cases, read_tokenizer
from jaxpool.training import adapter, averaging
from jaxpool.training.data import Labelled
from jaxpool.training.loop import Leaves, Texts, Trainer
from jaxpool.training.new_head import open_for_training
from jaxpool.training.recipe import Recipe
from jaxpool.training.solved_head import Linear
from jaxpool_conversions.load import load

KERNEL, BIAS = "head.out.kernel", "head.out.bias"


class Base:
    """A checkpoint opened for one training.

    Args:
        folder: the checkpoint.
        data: the training texts, whose labels the head is for.
        recipe: how to train.
        average: whether to add the layer of ``jaxpool.training.averaging``.

    Attributes:
        spec: the classifier.
        config: transformers config that goes with it.
        fresh: whether the head has to be made anew.
        leaves: its weights, float32, by dotted path.
        longest: most tokens of a text.
        trainer: its compiled functions.

    Raises:
        CheckpointError: or one of its kin: it cannot be opened, or has no tokenizer.
    """

    def __init__(self, folder: Path, data: Labelled, recipe: Recipe, *, average: bool = False) -> None:
        self.folder, self.average = folder, average
        self.config = read_config(folder)
        tokenizer = read_tokenizer(folder)
        if tokenizer is None:
            raise CheckpointError(f"{folder} has no tokenizer files, so texts cannot be read; copy them into it first.")
        reader, self.spec, self.fresh = open_for_training(
            *(folder, self.config, data.order, recipe.seed, tokenizer.model_max_length),
            problem=data.problem,
            average=average,
        )
        with reader:
            self.network = programs.abstract(self.spec)
            targets = sharding.targets(self.network, sharding.make_mesh())
            self.leaves: Leaves = load(reader, self.spec.family.table, self.spec.source, targets)
        if recipe.lora is not None:
            self.leaves = adapter.started(self.leaves, self.spec, recipe.lora, recipe.seed)
        spec, self.longest = self.spec, min(recipe.max_length or 512, self.spec.max_length)
        self.encoder = Tokenizer(
            tokenizer,
            max_length=self.longest + 1,  # one more, to see what is cut
            vocab_size=spec.vocab_size,
            token_types=spec.token_types,
            lower=lower_cases(folder),
        )
        self.trainer = Trainer(self.network, spec, recipe)

    def texts(self, data: Labelled) -> tuple[Texts, int]:
        """The texts as tokens, and how many of them had to be cut."""
        prompts = [text if isinstance(text, str) else {"prompt": text[0], "text_pair": text[1]} for text in data.texts]
        encoded = self.encoder.encode(prompts, {"truncate_prompt_tokens": self.longest + 1})
        long = [i for i, one in enumerate(encoded) if len(one.ids) > self.longest]
        if long:
            cut = self.encoder.encode([prompts[i] for i in long], {"truncate_prompt_tokens": self.longest})
            for i, one in zip(long, cut):
                encoded[i] = one
        menu = [bucket.length for bucket in grid(self.longest, self.longest, max_rows=1, per_octave=2)]
        return Texts(encoded, menu, types=bool(self.spec.token_types)), len(long)

    def features(self, texts: Texts, *, averages: bool) -> list[np.ndarray]:
        """What the last layer of the head reads, float64 ``[N, D]``; with ``averages`` that of both poolings."""
        if not averages:
            return [self.trainer.over(self.trainer.features, self.leaves, texts, "features").astype(np.float64)]
        treedef, spec = jax.tree.structure(self.network), self.spec
        paths = list(sharding.parameters(self.network))

        @jax.jit
        def both(leaves: Leaves, batch: Inputs) -> jax.Array:
            network = jax.tree.unflatten(treedef, [leaves[path] for path in paths])
            hidden_BTD = network.backbone(batch.ids, batch.types, batch.layout)
            vectors = (
                pooled(hidden_BTD, batch, spec),
                averaging.averaged(hidden_BTD, batch.layout, spec.config.norm_eps),
            )
            return jax.numpy.stack([network.head.features(vector_BD) for vector_BD in vectors], 1)

        both_N2D = self.trainer.over(both, self.leaves, texts, "features").astype(np.float64)
        return [both_N2D[:, 0], both_N2D[:, 1]]

    def with_head(self, layer: Linear | None, leaves: Leaves | None = None) -> Leaves:
        """Weights with this last layer added to a head that was trained before, or in place of a fresh one.

        ``leaves`` are the weights, None for those of the base.
        """
        leaves = self.leaves if leaves is None else leaves
        if layer is None:
            return leaves
        old = self.head()
        kernel_DC, bias_C = (layer.kernel, layer.bias) if old is None else _sum(layer, old)
        changed = {KERNEL: jax.numpy.asarray(kernel_DC, "float32")}
        if self.spec.head.bias:
            changed[BIAS] = jax.numpy.asarray(bias_C, "float32")
        return leaves | changed

    def head(self) -> Linear | None:
        """The last layer of a head that was trained before, or None."""
        if self.fresh:
            return None
        kernel_DC = np.asarray(self.leaves[KERNEL], np.float64)
        bias_C = np.asarray(self.leaves[BIAS], np.float64) if BIAS in self.leaves else np.zeros(self.spec.num_labels)
        return Linear(kernel_DC, bias_C)


def _sum(one: Linear, other: Linear) -> tuple[np.ndarray, np.ndarray]:
    return one.kernel + other.kernel, one.bias + other.bias
