"""What the server says about itself."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class ModelPermission(TypedDict):
    """What OpenAI's clients expect of every model."""

    id: str
    object: Literal["model_permission"]
    created: int
    allow_create_engine: bool
    allow_sampling: bool
    allow_logprobs: bool
    allow_search_indices: bool
    allow_view: bool
    allow_fine_tuning: bool
    organization: str
    group: None
    is_blocking: bool


class ModelCard(TypedDict):
    """One model, or an adapter of the model ``parent``; ``max_model_len`` is the longest text in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    permission: list[ModelPermission]


class ModelList(TypedDict):
    """Every model that is loaded; the first answers requests that name none."""

    object: Literal["list"]
    data: list[ModelCard]


class Version(TypedDict):
    """The version of jaxpool."""

    version: str


class Load(TypedDict):
    """Texts admitted and not yet answered."""

    server_load: int


class Readiness(TypedDict):
    """All models are loaded and compiled; ``queued_texts`` are admitted and not yet answered."""

    status: Literal["ready"]
    queued_texts: int
