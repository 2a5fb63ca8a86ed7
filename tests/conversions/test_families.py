"""The model table: nothing that transformers classifies is forgotten, and everything we list is compared with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from family_index import PAGE as INDEX
from family_index import page
from parity_cases import CASES

from jaxpool.errors import UnsupportedArchitectureError
from jaxpool_conversions.families import families, find
from jaxpool_conversions.families.not_yet import NOT_YET

PAGE = Path(__file__).parents[2] / "conversions" / "PARITY.md"


def classified_by_transformers() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


def test_every_model_type_of_transformers_is_here_or_has_a_reason() -> None:
    assert classified_by_transformers() - families().keys() - NOT_YET.keys() == set()


def test_reasons_are_only_for_what_is_missing() -> None:
    assert NOT_YET.keys() & families().keys() == set()
    assert NOT_YET.keys() - classified_by_transformers() == set()


def test_every_family_is_compared_with_transformers() -> None:
    compared = {model_type for model_type, _ in CASES.values()}
    assert families().keys() & classified_by_transformers() - compared == set()
    for model_type in compared:
        label_counts = [config.get("num_labels", 2) for kind, config in CASES.values() if kind == model_type]
        assert len(label_counts) >= 2, f"{model_type}: one lucky config proves little"


def test_the_parity_page_is_of_these_cases() -> None:
    """`python tests/support/parity_table.py` writes it; here only that no model type was added or lost since."""
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) \|.* (\d\.\de[-+]\d+) \| (0\.\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {name for name, *_ in rows} == {model_type for model_type, _ in CASES.values()}
    assert all(float(logits) <= 1e-4 and float(half) <= 0.05 for *_, logits, half in rows)


def test_a_missing_model_type_says_why() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="'layoutlm' is not supported yet, because it reads the pos"):
        find("layoutlm")


def test_the_index_names_the_file_of_every_model_type() -> None:
    """`python tests/support/family_index.py` writes it."""
    assert INDEX.read_text(encoding="utf-8") == page()
