"""How much a body may hold, whatever it says: checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxpool.errors import ValidationError

MAX_MEMBERS = 2**15
"""Members of all lists and objects together. Each may become several entries of a schema's complaint, of a kilobyte."""

TOKENS = frozenset({"input", "tokens"})
"""Fields whose lists of numbers are token ids, and do not count; other limits hold for them."""


def refuse_huge(found: Mapping[str, Any]) -> None:
    """Refuse a body that would keep the server busy with finding out what is wrong with it.

    Raises:
        ValidationError: it has more than `MAX_MEMBERS` members.
    """
    members, left = 0, [(name in TOKENS, value) for name, value in found.items() if isinstance(value, list | dict)]
    while left:
        tokens, one = left.pop()
        inside = one.values() if isinstance(one, dict) else one
        if tokens and set(map(type, inside)) == {int}:
            continue
        members += len(one)
        if members > MAX_MEMBERS:
            raise ValidationError(f"The lists of this request have more than {MAX_MEMBERS} members; split it.")
        left += [(tokens, value) for value in inside if isinstance(value, list | dict)]
