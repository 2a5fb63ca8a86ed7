"""``jaxpool fit``: from a checkpoint and labelled text to a classifier that jaxpool and transformers both load."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpool.errors import CheckpointError, InputFileError, JaxpoolError, ValidationError
from jaxpool.files.destinations import check_folder, probe, reason
from jaxpool.training.data import Labelled, check, label_order, read_labelled, split

if TYPE_CHECKING:
    from jaxpool.checkpoints.spec import Spec
    from jaxpool.training.loop import Epoch, Recipe


@dataclass(frozen=True, slots=True)
class Fitted:
    """The outcome of ``fit``.

    Attributes:
        folder: the checkpoint written.
        labels: names of the labels, in the order of the logits.
        history: one entry per epoch.
        best: number of the epoch whose weights were kept.
        fresh_head: whether the head was initialised anew (by the seed).
    """

    folder: Path
    labels: tuple[str, ...]
    history: list[Epoch]
    best: int
    fresh_head: bool


def fit(
    model: str | os.PathLike[str] | None,
    train: Labelled | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    validation: Labelled | str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.1,
    text_column: str = "text",
    label_column: str = "label",
    recipe: Recipe | None = None,
    log: Callable[[str], object] = print,
) -> Fitted:
    """Trains a classifier on labelled text, in float32 on one device, and writes it as a Hugging Face folder.

    A head with the same label names is trained on; any other, and a missing one, is replaced by a fresh one.

    Args:
        model: folder or hub id of a checkpoint with or without a head; None is the embedded model.
        train: labelled texts, or a ``.jsonl``, ``.csv`` or ``.tsv`` file of them.
        output: the folder to write; must not exist, or be empty.
        validation: held-out texts, which decide the best epoch; None holds out a part of ``train``.
        validation_fraction: how large that part is.
        text_column, label_column: names in the files.
        recipe: how to train.
        log: gets one line per epoch.

    Raises:
        InputFileError: a file cannot be read, or its labels make no sense.
        ValidationError: an option is wrong, or ``output`` is taken.
        JaxpoolError: ``output`` cannot be written, which is tried before the training.
        CheckpointError: the checkpoint cannot be opened.
        EngineError: training diverged.
    """
    from jaxpool.training.loop import Recipe

    recipe = recipe or Recipe()
    output = Path(output)
    _check_free(output)
    probe(output.parent)
    training = train if isinstance(train, Labelled) else read_labelled(train, text_column, label_column)
    check(training)
    if validation is None:
        training, held = split(training, validation_fraction, recipe.seed)
    else:
        held = validation if isinstance(validation, Labelled) else read_labelled(validation, text_column, label_column)
    if not len(held):
        raise InputFileError(f"{held.name} holds no texts to validate on.")
    held.indices(label_order(training.labels))  # an unknown label is found before anything slow begins
    log(f"training on {len(training)} texts ({_counted(training)}), validating on {len(held)} ({_counted(held)})")
    return _run(model, training, held, output, recipe, log)


def _run(
    model: str | os.PathLike[str] | None,
    training: Labelled,
    held: Labelled,
    output: Path,
    recipe: Recipe,
    log: Callable[[str], object],
) -> Fitted:
    import numpy as np

    from jaxpool.checkpoints.location import locate, read_config
    from jaxpool.engine import compile_cache, programs, sharding
    from jaxpool.engine.buckets import grid
    from jaxpool.text.tokenizer import Tokenizer
    from jaxpool.text.vocabulary import lower_cases, read_tokenizer
    from jaxpool.training.loop import Texts, Trainer, Vectors
    from jaxpool.training.loop import train as run
    from jaxpool.training.new_head import open_for_training
    from jaxpool_conversions.load import load

    compile_cache.enable_cache()
    folder = locate(model)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer files, so texts cannot be read; copy them into it first.")
    reader, spec, fresh = open_for_training(
        folder, config, label_order(training.labels), recipe.seed, tokenizer.model_max_length
    )
    with reader:
        network = programs.abstract(spec)
        leaves = load(reader, spec.family.table, spec.source, sharding.targets(network, sharding.make_mesh()))
    probe(output.parent, sum(leaf.nbytes for leaf in leaves.values()))
    log(f"{'a fresh' if fresh else 'the existing'} head for {', '.join(spec.labels)}")

    longest = min(recipe.max_length or 512, spec.max_length)
    encoder = Tokenizer(
        tokenizer,
        max_length=spec.max_length,
        vocab_size=spec.vocab_size,
        token_types=spec.token_types,
        lower=lower_cases(folder),
    )
    menu = [bucket.length for bucket in grid(longest, longest, max_rows=1, per_octave=2)]
    trainer = Trainer(network, spec, recipe)

    def examples(data: Labelled) -> Texts | Vectors:
        encoded = encoder.encode(list(data.texts), {"truncate_prompt_tokens": longest})
        texts = Texts(encoded, menu, types=bool(spec.token_types))
        # A late head reads every token, so that there is no vector per text to compute once.
        if recipe.freeze != "backbone" or spec.late:
            return texts
        return Vectors(trainer.over(trainer.pooled, leaves, texts, "backbone"))

    leaves, history, best = run(
        trainer,
        leaves,
        (examples(training), training.indices(spec.labels)),
        (examples(held), held.indices(spec.labels)),
        log,
    )
    host = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    save(output, host, spec, config, folder)
    log(f"kept epoch {best}; wrote {output}")
    return Fitted(output, spec.labels, history, best, fresh)


def save(output: Path, leaves: Mapping[str, Any], spec: Spec, config: Any, tokenizer_from: Path) -> None:
    """Writes a Hugging Face checkpoint: config.json, model.safetensors, tokenizer files. All of it or nothing.

    Args:
        output: the folder, absent or empty.
        leaves: every parameter on the host, by dotted path.
        spec: the classifier; its labels become ``id2label``.
        config: transformers config of the checkpoint it came from; changed to fit.
        tokenizer_from: folder whose tokenizer files are copied.

    Raises:
        JaxpoolError: the files cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from jaxpool.text.vocabulary import tokenizer_files
    from jaxpool_conversions.export import export

    config.architectures = [f"{spec.family.prefix_class}ForSequenceClassification"]
    config.id2label = dict(enumerate(spec.labels))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = "single_label_classification"
    config.dtype = spec.dtype
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
            part = Path(name) / "checkpoint"
            part.mkdir()
            for file in tokenizer_files(tokenizer_from):
                shutil.copyfile(file, part / file.name)
            vars(config).pop("raw", None)
            config.save_pretrained(part)
            # transformers refuses files that do not say which framework's layout they have.
            save_file(export(leaves, spec.family.table, spec.source), part / "model.safetensors", {"format": "pt"})
            shutil.copymode(part / "config.json", part / "model.safetensors")  # else for its writer's eyes only
            if output.is_dir():
                output.rmdir()
            part.rename(output)
    except (OSError, SafetensorError) as error:
        raise JaxpoolError(f"cannot write {output}: {reason(error)}; nothing was left behind") from error


def _check_free(output: Path) -> None:
    check_folder(output)
    if output.is_dir() and any(output.iterdir()):
        raise ValidationError(f"{output} exists already; choose another output folder, or remove it first.")


def _counted(data: Labelled) -> str:
    counts = data.counts()
    shown = ", ".join(f"{count} {label}" for label, count in list(counts.items())[:8])
    return shown + (", …" if len(counts) > 8 else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``jaxpool fit``."""
    from_recipe = argparse.SUPPRESS  # absent means: what Recipe says
    add = parser.add_argument
    add("train", metavar="TRAIN", help="labelled texts: .jsonl, .json, .csv or .tsv, also .gz")
    add("output", metavar="OUTPUT", help="folder to write the checkpoint to; must not exist")
    add("--model", help="folder or hub id to start from, with or without a head (default: the embedded model)")
    add("--validation", metavar="FILE", help="held-out texts (default: a part of TRAIN)")
    add("--validation-fraction", type=float, default=0.1, help="how much of TRAIN is held out (default: 0.1)")
    add("--text-column", default="text", help="column or field of the text (default: text)")
    add("--label-column", default="label", help="column or field of the label (default: label)")
    frozen = parser.add_mutually_exclusive_group()
    for what, note in (("backbone", "train the head alone: fast"), ("embeddings", "keep the token table as it is")):
        frozen.add_argument(
            f"--freeze-{what}", dest="freeze", action="store_const", const=what, default=from_recipe, help=note
        )
    for name, kind, note in (
        ("epochs", int, "most passes over the data (default: 3)"),
        ("batch-size", int, "texts per step (default: 32)"),
        ("learning-rate", float, "peak rate (default: 5e-5; 1e-3 with --freeze-backbone)"),
        ("warmup", float, "share of the steps in which the rate rises (default: 0.1)"),
        ("weight-decay", float, "on matrices, not on biases and norms (default: 0.01)"),
        ("clip", float, "largest norm of a gradient (default: 1)"),
        ("label-smoothing", float, "probability spread over all labels (default: 0)"),
        ("patience", int, "stop after so many epochs without improvement (default: 2)"),
        ("max-length", int, "cut longer texts to so many tokens (default: 512 or the model's limit)"),
        ("seed", int, "decides head, order and split (default: 0)"),
    ):
        add(f"--{name}", type=kind, default=from_recipe, help=note)
    add("--schedule", choices=("linear", "cosine"), default=from_recipe, help="how the rate falls (default: linear)")
    add("--balanced", action="store_true", default=from_recipe, help="weigh texts by inverse label frequency")


def main(args: argparse.Namespace) -> int:
    """Runs ``jaxpool fit``; errors are JaxpoolErrors for the caller to print."""
    from jaxpool.training.loop import Recipe

    chosen = {field.name for field in dataclasses.fields(Recipe)} & vars(args).keys()
    fitted = fit(
        args.model,
        args.train,
        args.output,
        validation=args.validation,
        validation_fraction=args.validation_fraction,
        text_column=args.text_column,
        label_column=args.label_column,
        recipe=Recipe(**{name: getattr(args, name) for name in chosen}),
    )
    best = fitted.history[fitted.best - 1].scores
    low, high = best.interval
    print(
        f"validation accuracy {best.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}), macro-F1 {best.macro_f1:.4f}"
    )
    return 0
