"""What requests of several routes share: texts, a conversation, the fields of all.

What is refused whatever the route is refused as vLLM does, in the same order and words.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeVar

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from jaxpool.errors import ValidationError
from jaxpool.params import REMOVED_TASKS
from jaxpool_serving.schemas.errors import fail_fast_validator, parse_object, validate_union

TOKENIZATION = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens", "padding")
"""Fields of a request that are the tokenizer's business."""


def random_id() -> str:
    """32 random hexadecimal digits; not secret, so they cost no call into the system, as those of ``uuid`` do."""
    return f"{random.getrandbits(128):032x}"


class UseActivation(BaseModel):
    """The field that goes first where a form is put together of several classes, as in vLLM."""

    use_activation: bool | None = None


class PoolingRequest(UseActivation):
    """The fields of every request that texts are sent with. Unknown fields are ignored, as vLLM does."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    request_id: str = Field(default_factory=random_id)
    padding: Literal["max_length", "do_not_pad"] | None = None
    priority: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] = 0
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # Accepted so that clients of vLLM need no change; what these ask for does not exist here.
    user: str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    # Only requests of the same one share what is computed of their texts' beginnings.
    cache_salt: str | None = None

    def tokenization(self) -> dict[str, Any]:
        """Options for the tokenizer, only those that were given."""
        return self.model_dump(include=set(TOKENIZATION), exclude_none=True)


class PromptTokensDetails(TypedDict):
    """Of the tokens of a request those that were computed before it came."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens of a request, as OpenAI's clients expect to be told."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None
    completion_tokens_details: None


def usage(prompt_tokens: int, cached: int | None = None) -> Usage:
    """The ``usage`` of a response; nothing is ever generated. ``cached`` is told if it is given."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
        "completion_tokens_details": None,
    }


def decimal(value: Any) -> float:
    """A float32 as its shortest exact decimal: 0.38299862, not 0.3829986155033112."""
    return float(str(value))


class Pair(TypedDict):
    """One text, or two that are read together, such as a premise and a hypothesis. Ours, not vLLM's."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    text: str
    text_pair: NotRequired[str | None]


# vLLM's forms are checked apart from ours, so that what it refuses is refused in its words.
_Plain = Annotated[list[int] | list[list[int]] | str | list[str], Tag("list[plain]")]
_Pairs = Annotated[list[Annotated[Pair, Tag("dict")] | str], Tag("list[pair]")]


def _has_pairs(value: Any) -> str:
    pairs = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    return "list[pair]" if pairs else "list[plain]"


class TextInput(UseActivation):
    """Texts in any of their forms."""

    add_special_tokens: bool = True
    input: Annotated[_Plain | _Pairs, Discriminator(_has_pairs)]

    def prompts(self) -> Sequence[Any]:
        """One entry per text, as jaxpool's tokenizer takes them; a flat list of ids is one text."""
        if isinstance(self.input, str) or (self.input and isinstance(self.input[0], int)):
            return [self.input]
        return [
            {"prompt": item["text"], "text_pair": item.get("text_pair")} if isinstance(item, dict) else item
            for item in self.input
        ]


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


class ChatOptions(UseActivation):
    """How to make the one text of a conversation that the model reads."""

    add_generation_prompt: bool = False
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None

    def templates(self) -> list[str]:
        """The chat templates that the request brings, the one that counts first; they may be empty."""
        given = (self.chat_template, self.variables().get("chat_template"))
        return [template for template in given if template is not None]

    def variables(self) -> dict[str, Any]:
        """What the template may use beside the conversation."""
        return self.chat_template_kwargs or {}

    def conversations(self) -> Sequence[Sequence[Message]]:
        """Each becomes one prompt."""
        raise NotImplementedError


Conversation = list[Annotated[Message, AfterValidator(_null_content_is_the_assistants)]]


class ChatInput(ChatOptions):
    """A conversation."""

    messages: Conversation

    def conversations(self) -> Sequence[Sequence[Message]]:
        """The one there is."""
        return [self.messages]


MAX_SALT = 128
NOT_IN_SALT = frozenset("@/\\\0")
LATE_CHUNKING = ("late_chunking_params", "late_chunking")
"""Fields that would change vectors and that nobody here reads."""
UNTRUSTED = {"mm_processor_kwargs": "preprocessing", "media_io_kwargs": "media loading"}
"""Fields for images and sounds -> what of their handling they would change."""


def check_before_validation(found: Mapping[str, Any]) -> None:
    """Raise ValidationError for what is wrong with a body before anyone looks at the types in it."""
    if "normalize" in found:
        raise ValidationError("Parameter `normalize` was removed; use `use_activation` instead.", parameter="normalize")
    task = found.get("task")
    if isinstance(task, str) and task in REMOVED_TASKS:
        raise ValidationError(REMOVED_TASKS[task], parameter="task")
    for name in LATE_CHUNKING:
        if found.get(name):
            raise ValidationError(
                f"`{name}` is not supported: every text has one vector. Leave it out, or ask a model that serves "
                "token_embed for the vectors of tokens.",
                parameter=name,
            )
    _check_salt(found.get("cache_salt"))
    if found.get("continue_final_message") and found.get("add_generation_prompt"):
        raise ValidationError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")


def check_after_validation(found: Mapping[str, Any]) -> None:
    """Raise ValidationError for what a body that is otherwise well-formed may not ask for."""
    for name, what in UNTRUSTED.items():
        if found.get(name):
            raise ValidationError(
                f"Per-request {name} are disabled by default because they can change multimodal {what} resource "
                "usage. Start the server with --trust-request-mm-kwargs only when clients are trusted.",
                parameter=name,
            )


def _check_salt(salt: Any) -> None:
    """There is no cache that a salt could salt; a wrong one is a mistake all the same."""
    if salt is None:
        return
    if not isinstance(salt, str) or not salt:
        raise ValidationError("Parameter 'cache_salt' must be a non-empty string if provided.", parameter="cache_salt")
    if len(salt) > MAX_SALT or NOT_IN_SALT & set(salt):
        raise ValidationError(
            f"Parameter 'cache_salt' must be at most {MAX_SALT} characters and must not contain '@', '/', '\\\\', or "
            "NUL.",
            parameter="cache_salt",
        )


T = TypeVar("T", bound=BaseModel)
C = TypeVar("C", bound=BaseModel)


def parse_texts_or_chat(body: bytes, forms: TypeAdapter[T | C], chat: type[C]) -> T | C:
    """A request body; the conversation wins where it holds both.

    Args:
        body: JSON text.
        forms: either of the two.
        chat: the one with the conversation.

    Raises:
        SchemaError, HTTPBadRequest: it has neither form.
        ValidationError: a field that is refused whatever the form.
    """
    found = parse_object(body, forms=2)
    check_before_validation(found)
    parsed: T | C | None = None
    if found.get("messages"):
        with contextlib.suppress(pydantic.ValidationError):
            parsed = fail_fast_validator(chat).validate_python(found)
    if parsed is None:
        parsed = validate_union(forms, found)
    check_after_validation(found)
    return parsed
