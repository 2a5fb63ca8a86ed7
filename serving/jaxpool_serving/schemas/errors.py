"""How a refusal looks on the wire, and how a request body is validated. Texts and shapes follow vLLM's server."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator
from typing_extensions import TypedDict

from jaxpool.errors import JaxpoolError
from jaxpool_serving.schemas.json_body import check_members, count_members, loads

# What an error repeats of a request is bounded, or a small body could ask for a large answer.
MAX_PROBLEMS = 10
MAX_CHARS_OF_PROBLEM = 1000
MAX_CHARS_OF_INPUT = 200
MAX_COMPLAINTS = 1000
"""Problems of a body that are made into entries; there is no way to have pydantic make ten of them."""

WHITE = b" \t\n\r\v\f"

MEMBERS = frozenset({"str", "int", "float", "bool", "list", "dict"})
"""What pydantic calls the members of a union that are builtins."""

Model = TypeVar("Model", bound=BaseModel)
Form = TypeVar("Form")


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


class SchemaError(RequestError):
    """A body that is not what its resource expects."""


def parse_object(body: bytes, forms: int = 1) -> dict[str, Any]:
    """A request body as a JSON object.

    Args:
        body: JSON text.
        forms: how many forms the body may have; each complains for itself if it is no object.

    Raises:
        SchemaError: 400, it is JSON of another kind, or none.
        ValidationError: 400, its lists are too long to look into.
        HTTPBadRequest: it cannot be read at all.
    """
    try:
        found = loads(body) if body[:1] not in WHITE or body.strip() else None
    except json.JSONDecodeError as error:
        raise refusal([problem("json_invalid", [error.pos], "JSON decode error", {}, {"error": error.msg})]) from None
    except JaxpoolError:
        raise
    except (ValueError, RecursionError):  # not UTF-8, a number of thousands of digits, thousands of brackets
        raise web.HTTPBadRequest(reason="There was an error parsing the body") from None
    if found is None:
        raise refusal([problem("missing", [], "Field required", None)])
    if not isinstance(found, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise refusal([problem("model_attributes_type", [], message, found)] * forms)
    check_members(found)
    return found


def validate(schema: type[Model], found: Mapping[str, Any]) -> Model:
    """The body as ``schema`` says.

    Raises:
        SchemaError: 400, with every problem (the first ten spelled out) in one message.
    """
    try:
        return fail_fast_validator(schema).validate_python(found)
    except ValidationError as error:
        _refuse_at_length(found, error)
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        raise refusal(problems(error)) from None


def parse_model(schema: type[Model], body: bytes) -> Model:
    """A body of one form; raises as `parse_object` and `validate` do."""
    return validate(schema, parse_object(body))


def validate_union(forms: TypeAdapter[Form], found: Mapping[str, Any]) -> Form:
    """The body in one of several forms, a union of models; of those that fit, the one with most of its fields set.

    Raises:
        SchemaError: 400, with the problems of every form in one message.
    """
    try:
        return fail_fast_validator(forms).validate_python(found)
    except ValidationError as error:
        _refuse_at_length(found, error, inside=1)
    try:
        return forms.validate_python(found)
    except ValidationError as error:
        raise refusal(problems(error, inside=1)) from None


def _refuse_at_length(found: Mapping[str, Any], error: ValidationError, inside: int = 0) -> None:
    """Refuse a body with long lists for the first problem of each; return if its lists are short."""
    if error.error_count() > MAX_COMPLAINTS:
        message = f"{error.error_count()} validation errors, too many to list"
        raise SchemaError(400, "Bad Request", message)
    if count_members(found) > MAX_COMPLAINTS:
        raise refusal(problems(error, inside)) from None


def problems(error: ValidationError, inside: int = 0) -> list[dict[str, Any]]:
    """What pydantic found, as entries of a refusal; ``inside`` parts of every path are the forms' names."""
    return [
        problem(found["type"], found["loc"][inside:], found["msg"], found["input"], found.get("ctx"))
        for found in error.errors(include_url=False)
    ]


def refusal(problems: Sequence[Mapping[str, Any]]) -> SchemaError:
    """The answer to a body with these problems."""
    lines = [f"{len(problems)} validation error{'s' if len(problems) != 1 else ''}:"]
    lines += [f"  {truncated(str(problem), MAX_CHARS_OF_PROBLEM)}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"  ...and {len(problems) - MAX_PROBLEMS} more errors")
    return SchemaError(400, "Bad Request", "\n".join(lines), problems[0]["loc"])


def problem(
    kind: str, path: Sequence[int | str], message: str, value: object, context: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One entry of a refusal."""
    loc = ".".join(["body", *(truncated(str(part), MAX_CHARS_OF_INPUT) for part in path if not _is_type(part))])
    found = {"type": kind, "loc": loc, "msg": message, "input": _shortened(value)}
    return found | ({"ctx": dict(context)} if context else {})


def _is_type(part: int | str) -> bool:
    """Members of a union show up in a path as their type, such as ``str`` or ``list[int]``: noise to a reader."""
    return isinstance(part, str) and (part in MEMBERS or "[" in part)


def _shortened(value: object) -> str:
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    return truncated(str(value), MAX_CHARS_OF_INPUT)


def truncated(text: str, size: int = MAX_CHARS_OF_INPUT) -> str:
    """A text of a client, as much of it as an answer may repeat."""
    return text if len(text) <= size else f"{text[:size]}...[truncated]"


class Problem(TypedDict):
    """What is wrong: a sentence, its kind, the field to blame if it is one, and the status again."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(TypedDict):
    """A refusal as OpenAI's and vLLM's clients read it."""

    error: Problem


class Detail(TypedDict):
    """A refusal before any route has looked at the request."""

    detail: str


class Unauthorized(TypedDict):
    """The request has none of the API keys."""

    error: str


@functools.cache
def fail_fast_validator(schema: type[BaseModel] | TypeAdapter[Any]) -> SchemaValidator:
    """What validates as ``schema`` does, with the same results and fewer complaints."""
    adapter = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
    # with what is built already, pydantic would take the slow validators of the models themselves
    return SchemaValidator(_failing_fast(adapter.core_schema), _use_prebuilt=False)


def _failing_fast(part: Any) -> Any:
    """A copy of a core schema in which every list gives up at its first problem."""
    if isinstance(part, dict):
        copied = {name: _failing_fast(value) for name, value in part.items()}
        return copied | {"fail_fast": True} if part.get("type") in ("list", "tuple", "set", "frozenset") else copied
    return [_failing_fast(value) for value in part] if isinstance(part, list) else part
