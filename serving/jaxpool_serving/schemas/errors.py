"""How a refusal looks on the wire, and how a request body is read. Texts and shapes follow vLLM's server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

MAX_PROBLEMS_SHOWN = 10

Model = TypeVar("Model", bound=BaseModel)


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


def document(body: bytes) -> dict[str, Any]:
    """A request body as a JSON object.

    Raises:
        RequestError: 400, it is none.
    """
    try:
        found = json.loads(body) if body.strip() else None
    except json.JSONDecodeError as error:
        raise refusal([problem("json_invalid", [error.pos], "JSON decode error", {}, {"error": error.msg})]) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of thousands of digits, thousands of brackets
        message = "The body is not JSON text in UTF-8."
        raise refusal([problem("json_invalid", [], message, "", None)]) from None
    if found is None:
        raise refusal([problem("missing", [], "Field required", None, None)])
    if not isinstance(found, dict):
        raise refusal([problem("model_attributes_type", [], "Input should be a valid JSON object", found, None)])
    return found


def validated(schema: type[Model], found: Mapping[str, Any]) -> Model:
    """The body as ``schema`` says.

    Raises:
        RequestError: 400, with every problem (the first ten spelled out) in one message.
    """
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        known = schema.model_fields
        # Members of the union in `input` show up in the path as "list[int]" or "str": noise to a reader.
        raise refusal(
            [
                problem(
                    d["type"],
                    [p for p in d["loc"] if isinstance(p, int) or p in known],
                    d["msg"],
                    d["input"],
                    d.get("ctx"),
                )
                for d in error.errors(include_url=False)
            ]
        ) from None


def refusal(problems: Sequence[Mapping[str, Any]]) -> RequestError:
    """The answer to a body with these problems."""
    count = f"{len(problems)} validation error{'s' if len(problems) != 1 else ''}:"
    message = "\n".join([count, *(f"  {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN])])
    return RequestError(400, "Bad Request", message, problems[0]["loc"])


def problem(
    kind: str, path: Sequence[int | str], message: str, value: object, context: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One entry of a refusal."""
    loc = ".".join(["body", *map(str, path)])
    found = {"type": kind, "loc": loc, "msg": message, "input": _shortened(value)}
    return found | ({"ctx": dict(context)} if context else {})


def _shortened(value: object) -> str:
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = str(value)
    return text if len(text) <= 100 else text[:100] + "…"
