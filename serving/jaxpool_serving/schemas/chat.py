"""The chat form of a request: a conversation instead of texts."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from jaxpool_serving.schemas.common import Activated


class Message(TypedDict):
    """One message; what else it has, such as ``tool_calls``, is for the chat template."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    role: str
    content: NotRequired[str | list[dict[str, Any] | str] | None]


def _null_content_is_the_assistants(message: Message) -> Message:
    """Only a message of tool calls may do without content."""
    if message.get("content", "") is None and message["role"] != "assistant":
        raise PydanticCustomError("null_content", "Only a message of the assistant may have null content")
    return message


class Chat(Activated):
    """A conversation, and how to make the one text of it that the model reads."""

    add_generation_prompt: bool = False
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    messages: list[Annotated[Message, AfterValidator(_null_content_is_the_assistants)]]

    def templates(self) -> list[str]:
        """The chat templates that the request brings, the one that counts first; they may be empty."""
        given = (self.chat_template, self.variables().get("chat_template"))
        return [template for template in given if template is not None]

    def variables(self) -> dict[str, Any]:
        """What the template may use beside the conversation."""
        return self.chat_template_kwargs or {}
