"""A request in one of two forms, texts or a conversation."""

from __future__ import annotations

import contextlib
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from jaxpool_serving.schemas.errors import document, validated_form
from jaxpool_serving.schemas.quick import quick
from jaxpool_serving.schemas.refused import refuse_after, refuse_before

T = TypeVar("T", bound=BaseModel)
C = TypeVar("C", bound=BaseModel)


def read(body: bytes, forms: TypeAdapter[T | C], chat: type[C]) -> T | C:
    """A request body; the conversation wins where it holds both.

    Args:
        body: JSON text.
        forms: either of the two.
        chat: the one with the conversation.

    Raises:
        SchemaError, HTTPBadRequest: it has neither form.
        ValidationError: a field that is refused whatever the form.
    """
    found = document(body, forms=2)
    refuse_before(found)
    parsed: T | C | None = None
    if found.get("messages"):
        with contextlib.suppress(ValidationError):
            parsed = quick(chat).validate_python(found)
    if parsed is None:
        parsed = validated_form(forms, found)
    refuse_after(found)
    return parsed
