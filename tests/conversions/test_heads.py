"""Finding the head: by name, by shape, from LM-head rows; and what is said when there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxpool.errors import ConfigError, MissingHeadError, WeightsError
from jaxpool_conversions.heads import find_head
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.rules import HeadSource, Table

WIDTH = 8
ORDINARY: dict[str, Any] = {"num_labels": 2, "width": WIDTH, "token_ids": None, "method": None, "tied": False}
TABLE = Table("net.", (), head_names=("score", "classifier.out_proj", "classifier"), embedding="embed.weight")


def rows(count: int, width: int = WIDTH) -> np.ndarray:
    return np.zeros((count, width), np.float32)


def find(folder: Path, made: SimpleNamespace, tensors: dict[str, np.ndarray], **how: Any) -> HeadSource:
    with Reader(made.write(folder, tensors)) as reader:
        return find_head(reader, TABLE, **{**ORDINARY, **how})


@pytest.mark.parametrize("name", ["score", "classifier", "classifier.out_proj", "net.score"])
def test_found_by_any_of_its_names(tmp_path: Path, made: SimpleNamespace, name: str) -> None:
    head = find(tmp_path, made, {f"{name}.weight": rows(2), "net.embed.weight": rows(9)})
    assert (head.weight, head.bias, head.num_labels, head.rows) == (f"{name}.weight", None, 2, None)


def test_the_bias_and_the_order_of_preference(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = {"classifier.weight": rows(3), "score.weight": rows(2), "score.bias": np.zeros(2, np.float32)}
    head = find(tmp_path, made, tensors)
    assert (head.weight, head.bias) == ("score.weight", "score.bias")


def test_the_configuration_may_leave_the_count_open(tmp_path: Path, made: SimpleNamespace) -> None:
    assert find(tmp_path, made, {"score.weight": rows(5)}, num_labels=None).num_labels == 5


def test_missing(tmp_path: Path, made: SimpleNamespace) -> None:
    with pytest.raises(MissingHeadError) as caught:
        find(tmp_path, made, {"net.embed.weight": rows(9)})
    words = ("score.weight", "classifier.out_proj.weight", "classifier.weight", "jaxpool fit", "classifier_from_token",
             "from_2_way_softmax", "no_post_processing", "a checkpoint with a head")  # fmt: skip
    for word in words:
        assert word in " ".join(str(caught.value).split())


def test_label_count_conflict_names_both_numbers_and_the_remedy(tmp_path: Path, made: SimpleNamespace) -> None:
    with pytest.raises(WeightsError, match=r"says 3 labels.*score\.weight has 2.*\"num_labels\": 2"):
        find(tmp_path, made, {"score.weight": rows(2)}, num_labels=3)


@pytest.mark.parametrize("shape", [(2, WIDTH + 1), (2,), (0, WIDTH), (2, WIDTH, 1)])
def test_misshapen(tmp_path: Path, made: SimpleNamespace, shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match=r"score\.weight has shape"):
        find(tmp_path, made, {"score.weight": np.zeros(shape, np.float32)}, num_labels=None)


def test_misshapen_bias(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = {"score.weight": rows(2), "score.bias": np.zeros(3, np.float32)}
    with pytest.raises(WeightsError, match=r"score\.bias has shape \[3\]"):
        find(tmp_path, made, tensors)


VOCABULARY = {"net.embed.weight": rows(9), "lm_head.weight": rows(9)}


def test_two_tokens_make_one_label(tmp_path: Path, made: SimpleNamespace) -> None:
    head = find(tmp_path, made, VOCABULARY, token_ids=(3, 5), method="from_2_way_softmax", num_labels=2)
    assert (head.weight, head.rows, head.num_labels, head.method) == ("lm_head.weight", (3, 5), 1, "from_2_way_softmax")


def test_many_tokens_make_many_labels_from_the_tied_embedding(tmp_path: Path, made: SimpleNamespace) -> None:
    head = find(tmp_path, made, VOCABULARY, token_ids=(3, 0, 8), method="no_post_processing", tied=True, num_labels=2)
    assert (head.weight, head.bias, head.rows, head.num_labels) == ("net.embed.weight", None, (3, 0, 8), 3)


def test_rows_win_over_a_head_that_is_there_as_well(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = VOCABULARY | {"score.weight": rows(2)}
    assert find(tmp_path, made, tensors, token_ids=(1,), method="no_post_processing").weight == "lm_head.weight"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"token_ids": (1, 2), "method": None}, "method is not"),
        ({"token_ids": None, "method": "from_2_way_softmax"}, "names no tokens"),
        ({"token_ids": (), "method": "no_post_processing"}, "names no tokens"),
        ({"token_ids": (1, 2), "method": "magic"}, "'magic'.*from_2_way_softmax or no_post_processing"),
        ({"token_ids": (1, 2, 3), "method": "from_2_way_softmax"}, r"exactly two.*gives 3 \(ids 1, 2, 3\)"),
        ({"token_ids": (1,), "method": "from_2_way_softmax"}, "exactly two"),
        ({"token_ids": (1, 1), "method": "from_2_way_softmax"}, "two different tokens"),
        ({"token_ids": (1, 9), "method": "from_2_way_softmax"}, "token id 9.*has 9 rows"),
        ({"token_ids": (-1,), "method": "no_post_processing"}, "token id -1"),
    ],
)
def test_rules_for_heads_from_tokens(tmp_path: Path, made: SimpleNamespace, how: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find(tmp_path, made, VOCABULARY, **how)


def test_no_lm_head(tmp_path: Path, made: SimpleNamespace) -> None:
    with pytest.raises(MissingHeadError, match=r"lm_head\.weight.*tie_word_embeddings is false"):
        find(tmp_path, made, {"net.embed.weight": rows(9)}, token_ids=(1,), method="no_post_processing")


def test_misshapen_lm_head(tmp_path: Path, made: SimpleNamespace) -> None:
    tensors = {"lm_head.weight": rows(9, WIDTH + 1)}
    with pytest.raises(WeightsError, match=r"lm_head\.weight has shape \[9, 9\]"):
        find(tmp_path, made, tensors, token_ids=(1,), method="no_post_processing")


def test_names_come_from_the_table(tmp_path: Path, made: SimpleNamespace) -> None:
    with Reader(made.write(tmp_path, {"value.weight": rows(2)})) as reader:
        assert find_head(reader, replace(TABLE, head_names=("value",)), **ORDINARY).weight == "value.weight"
        with pytest.raises(MissingHeadError):
            find_head(reader, TABLE, **ORDINARY)
