"""The bodies of two other servers of classifiers: Text Embeddings Inference and Hugging Face Inference Endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from jaxpool_serving.schemas.texts import Pair

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
