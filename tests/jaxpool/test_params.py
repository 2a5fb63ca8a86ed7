from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from jaxpool.errors import ValidationError
from jaxpool.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
)
from jaxpool.params import LoRARequest, PoolerConfig, PoolingParams, RequestOutputKind

FIELDS = [
    "use_activation",
    "dimensions",
    "step_tag_id",
    "returned_token_ids",
    "task",
    "requires_token_ids",
    "skip_reading_prefix_cache",
    "late_interaction_params",
    "extra_kwargs",
]


def test_positional_order_is_vllms():
    params = PoolingParams(True, 4, 7, [1, 2], "classify", True, False, "x", {"a": 1})
    assert [getattr(params, name) for name in FIELDS] == [
        True, 4, 7, [1, 2], "classify", True, False, "x", {"a": 1},
    ]  # fmt: skip


def test_clone_is_deep_and_equal():
    params = PoolingParams(returned_token_ids=[1])
    clone = params.clone()
    assert clone == params
    clone.returned_token_ids.append(2)
    assert params.returned_token_ids == [1]


@pytest.mark.parametrize("value", [PoolingParams(use_activation=False), PoolerConfig(pooling_type="MEAN")])
def test_copies_and_pickles(value):
    assert copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("name", ["softmax", "activation", "normalize", "use_activaton"])
def test_removed_or_misspelt_params_are_type_errors(name):
    with pytest.raises(TypeError, match=f"^Unexpected keyword argument '{name}'$"):
        PoolingParams(**{name: True})


def test_use_activation_must_be_a_flag():
    with pytest.raises(ValidationError, match="must be True, False or None, got 'no'"):
        PoolingParams(use_activation="no")


def test_output_kind_is_final_only():
    with pytest.raises(ValueError, match=r"For pooling output_kind has to be FINAL_ONLY, got RequestOutputKind\.DELTA"):
        PoolingParams(output_kind=RequestOutputKind.DELTA)


def test_for_task_pins_a_copy():
    params = PoolingParams(use_activation=False)
    assert params.for_task("classify") == PoolingParams(use_activation=False, task="classify")
    assert params.task is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            PoolingParams(task="embed"),
            "You cannot overwrite param.task='embed' with pooling_task='classify'!",
        ),
        (
            PoolingParams(dimensions=2),
            "Task 'classify' only supports ['use_activation'] parameters, does not support ['dimensions'] parameters",
        ),
        (
            PoolingParams(step_tag_id=2, returned_token_ids=[1]),
            "Task classify only supports ['use_activation'] parameters, does not support "
            "['step_tag_id', 'returned_token_ids'] parameters",
        ),
    ],
)
def test_for_task_refuses(params, message):
    with pytest.raises(ValidationError) as caught:
        params.for_task("classify")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fields", "seq", "tok"),
    [
        ({}, None, None),
        ({"pooling_type": "MEAN"}, "MEAN", None),
        ({"pooling_type": "CLS"}, "CLS", None),
        ({"pooling_type": "LAST"}, "LAST", None),
        ({"pooling_type": "ALL"}, None, "ALL"),
        ({"pooling_type": "STEP"}, None, "STEP"),
        ({"seq_pooling_type": "CLS", "pooling_type": "ALL"}, "CLS", "ALL"),
    ],
)
def test_pooling_type_fills_the_specific_field(fields, seq, tok):
    config = PoolerConfig(**fields)
    assert (config.seq_pooling_type, config.tok_pooling_type) == (seq, tok)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pooling_type": "MAX"}, ValidationError, "must be one of CLS, LAST, MEAN, ALL, STEP, got 'MAX'"),
        ({"seq_pooling_type": "ALL"}, ValidationError, "must be one of CLS, LAST, MEAN, got 'ALL'"),
        (
            {"pooling_type": "CLS", "seq_pooling_type": "LAST"},
            ValueError,
            "Cannot set both `pooling_type` and `seq_pooling_type`",
        ),
        (
            {"pooling_type": "ALL", "tok_pooling_type": "ALL"},
            ValueError,
            "Cannot set both `pooling_type` and `tok_pooling_type`",
        ),
        ({"normalize": True}, ValueError, "Parameter `normalize` was removed; use `use_activation` instead."),
        ({"logit_sigma": 0}, ValueError, "logit_sigma cannot be 0 (division by zero)"),
        ({"logit_sigma": 0.0}, ValueError, "logit_sigma cannot be 0 (division by zero)"),
        ({"use_activation": 1}, ValidationError, "must be True, False or None, got 1"),
        ({"pooling": "CLS"}, TypeError, "Unexpected keyword argument 'pooling'"),
    ],
)  # fmt: skip
def test_pooler_config_refuses(fields, error, message):
    with pytest.raises(error) as caught:
        PoolerConfig(**fields)
    assert message in str(caught.value)


def test_pooler_config_from_none_dict_or_itself():
    config = PoolerConfig(pooling_type="MEAN", logit_mean=0.5)
    assert PoolerConfig.of(None) == PoolerConfig()
    assert PoolerConfig.of({"pooling_type": "MEAN", "logit_mean": 0.5}) == config
    assert PoolerConfig.of(config) is config
    with pytest.raises(TypeError, match="should be a PoolerConfig or a dict, got str"):
        PoolerConfig.of("MEAN")


def test_lora_ids_start_at_one():
    with pytest.raises(ValueError, match="id must be > 0, got 0"):
        LoRARequest("x", 0, "/adapter")


def request(data, ids=(1, 2)):
    return PoolingRequestOutput("7", PoolingOutput(np.asarray(data, np.float32)), list(ids))


def test_pooling_output_equality_is_by_value():
    assert PoolingOutput(np.ones(2)) == PoolingOutput(np.ones(2))
    assert PoolingOutput(np.ones(2)) != PoolingOutput(np.zeros(2))
    assert PoolingOutput(np.ones(2)) != "ones"


def test_single_label_output_names_the_highest():
    out = ClassificationRequestOutput.from_base(request([0.2, 0.7, 0.1]), ("a", "b", "c"))
    assert (out.outputs.label, out.outputs.labels) == ("b", ["b"])
    assert out.outputs.probs == pytest.approx([0.2, 0.7, 0.1])
    assert all(type(p) is float for p in out.outputs.probs)
    assert repr(out) == (
        "ClassificationRequestOutput(request_id='7', outputs=ClassificationOutput(num_classes=3), "
        "prompt_token_ids=[1, 2], num_cached_tokens=0, finished=True)"
    )


@pytest.mark.parametrize(("data", "labels"), [([0.9, 0.2, 0.51], ["a", "c"]), ([0.1, 0.5, 0.2], [])])
def test_multi_label_output_names_all_above_the_threshold(data, labels):
    out = ClassificationOutput.from_base(PoolingOutput(np.asarray(data, np.float32)), ("a", "b", "c"), 0.5)
    assert out.labels == labels


def test_only_vectors_classify():
    with pytest.raises(ValueError, match="pooled_data should be a 1-D probability vector"):
        ClassificationOutput.from_base(PoolingOutput(np.ones((1, 2))))


def test_late_interaction_is_not_asked_for_by_parameters() -> None:
    with pytest.raises(NotImplementedError, match="late_interaction_params="):
        PoolingParams(late_interaction_params={"mode": "score_doc"}).for_task("token_embed")
