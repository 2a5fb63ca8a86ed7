"""The bodies of ``/v2/embed``: Cohere's, as vLLM reads and answers them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NotRequired, Self

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from jaxpool.errors import ValidationError
from jaxpool_serving.schemas.pooling import as_bytes, as_lists
from jaxpool_serving.schemas.request import PoolingRequest

EmbeddingType = Literal["float", "binary", "ubinary", "base64"]


class CohereContent(TypedDict):
    """A part of an input; parts of images are refused when they are rendered."""

    type: Literal["text", "image_url"]
    text: NotRequired[str | None]
    image_url: NotRequired[dict[str, str] | None]


class CohereInput(TypedDict):
    """One input of several parts."""

    content: list[CohereContent]


class CohereRequest(PoolingRequest):
    """``POST /v2/embed``: texts, or inputs of parts; ``input_type`` names a prompt of the checkpoint's own."""

    input_type: str | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[CohereInput] | None = None
    output_dimension: int | None = None
    embedding_types: list[EmbeddingType] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: Annotated[int, Field(ge=-1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [one for one in (self.texts, self.images, self.inputs) if one is not None]
        if len(given) != 1 or not given[0]:
            raise ValueError("Exactly one of texts, images, or inputs must be provided, and it must be non-empty")
        return self

    def tokenization(self) -> dict[str, Any]:
        """Options for the tokenizer."""
        if self.truncate == "NONE":
            return {}
        side = {"truncation_side": "left"} if self.truncate == "START" else {}
        return {"truncate_prompt_tokens": -1 if self.max_tokens is None else self.max_tokens, **side}

    def messages(self, prompt: str) -> list[list[dict[str, Any]]]:
        """A conversation per input, in which ``prompt`` (if any) is what the system says.

        Raises:
            ValidationError: there are images.
        """
        if self.images is not None:
            raise ValidationError("This model reads text only; images cannot be embedded.", parameter="images")
        first = [{"role": "system", "content": [{"type": "text", "text": prompt}]}] if prompt else []
        contents: Sequence[Any] = [one["content"] for one in self.inputs or ()]
        contents = contents or [[{"type": "text", "text": text}] for text in self.texts or ()]
        return [[*first, {"role": "user", "content": list(map(dict, content))}] for content in contents]

    def check_lengths(self, prompt_ids: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Raise ValidationError for a text longer than ``max_tokens`` where nothing may be cut."""
        if self.truncate != "NONE" or self.max_tokens is None:
            return
        longest = max(map(len, prompt_ids))
        if longest > self.max_tokens:
            raise ValidationError(
                f"Input of {longest} tokens exceeds max_tokens={self.max_tokens} with truncate=NONE. Set truncate to "
                "END or START to allow truncation.",
                parameter="max_tokens",
            )


class CohereEmbeddings(TypedDict, total=False):
    """The vectors in every form that was asked for."""

    float: list[list[float]]
    binary: list[list[int]]
    ubinary: list[list[int]]
    base64: list[str]


class CohereVersion(TypedDict):
    """Of the interface."""

    version: Literal["2"]


class CohereUnits(TypedDict):
    """What was read."""

    input_tokens: int
    image_tokens: int


class CohereMeta(TypedDict):
    """Beside the vectors."""

    api_version: CohereVersion
    billed_units: CohereUnits


class CohereResponse(TypedDict):
    """The answer to ``POST /v2/embed``."""

    id: str
    embeddings: CohereEmbeddings
    texts: NotRequired[list[str]]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"]


def cohere_response(identity: str, body: CohereRequest, vectors: np.ndarray, prompt_tokens: int) -> dict[str, Any]:
    """The answer as JSON, from float32 ``[texts, D]``.

    Raises:
        ValidationError: bits are wanted of a size that bytes cannot hold.
    """
    kinds: Sequence[EmbeddingType] = body.embedding_types or ("float",)
    return {
        "id": identity,
        "embeddings": {kind: FORMS[kind](vectors) for kind in kinds},
        **({} if body.texts is None else {"texts": body.texts}),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": prompt_tokens, "image_tokens": 0},
        },
        "response_type": "embeddings_by_type",
    }


def _bits(vectors: np.ndarray) -> np.ndarray:
    """A bit per number, 1 from zero up, the first of eight the highest: uint8 ``[texts, D / 8]``."""
    width = vectors.shape[1]
    if width % 8:
        raise ValidationError(
            f"Embedding dimension must be a multiple of 8 for binary embedding types, but got {width}.",
            parameter="embedding_types",
        )
    return np.packbits(vectors >= 0, axis=-1)


FORMS: dict[EmbeddingType, Callable[[np.ndarray], list[Any]]] = {
    "float": as_lists,
    "binary": lambda vectors: (_bits(vectors).astype(np.int16) - 128).tolist(),
    "ubinary": lambda vectors: _bits(vectors).tolist(),
    "base64": lambda vectors: [base64.b64encode(as_bytes(one, "float32", "little")).decode() for one in vectors],
}
"""How vectors are sent."""
