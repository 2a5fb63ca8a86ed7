"""Conversations to prompts, in other processes: templates are programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxpool.errors import ValidationError
from jaxpool_serving.keys import OPTIONS, RENDERERS, TOKENIZER_THREADS
from jaxpool_serving.schemas.chat import Chat
from jaxpool_serving.schemas.texts import Texts

if TYPE_CHECKING:
    from aiohttp import web

    from jaxpool.llm import LLM
    from jaxpool_serving.keys import Options, Served

UNTRUSTED = (
    "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with "
    "untrusted chat template."
)


async def prompts(app: web.Application, served: Served, body: Texts | Chat) -> Sequence[Any]:
    """The prompts of a request in either form; a conversation is one.

    Raises:
        ValidationError: the conversation cannot be rendered, or brings a template that this server does not trust.
        RequestError: 504, the template does not end.
    """
    if isinstance(body, Texts):
        return body.prompts()
    if body.templates() and not app[OPTIONS].trust_request_chat_template:
        raise ValidationError(UNTRUSTED)
    question = await app[TOKENIZER_THREADS].run(_question, served.llm, body, app[OPTIONS])
    text, frame = await app[RENDERERS].render(question), served.llm.tokenizer.frame
    return [text if frame is None else frame.ended(text)]


def _question(llm: LLM, body: Chat, options: Options) -> bytes:
    """The arguments of ``chat.render`` as `Renderers` take them."""
    vocabulary = llm.tokenizer.vocabulary
    if vocabulary is None:
        raise ValidationError(llm.tokenizer.absent)
    frame = llm.tokenizer.frame
    if frame is not None and frame.layout:
        raise ValidationError("This model compares two texts; send them to /score or /rerank.", parameter="messages")
    asked = {
        "tokenizer": {
            "chat_template": vocabulary.chat_template,
            "special_tokens_map": vocabulary.special_tokens_map,
        },
        "messages": body.messages,
        "template": next(filter(None, body.templates()), options.chat_template),
        "add_generation_prompt": body.add_generation_prompt if frame is None else frame.generation,
        "continue_final_message": body.continue_final_message,
        "content_format": options.chat_template_content_format,
        "variables": {**({} if frame is None else frame.variables), **body.variables()},
        "max_chars": options.max_text_chars,
    }
    return json.dumps(asked).encode()
