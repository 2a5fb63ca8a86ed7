"""jaxpool: any Hugging Face checkpoint as a fast text classifier, in JAX.

    from jaxpool import LLM

    with LLM() as llm:
        print(llm.classify("Loved the new café.")[0].outputs.label)

Names are loaded when first used, so that ``import jaxpool`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from jaxpool.version import __version__

if TYPE_CHECKING:
    from jaxpool.client.http import AsyncClient, Client
    from jaxpool.client.protocol import Classification
    from jaxpool.errors import (
        CheckpointError,
        ConfigError,
        EngineError,
        InputFileError,
        JaxpoolError,
        MissingHeadError,
        ServerError,
        UnsupportedArchitectureError,
        ValidationError,
        WeightsError,
    )
    from jaxpool.llm import LLM
    from jaxpool.outputs import (
        ClassificationOutput,
        ClassificationRequestOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolingOutput,
        PoolingRequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from jaxpool.params import LoRARequest, PoolerConfig, PoolingParams
    from jaxpool.training.estimator import JaxpoolClassifier
    from jaxpool.training.from_texts import fit


__all__ = [
    "LLM",
    "AsyncClient",
    "CheckpointError",
    "Classification",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "Client",
    "ConfigError",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineError",
    "InputFileError",
    "JaxpoolClassifier",
    "JaxpoolError",
    "LoRARequest",
    "MissingHeadError",
    "PoolerConfig",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "ScoringOutput",
    "ScoringRequestOutput",
    "ServerError",
    "UnsupportedArchitectureError",
    "ValidationError",
    "WeightsError",
    "__version__",
    "fit",
]

_HOME = {
    "LLM": "llm",
    "AsyncClient": "client.http",
    "Classification": "client.protocol",
    "Client": "client.http",
    "JaxpoolClassifier": "training.estimator",
    "fit": "training.from_texts",
    "LoRARequest": "params",
    "PoolerConfig": "params",
    "PoolingParams": "params",
}


def __getattr__(name: str) -> object:
    """Loads a public name from its module."""
    if name not in __all__:
        raise AttributeError(f"module 'jaxpool' has no attribute {name!r}")
    home = _HOME.get(name) or ("errors" if name.endswith("Error") else "outputs")
    value = getattr(importlib.import_module(f"jaxpool.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
