"""What the bodies of several resources share."""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

TOKENIZATION = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens", "padding")
"""Fields of a request that are the tokenizer's business."""


def random_id() -> str:
    """32 random hexadecimal digits; not secret, so they cost no call into the system, as those of ``uuid`` do."""
    return f"{random.getrandbits(128):032x}"


class PoolingRequest(BaseModel):
    """The fields of every request that texts are sent with. Unknown fields are ignored, as vLLM does."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    request_id: str = Field(default_factory=random_id)
    padding: Literal["max_length", "do_not_pad"] | None = None
    priority: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    user: str | None = None  # accepted so that clients of vLLM need no change; it has no effect here

    def tokenization(self) -> dict[str, Any]:
        """Options for the tokenizer, only those that were given."""
        return self.model_dump(include=set(TOKENIZATION), exclude_none=True)


def usage(prompt_tokens: int) -> dict[str, Any]:
    """The ``usage`` of a response; nothing is ever generated."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def exact(value: Any) -> float:
    """A float32 as its shortest exact decimal: 0.38299862, not 0.3829986155033112."""
    return float(str(value))
