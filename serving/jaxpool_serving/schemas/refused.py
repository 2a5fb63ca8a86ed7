"""Fields that are refused whatever the form of a request, as vLLM refuses them: in the same order and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxpool.errors import ValidationError
from jaxpool.params import REMOVED_TASKS

MAX_SALT = 128
NOT_IN_SALT = frozenset("@/\\\0")
UNTRUSTED = {"mm_processor_kwargs": "preprocessing", "media_io_kwargs": "media loading"}
"""Fields for images and sounds -> what of their handling they would change."""


def refuse_before(found: Mapping[str, Any]) -> None:
    """Raise ValidationError for what is wrong with a body before anyone looks at the types in it."""
    if "normalize" in found:
        raise ValidationError("Parameter `normalize` was removed; use `use_activation` instead.", parameter="normalize")
    task = found.get("task")
    if isinstance(task, str) and task in REMOVED_TASKS:
        raise ValidationError(REMOVED_TASKS[task], parameter="task")
    _check_salt(found.get("cache_salt"))
    if found.get("continue_final_message") and found.get("add_generation_prompt"):
        raise ValidationError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")


def refuse_after(found: Mapping[str, Any]) -> None:
    """Raise ValidationError for what a body that is otherwise well-formed may not ask for."""
    for name, what in UNTRUSTED.items():
        if found.get(name):
            raise ValidationError(
                f"Per-request {name} are disabled by default because they can change multimodal {what} resource "
                "usage. Start the server with --trust-request-mm-kwargs only when clients are trusted.",
                parameter=name,
            )


def _check_salt(salt: Any) -> None:
    """There is no cache that a salt could salt; a wrong one is a mistake all the same."""
    if salt is None:
        return
    if not isinstance(salt, str) or not salt:
        raise ValidationError("Parameter 'cache_salt' must be a non-empty string if provided.", parameter="cache_salt")
    if len(salt) > MAX_SALT or NOT_IN_SALT & set(salt):
        raise ValidationError(
            f"Parameter 'cache_salt' must be at most {MAX_SALT} characters and must not contain '@', '/', '\\\\', or "
            "NUL.",
            parameter="cache_salt",
        )
