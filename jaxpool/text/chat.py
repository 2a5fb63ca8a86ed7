"""Conversations to the text that a model reads, through the chat template that comes with its tokenizer.

What a message may hold is settled here, what a template does in ``chat_template``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import jinja2

from jaxpool.errors import ValidationError
from jaxpool.text import chat_template
from jaxpool.text.chat_template import check

__all__ = ["ContentFormat", "Templates", "check", "render"]

ContentFormat = Literal["auto", "string", "openai"]

_TEXT_PARTS = {"text": "text", "refusal": "refusal", "thinking": "thinking"}
"""Kind of a part of a message -> which of its keys holds the text."""

_KEPT = {"assistant": ("name", "tool_calls", "reasoning"), "tool": ("name", "tool_call_id")}
"""Role -> what of its messages templates see beside role and content."""

_LOOP_OVER_PARTS = re.compile(
    r"""\bfor\s+\w+\s+in\s+(?:\w+\s*(?:\.\s*content\b|\[\s*(['"])content\1\s*\])|content\b)"""
)


class Templates(Protocol):
    """What a tokenizer knows of conversations: transformers' tokenizers and our ``Vocabulary`` alike."""

    @property
    def chat_template(self) -> str | Mapping[str, str] | None:
        """One template, or several by name."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """Names such as ``bos_token`` -> the token's text."""


def render(
    tokenizer: Templates,
    messages: Sequence[Mapping[str, Any]],
    template: str | None = None,
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    content_format: ContentFormat = "auto",
    variables: Mapping[str, Any] | None = None,
    max_chars: int | None = None,
) -> str:
    """One conversation as text, special tokens included (tokenise it with ``add_special_tokens=False``).

    Args:
        tokenizer: a transformers tokenizer, such as ``LLM.get_tokenizer()`` returns, or ``LLM.tokenizer.vocabulary``.
        messages: dicts with ``role`` and ``content``, a text or a list of text parts
            (``{"type": "text", "text": …}``, or plain strings).
        template: a Jinja template, or the name of one of the tokenizer's; None takes the tokenizer's own.
        add_generation_prompt: end with the beginning of an answer.
        continue_final_message: leave the last message open.
        content_format: whether the template wants contents as one text ("string") or as lists of parts ("openai");
            "auto" looks whether it loops over them.
        variables: what else the template may use, ``tools`` and ``documents`` among it.
        max_chars: longest text; None for any.

    Raises:
        ValidationError: there is no template, it fails or writes too much, or a message is none or has a part that is
            not text.
    """
    variables = dict(variables or {})
    conversation = [_message(message) for message in messages]
    if "messages" in variables:
        raise ValidationError("A variable of a chat template cannot be called `messages`; that is the conversation.")
    template = chat_template.find(tokenizer.chat_template, template, variables.get("tools"))
    as_parts = bool(_LOOP_OVER_PARTS.search(template)) if content_format == "auto" else content_format == "openai"
    if not as_parts:
        conversation = [message | {"content": _joined(message["content"])} for message in conversation]
    if "'developer'" not in template and '"developer"' not in template:
        conversation = _developers_as_system(conversation)
    try:
        return chat_template.rendered(
            template,
            conversation,
            {**tokenizer.special_tokens_map, **variables},
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            max_chars=max_chars,
        )
    except ValidationError:
        raise
    except Exception as error:  # a template may raise anything, and says what is wrong with the conversation
        raise ValidationError(_reason(error)) from error


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """What templates see of one message, in parts; vLLM shows them the same."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise ValidationError(f"A message needs a role, a text such as 'user'; found {role!r}.", parameter="messages")
    parts = [_part(part) for part in ([content] if isinstance(content, str) else content or [])]
    # few templates loop over what a tool said
    shown: dict[str, Any] = {"role": role, "content": _joined(parts) if role == "tool" else parts}
    for name in _KEPT.get(role, ("name",)):
        if message.get(name):
            shown[name] = message[name]
    if "tool_calls" in shown:
        calls = shown["tool_calls"]
        shown["tool_calls"] = [_tool_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    return shown


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise ValidationError(
            f"This model reads text only, but a message has a part of type {kind!r}; leave it out, or send its text as "
            "{'type': 'text', 'text': …}.",
            parameter="messages",
        )
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise ValidationError(
            f"A message's part of type {kind!r} needs its text, a string, in {_TEXT_PARTS[kind]!r}; found {text!r}.",
            parameter="messages",
        )
    others = {name: value for name, value in part.items() if name not in ("type", _TEXT_PARTS[kind])}
    return {"type": "text", "text": text} | others


def _joined(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if part["text"])


def _tool_call(call: Any) -> dict[str, Any]:
    """A call whose arguments are a dict, as templates want them; OpenAI's clients send them as JSON text."""
    function = (
        call.get("function") if isinstance(call, Mapping) and call.get("type", "function") == "function" else None
    )
    if not isinstance(function, Mapping):
        message = "chat completions only support assistant tool_calls of type 'function'."
        raise ValidationError(message, parameter="tool_calls")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):  # what a model once wrote must not make its conversation unreadable
            arguments = None
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


def _developers_as_system(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates that know no developer: their messages join the system's, which comes first."""
    if all(message["role"] != "developer" for message in conversation):
        return conversation
    system = [message["content"] for message in conversation if message["role"] in ("developer", "system")]
    texts = [_joined(one) for one in system]
    others = [message for message in conversation if message["role"] not in ("developer", "system")]
    return [{"role": "system", "content": "\n\n".join(filter(None, texts))}, *others]


def _reason(error: BaseException) -> str:
    """The template's own words, where there are some in the chain of causes."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    found = next((one for one in chain if isinstance(one, jinja2.TemplateError)), error)
    return str(found) or f"The chat template failed at this conversation: {type(found).__name__}."
