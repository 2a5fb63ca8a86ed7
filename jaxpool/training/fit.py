"""From a checkpoint and labelled text to a folder that jaxpool and transformers both load."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpool.errors import InputFileError, JaxpoolError, ValidationError
from jaxpool.files.destinations import check_folder, probe, reason
from jaxpool.training.data import Labelled, check
from jaxpool.training.labelled_files import Asked, read_labelled
from jaxpool.training.recipe import Recipe

if TYPE_CHECKING:
    from jaxpool.checkpoints.spec import Spec
    from jaxpool.training.loop import Epoch
    from jaxpool.training.report import Report


@dataclass(frozen=True, slots=True)
class Fitted:
    """The outcome of ``fit``.

    Attributes:
        folder: the checkpoint written.
        labels: names of the labels, in the order of the logits.
        history: one entry per epoch, the first of them epoch 0: the head solved, or as it was found.
        best: number of the epoch whose weights were kept.
        fresh_head: whether the head was made anew.
        report: what validation showed; also in ``validation.json`` of the folder.
    """

    folder: Path
    labels: tuple[str, ...]
    history: list[Epoch]
    best: int
    fresh_head: bool
    report: Report


def fit(
    model: str | os.PathLike[str] | None,
    train: Labelled | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    validation: Labelled | str | os.PathLike[str] | None = None,
    validation_fraction: float | None = None,
    text_column: str = "text",
    label_column: str | Sequence[str] = "label",
    pair_column: str | None = None,
    problem: Asked = "auto",
    recipe: Recipe | None = None,
    resume: bool = False,
    log: Callable[[str], object] = print,
) -> Fitted:
    """Trains a classifier on labelled text, in float32 on one device, and writes it as a Hugging Face folder.

    A head with the same label names is trained on; any other, and a missing one, is replaced by a fresh one, which is
    solved as a penalised regression first. For up to ``recipe.FEW`` texts that is all, after a few steps on pairs of
    texts where these help, unless the recipe says otherwise; for more, all weights are trained from there, until the
    validation loss is best.

    Args:
        model: folder or hub id of a checkpoint with or without a head; None is the embedded model.
        train: labelled texts, or a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file of them.
        output: the folder to write; must not exist, or be empty.
        validation: held-out texts, which decide the best epoch; None cross-validates, or holds out a part of ``train``.
        validation_fraction: how large that part is, instead of a cross-validation.
        text_column, label_column, pair_column, problem: of the files, as ``labelled_files.read_labelled`` takes them.
        recipe: how to train.
        resume: go on where an interrupted training of the same texts, options and model stood.
        log: gets one line per epoch.

    Raises:
        InputFileError: a file cannot be read, or its labels make no sense.
        ValidationError: an option is wrong, or ``output`` is taken.
        JaxpoolError: ``output`` cannot be written, which is tried before the training.
        CheckpointError: the checkpoint cannot be opened.
        EngineError: training diverged.
    """
    recipe = recipe or Recipe()
    output = Path(output)
    _check_free(output)
    probe(output.parent)

    def read(source: Labelled | str | os.PathLike[str]) -> Labelled:
        if isinstance(source, Labelled):
            return source
        return read_labelled(source, text_column, label_column, pair_column, problem)

    training = read(train)
    check(training)
    held = None if validation is None else read(validation)
    if held is not None:
        if not len(held):
            raise InputFileError(f"{held.name} holds no texts to validate on.")
        if held.problem != training.problem:
            raise InputFileError(
                f"the labels of {training.name} are {KINDS[training.problem]}, those of {held.name} "
                f"{KINDS[held.problem]}; say which with --problem."
            )
        held.targets(training.order)  # an unknown label is found before anything slow begins

    from jaxpool.training import adapter
    from jaxpool.training.fitting import run
    from jaxpool.training.resume import Saved

    states: list[Saved] = []

    def saved(settled: Recipe, parts: tuple[Labelled, ...], base: Path) -> Saved:
        states.append(Saved(output, settled, parts, base))
        return states[0]

    trained = run(
        *(model, training, held, recipe),
        fraction=validation_fraction,
        saved=saved,
        resume=resume,
        log=log,
    )
    if recipe.lora is None:
        save(output, trained.leaves, trained.spec, trained.config, trained.base, trained.report)
    else:
        adapt = partial(adapter.write, leaves=trained.leaves, spec=trained.spec, config=trained.config)
        _whole(output, partial(adapt, base=trained.base if model is None else model, rank=recipe.lora), trained.report)
    for state in states:
        state.remove()
    log(f"kept epoch {trained.best}; wrote {output}")
    return Fitted(
        *(output, trained.spec.labels, trained.history, trained.best, trained.fresh, trained.report),
    )


KINDS = {"single": "one a text", "multi": "several a text", "regression": "numbers"}
"""Problem -> what its labels are."""


def save(
    output: Path,
    leaves: Mapping[str, Any],
    spec: Spec,
    config: Any,
    tokenizer_from: Path,
    report: Report | None = None,
) -> None:
    """Writes a Hugging Face checkpoint: config.json, model.safetensors, tokenizer files. All of it or nothing.

    Args:
        output: the folder, absent or empty.
        leaves: every parameter on the host, by dotted path.
        spec: the classifier; its labels become ``id2label``.
        config: transformers config of the checkpoint it came from; changed to fit.
        tokenizer_from: folder whose tokenizer files are copied.
        report: what validation showed, for ``validation.json``.

    Raises:
        JaxpoolError: the files cannot be written.
    """
    from safetensors.numpy import save_file

    from jaxpool.checkpoints.labels import PROBLEM_TYPES
    from jaxpool.text.vocabulary import tokenizer_files
    from jaxpool_conversions.export import export

    config.architectures = [f"{spec.family.prefix_class}ForSequenceClassification"]
    config.id2label = dict(enumerate(spec.labels))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = PROBLEM_TYPES[spec.problem]
    config.dtype = spec.dtype

    def write(part: Path) -> None:
        for file in tokenizer_files(tokenizer_from):
            shutil.copyfile(file, part / file.name)
        vars(config).pop("raw", None)
        config.save_pretrained(part)
        # transformers refuses files that do not say which framework's layout they have.
        save_file(export(leaves, spec.family.table, spec.source), part / "model.safetensors", {"format": "pt"})
        shutil.copymode(part / "config.json", part / "model.safetensors")  # else for its writer's eyes only

    _whole(output, write, report)


def _whole(output: Path, write: Callable[[Path], object], report: Report | None) -> None:
    """Makes a folder of what ``write`` puts into one, and ``validation.json``; or nothing, and a JaxpoolError."""
    from safetensors import SafetensorError

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
            part = Path(name) / "checkpoint"
            part.mkdir()
            write(part)
            if report is not None:
                report.save(part)
            if output.is_dir():
                output.rmdir()
            part.rename(output)
    except (OSError, SafetensorError) as error:
        raise JaxpoolError(f"cannot write {output}: {reason(error)}; nothing was left behind") from error


def _check_free(output: Path) -> None:
    check_folder(output)
    if output.is_dir() and any(output.iterdir()):
        raise ValidationError(f"{output} exists already; choose another output folder, or remove it first.")
