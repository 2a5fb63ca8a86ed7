"""The check list of the embedded model, filled in; ``python tests/support/check_list.py [MODEL]`` prints figures."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "data" / "check_list.json"


def expand(template: str) -> list[str]:
    """``"a {b|c}"`` as ``["a b", "a c"]``; all combinations of several."""
    parts = re.split(r"\{([^}]*)\}", template)
    return ["".join(chosen) for chosen in itertools.product(*(part.split("|") for part in parts))]


def right() -> list[tuple[str, str, str]]:
    """Capability, label and text of every sentence with an answer."""
    tests = json.loads(FILE.read_text(encoding="utf-8"))["right"]
    return [(t["capability"], t["label"], text) for t in tests for form in t["templates"] for text in expand(form)]


def same() -> list[tuple[str, list[str]]]:
    """Capability and texts that must all get the same answer."""
    tests = json.loads(FILE.read_text(encoding="utf-8"))["same"]
    return [(t["capability"], expand(form)) for t in tests for form in t["templates"]]


def figures(llm: Any) -> dict[str, float]:
    """Share of right answers, overall (``right``) and by capability; share of changed texts that keep the answer."""

    def answers(texts: Sequence[str]) -> list[str]:
        return [output.outputs.label for output in llm.classify(list(texts), use_tqdm=False)]

    hits: dict[str, list[bool]] = defaultdict(list)
    tests = right()
    for (capability, label, _), answer in zip(tests, answers([text for _, _, text in tests])):
        hits[capability].append(answer == label)
        hits["right"].append(answer == label)
    for capability, texts in same():
        first, *others = answers(texts)
        kept = [answer == first for answer in others]
        hits[capability] += kept
        hits["same"] += kept
    return {name: sum(values) / len(values) for name, values in hits.items()}


if __name__ == "__main__":
    from jaxpool import LLM

    with LLM(*sys.argv[1:]) as model:
        print({name: round(share, 3) for name, share in figures(model).items()})
