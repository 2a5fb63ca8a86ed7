"""The bodies of answers that refuse a request."""

from __future__ import annotations

from typing_extensions import TypedDict


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
