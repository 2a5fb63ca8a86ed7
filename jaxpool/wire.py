"""What goes between a client and a server: prompts as a request has them, results, refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from jaxpool.errors import ServerError

Prompt = str | Sequence[int] | tuple[str, str] | Mapping[str, str]
"""A text, its token ids, or a pair of texts: ``(text, other)`` or ``{"text": …, "text_pair": …}``."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The classification of one prompt.

    Attributes:
        label: name of the highest entry of ``probs``; None where the server knows none.
        probs: one number per label, in the order of the model's labels; logits where the activation is off.
        labels: with the field ``threshold``, every label that reaches it, else ``label`` alone.
        top_k: with the field ``top_k``, the best labels and their scores, best first.
        logits: with the field ``return_logits``, scores before the activation.
    """

    label: str | None
    probs: list[float]
    labels: list[str] = field(default_factory=list)
    top_k: list[tuple[str, float]] | None = None
    logits: list[float] | None = None

    @staticmethod
    def of(entry: Mapping[str, Any]) -> Classification:
        """From an entry of a response's ``data``."""
        label, best = entry["label"], entry.get("top_k")
        return Classification(
            label,
            entry["probs"],
            entry.get("labels", [] if label is None else [label]),
            None if best is None else [(one["label"], one["score"]) for one in best],
            entry.get("logits"),
        )


def inputs(prompts: Any) -> list[Any]:
    """Prompts as the field ``input`` has them."""
    one = isinstance(prompts, str | Mapping) or _is_pair(prompts) or (len(prompts) and isinstance(prompts[0], int))
    return [_input(prompt) for prompt in ([prompts] if one else prompts)]


def _input(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    if _is_pair(prompt):
        return {"text": prompt[0], "text_pair": prompt[1]}
    return dict(prompt) if isinstance(prompt, Mapping) else [int(token) for token in prompt]


def _is_pair(prompt: Any) -> bool:
    return isinstance(prompt, tuple) and len(prompt) == 2 and all(isinstance(text, str) for text in prompt)


async def refusal(response: aiohttp.ClientResponse) -> ServerError:
    """What an answer other than 200 says: vLLM's ``error`` object, its bare forms, or a proxy's page."""
    text = await response.text(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    detail = found.get("error", found.get("detail")) if isinstance(found, dict) else found
    named = detail if isinstance(detail, dict) else {"message": detail}
    message = str(named.get("message") or response.reason)[:1000]
    return ServerError(f"{response.status}: {message}", status=response.status, parameter=named.get("param"))


def retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds that the header ``Retry-After`` asks for, in either of its forms; 0 without it."""
    value = response.headers.get("Retry-After", "0")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
