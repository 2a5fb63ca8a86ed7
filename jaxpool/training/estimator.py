"""``JaxpoolClassifier``: a classifier of texts for scikit-learn's pipelines, grids and scores."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.errors import JaxpoolError, ValidationError
from jaxpool.training.from_texts import fit

if TYPE_CHECKING:
    from jaxpool.llm import LLM

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as error:
    raise JaxpoolError("JaxpoolClassifier needs scikit-learn; get it with: pip install 'jaxpool[sklearn]'") from error


class JaxpoolClassifier(ClassifierMixin, BaseEstimator):
    """Texts in, labels out, by scikit-learn's rules.

    Parameters are those of ``jaxpool.fit``: ``base``, and the fields of a ``Recipe``. A fitted one can be pickled: it
    carries its checkpoint.

    Args:
        base: folder or hub id of a checkpoint to start from; None is the embedded model.
        freeze: "backbone" solves the head alone, which is what a grid search has time for; None decides by itself.
        contrast: steps on pairs before the head is solved.
        epochs, batch_size, learning_rate, label_smoothing, balanced, max_length, seed: as in ``Recipe``.

    Attributes:
        classes_: the labels, sorted; of a matrix of 0 and 1 its column numbers.
        report_: what validation during training showed.
    """

    def __init__(
        self,
        base: str | os.PathLike[str] | None = None,
        *,
        freeze: str | None = None,
        contrast: int | None = None,
        epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 5e-5,
        label_smoothing: float = 0.0,
        balanced: bool | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        self.base = base
        self.freeze = freeze
        self.contrast = contrast
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.label_smoothing = label_smoothing
        self.balanced = balanced
        self.max_length = max_length
        self.seed = seed

    def fit(self, X: Sequence[str], y: Any) -> JaxpoolClassifier:
        """Trains on texts and their labels, or a matrix ``[texts, labels]`` of 0 and 1. Errors as ``jaxpool.fit``."""
        target = np.asarray(y)
        several = target.ndim == 2
        self.classes_ = np.arange(target.shape[1]) if several else np.unique(target)
        names = [str(label) for label in self.classes_.tolist()]
        if len(set(names)) < len(names):
            raise ValidationError(f"labels of different types look alike: {', '.join(names)}", parameter="y")
        options = {name: value for name, value in self.get_params().items() if name != "base"}
        folder = Path(tempfile.mkdtemp(prefix="jaxpool-fit-"))
        try:
            labels = target if several else [str(label) for label in target.tolist()]
            with fit(_texts(X), labels, base=self.base, output=folder / "model", **options) as llm:
                self.report_ = llm.report
                self._columns = [llm.labels.index(name) for name in names]
            self.checkpoint_ = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._several = several
        self._llm: LLM | None = None
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """Probability of every class, float32 ``[texts, classes]``, in the order of ``classes_``."""
        check_is_fitted(self)
        texts = _texts(X)
        if not texts:
            return np.zeros((0, len(self.classes_)), np.float32)
        longest = {"truncate_prompt_tokens": self.max_length or -1}
        outputs = self._open().classify(list(texts), use_tqdm=False, tokenization_kwargs=longest)
        return np.array([output.outputs.probs for output in outputs], np.float32)[:, self._columns]

    def predict(self, X: Sequence[str]) -> np.ndarray:
        """The most likely class of every text; a matrix of 0 and 1 where it was trained on one."""
        probabilities = self.predict_proba(X)
        if self._several:
            return (probabilities > 0.5).astype(np.int64)
        return np.asarray(self.classes_[probabilities.argmax(-1)])

    def _open(self) -> Any:
        if self._llm is None:
            from jaxpool.llm import LLM

            folder = Path(tempfile.mkdtemp(prefix="jaxpool-fit-"))
            for name, content in self.checkpoint_.items():
                (folder / name).write_bytes(content)
            self._llm = LLM(folder)
            weakref.finalize(self._llm, shutil.rmtree, folder, ignore_errors=True)
        return self._llm

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "checkpoint_")

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        return state | {"_llm": None} if "_llm" in state else state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        tags.classifier_tags.multi_label = True
        tags.non_deterministic = False
        return tags


def _texts(X: Sequence[str]) -> list[str]:
    texts = X.tolist() if hasattr(X, "tolist") else X
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValidationError("X must be a sequence of strings.", parameter="X")
    return list(texts)
