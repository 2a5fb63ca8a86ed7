"""Dense modules of Sentence-Transformers: layers between pooling and embedding, each with weights in its own folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from parity_cases.first import BERT, LLAMA
from safetensors.torch import save_file
from transformers import AutoModel

from jaxpool import LLM, CheckpointError, ConfigError, PoolingParams, ValidationError, WeightsError
from jaxpool.checkpoints.sentence_transformers import read_sentence_embedder
from jaxpool.commands.convert import convert

IDS = [[5, 6, 7], [8, 9], [3]]


def embedder(folder: Path, model_type: str, config: dict[str, Any], layers: list[Any]) -> list[np.ndarray]:
    """A checkpoint with these ``(torch.nn.Linear, activation)`` after the mean; torch's embeddings of ``IDS``."""
    tiny.save(folder, model_type, head="none", **config)
    places = ["", "1_Pooling", *(f"{i}_Dense" for i in range(2, 2 + len(layers))), f"{2 + len(layers)}_Normalize"]
    kinds = ["Transformer", *(place[2:] for place in places[1:])]
    modules = [{"path": place, "type": f"sentence_transformers.models.{kind}"} for place, kind in zip(places, kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    for place, (layer, activation) in zip(places[2:], layers):
        (folder / place).mkdir()
        name = f"{type(activation).__module__}.{type(activation).__name__}"
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
        (folder / place / "config.json").write_text(json.dumps(sizes | {"activation_function": name}))
        save_file({f"linear.{key}": x for key, x in layer.state_dict().items()}, folder / place / "model.safetensors")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        x = torch.stack([model(torch.tensor([row])).last_hidden_state[0].mean(0) for row in IDS])
        for layer, activation in layers:
            x = activation(layer(x))
        return list(torch.nn.functional.normalize(x, dim=1).numpy())


def embed(folder: Path, params: PoolingParams | None = None, **options: Any) -> list[list[float]]:
    with LLM(str(folder), skip_tokenizer_init=True, dtype="float32", **options) as llm:
        return [one.outputs.embedding for one in llm.embed(IDS, pooling_params=params, use_tqdm=False)]


def test_two_layers_as_in_embedding_gemma(tmp_path: Path) -> None:
    layers = [(torch.nn.Linear(48, 80, bias=False), torch.nn.Identity()),
              (torch.nn.Linear(80, 48, bias=False), torch.nn.Identity())]  # fmt: skip
    theirs = embedder(tmp_path, "llama", LLAMA, layers)
    np.testing.assert_allclose(embed(tmp_path), theirs, atol=1e-5)


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.Sigmoid()])
def test_a_layer_as_in_labse_also_from_bin_and_from_a_store(activation: Any, tmp_path: Path) -> None:
    source, layer = tmp_path / "source", torch.nn.Linear(48, 20)
    theirs = embedder(source, "bert", BERT, [(layer, activation)])
    np.testing.assert_allclose(embed(source), theirs, atol=1e-5)
    (source / "2_Dense" / "model.safetensors").unlink()
    torch.save({f"linear.{key}": x for key, x in layer.state_dict().items()}, source / "2_Dense" / "pytorch_model.bin")
    np.testing.assert_allclose(embed(source), theirs, atol=1e-5)
    convert(source, tmp_path / "store", dtype="float32")
    np.testing.assert_allclose(embed(tmp_path / "store"), theirs, atol=1e-5)


def test_dimensions_count_those_that_leave(tmp_path: Path) -> None:
    theirs = embedder(tmp_path, "bert", BERT, [(torch.nn.Linear(48, 60), torch.nn.Tanh())])
    options = {"hf_overrides": {"is_matryoshka": True}}
    cut = [x[:55] / np.linalg.norm(x[:55]) for x in theirs]
    np.testing.assert_allclose(embed(tmp_path, PoolingParams(dimensions=55), **options), cut, atol=1e-5)
    with pytest.raises(ValidationError, match="from 1 to 60, got 61"):
        embed(tmp_path, PoolingParams(dimensions=61), **options)


def test_a_layer_of_another_width_or_without_weights(tmp_path: Path) -> None:
    embedder(tmp_path, "bert", BERT, [(torch.nn.Linear(48, 20), torch.nn.Tanh())])
    save_file({"linear.weight": torch.zeros(20, 40), "linear.bias": torch.zeros(20)},
              tmp_path / "2_Dense" / "model.safetensors")  # fmt: skip
    with pytest.raises(
        WeightsError, match=r"2_Dense.linear.weight \[20, 40\], where head.project0.kernel needs \[20, 48"
    ):
        embed(tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights in .*2_Dense"):
        embed(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"out_features": 3, "activation_function": "torch.nn.modules.activation.PReLU"}, ConfigError, "PReLU"),
        ({"out_features": 3, "activation_function": "os.system"}, ConfigError, "restricted to torch.nn.modules"),
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, CheckpointError, "out_features=None"),
    ],
)
def test_settings_that_cannot_be_followed(settings: Any, error: Any, message: str, tmp_path: Path) -> None:
    embedder(tmp_path, "bert", BERT, [(torch.nn.Linear(48, 3), torch.nn.Tanh())])
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(error, match=message):
        read_sentence_embedder(tmp_path)


@pytest.mark.parametrize("place", ["../elsewhere", "/etc"])
def test_modules_lie_inside_the_folder(place: str, tmp_path: Path) -> None:
    modules = [{"path": "", "type": "x.Transformer"}, {"path": place, "type": "x.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="points outside its folder"):
        read_sentence_embedder(tmp_path)
