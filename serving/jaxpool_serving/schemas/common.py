"""What the bodies of several resources share."""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

TOKENIZATION = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens", "padding")
"""Fields of a request that are the tokenizer's business."""


def random_id() -> str:
    """32 random hexadecimal digits; not secret, so they cost no call into the system, as those of ``uuid`` do."""
    return f"{random.getrandbits(128):032x}"


class Activated(BaseModel):
    """The field that goes first where a form is put together of several classes, as in vLLM."""

    use_activation: bool | None = None


class PoolingRequest(Activated):
    """The fields of every request that texts are sent with. Unknown fields are ignored, as vLLM does."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    request_id: str = Field(default_factory=random_id)
    padding: Literal["max_length", "do_not_pad"] | None = None
    priority: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] = 0
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # Accepted so that clients of vLLM need no change; what these ask for does not exist here.
    user: str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None

    def tokenization(self) -> dict[str, Any]:
        """Options for the tokenizer, only those that were given."""
        return self.model_dump(include=set(TOKENIZATION), exclude_none=True)


class Usage(TypedDict):
    """Tokens of a request, as OpenAI's clients expect to be told."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None
    completion_tokens_details: None


def usage(prompt_tokens: int) -> Usage:
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
