"""Replays what vLLM 0.32 answered, case by case, through the public interface.

``CASES`` says what was called, ``DIFFERENCES`` where we answer otherwise on purpose, and what then. A
recorded case that is in neither fails.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxpool import LLM, LoRARequest, MissingHeadError, PoolerConfig, PoolingParams, ValidationError

DATA = Path(__file__).parents[1] / "data"
TEXTS = json.loads((DATA / "goldens" / "texts.json").read_text(encoding="utf-8"))
IDS, TEXTS = TEXTS["IDS"], TEXTS["TEXTS"]
FULL = [text for text in TEXTS if text.strip()]
RUNS = {
    path.stem.removeprefix("offline_"): json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((DATA / "goldens").glob("offline_*.json"))
}
TOLERANCE = 1e-4
HELLO, LONG = "Hello world", "hello world " * 60
PREFIX = "hello world, this is prefix caching " * 30
RAW, ACTIVATED = PoolingParams(use_activation=False), PoolingParams(use_activation=True)


def classify(*args: Any, **kwargs: Any) -> Callable[[LLM], Any]:
    return lambda llm: llm.classify(*args, use_tqdm=False, **kwargs)


def encode(*args: Any, **kwargs: Any) -> Callable[[LLM], Any]:
    return lambda llm: llm.encode(*args, use_tqdm=False, **kwargs)


def tokenized(prompt: Any, **options: Any) -> Callable[[LLM], Any]:
    return classify(prompt, tokenization_kwargs=options)


def overlong(llm: LLM) -> str:
    return "hello world " * (2 * llm.tokenizer.max_length)


def invariance(llm: LLM) -> dict[str, list[float]]:
    alone = llm.encode(HELLO, RAW, pooling_task="classify", use_tqdm=False)
    together = llm.encode(FULL, RAW, pooling_task="classify", use_tqdm=False)
    return {"alone": alone[0].outputs.data.tolist(), "in_batch": together[0].outputs.data.tolist()}


CASES: dict[str, Callable[[LLM], Any]] = {
    "classify_str": classify(TEXTS[1]),
    **{f"classify_text_{i}": classify(text) for i, text in enumerate(TEXTS)},
    "classify_list": classify(FULL),
    "classify_list_noact": classify(FULL, pooling_params=RAW),
    "classify_list_act": classify(FULL, pooling_params=ACTIVATED),
    "classify_list_act_none": classify(FULL, pooling_params=PoolingParams(use_activation=None)),
    "classify_ids_prompts": classify(IDS),
    "classify_ids_prompts_noact": classify(IDS, pooling_params=RAW),
    "encode_classify": encode(TEXTS[:3], pooling_task="classify"),
    "encode_classify_noact": encode(TEXTS[:3], RAW, pooling_task="classify"),
    "encode_token_classify": encode(FULL, pooling_task="token_classify"),
    "encode_token_classify_noact": encode(FULL, RAW, pooling_task="token_classify"),
    "encode_token_classify_ids": encode(IDS, pooling_task="token_classify"),
    "encode_token_classify_str": encode(HELLO, pooling_task="token_classify"),
    **{f"encode_{task}": encode(TEXTS[:3], pooling_task=task) for task in ("embed", "token_embed")},
    **{f"encode_{task}_noact": encode(TEXTS[:3], RAW, pooling_task=task) for task in ("embed", "token_embed")},
    "classify": classify(HELLO),
    "embed_dimensions": lambda llm: llm.embed(HELLO, pooling_params=PoolingParams(dimensions=8)),
    "params_task_mismatch": encode(HELLO, PoolingParams(task="classify"), pooling_task="token_classify"),
    "score": lambda llm: llm.score(HELLO, ["a", "The movie"], use_tqdm=False),
    "score_pair": lambda llm: llm.score(
        "what is the capital of Japan?", ["Tokyo is the capital.", "a cat sat"], use_tqdm=False
    ),
    "classify_default_tqdm_repr": lambda llm: llm.classify(HELLO),
    "classify_id_list_flat": classify([5, 6, 7, 8]),
    "classify_id_list_nested": classify(IDS),
    "classify_textprompt": classify({"prompt": HELLO}),
    "classify_tokensprompt": classify({"prompt_token_ids": [5, 6, 7, 8]}),
    "classify_tokensprompt_with_prompt": classify({"prompt_token_ids": [5, 6, 7, 8], "prompt": "ignored"}),
    "classify_mixed": classify([HELLO, [5, 6, 7, 8], {"prompt_token_ids": [9, 10, 11]}, {"prompt": "a"}]),
    "classify_tuple": classify((HELLO, "a")),
    "classify_generator": lambda llm: llm.classify(text for text in TEXTS),
    "classify_params_per_prompt": classify([HELLO] * 3, pooling_params=[PoolingParams(), RAW, ACTIVATED]),
    "classify_params_wrong_len": classify([HELLO] * 2, pooling_params=[PoolingParams()]),
    "classify_params_task_classify": classify(HELLO, pooling_params=PoolingParams(task="classify")),
    "classify_params_task_embed": classify(HELLO, pooling_params=PoolingParams(task="embed")),
    "classify_params_dimensions": classify(HELLO, pooling_params=PoolingParams(dimensions=2)),
    "classify_params_step": classify(HELLO, pooling_params=PoolingParams(step_tag_id=2)),
    "classify_params_wrong_type": classify(HELLO, pooling_params={"use_activation": True}),
    "classify_params_useact_string": lambda llm: classify(HELLO, pooling_params=PoolingParams(use_activation="yes"))(
        llm
    ),
    "poolingparams_repr": lambda llm: [
        repr(PoolingParams()),
        repr(PoolingParams(use_activation=True, task="classify")),
    ],
    "poolingparams_removed_score": lambda llm: PoolingParams(task="score"),
    "poolingparams_removed_encode": lambda llm: PoolingParams(task="encode"),
    "poolingparams_unknown_task": lambda llm: PoolingParams(task="bogus"),
    "poolingparams_normalize": lambda llm: PoolingParams(normalize=True),
    "poolingparams_softmax": lambda llm: PoolingParams(softmax=True),
    "poolingparams_activation": lambda llm: PoolingParams(activation=True),
    **{
        f"truncate_prompt_tokens={n!r}": tokenized(LONG, truncate_prompt_tokens=n)
        for n in (-1, 0, 1, 3, 512, 513, 1024, 1025, -2, "3", 2.5, None)
    },
    "truncate_overlong_-1": lambda llm: tokenized(overlong(llm), truncate_prompt_tokens=-1)(llm),
    "truncate_overlong_n16": lambda llm: tokenized(overlong(llm), truncate_prompt_tokens=16)(llm),
    "truncate_left_5": tokenized(TEXTS[2], truncate_prompt_tokens=5, truncation_side="left"),
    "truncate_right_5": tokenized(TEXTS[2], truncate_prompt_tokens=5, truncation_side="right"),
    "truncate_bad_side": tokenized(TEXTS[2], truncate_prompt_tokens=5, truncation_side="middle"),
    "truncate_ids_3": tokenized([5, 6, 7, 8], truncate_prompt_tokens=3),
    "truncation_True": lambda llm: tokenized(overlong(llm), truncation=True)(llm),
    "truncation_True_maxlen8": tokenized(LONG, truncation=True, max_length=8),
    "maxlen8_no_truncation": tokenized(LONG, max_length=8),
    "padding_max_length": tokenized(HELLO, padding="max_length", max_length=16),
    "padding_True": tokenized(HELLO, padding=True),
    "add_special_tokens_False": tokenized(HELLO, add_special_tokens=False),
    "add_special_tokens_True": tokenized(HELLO, add_special_tokens=True),
    "tokenization_kwargs_unknown": tokenized(HELLO, no_such_option=1),
    "classify_truncate_kwarg": lambda llm: llm.classify(HELLO, truncate_prompt_tokens=3),
    "encode_truncate_kwarg": lambda llm: llm.encode(HELLO, truncate_prompt_tokens=3, pooling_task="classify"),
    "overlong_text": lambda llm: classify(overlong(llm))(llm),
    "overlong_text_in_batch": lambda llm: classify([HELLO, overlong(llm)])(llm),
    "after_overlong_still_works": classify(HELLO),
    "very_long_text": lambda llm: classify("x" * (60 * llm.tokenizer.max_length + 10))(llm),
    "overlong_ids": lambda llm: classify([[7] * (llm.tokenizer.max_length + 1)])(llm),
    "overlong_ids_by_10": lambda llm: classify([[7] * (llm.tokenizer.max_length + 10)])(llm),
    "exactly_max_ids": lambda llm: classify([[7] * llm.tokenizer.max_length])(llm),
    "max_minus_1_ids": lambda llm: classify([[7] * (llm.tokenizer.max_length - 1)])(llm),
    "empty_list": classify([]),
    "empty_string": classify(""),
    "empty_string_in_batch": classify([HELLO, "", "a"]),
    "empty_ids": classify({"prompt_token_ids": []}),
    "empty_ids_nested": classify([[]]),
    "empty_dict": classify({}),
    "unknown_dict": classify({"text": HELLO}),
    "data_dict": classify({"data": HELLO}),
    "int_prompt": classify(5),
    "none_prompt": classify(None),
    "none_in_list": classify([None]),
    "bytes_prompt": classify(b"Hello world"),
    "float_ids": classify([[1.5, 2.0]]),
    "str_ids": classify({"prompt_token_ids": ["a", "b"]}),
    "oov_id": classify([[1000000]]),
    "vocab_size_id": lambda llm: classify([[llm.tokenizer.vocab_size]])(llm),
    "negative_id": classify([[-1]]),
    "bool_ids": classify([[True, False]]),
    "lone_surrogate": classify("\ud800"),
    "nul_char": classify("abc\0def"),
    "special_token_text": classify("<|endoftext|> [SEP] </s> <|im_end|>"),
    "encode_no_task": encode(HELLO),
    "encode_task_classify": encode([HELLO, "a"], pooling_task="classify"),
    **{
        f"encode_task_{task}": encode([HELLO, "a"], pooling_task=task)
        for task in (
            "token_classify",
            "embed",
            "token_embed",
            "score",
            "encode",
            "bogus",
            "plugin",
            "embed&token_classify",
        )
    },
    "embed": lambda llm: llm.embed(HELLO),
    "generate": lambda llm: llm.generate(HELLO),
    "chat": lambda llm: llm.chat([{"role": "user", "content": HELLO}]),
    "reward": lambda llm: llm.reward(HELLO),
    "score_single": lambda llm: llm.score(HELLO, HELLO),
    "lora_request_not_enabled": classify(HELLO, lora_request=LoRARequest("x", 1, "/nonexistent")),
    "big_batch_300_count": lambda llm: len(llm.classify([HELLO] * 300, use_tqdm=False)),
    "prefix_cache_first": tokenized(PREFIX, truncate_prompt_tokens=300),
    "prefix_cache_second": tokenized(PREFIX, truncate_prompt_tokens=300),
    "request_ids_are_global_counter": lambda llm: [llm.classify(HELLO, use_tqdm=False)[0].request_id for _ in range(3)],
    "batch_invariance": invariance,
    "llm_methods": lambda llm: sorted(name for name in dir(llm) if not name.startswith("_")),
    "signatures": lambda llm: {
        name: str(inspect.signature(getattr(llm, name))) for name in ("classify", "encode", "embed", "score")
    },
}


CASES_OF = {"gpt2-cls-tokcls": {"empty_string": encode("", pooling_task="token_classify")}}
"""Run -> cases that called something else there."""


class Difference(NamedTuple):
    """What we answer instead: an error of this class with this text, or these token ids (None: see the test)."""

    reason: str
    ours: tuple[type[Exception], str] | list[int] | None
    only: str | tuple[str, ...] = ""


NOT_A_PROMPT = "Prompt should be a string, list of tokens, or dictionary"
NO_PARAMS = "pooling_params should be a PoolingParams or a list of them, got dict."
NO_USE = "tokenization_kwargs has no_such_option=1, for which jaxpool has no use (parameter=no_such_option)"
UNEXPECTED = "got an unexpected keyword argument 'truncate_prompt_tokens'"
INTEGERS = (TypeError, "Token prompt should be a list of integers")
DIFFERENCES: dict[str, Difference] = {
    "truncate_left_5": Difference("special tokens are kept", [2, 128, 1768, 18, 3], "bert-cls"),
    "truncate_right_5": Difference("special tokens are kept", [2, 294, 184, 169, 3], "bert-cls"),
    "padding_max_length": Difference("padding is passed over, as in training", None, ("gpt2-cls", "qwen2-cls")),
    "float_ids": Difference("1.5 is no token; vLLM rounds it in silence", INTEGERS),
    "bool_ids": Difference("True is no token", INTEGERS),
    "str_ids": Difference("vLLM shows an accident inside a comparison", INTEGERS),
    "bytes_prompt": Difference("vLLM takes bytes for embeddings", (TypeError, NOT_A_PROMPT)),
    "lone_surrogate": Difference(
        "vLLM shows the tokenizer's internals",
        (
            ValidationError,
            "The prompt is not valid Unicode: character 0 is half of a surrogate pair (U+D800); "
            "decode the text with errors='replace'.",
        ),
    ),
    "classify_params_wrong_type": Difference("vLLM misses a method of dict", (TypeError, NO_PARAMS)),
    "classify_params_useact_string": Difference(
        'any text, even "no", would switch the activation on',
        (
            ValidationError,
            "`use_activation` must be True, False or None, got 'yes'. (parameter=use_activation, value=yes)",
        ),
    ),
    "classify_generator": Difference("anything that has an order is taken", None),
    "unknown_dict": Difference("'text' is our server's word for 'prompt'", None),
    "tokenization_kwargs_unknown": Difference("an option that nothing reads is named", (ValidationError, NO_USE)),
    "classify_truncate_kwarg": Difference("our class has another name", (TypeError, f"LLM.classify() {UNEXPECTED}")),
    "encode_truncate_kwarg": Difference("our class has another name", (TypeError, f"LLM.encode() {UNEXPECTED}")),
    "request_ids_are_global_counter": Difference("refused calls do not use up ids here", None),
    "llm_methods": Difference("no generation, weight updates or sleep; labels and close are ours", None),
}
METHODS = {"chat", "classify", "embed", "encode", "generate", "get_tokenizer", "score"}
METHODS |= {"pooling_task", "supported_tasks"}
ERRORS = {
    "VLLMValidationError": ValidationError,
    "ValueError": ValueError,
    "TypeError": TypeError,
    "AttributeError": AttributeError,
}


@pytest.fixture(scope="module")
def opened() -> Iterator[dict[str, LLM]]:
    """One ``LLM`` per run."""
    llms: dict[str, LLM] = {}
    yield llms
    for llm in llms.values():
        llm.close()


def llm_of(run: str, opened: dict[str, LLM]) -> LLM:
    if run not in opened:
        record = RUNS[run]
        opened[run] = LLM(str(DATA / "models" / record["model"]), **record["llm_kwargs"])
    return opened[run]


def shape(signature: str) -> list[tuple[str, str, str]]:
    """Name, kind and default of every parameter, annotations dropped (theirs name their modules)."""
    spec = ast.parse(f"def f{signature}: pass").body[0].args
    positional = [*spec.posonlyargs, *spec.args]
    defaults = [""] * (len(positional) - len(spec.defaults)) + [ast.unparse(d) for d in spec.defaults]
    kinds = ["/"] * len(spec.posonlyargs) + [""] * len(spec.args)
    return [(arg.arg, kind, default) for arg, kind, default in zip(positional, kinds, defaults)] + [
        (arg.arg, "*", ast.unparse(default) if default else "")
        for arg, default in zip(spec.kwonlyargs, spec.kw_defaults)
    ]


def check_outputs(outputs: list[Any], expected: list[dict[str, Any]]) -> None:
    assert len(outputs) == len(expected)
    for output, recorded in zip(outputs, expected):
        inner = output.outputs
        name = next(name for name in ("probs", "data", "embedding", "score") if hasattr(inner, name))
        values = np.atleast_1d(getattr(inner, name))
        assert values.shape == np.shape(recorded["values"])
        np.testing.assert_allclose(values, recorded["values"], rtol=0, atol=TOLERANCE)
        if "repr" not in recorded:
            assert output.prompt_token_ids == recorded["ids"]
            continue
        ours, theirs = _comparable(repr(output)), _comparable(recorded["repr"])
        if "ids" in recorded:  # the recorder cut long texts
            assert output.prompt_token_ids == recorded["ids"]
            theirs = theirs.removesuffix("...")
            ours = ours[: len(theirs)]
        assert ours == theirs


def _comparable(text: str) -> str:
    """Masks the request counter, the hits of a prefix cache that we do not have, and numbers."""
    text = re.sub(r"request_id='[\d_]+'", "request_id", text)
    text = re.sub(r"num_cached_tokens=\d+", "num_cached_tokens", text)
    text = re.sub(r"data=(tensor|array)\(\[[^()]*\](, dtype=float32)?\)", "data", text)
    return re.sub(r"score=[\d.]+", "score", text)


def check_error(caught: BaseException, error: type[Exception], message: str) -> None:
    assert isinstance(caught, error)
    assert str(caught) == message


@pytest.mark.parametrize(("run", "case"), [(run, case) for run, record in RUNS.items() for case in record["cases"]])
def test_case(run: str, case: str, opened: dict[str, LLM]) -> None:
    recorded, llm = RUNS[run]["cases"][case], llm_of(run, opened)
    call = CASES_OF.get(run, {}).get(case) or CASES[case]
    difference = DIFFERENCES.get(case)
    if difference and (not difference.only or run in difference.only):
        return check_difference(case, difference, llm, recorded)
    if "error" in recorded:
        with pytest.raises(ERRORS[recorded["error"]]) as caught:
            call(llm)
        check_error(caught.value, ERRORS[recorded["error"]], recorded["message"])
        if recorded["error"] == "VLLMValidationError":
            assert caught.value.parameter == recorded["parameter"]
            assert caught.value.value == recorded["value"]
        return None
    result = call(llm)
    if "outputs" in recorded:
        check_outputs(result, recorded["outputs"])
    elif case == "batch_invariance":
        for name, values in recorded["value"].items():
            assert result[name] == pytest.approx(values, abs=TOLERANCE)
    elif case == "signatures":
        for name, signature in recorded["value"].items():
            assert shape(result[name]) == shape(signature)
    elif case == "poolingparams_unknown_task":
        assert repr(result) == recorded["value"]["repr"]
    else:
        assert result == recorded["value"]
    return None


def check_difference(case: str, difference: Difference, llm: LLM, recorded: dict[str, Any]) -> None:
    if case == "request_ids_are_global_counter":
        first, *others = CASES[case](llm)
        assert others == [str(int(first) + 1), str(int(first) + 2)]
    elif case == "padding_max_length":
        (output,), (bare,) = CASES[case](llm), classify(HELLO)(llm)
        np.testing.assert_allclose(output.outputs.probs, bare.outputs.probs, atol=TOLERANCE)
    elif case == "llm_methods":
        assert set(recorded["value"]) >= METHODS
        assert set(CASES[case](llm)) >= METHODS
    elif case in ("classify_generator", "unknown_dict"):
        assert len(CASES["unknown_dict"](llm) + llm.classify(text for text in TEXTS if text)) == len(TEXTS)
    elif isinstance(difference.ours, list):
        (output,) = CASES[case](llm)
        assert output.prompt_token_ids == difference.ours
    else:
        assert difference.ours is not None
        with pytest.raises(difference.ours[0]) as caught:
            CASES[case](llm)
        check_error(caught.value, *difference.ours)


def test_every_case_and_difference_is_recorded() -> None:
    recorded = {case for record in RUNS.values() for case in record["cases"]}
    assert set(CASES) == recorded
    assert set(DIFFERENCES) <= recorded


@pytest.mark.parametrize("run", [run for run, record in RUNS.items() if record["cases"]])
def test_limits_and_tasks(run: str, opened: dict[str, LLM]) -> None:
    llm, record = llm_of(run, opened), RUNS[run]
    assert llm.tokenizer.max_length == record["max_model_len"]
    assert sorted(llm.supported_tasks) == record["supported_tasks"]
    assert llm.pooling_task == record.get("pooling_task", "classify")


def test_an_unknown_pooling_type_is_refused() -> None:
    """vLLM prints two pydantic errors with a link; the class is a ValueError in both."""
    record = RUNS["gpt2-cls-badpool"]
    assert record["construct"]["error"] == "ValidationError"
    with pytest.raises(ValueError, match="`pooling_type` must be one of CLS, LAST, MEAN, ALL, STEP, got 'MAX'"):
        LLM(str(DATA / "models" / record["model"]), **record["llm_kwargs"])


def test_a_missing_head_is_an_error() -> None:
    """vLLM serves an uninitialised head here."""
    with pytest.raises(MissingHeadError, match="classifier_from_token"):
        LLM(str(DATA / "models" / "llama-causal"), runner="pooling", convert="classify", dtype="float32")


def test_pooler_config_as_an_object_is_the_same(opened: dict[str, LLM]) -> None:
    record = RUNS["gpt2-cls-calib"]
    pooler = PoolerConfig(logit_mean=0.5, logit_sigma=2.0)
    with LLM(str(DATA / "models" / "gpt2-cls"), dtype="float32", pooler_config=pooler) as llm:
        check_outputs(llm.classify(TEXTS[1]), record["cases"]["classify_str"]["outputs"])
