"""The bodies of ``/v1/embeddings``: OpenAI's, with vLLM's conversations and ways to send numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from jaxpool_serving.schemas.errors import parse_object, validate, validate_union
from jaxpool_serving.schemas.pooling import EncodingFields, encoded
from jaxpool_serving.schemas.request import (
    ChatInput,
    ChatOptions,
    Conversation,
    Message,
    PoolingRequest,
    TextInput,
    Usage,
    check_after_validation,
    check_before_validation,
    usage,
)


class EmbeddingFields(EncodingFields):
    """What vectors are wanted; ``dimensions`` cuts them, where the model was trained for that."""

    dimensions: int | None = None


class EmbeddingRequest(EmbeddingFields, PoolingRequest, TextInput):
    """``POST /v1/embeddings`` of texts."""


class EmbeddingChatRequest(EmbeddingFields, PoolingRequest, ChatInput):
    """``POST /v1/embeddings`` of one conversation."""


class EmbeddingChatsRequest(EmbeddingFields, PoolingRequest, ChatOptions):
    """``POST /v1/embeddings`` of several conversations."""

    messages: Annotated[list[Annotated[Conversation, Field(min_length=1)]], Field(min_length=1)]

    def conversations(self) -> Sequence[Sequence[Message]]:
        """As they came."""
        return self.messages


EmbeddingForms = EmbeddingRequest | EmbeddingChatRequest | EmbeddingChatsRequest
FORMS: TypeAdapter[EmbeddingRequest | EmbeddingChatRequest] = TypeAdapter(EmbeddingRequest | EmbeddingChatRequest)


class EmbeddingData(TypedDict):
    """The vector of one prompt: numbers, or their bytes in base64."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingResponse(TypedDict):
    """The answer to ``POST /v1/embeddings``."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[EmbeddingData]
    usage: Usage


def parse_embeddings(body: bytes) -> EmbeddingForms:
    """Read a request body; conversations may stand in ``messages`` or in ``input``.

    Raises:
        RequestError, HTTPBadRequest, ValidationError: 400, with every problem in one message.
    """
    found = parse_object(body, forms=2)
    check_before_validation(found)
    if "messages" not in found and (_is_chat(found.get("input")) or _are_chats(found.get("input"))):
        found = {name: value for name, value in found.items() if name != "input"} | {"messages": found["input"]}
    parsed: EmbeddingForms
    if _are_chats(found.get("messages")):
        parsed = validate(EmbeddingChatsRequest, found)
    elif found.get("messages"):
        parsed = validate(EmbeddingChatRequest, found)
    else:
        parsed = validate_union(FORMS, found)
    check_after_validation(found)
    return parsed


def _is_chat(value: Any) -> bool:
    """Whether these are messages; pairs, which have no role, are not."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in value)
    )


def _are_chats(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_chat(one) for one in value)


def embedding_response(
    identity: str, model: str, body: EncodingFields, values: Sequence[np.ndarray], prompt_tokens: int
) -> EmbeddingResponse:
    """The answer as JSON, from one float32 vector per prompt."""
    return {
        "id": identity,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"index": index, "object": "embedding", "embedding": encoded(body, one)} for index, one in enumerate(values)
        ],
        "usage": usage(prompt_tokens),
    }
