"""What a caller gets back: vLLM's output classes, plus the label names that vLLM leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from jaxpool.errors import ValidationError


@dataclass(eq=False)
class PoolingOutput:
    """The pooled result of one prompt.

    Attributes:
        data: float32, ``[labels]``: probabilities, or logits where the activation is off. For tasks of tokens
            ``[tokens, labels]``, special tokens included; for embeddings, their width instead of labels.
    """

    data: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PoolingOutput) and bool(np.array_equal(self.data, other.data))

    __hash__ = None  # type: ignore[assignment]  # mutable, and equality is by value


@dataclass(repr=False)
class ClassificationOutput:
    """The classification of one prompt.

    Attributes:
        probs: one number per label, in label order; logits where the activation is off.
        label: name of the highest entry of ``probs``; empty where ``from_base`` was given no names.
        labels: ``[label]``; for a multi-label model every label that is more likely than not, maybe none.
    """

    probs: list[float]
    label: str = ""
    labels: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.probs)

    def __repr__(self) -> str:
        return f"ClassificationOutput(num_classes={self.num_classes})"  # vLLM's

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """What a notebook shows."""
        probs = ", ".join(f"{value:.4g}" for value in self.probs)
        several = f", labels={self.labels!r}" if self.labels != [self.label] else ""
        printer.text(f"ClassificationOutput(label={self.label!r}{several}, probs=[{probs}])")

    @staticmethod
    def from_base(
        pooling_output: PoolingOutput, names: Sequence[str] = (), threshold: float | None = None
    ) -> ClassificationOutput:
        """Names what the pooler computed.

        Args:
            pooling_output: its ``data`` must have one axis, else ValidationError.
            names: label names in order.
            threshold: what an entry must exceed for its label to hold (multi-label models); None takes the
                highest entry alone.
        """
        data = np.asarray(pooling_output.data)
        if data.ndim != 1:
            raise ValidationError("pooled_data should be a 1-D probability vector")
        if not names:
            return ClassificationOutput(data.tolist())
        label = names[int(data.argmax())]
        labels = [label] if threshold is None else [names[int(i)] for i in np.flatnonzero(data > threshold)]
        return ClassificationOutput(data.tolist(), label, labels)


Output = TypeVar("Output")


@dataclass(repr=False)
class PoolingRequestOutput(Generic[Output]):
    """One prompt's result with what identifies it.

    Attributes:
        request_id: decimal counter, continued from call to call.
        outputs: the result.
        prompt_token_ids: what the model read, special tokens and padding asked for included.
        num_cached_tokens: always 0; jaxpool keeps no prefix cache.
        finished: always True.
        error: always None offline, where an error is raised.
    """

    request_id: str
    outputs: Output
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True
    error: object | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(request_id={self.request_id!r}, outputs={self.outputs!r}, "
            f"prompt_token_ids={self.prompt_token_ids}, num_cached_tokens={self.num_cached_tokens}, "
            f"finished={self.finished})"
        )


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """``PoolingRequestOutput`` of ``LLM.classify``."""

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """What a notebook shows: the result, and how long the prompt was."""
        printer.text(f"ClassificationRequestOutput(request_id={self.request_id!r}, outputs=")
        printer.pretty(self.outputs)
        printer.text(f", {len(self.prompt_token_ids)} tokens)")

    @staticmethod
    def from_base(
        request_output: PoolingRequestOutput[PoolingOutput],
        names: Sequence[str] = (),
        threshold: float | None = None,
    ) -> ClassificationRequestOutput:
        """Rewraps a pooling result; see ``ClassificationOutput.from_base``."""
        return ClassificationRequestOutput(
            request_id=request_output.request_id,
            outputs=ClassificationOutput.from_base(request_output.outputs, names, threshold),
            prompt_token_ids=request_output.prompt_token_ids,
            num_cached_tokens=request_output.num_cached_tokens,
            finished=request_output.finished,
            error=request_output.error,
        )


@dataclass(repr=False)
class EmbeddingOutput:
    """The embedding of one prompt.

    Attributes:
        embedding: the vector, of length one where the activation is on.
    """

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Size of the vector."""
        return len(self.embedding)

    def __repr__(self) -> str:
        return f"EmbeddingOutput(hidden_size={self.hidden_size})"

    @staticmethod
    def from_base(pooling_output: PoolingOutput) -> EmbeddingOutput:
        """From a pooler's vector, which must have one axis, else ValidationError."""
        data = np.asarray(pooling_output.data)
        if data.ndim != 1:
            raise ValidationError("pooled_data should be a 1-D embedding vector")
        return EmbeddingOutput(data.tolist())


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """``PoolingRequestOutput`` of ``LLM.embed``."""

    @staticmethod
    def from_base(request_output: PoolingRequestOutput[PoolingOutput]) -> EmbeddingRequestOutput:
        """Rewraps a pooling result; see ``EmbeddingOutput.from_base``."""
        return EmbeddingRequestOutput(
            request_id=request_output.request_id,
            outputs=EmbeddingOutput.from_base(request_output.outputs),
            prompt_token_ids=request_output.prompt_token_ids,
            num_cached_tokens=request_output.num_cached_tokens,
            finished=request_output.finished,
            error=request_output.error,
        )


@dataclass
class ScoringOutput:
    """How well two texts match.

    Attributes:
        score: of the model's one label.
    """

    score: float


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """``PoolingRequestOutput`` of ``LLM.score``."""

    @staticmethod
    def from_base(request_output: PoolingRequestOutput[PoolingOutput]) -> ScoringRequestOutput:
        """Rewraps a pooling result, whose ``data`` must hold one number."""
        return ScoringRequestOutput(
            request_id=request_output.request_id,
            outputs=ScoringOutput(float(np.asarray(request_output.outputs.data).item())),
            prompt_token_ids=request_output.prompt_token_ids,
        )

    @staticmethod
    def of_embeddings(
        one: PoolingRequestOutput[PoolingOutput], two: PoolingRequestOutput[PoolingOutput], pad_token: int | None
    ) -> ScoringRequestOutput:
        """The likeness of two embeddings; token ids are those of both texts with a padding token between them."""
        between = [] if pad_token is None else [pad_token]
        return ScoringRequestOutput(
            request_id=f"{one.request_id}_{two.request_id}",
            outputs=ScoringOutput(likeness(np.asarray(one.outputs.data), np.asarray(two.outputs.data))),
            prompt_token_ids=one.prompt_token_ids + between + two.prompt_token_ids,
        )


def likeness(one: np.ndarray, two: np.ndarray) -> float:
    """The cosine of two vectors; of two texts' vectors of tokens, the sum of each first one's best product (MaxSim).

    Args:
        one, two: float32, both ``[width]`` or both ``[tokens, width]``.
    """
    if one.ndim == 2:
        return float((one @ two.T).max(axis=1).sum())
    return float(one @ two / np.maximum(np.linalg.norm(one) * np.linalg.norm(two), 1e-8))
