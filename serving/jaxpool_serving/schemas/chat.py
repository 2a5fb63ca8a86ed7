"""The chat form of a request: a conversation instead of texts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from jaxpool_serving.schemas.common import Activated


class Message(BaseModel):
    """One message; keys beside these, such as ``tool_calls``, reach the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any] | str] | None = ""

    @model_validator(mode="after")
    def _null_content_is_the_assistants(self) -> Message:
        if self.content is None and self.role != "assistant":  # only a message of tool calls may do without
            raise PydanticCustomError("null_content", "Only a message of the assistant may have null content")
        return self


class Chat(Activated):
    """A conversation, and how to make the one text of it that the model reads."""

    add_generation_prompt: bool = False
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    messages: list[Message]

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as `jaxpool.chat.render` takes them."""
        return [message.model_dump() for message in self.messages]

    def template(self) -> str | None:
        """The chat template that the request carries, in either place."""
        return self.chat_template or self.variables().get("chat_template")

    def variables(self) -> dict[str, Any]:
        """What the template may use beside the conversation."""
        return self.chat_template_kwargs or {}
