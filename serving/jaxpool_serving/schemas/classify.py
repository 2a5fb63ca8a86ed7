"""The bodies of ``/classify``: what a request may say, what a response says.

Field names, coercions and error texts follow vLLM's server, so that its clients work unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from jaxpool_serving.schemas.common import PoolingRequest, exact, usage
from jaxpool_serving.schemas.errors import RequestError, document, validated


class ClassifyRequest(PoolingRequest):
    """``POST /classify``, completion form."""

    input: list[int] | list[list[int]] | str | list[str]

    def prompts(self) -> Sequence[str | list[int]]:
        """The texts or token-id lists to classify; a flat list of ids is one of them."""
        one = isinstance(self.input, str) or (bool(self.input) and isinstance(self.input[0], int))
        return cast("Sequence[str | list[int]]", [self.input] if one else self.input)


def parse(body: bytes) -> ClassifyRequest:
    """Read a request body.

    Raises:
        RequestError: 400, with every problem (the first ten spelled out) in one message.
    """
    found = document(body)
    _refuse_other_forms(found)
    return validated(ClassifyRequest, found)


def _refuse_other_forms(found: Mapping[str, Any]) -> None:
    """Fields that ask for something else than a classification of `input` are not ignored."""
    if found.get("messages") is not None:
        message = "This server does not implement the chat form; send `input` instead of `messages`."
        raise RequestError(501, "NotImplementedError", message, "messages")
    if "normalize" in found:
        message = "Parameter `normalize` was removed; use `use_activation` instead. (parameter=normalize)"
        raise RequestError(400, "BadRequestError", message, "normalize")
    if found.get("task") not in (None, "classify"):
        message = f"`{found['task']}` is not a task of this server; it serves `classify`. (parameter=task)"
        raise RequestError(400, "BadRequestError", message, "task")


def classify_response(
    request_id: str, model: str, labels: Sequence[str], values: np.ndarray, prompt_tokens: int
) -> dict[str, Any]:
    """The answer to one request from ``values [texts, labels]``, float32 (probabilities, or logits)."""
    return {
        "id": f"classify-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {
                "index": index,
                "label": labels[int(row.argmax())],
                "probs": [exact(value) for value in row],
                "num_classes": len(row),
            }
            for index, row in enumerate(values)
        ],
        "usage": usage(prompt_tokens),
    }
