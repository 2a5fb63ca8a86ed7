"""``jaxpool.fit``: texts and labels in, a classifier out."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.errors import ValidationError
from jaxpool.training.data import Label, Labelled, Text
from jaxpool.training.recipe import Recipe

if TYPE_CHECKING:
    from jaxpool.llm import LLM


def fit(
    texts: Sequence[Text],
    labels: Sequence[Any] | np.ndarray,
    *,
    base: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    validation: tuple[Sequence[Text], Sequence[Any] | np.ndarray] | None = None,
    names: Sequence[str] = (),
    log: Callable[[str], object] | None = None,
    **recipe: Any,
) -> LLM:
    """Trains a classifier on labelled texts and opens it.

        llm = jaxpool.fit(["Where is my parcel?", "The invoice is wrong."], ["delivery", "billing"], base="my-encoder")
        llm.classify("It has not arrived.")[0].outputs.label

    Args:
        texts: the texts, or pairs of texts as tuples of two.
        labels: equally many: strings or integers for one label a text; lists of these, or a matrix of 0 and 1, for
            several; floats for numbers to predict.
        base: folder or hub id of a checkpoint to start from, with or without a head; None is the embedded model, which
            suits opinions, and for anything else a general encoder suits better.
        output: folder to write the classifier to; None keeps it in a temporary one until the LLM is gone.
        validation: texts and labels to validate on; None cross-validates, or holds out a part.
        names: names of the columns of a matrix of 0 and 1.
        log: gets lines about the training, ``print`` for example.
        **recipe: fields of ``jaxpool.training.recipe.Recipe``: ``freeze``, ``contrast``, ``epochs``, ``batch_size``,
            ``learning_rate``, ``balanced``, ``max_length``, ``seed`` and so on.

    Returns:
        The classifier, as ``LLM(output)`` opens it; its ``report`` is what validation showed.

    Raises:
        ValidationError: an argument is wrong.
        InputFileError: the labels make no sense.
        CheckpointError: the base cannot be opened.
        EngineError: training diverged.
    """
    from jaxpool.llm import LLM
    from jaxpool.training.fit import fit as fit_to_folder

    known = [field.name for field in fields(Recipe)]
    unknown = sorted(recipe.keys() - set(known))
    if unknown:
        raise ValidationError(f"fit has no option {unknown[0]!r}; it has {', '.join(known)}.", parameter=unknown[0])
    training = labelled(texts, labels, names)
    held = None if validation is None else labelled(*validation, names, "the validation data")
    temporary = None if output is not None else Path(tempfile.mkdtemp(prefix="jaxpool-fit-"))
    try:
        folder = Path(output) if output is not None else temporary / "model"  # type: ignore[operator]
        fitted = fit_to_folder(
            *(base, training, folder), validation=held, recipe=Recipe(**recipe), log=log or (lambda _: None)
        )
        llm = LLM(folder)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    llm.report = fitted.report
    if temporary is not None:
        weakref.finalize(llm, shutil.rmtree, temporary, ignore_errors=True)
    return llm


def labelled(
    texts: Sequence[Text], labels: Sequence[Any] | np.ndarray, names: Sequence[str] = (), name: str = "the data"
) -> Labelled:
    """Python's lists or numpy's arrays as training data.

    Raises:
        ValidationError: a text is no string (or pair of them), a label has no known form, or their numbers differ.
    """
    if isinstance(texts, str):
        raise ValidationError("texts must be a sequence of texts; got one string.", parameter="texts")
    kept: list[Text] = []
    for i, text in enumerate(texts):
        pair = isinstance(text, tuple | list) and len(text) == 2
        if not all(isinstance(part, str) and part.strip() for part in (text if pair else (text,))):
            raise ValidationError(
                f"texts[{i}] is {text!r}; a text is a string that is not empty, or a tuple of two.", parameter="texts"
            )
        kept.append((text[0], text[1]) if pair else str(text))
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        columns = tuple(names) or tuple(map(str, range(labels.shape[1])))
        if len(columns) != labels.shape[1] or not np.isin(labels, (0, 1)).all():
            raise ValidationError(
                f"labels is a matrix of {labels.shape[1]} columns, which must hold 0 and 1 only and have one of the "
                f"{len(columns)} names each.",
                parameter="labels",
            )
        held = [tuple(column for column, holds in zip(columns, row) if holds) for row in labels]
        return Labelled(kept, held, name, "multi", columns)
    values = list(labels.tolist() if isinstance(labels, np.ndarray) else labels)
    if values and all(isinstance(value, list | tuple | set | frozenset) for value in values):
        several: list[Label] = [tuple(dict.fromkeys(map(str, value))) for value in values]
        return Labelled(kept, several, name, "multi", tuple(names))
    if values and all(isinstance(value, float | np.floating) for value in values):
        return Labelled(kept, [float(value) for value in values], name, "regression")
    for i, value in enumerate(values):
        if not isinstance(value, str | int | np.integer) or not str(value).strip():
            raise ValidationError(
                f"labels[{i}] is {value!r}; labels are strings or integers, lists of them, or floats, all of a kind.",
                parameter="labels",
            )
    return Labelled(kept, [str(value) for value in values], name)
