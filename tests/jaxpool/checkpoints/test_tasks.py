"""Tasks beside ``classify``: results per token, embeddings, and how a checkpoint says which of them it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from parity_cases import CASES
from parity_cases.first import BERT, LLAMA

from jaxpool import LLM, CheckpointError, ConfigError, MissingHeadError, PoolingParams, ValidationError
from jaxpool.checkpoints.labels import declared_labels, label_names, refuse_quantised
from jaxpool.checkpoints.sentence_transformers import read_sentence_embedder
from jaxpool.checkpoints.tasks import choose
from jaxpool.commands.convert import convert

RAW = PoolingParams(use_activation=False)
MEAN_POOLED = {"pooler_config": {"pooling_type": "MEAN"}}


def case(model_type: str) -> dict[str, Any]:
    known = (config for kind, config in CASES.values() if kind == model_type)
    return next(config for config in known if config.get("max_position_embeddings", 64) >= 64)


def ids_of(config: dict[str, Any]) -> list[list[int]]:
    return tiny.prompts(config["vocab_size"], (1, 7, 16, 17, 30))


def torch_hidden(folder: Path, kind: str, ids: list[list[int]], take: Callable[[Any], Any]) -> list[np.ndarray]:
    """What ``take`` makes of the model's output for each text alone: ``[tokens, …]``."""
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return [take(model(torch.tensor([row]), attention_mask=torch.ones(1, len(row)))).numpy()[0] for row in ids]


def encode(folder: Path, ids: Any, task: str, params: Any = RAW, **options: Any) -> list[np.ndarray]:
    with LLM(str(folder), skip_tokenizer_init=True, dtype="float32", **options) as llm:
        assert llm.pooling_task == task
        return [one.outputs.data for one in llm.encode(ids, params, pooling_task=task, use_tqdm=False)]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    for one, two in zip(ours, theirs):
        np.testing.assert_allclose(one, two, atol=1e-4, rtol=0)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def test_token_labels_are_probabilities_and_names(tmp_path: Path) -> None:
    tiny.save(tmp_path, "bert", head="tokens", **BERT, id2label={0: "O", 1: "B", 2: "I"})
    with LLM(str(tmp_path), skip_tokenizer_init=True, dtype="float32") as llm:
        assert (llm.labels, llm.supported_tasks) == (("O", "B", "I"), ("token_classify",))
        one, two = llm.encode([[5, 6, 7], [8]], pooling_task="token_classify")
        assert (one.outputs.data.shape, two.outputs.data.shape) == ((3, 3), (1, 3))
        np.testing.assert_allclose(one.outputs.data.sum(1), 1, atol=1e-6)
        with pytest.raises(ValidationError, match="Classification API is not supported"):
            llm.classify([[5]])


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_a_classifier_of_texts_can_serve_its_tokens(model_type: str, tmp_path: Path) -> None:
    """BERT's pooler is made for the first token and skipped; RoBERTa's dense layer is part of its classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = case(model_type) | {"num_labels": 3}
    tiny.save(tmp_path, model_type, **config)
    ids = ids_of(config)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    head = model.score if model_type == "gpt2" else model.classifier
    base = model.base_model
    with torch.no_grad():
        hidden = [base(torch.tensor([row])).last_hidden_state for row in ids]
        if model_type == "roberta":
            theirs = [torch.cat([head(h[:, t : t + 1]) for t in range(h.shape[1])]).numpy() for h in hidden]
        else:
            theirs = [head(h)[0].numpy() for h in hidden]
    assert_close(encode(tmp_path, ids, "token_classify", pooler_config={"task": "token_classify"}), theirs)


@pytest.mark.parametrize(
    ("model_type", "head", "options", "pick"),
    [
        ("bert", "none", {}, lambda h: h[0]),
        ("bert", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("roberta", "none", {"pooler_config": {"pooling_type": "LAST"}}, lambda h: h[-1]),
        ("modernbert", "none", {}, lambda h: h[0]),
        ("deberta-v2", "none", {}, lambda h: h[0]),
        ("gpt2", "none", {}, lambda h: h[-1]),
        ("gpt2", "causal", {"runner": "pooling"}, lambda h: h[-1]),
        ("llama", "causal", {"convert": "embed"}, lambda h: h[-1]),
        ("bert", "sequence", {"convert": "embed"}, lambda h: h[0]),
        ("bert", "tokens", {"convert": "embed"}, lambda h: h[0]),
        # As Sentence-Transformers has them: MiniLM, GTE, Nomic, E5, mpnet, EuroBERT, jina; Qwen, Mistral; Gemma; T5.
        ("distilbert", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("gte", "none", {}, lambda h: h[0]),
        ("nomic_bert", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("xlm-roberta", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("mpnet", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("eurobert", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("jina_embeddings_v3", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("qwen3", "causal", {"convert": "embed"}, lambda h: h[-1]),
        ("mistral", "none", {}, lambda h: h[-1]),
        ("gemma3_text", "none", MEAN_POOLED, lambda h: h.mean(0)),
        ("mixtral", "none", {}, lambda h: h[-1]),
        ("jamba", "none", {}, lambda h: h[-1]),
        ("t5", "encoder", MEAN_POOLED, lambda h: h.mean(0)),
        ("umt5", "encoder", MEAN_POOLED, lambda h: h.mean(0)),
        ("bart", "none", {"pooler_config": {"pooling_type": "LAST"}}, lambda h: h[-1]),
    ],
)
def test_embeddings_equal_torch(model_type: str, head: str, options: Any, pick: Any, tmp_path: Path) -> None:
    config = case(model_type)
    tiny.save(tmp_path, model_type, head=head, **config)
    ids = ids_of(config)
    kind = "AutoModelForTextEncoding" if head == "encoder" else "AutoModel"
    theirs = [pick(h) for h in torch_hidden(tmp_path, kind, ids, lambda out: out.last_hidden_state)]
    with LLM(str(tmp_path), skip_tokenizer_init=True, dtype="float32", **options) as llm:
        assert (llm.supported_tasks, llm.labels) == (("embed", "token_embed"), ())
        raw = [np.array(one.outputs.embedding) for one in llm.embed(ids, pooling_params=RAW, use_tqdm=False)]
        scaled = llm.embed(ids, use_tqdm=False)
    assert_close(raw, theirs)
    assert_close([np.array(one.outputs.embedding) for one in scaled], [unit(h) for h in theirs])
    assert repr(scaled[0].outputs) == f"EmbeddingOutput(hidden_size={len(theirs[0])})"


def test_token_embeddings_equal_torch(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama", head="none", **LLAMA)
    ids = ids_of(LLAMA)
    theirs = torch_hidden(tmp_path, "AutoModel", ids, lambda out: out.last_hidden_state)
    options = {"pooler_config": {"task": "token_embed"}}
    assert_close(encode(tmp_path, ids, "token_embed", **options), theirs)
    assert_close(encode(tmp_path, ids, "token_embed", None, **options), [unit(one) for one in theirs])


def sentence_files(folder: Path, pooling: dict[str, Any], *more: str) -> None:
    modules = ["Transformer", "Pooling", *more]
    entries = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


MEAN = {"word_embedding_dimension": 48, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def test_sentence_transformers_files_decide(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama", head="causal", **LLAMA)
    ids = ids_of(LLAMA)
    hidden = torch_hidden(tmp_path, "AutoModel", ids, lambda out: out.last_hidden_state)
    sentence_files(tmp_path, MEAN, "Normalize")
    assert_close(encode(tmp_path, ids, "embed", None), [unit(h.mean(0)) for h in hidden])
    sentence_files(tmp_path, {"pooling_mode": "lasttoken", "include_prompt": True})
    assert_close(encode(tmp_path, ids, "embed", None), [h[-1] for h in hidden])
    config = {"pooling_type": "CLS", "use_activation": True}
    assert_close(encode(tmp_path, ids, "embed", None, pooler_config=config), [unit(h[0]) for h in hidden])


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        (MEAN | {"pooling_mode_max_tokens": True}, (), r"pooling 'mean_tokens\+max_tokens'.*implements cls"),
        ({"pooling_mode_weightedmean_tokens": True}, (), "'weightedmean_tokens'"),
        (MEAN, ("LSTM",), "has a LSTM module, which jaxpool does not implement"),
        (MEAN, ("Normalize", "Dense"), "the modules Transformer, Pooling, Normalize, Dense in this order"),
        ([1], (), "holds a list where a dict belongs"),
    ],
)
def test_sentence_modules_we_lack_are_named(pooling: Any, more: Any, message: str, tmp_path: Path) -> None:
    sentence_files(tmp_path, pooling, *more)
    with pytest.raises(CheckpointError, match=message):
        read_sentence_embedder(tmp_path)


def test_damaged_modules_are_named(tmp_path: Path) -> None:
    for content, message in (("{", "cannot be read"), ("[{}]", "no list of modules")):
        (tmp_path / "modules.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            read_sentence_embedder(tmp_path)


def test_dimensions_cut_and_scale_again(tmp_path: Path) -> None:
    tiny.save(tmp_path, "bert", head="none", **BERT)
    cut, ids = PoolingParams(dimensions=16), [[5, 6, 7], [8, 9]]
    (full, _) = encode(tmp_path, ids, "embed")
    overrides = {"matryoshka_dimensions": [16, 32]}
    assert_close(encode(tmp_path, ids, "embed", cut, hf_overrides=overrides)[:1], [unit(full[:16])])
    raw = PoolingParams(dimensions=16, use_activation=False)
    assert_close(encode(tmp_path, ids, "embed", raw, hf_overrides={"is_matryoshka": True})[:1], [full[:16]])
    for options, asked, message in (
        ({}, 16, "does not support Matryoshka embeddings; dimensions must be unset .received dimensions=16."),
        ({"hf_overrides": overrides}, 17, r"only supports \[16, 32\] matryoshka dimensions"),
        ({"hf_overrides": {"is_matryoshka": True}}, 49, "from 1 to 48, got 49"),
        ({"hf_overrides": {"is_matryoshka": True}}, 0, "from 1 to 48, got 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            encode(tmp_path, ids, "embed", PoolingParams(dimensions=asked), **options)


def test_step_pooling_keeps_the_tokens_and_labels_asked_for(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama", head="tokens", **LLAMA, num_labels=4)
    ids = [[5, 9, 6, 9], [7, 8]]
    every = encode(tmp_path, ids, "token_classify")
    step = {"pooling_type": "STEP", "step_tag_id": 9, "returned_token_ids": [2, 0]}
    kept = encode(tmp_path, ids, "token_classify", pooler_config=step)
    assert_close(kept, [every[0][[1, 3]][:, [2, 0]], np.empty((0, 2))])
    probabilities = encode(tmp_path, ids, "token_classify", None, pooler_config=step)
    np.testing.assert_allclose(probabilities[0].sum(1), 1, atol=1e-6)
    other = PoolingParams(use_activation=False, step_tag_id=5)
    assert_close(encode(tmp_path, ids, "token_classify", other, pooler_config=step)[:1], [every[0][[0]][:, [2, 0]]])
    with pytest.raises(ValidationError, match=r"Task token_classify only supports .* does not support ..step_tag_id"):
        encode(tmp_path, ids, "token_classify", other)
    with pytest.raises(ValidationError, match="cannot differ from request to request"):
        encode(tmp_path, ids, "token_classify", PoolingParams(returned_token_ids=[1]), pooler_config=step)
    with pytest.raises(ValidationError, match=r"\[4\] reach beyond the 4 values"):
        encode(tmp_path, ids, "token_classify", pooler_config=step | {"returned_token_ids": [4]})


@pytest.mark.parametrize(
    ("model_type", "head", "task"), [("bert", "none", "embed"), ("bert", "tokens", "token_classify")]
)
def test_a_store_remembers_its_head_or_that_it_has_none(model_type: str, head: str, task: str, tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    tiny.save(source, "bert", head=head, **BERT)
    if head == "none":
        sentence_files(source, MEAN, "Normalize")
    convert(source, store)
    ids = ids_of(BERT)
    assert_close(encode(store, ids, task, None), encode(source, ids, task, None))
    if head == "none":
        with pytest.raises(MissingHeadError, match="was converted for embeddings and has no head"):
            LLM(str(store), convert="classify", skip_tokenizer_init=True)


def test_a_missing_token_head_is_an_error(tmp_path: Path) -> None:
    tiny.save(tmp_path, "bert", head="none", **BERT)
    with pytest.raises(MissingHeadError, match="no classification head"):
        LLM(str(tmp_path), skip_tokenizer_init=True, hf_overrides={"architectures": ["BertForTokenClassification"]})


@pytest.mark.parametrize(
    ("asked", "tokens", "task"),
    [(None, False, "classify"), (None, True, "token_classify"), ("token_classify", False, "token_classify"),
     ("classify", True, "classify")],
)  # fmt: skip
def test_the_task_served(asked: str | None, tokens: bool, task: str) -> None:
    assert choose("classify", tokens=tokens, before_head=False, asked=asked)[0] == task


def test_tasks_that_an_architecture_lacks() -> None:
    with pytest.raises(ValidationError, match=r"Unsupported task: 'embed' Supported tasks: .*`--convert embed`"):
        choose("classify", tokens=False, before_head=False, asked="embed")
    with pytest.raises(ValidationError, match=r"Unsupported task: 'classify' Supported tasks: \('token_classify',\)$"):
        choose("classify", tokens=True, before_head=True, asked="classify")
    with pytest.raises(ValidationError, match=r"Unsupported task: 'plugin'"):
        choose("embed", tokens=False, before_head=False, asked="plugin")


@pytest.mark.parametrize(
    ("name", "settings", "method"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("quantization_config", {"quant_method": "awq"}, "awq"),
        ("quantization_config", {"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ("quantization_config", {"quant_method": "mxfp4"}, "mxfp4"),
        ("quantization_config", {"load_in_4bit": True}, "bitsandbytes"),
        ("quantization_config", SimpleNamespace(quant_method="compressed-tensors"), "compressed-tensors"),
        ("compression_config", {"format": "dense"}, "an unnamed method"),
    ],
)
def test_quantised_checkpoints_are_refused_by_method(name: str, settings: Any, method: str) -> None:
    for config in (
        SimpleNamespace(**{name: settings}),
        SimpleNamespace(text_config=SimpleNamespace(**{name: settings})),
    ):
        with pytest.raises(ConfigError, match=f"quantised with {method} "):
            refuse_quantised(config)
    refuse_quantised(SimpleNamespace(quantization_config=None))


def test_a_quantised_folder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    tiny.save(tmp_path, "bert", **BERT)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match="quantised with gptq"):
        LLM(str(tmp_path), skip_tokenizer_init=True)


@pytest.mark.parametrize(("whole", "text", "labels"), [(5, 3, 5), (2, 3, 3), (2, 2, 2), (1, 3, 1)])
def test_labels_of_composite_configs(whole: int, text: int, labels: int) -> None:
    names = {i: f"text {i}" for i in range(text)}
    part = SimpleNamespace(num_labels=text, id2label=names)
    config = SimpleNamespace(num_labels=whole, id2label={i: f"whole {i}" for i in range(whole)}, text_config=part)
    assert declared_labels(config) == labels
    assert label_names(config, labels)[0].split()[0] == ("whole" if labels == whole else "text")
    assert declared_labels(SimpleNamespace(num_labels=2)) == 2
    assert (
        declared_labels(SimpleNamespace(num_labels=2, text_config=SimpleNamespace(classifier_from_token=["a"]))) is None
    )
