"""The bodies of ``/classify``: what a request may say, what a response says, how an error looks.

Field names, coercions and error texts follow vLLM's server, so that its clients work unchanged.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, Field, ValidationError

MAX_PROBLEMS_SHOWN = 10


class ClassifyRequest(BaseModel):
    """``POST /classify``. Unknown fields are ignored, as vLLM does."""

    model: str | None = None
    input: list[int] | list[list[int]] | str | list[str]
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    request_id: str = Field(default_factory=lambda: uuid.uuid4().hex[:16])
    padding: Literal["max_length", "do_not_pad"] | None = None
    # Accepted so that clients of vLLM need no change; neither has an effect here.
    user: str | None = None
    priority: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0

    def prompts(self) -> Sequence[str | list[int]]:
        """The texts or token-id lists to classify; a flat list of ids is one of them."""
        one = isinstance(self.input, str) or (bool(self.input) and isinstance(self.input[0], int))
        return cast("Sequence[str | list[int]]", [self.input] if one else self.input)


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
                # str() of a float32 is its shortest exact decimal: 0.38299862, not 0.3829986155033112
                "probs": [float(str(value)) for value in row],
                "num_classes": len(row),
            }
            for index, row in enumerate(values)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }


class RequestError(Exception):
    """A request that is answered with an error; carries the whole answer.

    Attributes:
        status: HTTP status.
        body: the JSON body, vLLM's shape ``{"error": {"message", "type", "param", "code"}}``.
        headers: extra response headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        parameter: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": parameter, "code": status}}
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


def parse(body: bytes) -> ClassifyRequest:
    """Read a request body.

    Raises:
        RequestError: 400, with every problem (the first ten spelled out) in one message.
    """
    try:
        document = json.loads(body) if body.strip() else None
    except json.JSONDecodeError as error:
        problem = _problem("json_invalid", [error.pos], "JSON decode error", {}, {"error": error.msg})
        raise _refusal([problem]) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of thousands of digits, thousands of brackets
        message = "The body is not JSON text in UTF-8."
        raise _refusal([_problem("json_invalid", [], message, "", None)]) from None
    if document is None:
        raise _refusal([_problem("missing", [], "Field required", None, None)])
    if not isinstance(document, dict):
        raise _refusal([_problem("model_attributes_type", [], "Input should be a valid JSON object", document, None)])
    _refuse_other_forms(document)
    try:
        return ClassifyRequest.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise _refusal([_problem(d["type"], d["loc"], d["msg"], d["input"], d.get("ctx")) for d in details]) from None


def _refuse_other_forms(document: Mapping[str, Any]) -> None:
    """Fields that ask for something else than a classification of `input` are not ignored."""
    if document.get("messages") is not None:
        message = "This server does not implement the chat form; send `input` instead of `messages`."
        raise RequestError(501, "NotImplementedError", message, "messages")
    if "normalize" in document:
        message = "Parameter `normalize` was removed; use `use_activation` instead. (parameter=normalize)"
        raise RequestError(400, "BadRequestError", message, "normalize")
    if document.get("task") not in (None, "classify"):
        message = f"`{document['task']}` is not a task of this server; it serves `classify`. (parameter=task)"
        raise RequestError(400, "BadRequestError", message, "task")


def _refusal(problems: Sequence[Mapping[str, Any]]) -> RequestError:
    count = f"{len(problems)} validation error{'s' if len(problems) != 1 else ''}:"
    message = "\n".join([count, *(f"  {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN])])
    return RequestError(400, "Bad Request", message, problems[0]["loc"])


def _problem(
    kind: str, path: Sequence[int | str], message: str, value: object, context: Mapping[str, Any] | None
) -> dict[str, Any]:
    # Members of the union in `input` show up in the path as "list[int]" or "str": noise to a reader.
    fields = [str(part) for part in path if isinstance(part, int) or part in ClassifyRequest.model_fields]
    problem = {"type": kind, "loc": ".".join(["body", *fields]), "msg": message, "input": _shortened(value)}
    return problem | ({"ctx": dict(context)} if context else {})


def _shortened(value: object) -> str:
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = str(value)
    return text if len(text) <= 100 else text[:100] + "…"
