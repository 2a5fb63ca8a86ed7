"""What stands around a caller's text where a model was trained to read more: instructions, turns, roles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxpool.errors import ValidationError
from jaxpool.text import chat
from jaxpool.text.chat import Templates
from jaxpool.text.prompts import TextPrompt, TokensPrompt, parse

_PLACES = re.compile(r"\{(instruction|text|pair)\}")


class Framed(str):
    """A text that has its frame already."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How a text, two texts or a conversation become what a model reads.

    Attributes:
        layout: for models of two texts: what they read, with ``{text}``, ``{pair}`` and ``{instruction}`` in it. Empty
            for models of conversations: the tokenizer's own chat template.
        instruction: what stands for ``{instruction}``.
        roles: who says the text, and who its pair, where it is a conversation.
        variables: what the chat template may use.
        generation: whether the conversation ends with the beginning of an answer.
        ending: how the text must end, after which the model answers.
        special_tokens: whether the tokenizer's special tokens are added; a chat template writes them itself.
    """

    layout: str = ""
    instruction: str = ""
    roles: tuple[str, str] = ("user", "assistant")
    variables: Mapping[str, Any] = field(default_factory=dict)
    generation: bool = False
    ending: str = ""
    special_tokens: bool = False

    def around(self, vocabulary: Templates, prompt: Any) -> Any:
        """``prompt`` with its frame; token ids, and what is framed already, as they are.

        Args:
            vocabulary: has the chat template.
            prompt: a text, a pair as ``parse`` reads it, or ``{"messages": […]}``; a dict may have ``variables`` of its
                own: an ``instruction``, or what the chat template may use.

        Raises:
            ValidationError: the prompt does not go with this frame.
        """
        if isinstance(prompt, Framed):
            return prompt
        variables = prompt.get("variables") or {} if isinstance(prompt, Mapping) else {}
        if isinstance(prompt, Mapping) and "messages" in prompt:
            return self.conversation(vocabulary, prompt["messages"], variables)
        parsed = parse(prompt)
        if isinstance(parsed, TokensPrompt):
            return prompt
        if not self.layout:
            turns = [{"role": role, "content": text} for role, text in zip(self.roles, _texts(parsed))]
            return self.conversation(vocabulary, turns, variables)
        if parsed.pair is None:
            raise ValidationError(
                "This model compares two texts; pass both, a query and a document (text and text_pair)."
            )
        instruction = variables.get("instruction", self.instruction)
        if not isinstance(instruction, str):
            raise ValidationError(f"The instruction should be a text; found {instruction!r}.", parameter="instruction")
        values = {"instruction": instruction, "text": parsed.text, "pair": parsed.pair}
        # one pass: what stands in a text is no place
        return Framed(_PLACES.sub(lambda place: values[place[1]], self.layout))

    def conversation(self, vocabulary: Templates, messages: Any, variables: Mapping[str, Any] | None = None) -> Framed:
        """A conversation as the model reads it; ``variables`` go before the frame's own."""
        if self.layout:
            raise ValidationError("This model compares two texts; it reads no conversations.", parameter="messages")
        shown = {**self.variables, **(variables or {})}
        text = chat.render(vocabulary, messages, add_generation_prompt=self.generation, variables=shown)
        return self.ended(text)

    def ended(self, text: str) -> Framed:
        """``text`` with the ending, unless it has it."""
        return Framed(text if text.endswith(self.ending) else text + self.ending)


@dataclass(frozen=True, slots=True)
class Asking:
    """How a model was trained to be asked, where the caller gives no prompt.

    Attributes:
        prompt: what it reads.
        label: how ``{labels}`` shows each label, with ``{label}`` in it.
        between: what stands between them there.
        opening, closing: what the answer has before the label, and behind it.
        as_json: whether texts and labels stand in JSON strings.
    """

    prompt: str
    label: str = "{label}"
    between: str = ", "
    opening: str = ""
    closing: str = ""
    as_json: bool = False

    def shown(self, text: str) -> str:
        """A text or label as it stands in the prompt."""
        return json.dumps(text)[1:-1] if self.as_json else text


def _texts(prompt: TextPrompt) -> list[str]:
    return [prompt.text] if prompt.pair is None else [prompt.text, prompt.pair]
