"""``jaxpool.commands.fit`` on few texts against TF-IDF with logistic regression, on small sets that PyPI wheels carry.

    python tests/bench/fit_against_tfidf.py WHEELS --base FOLDER [--sizes 8 32 128] [--sets spam …] [--freeze backbone]

Prints a row per set and size: accuracy (macro-F1 where a text may have several labels) of both, and seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer
from small_sets import SETS, SmallSet, read

import jaxpool


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--base", help="folder to start from (default: the embedded model)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 128], help="training texts a label")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--freeze", choices=("backbone", "nothing"), help="instead of what is automatic")
    args = parser.parse_args()
    differences = []
    print(f"{'set':<15} {'texts':>5} {'TF-IDF':>7} {'jaxpool':>8} {'points':>7} {'seconds':>8}", flush=True)
    for name in args.sets:
        for size in args.sizes:
            data = read(args.wheels, name, size, args.seed)
            plain, (ours, seconds) = tfidf(data), fitted(data, args.base, args.freeze)
            differences.append(100 * (ours - plain))
            print(
                f"{name:<15} {size:>5} {plain:>7.3f} {ours:>8.3f} {differences[-1]:>+7.1f} {seconds:>8.0f}", flush=True
            )
    print(json.dumps({"mean": round(float(np.mean(differences)), 1), "least": round(min(differences), 1)}))


def tfidf(data: SmallSet) -> float:
    """Score of scikit-learn's defaults."""
    model: Any = LogisticRegression(max_iter=2000)
    target, truth = _targets(data)
    pipeline = make_pipeline(TfidfVectorizer(), OneVsRestClassifier(model) if data.several else model)
    pipeline.fit([text for text, _ in data.train], target)
    return _score(truth, pipeline.predict([text for text, _ in data.test]), data.several)


def fitted(data: SmallSet, base: str | None, freeze: str | None) -> tuple[float, float]:
    """Score of ``jaxpool.commands.fit`` and seconds that it took."""
    started = time.perf_counter()
    texts, labels = [text for text, _ in data.train], [label for _, label in data.train]
    with jaxpool.fit(texts, labels, base=base, freeze=freeze) as llm:
        seconds = time.perf_counter() - started
        cut = {"truncate_prompt_tokens": -1}
        outputs = llm.classify([text for text, _ in data.test], use_tqdm=False, tokenization_kwargs=cut)
        names = llm.labels
    _, truth = _targets(data)
    if not data.several:
        return _score(truth, np.array([output.outputs.label for output in outputs]), False), seconds
    held = [[name in output.outputs.labels for name in sorted(names)] for output in outputs]
    return _score(truth, np.array(held, int), True), seconds


def _targets(data: SmallSet) -> tuple[np.ndarray, np.ndarray]:
    train, test = [label for _, label in data.train], [label for _, label in data.test]
    if not data.several:
        return np.array(train), np.array(test)
    matrix = MultiLabelBinarizer().fit(train)
    return matrix.transform(train), matrix.transform(test)


def _score(truth: np.ndarray, predicted: np.ndarray, several: bool) -> float:
    return float(f1_score(truth, predicted, average="macro") if several else np.mean(truth == predicted))


if __name__ == "__main__":
    main()
