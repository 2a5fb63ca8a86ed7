"""Conversations to prompts, in a thread: templates are programs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxpool import chat
from jaxpool.errors import ValidationError
from jaxpool_serving.keys import OPTIONS, TOKENIZER_THREADS
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
    """
    if isinstance(body, Texts):
        return body.prompts()
    if body.templates() and not app[OPTIONS].trust_request_chat_template:
        raise ValidationError(UNTRUSTED)
    loop = asyncio.get_running_loop()
    return [await loop.run_in_executor(app[TOKENIZER_THREADS], _rendered, served.llm, body, app[OPTIONS])]


def _rendered(llm: LLM, body: Chat, options: Options) -> str:
    return chat.render(
        llm.get_tokenizer(),
        body.messages,
        next(filter(None, body.templates()), options.chat_template),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        content_format=options.chat_template_content_format,
        variables=body.variables(),
    )
