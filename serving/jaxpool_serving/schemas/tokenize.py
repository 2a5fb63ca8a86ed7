"""The bodies of ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from jaxpool_serving.schemas.request import ChatInput, parse_texts_or_chat


class TokenizeCompletionRequest(BaseModel):
    """``POST /tokenize``, completion form."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class TokenizeChatRequest(ChatInput):
    """``POST /tokenize``, chat form."""

    model: str | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False
    tools: list[dict[str, Any]] | None = None

    def variables(self) -> dict[str, Any]:
        """What the template may use beside the conversation."""
        return super().variables() | ({"tools": self.tools} if self.tools else {})


TokenizeForms = TokenizeCompletionRequest | TokenizeChatRequest
FORMS: TypeAdapter[TokenizeForms] = TypeAdapter(TokenizeForms)


class TokenizeResponse(TypedDict):
    """All token ids of a text, even of one that is longer than the model reads."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


def parse_tokenize(body: bytes) -> TokenizeForms:
    """Read the body of ``/tokenize``.

    Raises:
        RequestError, HTTPBadRequest, ValidationError: 400, with every problem in one message.
    """
    return parse_texts_or_chat(body, FORMS, TokenizeChatRequest)


class DetokenizeRequest(BaseModel):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=2**63 - 1)]]


class DetokenizeResponse(TypedDict):
    """The text of token ids, special tokens included."""

    prompt: str
