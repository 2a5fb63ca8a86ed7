"""What ``LLM`` adds to vLLM's interface, and how it starts, fails and ends."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE
from safetensors.numpy import load_file, save_file

from jaxpool import LLM, ConfigError, EngineError, PoolingParams, ValidationError
from jaxpool.engine_args import IGNORED, REFUSED

MODELS = Path(__file__).parents[1] / "data" / "models"
BERT = str(MODELS / "bert-cls")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(BERT, dtype="float32") as llm:
        yield llm


def copy_of(name: str, folder: Path, **config: Any) -> Path:
    """A copy of a test model whose ``config.json`` has other values."""
    shutil.copytree(MODELS / name, folder)
    data = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def test_labels(llm: LLM) -> None:
    assert llm.labels == ("negative", "neutral", "positive")
    for output in llm.classify(["good", "bad", "a"]):
        best = llm.labels[int(np.argmax(output.outputs.probs))]
        assert (output.outputs.label, output.outputs.labels) == (best, [best])


def test_a_multi_label_model_names_all_that_are_likely(tmp_path: Path) -> None:
    folder = copy_of("bert-cls", tmp_path / "multi", problem_type="multi_label_classification")
    with LLM(folder, dtype="float32") as llm:
        texts = ["good", "bad", "a", "hello world", "the worst product"]
        activated = llm.classify(texts)
        raw = llm.classify(texts, pooling_params=PoolingParams(use_activation=False))
    for one, other in zip(activated, raw):
        expected = [name for name, p in zip(llm.labels, one.outputs.probs) if p > 0.5]
        assert one.outputs.labels == other.outputs.labels == expected
    assert {len(one.outputs.labels) for one in activated} - {1}  # else this could not fail


def test_encode_gives_float32_numbers(llm: LLM) -> None:
    (output,) = llm.encode("good", pooling_task="classify")
    assert (output.outputs.data.dtype, output.outputs.data.shape) == (np.float32, (3,))


def test_torch_shares_what_encode_gives(llm: LLM) -> None:
    import torch

    for output in llm.encode(["good", "bad"], pooling_task="classify", use_tqdm=False):
        tensor = torch.as_tensor(output.outputs.data)  # a warning would be an error here
        tensor += 1
        assert tensor.tolist() == output.outputs.data.tolist()


def test_settings_stand_where_programs_for_vllm_look(llm: LLM) -> None:
    config = llm.llm_engine.vllm_config.model_config
    assert config is llm.model_config is llm.llm_engine.model_config
    assert (config.hf_config.model_type, config.hf_config.num_labels) == ("bert", 3)
    assert (config.architecture, config.runner_type) == ("BertForSequenceClassification", "pooling")
    assert (config.max_model_len, config.dtype) == (llm.engine.spec.max_length, "float32")
    with pytest.raises(AttributeError):
        config.dtype = "bfloat16"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("task", "message"),
    [("classify", "only enabled for num_labels == 1"), ("token_classify", "does not support the Scoring API")],
)
def test_who_scores_no_pairs_says_so_as_vllm(task: str, message: str) -> None:
    with LLM(BERT, pooler_config={"task": task}) as llm, pytest.raises(ValidationError, match=message):
        llm.score("a", "b")


def test_vectors_of_tokens_are_scored_by_the_best_of_each() -> None:
    how: Any = {"runner": "pooling", "convert": "embed", "pooler_config": {"task": "token_embed"}}
    with LLM(MODELS / "llama-causal", dtype="float32", **how) as llm:
        outputs = llm.encode(["a b", "c"], pooling_task="token_embed", use_tqdm=False)
        one, two = (output.outputs.data for output in outputs)
        found = llm.score("a b", ["c", "a b"], use_tqdm=False)
    best = [max(float(a @ b) for b in two) for a in one]
    assert [output.outputs.score for output in found] == pytest.approx([sum(best), len(one)], abs=1e-4)


def test_pairs_are_read_together(llm: LLM) -> None:
    pair, reverse, text = llm.classify([{"prompt": "a", "text_pair": "b"}, {"prompt": "b", "text_pair": "a"}, "a b"])
    assert pair.prompt_token_ids == [2, 43, 3, 44, 3]
    assert pair.outputs.probs != reverse.outputs.probs
    assert text.prompt_token_ids == [2, 43, 44, 3]


def test_token_types_reach_the_model(llm: LLM) -> None:
    ids = [2, 43, 3, 44, 3]
    typed, untyped = llm.classify(
        [{"prompt_token_ids": ids, "token_type_ids": [0, 0, 0, 1, 1]}, {"prompt_token_ids": ids}]
    )
    (pair,) = llm.classify({"prompt": "a", "text_pair": "b"})
    assert typed.outputs.probs == pytest.approx(pair.outputs.probs, abs=1e-6)
    assert np.abs(np.subtract(untyped.outputs.probs, pair.outputs.probs)).max() > 1e-4


@pytest.mark.parametrize("stray", [2, -1])
def test_token_types_that_the_model_lacks_are_refused(stray: int, llm: LLM) -> None:
    with pytest.raises(ValidationError, match=f"Token type id {stray} is unknown to this .* has the types 0 to 1 "):
        llm.classify({"prompt_token_ids": [2, 43, 3, 44, 3], "token_type_ids": [0, 0, 0, 0, stray]})


def test_a_model_of_one_token_type_reads_no_pairs(tmp_path: Path) -> None:
    """Its tokenizer marks the second text with type 1; transformers fails there, too."""
    folder = copy_of("bert-cls", tmp_path / "one", type_vocab_size=1)
    weights = load_file(folder / "model.safetensors")
    name = "bert.embeddings.token_type_embeddings.weight"
    save_file(weights | {name: weights[name][:1]}, folder / "model.safetensors")
    with LLM(folder, dtype="float32") as llm:
        llm.classify("a")
        with pytest.raises(ValidationError, match=r"Token type id 1 .* only type 0 .*: it reads one text, not"):
            llm.classify({"prompt": "a", "text_pair": "b"})


def test_a_model_without_token_types_ignores_them() -> None:
    with LLM(str(MODELS / "gpt2-cls"), dtype="float32") as llm:
        typed, untyped = llm.classify([{"prompt_token_ids": [5, 6], "token_type_ids": [7, 9]}, [5, 6]])
    assert typed.outputs.probs == untyped.outputs.probs


def test_one_bad_prompt_fails_the_call_and_nothing_else(llm: LLM) -> None:
    before = llm.classify("good")[0].outputs.probs
    compiles = llm.engine.compiles
    with pytest.raises(ValidationError, match="out of vocabulary") as caught:
        llm.classify(["good"] * 3 + [[10**6]])
    assert caught.value.__notes__ == ["in prompt 3 of 4, counted from 0"]
    assert llm.engine.compiles == compiles
    assert llm.classify("good")[0].outputs.probs == before


def test_order_is_kept(llm: LLM) -> None:
    texts = ["a " * n for n in (30, 1, 100, 2, 7, 60, 3)]
    outputs = llm.classify(texts, use_tqdm=False)
    assert [len(output.prompt_token_ids) for output in outputs] == [32, 3, 102, 4, 9, 62, 5]
    for text, output in zip(texts, outputs):
        (alone,) = llm.classify(text, use_tqdm=False)
        assert alone.outputs.probs == pytest.approx(output.outputs.probs, abs=1e-6)


def test_callers_params_stay_theirs(llm: LLM) -> None:
    params = PoolingParams(use_activation=False)
    llm.classify("good", pooling_params=params)
    assert params == PoolingParams(use_activation=False)


def test_the_bar_counts_prompts(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options, self.seen = options, 0
            bars.append(self)

        def update(self, count: int) -> None:
            self.seen += count

        def close(self) -> None:
            self.closed = True

    bars: list[Bar] = []
    llm.classify(["good"] * 5, use_tqdm=Bar)
    assert (bars[0].options["total"], bars[0].options["desc"], bars[0].seen) == (5, "Processed prompts", 5)
    assert bars[0].closed
    assert not capsys.readouterr().err
    llm.classify("good", use_tqdm=False)
    assert not capsys.readouterr().err
    llm.classify("good")
    assert "Processed prompts" in capsys.readouterr().err


def test_threads_share_one_llm(llm: LLM) -> None:
    expected = [output.outputs.probs for output in llm.classify(["good", "bad"])]
    results: list[Any] = [None] * 8

    def work(i: int) -> None:
        results[i] = [output.outputs.probs for output in llm.classify(["good", "bad"], use_tqdm=False)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * len(results)


def test_get_tokenizer_is_the_callers_own(llm: LLM) -> None:
    ids = llm.classify("good")[0].prompt_token_ids
    tokenizer = llm.get_tokenizer()
    assert tokenizer("good")["input_ids"] == ids
    assert llm.get_tokenizer() is tokenizer
    tokenizer("good", truncation=True, max_length=3, padding="max_length")
    assert llm.classify("good")[0].prompt_token_ids == ids


def test_without_a_tokenizer_ids_still_work(tmp_path: Path) -> None:
    folder = copy_of("bert-cls", tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    for options, reason in (({}, "has no tokenizer files"), ({"skip_tokenizer_init": True}, "was set")):
        with LLM(folder, dtype="float32", **options) as llm:
            assert llm.classify([2, 43, 3])[0].outputs.label in llm.labels
            with pytest.raises(ValidationError, match=f"Texts cannot be read because .*{reason}"):
                llm.classify("good")
            with pytest.raises(ValidationError, match="Texts cannot be read because"):
                llm.get_tokenizer()
    with LLM(folder, dtype="float32", tokenizer=BERT) as llm:
        assert llm.classify("a")[0].prompt_token_ids == [2, 43, 3]


def test_scores_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    folder = copy_of("gpt2-cls", tmp_path / "huge")
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = np.full_like(weights["score.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        LLM(folder, dtype="float32") as llm,
        pytest.raises(EngineError, match=r"The scores of prompt 0 are not finite"),
    ):
        llm.classify(["good", "bad"])


def test_score_reads_pairs_with_one_label(tmp_path: Path) -> None:
    folder = copy_of("bert-cls", tmp_path / "cross", id2label={"0": "match"}, label2id={"match": 0})
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][:1].copy()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with LLM(folder, dtype="float32") as llm:
        outputs = llm.score("a", ["b", "c"])
        pairs = llm.classify([{"prompt": "a", "text_pair": text} for text in "bc"])
        assert [one.outputs.score for one in outputs] == [one.outputs.probs[0] for one in pairs]
        with pytest.raises(ValueError, match="1:1, 1:N or N:N"):
            llm.score(["a", "b"], ["c", "d", "e"])
        with pytest.raises(ValueError, match="At least one text_pair element"):
            llm.score("a", [])


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_arguments_that_change_nothing_are_accepted(name: str) -> None:
    with pytest.raises(ValueError, match="has no config"):  # so it got past the arguments
        LLM(MODELS, **{name: object()})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_arguments_that_cannot_be_honoured(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"^{name}='x' is not possible in jaxpool: "):
        LLM(BERT, **{name: "x"})
    for harmless in REFUSED[name][0]:
        with pytest.raises(ValueError, match="has no config"):
            LLM(MODELS, **{name: harmless})


def test_misspelt_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"argument 'max_model_length'; it takes .*max_model_len"):
        LLM(BERT, max_model_length=8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_model_len": 10**6}, ValidationError, "max_model_len"),
        ({"dtype": "int8"}, ValidationError, "dtype"),
        ({"runner": "generate"}, ValidationError, "generate"),
        ({"pooler_config": {"task": "embed"}}, ValidationError, "embed"),
        ({"hf_overrides": {"num_labels": 7}}, ValueError, "7"),
        ({"hf_overrides": {"model_type": "no-such"}}, ConfigError, "no-such"),
    ],
)
def test_options_that_do_not_fit_the_model(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LLM(BERT, **options)


def test_max_model_len_binds(tmp_path: Path) -> None:
    with LLM(BERT, dtype="float32", max_model_len=4) as llm:
        assert len(llm.classify("a a")[0].prompt_token_ids) == 4
        with pytest.raises(ValidationError, match="maximum context length is 4 tokens"):
            llm.classify("a a a")


def test_closing_is_idempotent_and_final() -> None:
    llm = LLM(BERT, dtype="float32")
    llm.classify("good")
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="This LLM is closed"):
        llm.classify("good")


def test_an_abandoned_llm_stops_its_threads() -> None:
    before = set(threading.enumerate())
    llm = LLM(BERT, dtype="float32")
    llm.classify("good", use_tqdm=False)
    started = set(threading.enumerate()) - before
    assert len(started) >= 2
    gone = weakref.ref(llm.engine)
    del llm
    gc.collect()
    assert gone() is None
    for thread in started:
        thread.join(timeout=PATIENCE)
        assert not thread.is_alive(), thread


def test_the_interpreter_ends_with_an_open_llm() -> None:
    code = (
        "import sys; from jaxpool import LLM; llm = LLM(sys.argv[1], dtype='float32');"
        "print(llm.classify('good', use_tqdm=False)[0].outputs.num_classes)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, BERT], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert result.stdout == "3\n"
    assert not result.stderr
