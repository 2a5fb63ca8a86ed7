"""The bodies of ``/classify``, ``/predict`` and ``/``.

Field names, coercions and error texts of ``/classify`` follow vLLM's server, so that its clients work unchanged; the
others are those of Text Embeddings Inference and Hugging Face Inference Endpoints.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from jaxpool_serving.schemas.request import (
    ChatInput,
    Pair,
    PoolingRequest,
    TextInput,
    Usage,
    UseActivation,
    decimal,
    parse_texts_or_chat,
    usage,
)

QUESTION = frozenset(
    {"candidate_labels", "prompt", "examples", "length_normalize", "calibrate", "multi_label", "answers"}
)
"""Fields of labels that the caller names; see ``jaxpool.zero_shot.options.Question``."""


class Example(TypedDict):
    """A text and which of the candidate labels it has."""

    text: str
    label: str


class ClassifyOptions(UseActivation):
    """What a response says beside vLLM's fields; nothing unless it is asked for."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    return_logits: bool = False
    long_text: Literal["error", "truncate", "window"] | None = None
    window: Annotated[int, Field(ge=1)] | None = None
    overlap: Annotated[int, Field(ge=0)] | None = None
    aggregate: Literal["mean", "max", "first"] | None = None
    candidate_labels: list[str] | None = None
    prompt: str | None = None
    examples: list[Example | tuple[str, str]] | None = None
    length_normalize: bool = False
    calibrate: bool = False
    multi_label: bool = False
    answers: tuple[str, str] | None = None

    def long_texts(self) -> dict[str, Any]:
        """What is said of texts that are longer than the model reads."""
        return self.model_dump(include={"long_text", "window", "overlap", "aggregate"}, exclude_none=True)

    def asked(self) -> dict[str, Any]:
        """What is said of labels of the caller's own, as arguments of ``Question.of``; mostly nothing."""
        if not self.model_fields_set & QUESTION:
            return {}
        pairs = [(one["text"], one["label"]) if isinstance(one, dict) else one for one in self.examples or ()]
        return {name: getattr(self, name) for name in QUESTION} | {"examples": pairs or None}


class ClassifyRequest(PoolingRequest, TextInput, ClassifyOptions):
    """``POST /classify``, completion form."""


class ClassifyChatRequest(PoolingRequest, ChatInput, ClassifyOptions):
    """``POST /classify``, chat form."""


class LabelScore(TypedDict):
    """A label and its score."""

    label: str
    score: float


class ClassifyData(TypedDict):
    """One text. ``probs`` are in the order of the model's labels; the last three are there if they were asked for."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    top_k: NotRequired[list[LabelScore]]
    labels: NotRequired[list[str]]
    logits: NotRequired[list[float]]


class ClassifyResponse(TypedDict):
    """The answer to ``POST /classify``."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassifyData]
    usage: Usage


FORMS: TypeAdapter[ClassifyRequest | ClassifyChatRequest] = TypeAdapter(ClassifyRequest | ClassifyChatRequest)


def parse_classify(body: bytes) -> ClassifyRequest | ClassifyChatRequest:
    """Read a request body.

    Raises:
        SchemaError, HTTPBadRequest, ValidationError: 400, with every problem in one message.
    """
    return parse_texts_or_chat(body, FORMS, ClassifyChatRequest)


def classify_response(
    request_id: str,
    model: str,
    labels: Sequence[str],
    values: np.ndarray,
    prompt_tokens: int,
    options: ClassifyOptions,
    logits: np.ndarray | None = None,
    cached: int | None = None,
) -> dict[str, Any]:
    """The answer to one request, a `ClassifyResponse`.

    Args:
        request_id: after ``classify-``.
        model: the name it is served under.
        labels: of the model, in order.
        values: float32 ``[texts, labels]``, probabilities, or logits where these were asked for.
        prompt_tokens: of all texts.
        options: what more was asked for.
        logits: float32 ``[texts, labels]``, if they are to be told beside the probabilities.
        cached: tokens that were computed before, if that is to be told.
    """
    return {
        "id": f"classify-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {
                "index": index,
                "label": labels[int(row.argmax())],
                "probs": [decimal(value) for value in row],
                "num_classes": len(row),
                **_extras(labels, row, options),
                **({} if logits is None else {"logits": [decimal(value) for value in logits[index]]}),
            }
            for index, row in enumerate(values)
        ],
        "usage": usage(prompt_tokens, cached),
    }


def _extras(labels: Sequence[str], row: np.ndarray, options: ClassifyOptions) -> dict[str, Any]:
    """What a client of vLLM never asks for."""
    extras: dict[str, Any] = {}
    if options.top_k is not None:
        [extras["top_k"]] = top_labels(labels, row[None], options.top_k)
    if options.threshold is not None:  # compared as it is shown: 0.1 reaches a threshold of 0.1
        extras["labels"] = [label for label, one in zip(labels, row, strict=True) if decimal(one) >= options.threshold]
    return extras


def top_labels(labels: Sequence[str], scores: np.ndarray, top_k: int | None = None) -> list[list[LabelScore]]:
    """Per text its labels, best first, at most ``top_k``; equal ones in the model's order."""
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[index], "score": decimal(row[index])} for index in best]
        for row, best in zip(scores, order.tolist(), strict=True)
    ]


OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2)]
"""A text, or the two texts of a pair."""


class PredictRequest(BaseModel):
    """``POST /predict``: a text, a pair, or a batch of them; ``raw_scores`` gives logits."""

    inputs: str | OneOrTwo | Annotated[list[OneOrTwo], Field(min_length=1)]
    truncate: bool | None = False
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    raw_scores: bool = False
    model: str | None = None

    @property
    def is_batch(self) -> bool:
        """Whether the answer is a list of lists."""
        return isinstance(self.inputs, list) and isinstance(self.inputs[0], list)

    def prompts(self) -> list[Any]:
        """What to classify, pairs as dicts."""
        texts: Any = self.inputs if self.is_batch else [self.inputs]
        return [_prompt(*([text] if isinstance(text, str) else text)) for text in texts]

    def tokenization(self) -> dict[str, Any]:
        """Options for the tokenizer."""
        if not self.truncate:
            return {}
        return {"truncate_prompt_tokens": -1, "truncation_side": self.truncation_direction.lower()}


class TextClassificationParameters(BaseModel):
    """How many labels to answer with, and what makes scores of logits; by default what the model says."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class TextClassificationRequest(BaseModel):
    """``POST /``, as ``huggingface_hub.InferenceClient(…).text_classification`` sends it."""

    inputs: str | Pair | Annotated[list[str | Pair], Field(min_length=1)]
    parameters: TextClassificationParameters | None = None
    model: str | None = None

    def prompts(self) -> list[Any]:
        """What to classify, pairs as dicts."""
        given = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return [one if isinstance(one, str) else _prompt(one["text"], one.get("text_pair")) for one in given]


def _prompt(text: str, pair: str | None = None) -> str | Mapping[str, str]:
    return text if pair is None else {"prompt": text, "text_pair": pair}
