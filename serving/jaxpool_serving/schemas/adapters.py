"""The bodies of ``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``."""

from __future__ import annotations

from pydantic import BaseModel, Field


class LoadAdapterRequest(BaseModel):
    """``POST /v1/load_lora_adapter``.

    Attributes:
        lora_name: what requests will call it.
        lora_path: folder on the server's machine, or hub id.
        base_model_name: the served model that it belongs to; None for the first.
        load_inplace: whether an adapter of this name is replaced.
    """

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    """``POST /v1/unload_lora_adapter``; ``lora_int_id`` is vLLM's and without effect."""

    lora_name: str = Field(min_length=1)
    lora_int_id: int | None = None
