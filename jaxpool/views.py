"""What programs written for vLLM read of a model's settings, under vLLM's names. Looking at them changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """vLLM's, as much of it as means something here.

    Attributes:
        model: folder or hub id.
        tokenizer: folder of the tokenizer's files.
        hf_config: the checkpoint's ``config.json`` as transformers' config class has it, with ``hf_overrides``.
        architecture: its class name.
        max_model_len: longest prompt in tokens.
        dtype: of the weights, as a word.
        runner_type: always "pooling".
    """

    model: str
    tokenizer: str
    hf_config: Any
    architecture: str
    max_model_len: int
    dtype: str
    runner_type: str = "pooling"


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """vLLM's; it has the model's settings alone."""

    model_config: ModelConfig


@dataclass(frozen=True, slots=True)
class EngineView:
    """What ``LLM.llm_engine`` shows."""

    vllm_config: VllmConfig

    @property
    def model_config(self) -> ModelConfig:
        """The model's settings."""
        return self.vllm_config.model_config
