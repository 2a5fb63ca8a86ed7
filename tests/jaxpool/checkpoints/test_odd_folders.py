"""Folders that lack something or name it otherwise: no architecture, a model type of its own, files of old versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hub_folders import make
from hub_layouts import LAYOUTS
from hub_table import ours
from parity_cases.first import BERT
from safetensors.numpy import load_file

from jaxpool import LLM, MissingHeadError
from jaxpool.checkpoints.location import SMALL_FILES
from jaxpool.commands.convert import convert, unconvert
from jaxpool.text.vocabulary import read_tokenizer


def changed(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    stored = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))
    return folder


def test_a_config_without_architectures_classifies_if_it_has_a_head(tmp_path: Path) -> None:
    tiny.save(tmp_path / "head", "bert", **BERT, num_labels=2)
    theirs = tiny.torch_logits(tmp_path / "head", [[5, 6, 7]])
    changed(tmp_path / "head", architectures=None)
    with LLM(str(tmp_path / "head"), skip_tokenizer_init=True) as llm:
        np.testing.assert_allclose(llm.classify([[5, 6, 7]])[0].outputs.probs, tiny.softmax(theirs)[0], atol=1e-5)
    changed(tiny.save(tmp_path / "bare", "bert", head="none", **BERT), architectures=None)
    with pytest.raises(MissingHeadError, match=r"has no classification head \(looked for classifier.weight"):
        LLM(str(tmp_path / "bare"), skip_tokenizer_init=True)
    with LLM(str(tmp_path / "bare"), skip_tokenizer_init=True, runner="pooling") as llm:
        assert llm.pooling_task == "embed"


def test_a_tokenizer_beside_a_model_type_that_transformers_does_not_know(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    make(tmp_path, LAYOUTS["nvidia/llama-nemotron-rerank-1b-v2"])
    Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert read_tokenizer(tmp_path).encode("a", add_special_tokens=False) == [1]


def test_bertweet_reads_its_codes(tmp_path: Path) -> None:
    """Its tokenizer is two files, of which one has a name that no other tokenizer uses."""
    import fnmatch

    assert any(fnmatch.fnmatch("bpe.codes", pattern) for pattern in SMALL_FILES), "else the hub's are not fetched"
    (tmp_path / "vocab.txt").write_text("ab 9\ncd 8\nc@@ 7\nd 6\n")
    (tmp_path / "bpe.codes").write_text("a b</w> 9\nc d</w> 8\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", "tokenizer_class": "BertweetTokenizer"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertweetTokenizer"}))
    read = read_tokenizer(tmp_path)
    assert read.convert_ids_to_tokens(read.encode("ab cd")) == ["<s>", "ab", "cd", "</s>"]


@pytest.mark.parametrize(
    "name", ["nomic-ai/nomic-embed-text-v2-moe", "jinaai/jina-embeddings-v2-base-en", "google-bert/bert-base-uncased"]
)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """Fused experts, halves of a gate, and a head that is the token embedding, from a store under their own names."""
    source = tmp_path / "source"
    source.mkdir()
    theirs = make(source, LAYOUTS[name])
    convert(source, tmp_path / "store", dtype="float32")
    np.testing.assert_allclose(ours(tmp_path / "store", LAYOUTS[name]), theirs, atol=1e-4)
    unconvert(tmp_path / "store", tmp_path / "back")
    back, stored = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", source))
    used = {key: x for key, x in stored.items() if not re.search("seq_relationship|pooler", key)}
    bare = {re.sub(r"^(nomic_)?bert\.", "", key): x for key, x in back.items()}
    for key, x in used.items():
        name = key.removeprefix("bert.").replace("gamma", "weight").replace("beta", "bias")
        np.testing.assert_array_equal(bare[name], x, key)


def test_an_mpt_with_mlps_of_another_width(tmp_path: Path) -> None:
    """``expansion_ratio`` as its authors' code builds it; transformers' class has four built in."""
    import torch
    from transformers import MptConfig, MptForSequenceClassification

    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 60, "max_seq_len": 64, "pad_token_id": 0}
    model = MptForSequenceClassification(MptConfig(**sizes, expansion_ratio=2, num_labels=3)).eval()
    for block in model.transformer.blocks:
        block.ffn.up_proj, block.ffn.down_proj = (torch.nn.Linear(*of, bias=False) for of in ((32, 64), (64, 32)))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = model(torch.tensor([[5, 9, 7, 11]])).logits.numpy()
    np.testing.assert_allclose(tiny.jaxpool_logits(tmp_path, [[5, 9, 7, 11]]), theirs, atol=1e-5)


def test_a_store_of_a_model_below_its_modules_pools_and_ends_as_they_say(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    layout = LAYOUTS["a model below its modules, a Dense one among them"]
    theirs = make(source, layout)
    convert(source, tmp_path / "store", dtype="float32")
    np.testing.assert_allclose(ours(tmp_path / "store", layout), theirs, atol=1e-5)
