"""What goes between a client and a server: prompts as a request has them, results, refusals."""

from __future__ import annotations

import json
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from jaxpool.errors import ServerError, ValidationError

Prompt = str | Sequence[int] | tuple[str, str] | Mapping[str, str]
"""A text, its token ids, or a pair of texts: ``(text, other)`` or ``{"text": …, "text_pair": …}``."""
A_PROMPT = "a text, token ids or a pair of texts"


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
        """From an entry of a response's ``data``.

        Raises:
            KeyError, TypeError: it lacks a field, or a field is something else.
        """
        label, best = entry["label"], entry.get("top_k")
        if not isinstance(label, str | None):
            raise TypeError("label")
        if not isinstance(entry["probs"], list) or not all(isinstance(one, int | float) for one in entry["probs"]):
            raise TypeError("probs")
        return Classification(
            label,
            entry["probs"],
            entry.get("labels", [] if label is None else [label]),
            None if best is None else [(one["label"], one["score"]) for one in best],
            entry.get("logits"),
        )


def inputs(prompts: Any) -> list[Any]:
    """Prompts as the field ``input`` has them.

    Raises:
        ValidationError: there is none, or one of them is no prompt.
    """
    if isinstance(prompts, str | Mapping) or _is_pair(prompts):
        return [_input(0, prompts)]
    try:
        given = list(prompts)
    except TypeError:
        raise ValidationError(f"prompts is {_shown(prompts)}, and should be {A_PROMPT}, or a list of those.") from None
    if not given:
        raise ValidationError("You must pass at least one prompt")
    if isinstance(given[0], numbers.Integral):
        return [_input(0, given)]
    return [_input(number, prompt) for number, prompt in enumerate(given)]


def _input(number: int, prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    if _is_pair(prompt):
        return {"text": prompt[0], "text_pair": prompt[1]}
    if isinstance(prompt, Mapping):
        return dict(prompt)
    try:
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise ValidationError(f"prompts[{number}] is {_shown(prompt)}, and should be {A_PROMPT}.") from None


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {repr(value)[:80]}"


def _is_pair(prompt: Any) -> bool:
    return isinstance(prompt, tuple) and len(prompt) == 2 and all(isinstance(text, str) for text in prompt)


async def answered(response: aiohttp.ClientResponse) -> Any:
    """The JSON of an answer with status 200.

    Raises:
        ServerError: it is something else.
    """
    text = await response.text(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        said = f"no JSON but {response.headers.get('Content-Type', 'something else')}: {text[:200]!r}"
        raise ServerError(
            f"{response.status}: the answer of {response.url} is {said}", status=response.status
        ) from None


def classifications(answer: Any, prompts: int) -> list[Classification]:
    """The results in an answer of ``/classify``, one per prompt.

    Raises:
        ServerError: they are not.
    """
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ServerError(f"200: the answer has no list `data`: {_shown(answer)}", status=200)
    if len(entries) != prompts:
        raise ServerError(f"200: the answer has {len(entries)} results for {prompts} prompts", status=200)
    found = []
    for number, entry in enumerate(entries):
        try:
            if entry.get("index", number) != number:
                raise KeyError("index")
            found.append(Classification.of(entry))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            said = f"200: result {number} of the answer is broken ({error}): {_shown(entry)}"
            raise ServerError(said, status=200) from error
    return found


async def refusal(response: aiohttp.ClientResponse) -> ServerError:
    """What an answer other than 200 says: vLLM's ``error`` object, its bare forms, or a proxy's page."""
    text = await response.text(errors="replace")
    if 300 <= response.status < 400:
        said = f"{response.status}: redirected to {response.headers.get('Location')!r}, which is not followed"
        return ServerError(f"{said}; if that is the server, give it as base_url.", status=response.status)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
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
