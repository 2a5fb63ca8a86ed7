"""CrossEncoders and prompts as newer versions of Sentence-Transformers write them, through the public API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from one_label import one_label
from parity_cases.first import BERT, LLAMA

from jaxpool import LLM, CheckpointError, ConfigError
from jaxpool.checkpoints.sentence_transformers import default_prompt, is_sentence_embedder, saved_prompts
from jaxpool.commands.convert import convert
from jaxpool.text.tokenizer import Tokenizer
from jaxpool.text.vocabulary import Vocabulary

MODELS = Path(__file__).parents[2] / "data" / "models"
IDS = [[5, 6, 7], [8, 9], [3]]
IDENTITY = "torch.nn.modules.linear.Identity"


def files(folder: Path, kinds: list[str], **settings: Any) -> Path:
    """``modules.json`` of these kinds and ``config_sentence_transformers.json`` of these settings."""
    modules = [{"path": f"{i}_{kind}" if i else "", "type": f"x.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def module(folder: Path, name: str, **settings: Any) -> None:
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(settings))


def scores(folder: Path, **options: Any) -> np.ndarray:
    with LLM(str(folder), skip_tokenizer_init=True, dtype="float32", **options) as llm:
        return np.array([one.outputs.probs[0] for one in llm.classify(IDS, use_tqdm=False)])


def test_the_activation_stands_in_its_own_file(tmp_path: Path) -> None:
    tiny.save(tmp_path, "bert", **BERT, num_labels=1)
    theirs = tiny.torch_logits(tmp_path, IDS)[:, 0]
    files(tmp_path, ["Transformer"], model_type="CrossEncoder", activation_fn=IDENTITY)
    np.testing.assert_allclose(scores(tmp_path), theirs, atol=1e-4, rtol=0)
    files(tmp_path, ["Transformer"], model_type="CrossEncoder", activation_fn="torch.nn.modules.activation.Sigmoid")
    np.testing.assert_allclose(scores(tmp_path), 1 / (1 + np.exp(-theirs)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("false", [None, 11])
def test_a_language_model_scores_by_its_tokens(false: int | None, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tiny.save(tmp_path, "llama", head="causal", **LLAMA)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = np.array([model(torch.tensor([row])).logits[0, -1].numpy() for row in IDS])
    files(tmp_path, ["Transformer", "LogitScore"], model_type="CrossEncoder", activation_fn=IDENTITY)
    module(tmp_path, "1_LogitScore", true_token_id=9, false_token_id=false)
    theirs = logits[:, 9] - (0 if false is None else logits[:, false])
    np.testing.assert_allclose(scores(tmp_path), theirs, atol=1e-4, rtol=0)
    if false is not None:
        convert(tmp_path, tmp_path / "store", dtype="float32")
        np.testing.assert_allclose(scores(tmp_path / "store"), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kinds", "settings", "message"),
    [
        (
            ["Transformer", "Pooling", "Dense"],
            {"model_type": "CrossEncoder"},
            "CrossEncoder of the modules Transformer, ",
        ),
        (["MLMTransformer", "SpladePooling"], {}, "sparse encoder"),
        (["Transformer", "Pooling"], {"model_type": "SparseEncoder"}, "sparse encoder"),
        (["Transformer"], {"model_type": "CrossEncoder", "default_prompt_name": "web"}, "default_prompt_name='web'"),
    ],
)
def test_what_is_not_implemented_is_refused(
    kinds: list[str], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny.save(tmp_path, "bert", head="none", **BERT)
    files(tmp_path, kinds, **settings)
    with pytest.raises(ConfigError, match=message):
        LLM(str(tmp_path), skip_tokenizer_init=True, runner="pooling")


def test_the_default_prompt_begins_every_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Rust
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    prompts = {"query": "find ", "document": ""}
    files(tmp_path, ["Transformer", "Pooling"], prompts=prompts, default_prompt_name="query")
    assert is_sentence_embedder(tmp_path)
    rust = Rust(WordLevel({"[UNK]": 0, "find": 1, "cats": 2}, unk_token="[UNK]"))
    rust.pre_tokenizer = Whitespace()
    words = Vocabulary(rust, None, "right", (), 100, None, "[UNK]", 0, None, {})
    reads = Tokenizer(words, max_length=100, vocab_size=3, prefix=default_prompt(tmp_path))
    assert [one.ids for one in reads.encode(["cats", [2], {"prompt": "dogs"}])] == [[1, 2], [2], [1, 0]]
    files(tmp_path, ["Transformer", "Pooling"], prompts=prompts, default_prompt_name=None)
    assert default_prompt(tmp_path) == ""
    files(tmp_path, ["Transformer", "Pooling"], prompts=prompts, default_prompt_name="passage")
    with pytest.raises(CheckpointError, match=r"'passage', which is not among its prompts \(query, document\)"):
        default_prompt(tmp_path)


@pytest.mark.parametrize("style", ["flat", "structured"])
def test_pairs_are_read_through_the_saved_template(style: str, tmp_path: Path) -> None:
    folder = one_label(MODELS / "qwen2-cls", tmp_path)
    files(folder, ["Transformer"], model_type="CrossEncoder", activation_fn=IDENTITY)
    settings = {
        "modality_config": {"text": {}, "message": {"format": style}},
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True, "mood": "gay", "restore_suffix": True}},
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    content = "m.content" if style == "flat" else "m.content[0].text"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}={{ " + content + " }};{% endfor %}{{ mood }}"
        "{% if add_generation_prompt %}?{% endif %}"
    )
    prompts = ["query=a b;document=one;gay?", "query=a b;document=two;gay?"]
    with LLM(folder, dtype="float32") as llm:
        found = llm.score("a b", ["one", "two"], use_tqdm=False)
        theirs = llm.classify(prompts, use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
        assert [one.prompt_token_ids for one in found] == [one.prompt_token_ids for one in theirs]
        assert [one.outputs.score for one in found] == [one.outputs.probs[0] for one in theirs]
        other = llm.score("a", "b", use_tqdm=False, chat_template="{{ messages[1].content }}")
        assert other[0].prompt_token_ids == llm.tokenizer.encode(["b"])[0].ids


@pytest.mark.parametrize("name", ["use_sep_token", "use_pad_token"])
def test_pairs_are_joined_where_the_converter_says_so(name: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama", **LLAMA, num_labels=1)
    path = tmp_path / "config.json"
    for value, joined in ((None, False), (False, True), (True, False)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        with LLM(str(tmp_path), skip_tokenizer_init=True) as llm:
            assert llm.reads_pairs().joined is joined


def test_prompts_by_name_come_from_either_file(tmp_path: Path) -> None:
    files(tmp_path, ["Transformer", "Pooling"], prompts={"query": "q: ", "passage": "p: "}, default_prompt_name="query")
    (tmp_path / "config.json").write_text("{}")
    assert saved_prompts(tmp_path) == {"prefix": "q: ", "prefixes": {"query": "q: ", "passage": "p: "}}
    (tmp_path / "config.json").write_text(json.dumps({"task_instructions": {"retrieval": "r: "}}))
    assert saved_prompts(tmp_path) == {"prefix": "q: ", "prefixes": {"retrieval": "r: "}}
