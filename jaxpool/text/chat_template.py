"""Chat templates as transformers runs them, without transformers, whose import takes seconds.

A template is a program in Jinja's sandbox: it can compute a text, and neither reach Python nor change anything. The
names that it finds beside Jinja's own are those that checkpoints' authors know from ``apply_chat_template``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from jaxpool.errors import ValidationError

NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)

EMPTY = "Cannot apply chat template to an empty conversation. Provide at least one message."
NOT_SHOWN = (
    "continue_final_message is set but the final message does not appear in the chat after applying the chat template! "
    "This can happen if the chat template deletes portions of the final message. Please verify the chat template and "
    "final message in your chat to ensure they are compatible.Final message to continue: {}\nRendered chat:\n{}"
)
"""What vLLM's clients are told, word for word, as `NO_TEMPLATE` is."""

OPEN_END = "JAXPOOL_OPEN_END"
"""Marks in a rendered text where the last message ends that is to be continued."""

RESERVED = frozenset(
    {
        "conversation",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)
"""Names that mean something to transformers' ``apply_chat_template``; as variables, templates do not see them."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What templates call the reasoning of a message; the first that it has is shown as the first two."""

KEPT_TEMPLATES = 16
"""Compiled templates that are kept."""


class _Generation(Extension):
    """``{% generation %}``, which marks what a model has written: nothing to us."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Jinja's, closed to names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"A chat template cannot set {name!r} on a namespace.")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    found = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        found[name] = value
    return found


class _Dict:
    """``dict``, without what the class would lead to."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    found.filters["tojson"] = _tojson
    found.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _namespace,
    }
    return found


@functools.lru_cache(KEPT_TEMPLATES)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def check(template: str) -> None:
    """Raise ValidationError where ``template`` is not well-formed Jinja."""
    try:
        _compiled(template)
    except jinja2.TemplateError as error:
        raise ValidationError(f"The chat template is not well-formed: {error}") from error


def load(word: str | PathLike[str]) -> str:
    """A template from a file, or ``word`` itself where it is one, as vLLM tells them apart.

    Raises:
        ValidationError: the file cannot be read, or the template is not well-formed.
    """
    if not isinstance(word, str) or not any(mark in word for mark in "{}\n"):  # none in a template, rare in a path
        try:
            word = Path(word).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationError(
                f"chat_template is neither a template nor a file that can be read: {error}", parameter="chat_template"
            ) from None
    check(word)
    return word


def find(own: str | Mapping[str, str] | None, template: str | None, tools: Any) -> str:
    """The template that a conversation is rendered with.

    Args:
        own: the tokenizer's, one or several by name.
        template: a template, or the name of one of the tokenizer's; None takes its default.
        tools: whether there are any; some tokenizers have a template ``tool_use`` for that.

    Raises:
        ValidationError: there is none.
    """
    if not isinstance(template, str | None):
        raise ValidationError(f"A chat template is a text; found {type(template).__name__}.", parameter="chat_template")
    if isinstance(own, Mapping):
        if template is None and tools is not None and "tool_use" in own:
            template = "tool_use"
        found = own.get("default") if template is None else own.get(template, template)
    else:
        found = own if template is None else template
    if found is None:
        raise ValidationError(NO_TEMPLATE)
    return found


def rendered(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    max_chars: int | None = None,
) -> str:
    """The text that a template makes of a conversation.

    Args:
        template: Jinja.
        messages: dicts.
        variables: what else it may use, but for the `RESERVED` names.
        add_generation_prompt, continue_final_message: as in ``chat.render``.
        max_chars: longest text.

    Raises:
        ValueError: the conversation does not fit the template or the options.
        ValidationError: the text is longer than ``max_chars``.
        Exception: whatever the template raises.
    """
    if not messages:
        raise ValueError(EMPTY)
    shown = [_shown(message) for message in _plain(messages)]
    variables = {name: value for name, value in _plain(variables).items() if name not in RESERVED}
    last = _opened(shown, template, add_generation_prompt) if continue_final_message else None
    given = {"tools": _tools(variables.get("tools")), "documents": _documents(variables.get("documents"))}
    names = {**variables, **given, "messages": shown, "add_generation_prompt": add_generation_prompt}
    text = _joined(_compiled(template).generate(names), max_chars)
    return text if last is None else _cut_open(text, last)


def _plain(value: Any) -> Any:
    """The same of JSON values only, and the caller's own left alone; other objects might do what no sandbox expects."""
    return json.loads(json.dumps(value, default=lambda other: f"<{type(other).__name__}>"))


def _joined(parts: Iterable[str], max_chars: int | None) -> str:
    """As much as a template writes, but it is stopped where that is too much."""
    found, length = [], 0
    for part in parts:
        found.append(part)
        length += len(part)
        if max_chars is not None and length > max_chars:
            raise ValidationError(
                f"The chat template makes a text of more than {max_chars} characters of this conversation, and the "
                "server takes no longer ones, even where they would be truncated.",
                parameter="messages",
            )
    return "".join(found)


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what is null, its reasoning under every name that templates know."""
    shown = {name: value for name, value in message.items() if value is not None}
    reasoning = next((shown[name] for name in REASONING if name in shown), None)
    return shown if reasoning is None else {"thinking": reasoning, **shown, "reasoning_content": reasoning}


def _tools(tools: Any) -> Any:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools must be a list of JSON schemas, each an object.")
    return list(tools)


def _documents(documents: Any) -> Any:
    if documents is None:
        return None
    if not isinstance(documents, list | tuple) or not all(isinstance(one, dict) for one in documents):
        raise TypeError("Documents should be a list of dicts with 'title' and 'text' keys!")
    return list(documents)


def _opened(messages: list[dict[str, Any]], template: str, add_generation_prompt: bool) -> str:
    """Marks the end of the last message; returns the text that it ends with."""
    if add_generation_prompt:
        raise ValueError("continue_final_message and add_generation_prompt exclude each other.")
    content = messages[-1].get("content")
    if content is None or "content" not in template:
        raise ValueError("continue_final_message is set, but the last message has no content that the template shows.")
    if isinstance(content, str):
        messages[-1]["content"] = f"{content}{OPEN_END} "
        return content
    last = next((index for index in reversed(range(len(content))) if "text" in content[index]), None)
    if last is None:
        raise ValueError("continue_final_message is set, but the last message has no text to continue.")
    text = str(content[last]["text"])
    messages[-1]["content"] = [*content[:last], {**content[last], "text": f"{text}{OPEN_END} "}, *content[last + 1 :]]
    return text


def _cut_open(text: str, last: str) -> str:
    """What comes before the mark; a template that trims what it shows has trimmed the space after it."""
    end = text.rfind(OPEN_END)
    if end < 0 or last.strip() not in text:
        raise ValueError(NOT_SHOWN.format(last.strip(), text.replace(OPEN_END, "").rstrip()))
    return text[:end] if text[end + len(OPEN_END) :].startswith(" ") else text[:end].rstrip()
