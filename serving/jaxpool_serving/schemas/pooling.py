"""The bodies of ``/pooling``: what the model's pooler gives, as it is, as JSON numbers or as bytes."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from jaxpool.errors import ValidationError
from jaxpool.params import NO_PLUGIN
from jaxpool_serving.schemas.request import (
    ChatInput,
    PoolingRequest,
    TextInput,
    Usage,
    UseActivation,
    decimal,
    parse_texts_or_chat,
    usage,
)

EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
EmbedDType = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]
PoolingTask = Literal["embed", "classify", "token_embed", "token_classify", "plugin", "embed&token_classify"]

MAX_METADATA = 65_000
"""Bytes of a header; Python's clients read lines of 65,536."""


class EncodingFields(UseActivation):
    """How the numbers of the answer are sent."""

    encoding_format: EncodingFormat = "float"
    embed_dtype: EmbedDType = "float32"
    endianness: Endianness = "native"


class PoolingFields(UseActivation):
    """What the pooler should do; ``dimensions`` is known only to be refused."""

    dimensions: int | None = None
    task: PoolingTask | None = None


class PoolingCompletionRequest(PoolingFields, PoolingRequest, TextInput, EncodingFields):
    """``POST /pooling``, completion form."""


class PoolingChatRequest(PoolingFields, PoolingRequest, ChatInput, EncodingFields):
    """``POST /pooling``, chat form."""


class PoolingPluginRequest(PoolingRequest, EncodingFields):
    """``POST /pooling`` for plugins of vLLM; known only to be refused in its words."""

    data: Any
    task: PoolingTask = "plugin"


class PoolingData(TypedDict):
    """The result of one prompt: numbers, ``[labels]`` or ``[tokens, labels]``, or their bytes in base64."""

    index: int
    object: Literal["pooling"]
    data: list[list[float]] | list[float] | str


class PoolingResponse(TypedDict):
    """The answer to ``POST /pooling``."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PoolingData]
    usage: Usage


PoolingForms = PoolingCompletionRequest | PoolingChatRequest | PoolingPluginRequest
FORMS: TypeAdapter[PoolingForms] = TypeAdapter(PoolingForms)


def parse_pooling(body: bytes) -> PoolingForms:
    """Read a request body.

    Raises:
        RequestError, HTTPBadRequest, ValidationError: 400, with every problem in one message.
    """
    return parse_texts_or_chat(body, FORMS, PoolingChatRequest)


def check_task(
    body: PoolingForms, served: str, supported: Sequence[str]
) -> PoolingCompletionRequest | PoolingChatRequest:
    """The body, if it asks for the task that is served.

    Args:
        body: as parsed.
        served: the model's task.
        supported: tasks it could be started with.

    Raises:
        ValidationError: it asks for something else.
    """
    if isinstance(body, PoolingPluginRequest) or body.task == "plugin":
        raise ValidationError(NO_PLUGIN, parameter="task")
    if body.dimensions is not None:
        raise ValidationError("dimensions is currently not supported", parameter="dimensions")
    if body.task in (None, served):
        return body
    if body.task in supported:
        raise ValidationError(
            f"Try switching the model's pooling_task via --pooler-config.task {body.task}.", parameter="task"
        )
    raise ValidationError(f"Unsupported task: {body.task!r} Supported tasks: {list(supported)}", parameter="task")


def pooling_response(
    request_id: str, model: str, body: EncodingFields, values: Sequence[np.ndarray], prompt_tokens: int
) -> PoolingResponse:
    """The answer as JSON, from one float32 array per prompt."""
    return {
        "id": f"pooling-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": index, "object": "pooling", "data": encoded(body, one)} for index, one in enumerate(values)],
        "usage": usage(prompt_tokens),
    }


def encoded(body: EncodingFields, values: np.ndarray) -> Any:
    """One prompt's float32 array as numbers, or its bytes in base64."""
    if body.encoding_format == "float":
        return as_lists(values)
    return base64.b64encode(as_bytes(values, body.embed_dtype, body.endianness)).decode()


def pooling_bytes(
    identity: str, model: str, body: EncodingFields, values: Sequence[np.ndarray], prompt_tokens: int
) -> tuple[bytes, dict[str, str]]:
    """The answer as bytes, prompt after prompt, and the headers that say where which is (none for ``bytes_only``).

    ``identity`` is the id of the answer.

    Raises:
        ValidationError: there are too many prompts for a header.
    """
    parts = [as_bytes(one, body.embed_dtype, body.endianness) for one in values]
    if body.encoding_format == "bytes_only":
        return b"".join(parts), {}
    ends = np.cumsum([len(part) for part in parts]).tolist()
    metadata = {
        "id": identity,
        "created": int(time.time()),
        "model": model,
        "data": [
            {
                "index": index,
                "embed_dtype": body.embed_dtype,
                "endianness": body.endianness,
                "start": end - len(part),
                "end": end,
                "shape": list(one.shape),
            }
            for index, (one, part, end) in enumerate(zip(values, parts, ends, strict=True))
        ],
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
    header = json.dumps(metadata)
    if len(header) > MAX_METADATA:
        raise ValidationError(
            f"The metadata of {len(parts)} prompts has {len(header)} bytes, and a header that clients can read at most "
            f"{MAX_METADATA}; send fewer prompts, or ask for `bytes_only` or `base64`.",
            parameter="encoding_format",
        )
    return b"".join(parts), {"metadata": header}


DTYPES: dict[EmbedDType, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


def as_lists(values: np.ndarray) -> list[Any]:
    """Float32 values as lists of JSON numbers, nested as the axes are."""
    return [as_lists(row) if values.ndim > 1 else decimal(row) for row in values]


def as_bytes(values: np.ndarray, dtype: EmbedDType, endianness: Endianness) -> bytes:
    """Values in C order; those too large for a small type become its infinity or NaN."""
    with np.errstate(over="ignore"):
        typed = values.astype(DTYPES[dtype])
    if endianness not in ("native", sys.byteorder):
        typed = typed.view(f"u{typed.itemsize}").byteswap()
    return typed.tobytes()
