"""The options of ``jaxpool serve`` about chat templates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from jaxpool.errors import ValidationError
from jaxpool.text.chat import ContentFormat, check


def add_templates(parser: argparse.ArgumentParser) -> None:
    """Declare the options, under a heading of their own."""
    chat = parser.add_argument_group("chat").add_argument
    chat("--chat-template", metavar="FILE", help="a Jinja template (or its text) that goes before the tokenizer's own")
    chat("--trust-request-chat-template", action="store_true", help="let requests bring templates of their own")
    about = "how templates want contents: string, openai (lists of parts), or auto, which looks (default: auto)"
    chat("--chat-template-content-format", metavar="HOW", choices=get_args(ContentFormat), default="auto", help=about)


def templates(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as fields of `Options`.

    Raises:
        ValidationError: the template cannot be read, or is not well-formed.
    """
    return {
        "chat_template": args.chat_template and _template(args.chat_template),
        "trust_request_chat_template": args.trust_request_chat_template,
        "chat_template_content_format": args.chat_template_content_format,
    }


def _template(word: str) -> str:
    if not any(mark in word for mark in "{}\n"):  # none of these in a template, all of them rare in a path
        try:
            word = Path(word).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationError(
                f"--chat-template is neither a template nor a file that can be read: {error}"
            ) from None
    check(word)
    return word
