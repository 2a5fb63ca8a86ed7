"""Other libraries under the same load: what each needs, how it is opened, how it classifies a list of texts."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BATCH = 32
"""Texts of a batch where a library does not decide by itself."""

Classify = Callable[[Sequence[str]], object]


class Peer(NamedTuple):
    """A library to compare with.

    Attributes:
        packages: what must be importable.
        get: how to get it.
        open: from folder, dtype and longest text in tokens to ways of calling it, by name.
    """

    packages: tuple[str, ...]
    get: str
    open: Callable[[str, str, int], dict[str, Classify]]

    @property
    def absent(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _transformers(folder: str, dtype: str, longest: int) -> dict[str, Classify]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=kind, attn_implementation="sdpa").eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    pipe = pipeline("text-classification", model=model.to(device), tokenizer=tokenizer, device=device)
    options = {"truncation": True, "max_length": longest, "batch_size": BATCH, "top_k": None}
    found: dict[str, Classify] = {
        "pipeline": lambda texts: pipe(list(texts), **options),
        "sorted": lambda texts: pipe(sorted(texts, key=len), **options),
    }
    if device == "cuda":
        compiled = torch.compile(model, dynamic=True)

        @torch.inference_mode()
        def run(texts: Sequence[str]) -> Any:
            ordered, scores = sorted(texts, key=len, reverse=True), []
            for start in range(0, len(ordered), BATCH):
                words = tokenizer(ordered[start : start + BATCH], padding=True, truncation=True, max_length=longest,
                                  pad_to_multiple_of=64, return_tensors="pt")  # fmt: skip
                scores.append(compiled(**words.to(device)).logits)
            return torch.cat(scores).float().cpu()

        found["compiled, sorted"] = run
    return found


def _onnxruntime(folder: str, dtype: str, longest: int) -> dict[str, Classify]:
    import onnxruntime
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if dtype != "float32":
        raise ValueError("onnxruntime is compared in float32 only; pass --dtype float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id, model.config.return_dict = tokenizer.pad_token_id, False
    sample = dict(tokenizer(["one", "and two"], padding=True, return_tensors="pt"))
    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place) / "model.onnx")
        axes = {name: {0: "rows", 1: "tokens"} for name in sample}
        torch.onnx.export(model, (), path, kwargs=sample, input_names=list(sample), output_names=["logits"],
                          dynamic_axes=axes, dynamo=False)  # fmt: skip
        session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())

    def run(texts: Sequence[str]) -> Any:
        ordered, scores = sorted(texts, key=len), []
        for start in range(0, len(ordered), BATCH):
            words = tokenizer(ordered[start : start + BATCH], padding=True, truncation=True, max_length=longest,
                              return_tensors="np")  # fmt: skip
            scores += session.run(None, {name: words[name] for name in sample})
        return scores

    return {"sorted": run}


def _vllm(folder: str, dtype: str, longest: int) -> dict[str, Classify]:
    from vllm import LLM

    llm = LLM(model=folder, runner="pooling", dtype=dtype, max_model_len=longest)
    options = {"truncate_prompt_tokens": longest}
    return {"classify": lambda texts: llm.classify(list(texts), use_tqdm=False, tokenization_kwargs=options)}


PEERS = {
    "transformers": Peer(("torch", "transformers"), "pip install torch transformers", _transformers),
    "onnxruntime": Peer(
        ("onnxruntime", "onnx", "torch"), "pip install onnxruntime onnx torch", _onnxruntime
    ),
    "vllm": Peer(("vllm",), "pip install vllm, in an environment of its own where it wants other versions; then "
                 "PYTHONPATH=… or `jaxpool bench --python vllm=PATH`", _vllm),
}  # fmt: skip
"""Name -> peer."""
