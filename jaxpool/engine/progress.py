"""The progress bar of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def bar_of(use_tqdm: bool | Callable[..., Any], total: int) -> Any:
    """A progress bar over prompts: tqdm's, the caller's, or None."""
    if not use_tqdm:
        return None
    from tqdm import tqdm

    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=total, desc="Processed prompts", dynamic_ncols=True)
