"""The completion form of a request: texts, pairs of texts, or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Discriminator, Tag
from typing_extensions import TypedDict

from jaxpool_serving.schemas.common import Activated


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


class Texts(Activated):
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
