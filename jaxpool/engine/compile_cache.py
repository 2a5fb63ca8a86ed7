"""Compiled programs kept between processes: JAX's compilation cache, on a folder that is checked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache  # JAX has no public way to bring a cache of one's own
from jax._src.compilation_cache_interface import CacheInterface

from jaxpool.checkpoints.user_cache import Folder, private_folder

logger = logging.getLogger(__name__)


_SUFFIX = "-zstd-cache" if any(getattr(compilation_cache, name, None) for name in ("zstd", "zstandard")) else "-cache"
"""JAX packs entries by zstandard where that is installed, and reads no others: two kinds, with a name each."""

_ASKED = threading.local()
"""The `Note` of a compile under way in this thread."""


@dataclass(slots=True)
class Note:
    """What the cache was asked during one compile.

    Attributes:
        key: the entry, None where ours was not asked.
        found: whether it was there.
    """

    key: str | None = None
    found: bool = False


@contextmanager
def noting() -> Iterator[Note]:
    """A note of what a compile inside the context, in this thread, takes from the cache."""
    _ASKED.note = note = Note()
    try:
        yield note
    finally:
        _ASKED.note = None


class Compiled(CacheInterface):
    """JAX's own files, but read by descriptor and only as they were written; JAX's trusts what it finds.

    An entry that JAX began and never finished, or that a disk has damaged, is compiled anew and replaced.
    """

    def __init__(self, folder: Folder) -> None:
        self._path, self._folder = Path(folder.path), folder

    def get(self, key: str) -> bytes | None:
        """The entry, or None."""
        content = self._folder.read(key + _SUFFIX)
        note: Note | None = getattr(_ASKED, "note", None)
        if note is not None:
            note.key, note.found = key, content is not None
        return content

    def holds(self, key: str) -> bool:
        """Whether there is an entry, unread."""
        return self._folder.holds(key + _SUFFIX)

    def put(self, key: str, value: bytes) -> None:
        """Keep an entry."""
        self._folder.write(key + _SUFFIX, value)


def on_disk(key: str) -> bool:
    """Whether our cache, if it is the one in use, has an entry of this key."""
    cache = compilation_cache._cache
    return isinstance(cache, Compiled) and cache.holds(key)


def enable_cache() -> Path | None:
    """Keeps compiled programs between processes, in ``xla`` of our cache folder (see ``cache.private_folder``).

    A cache directory already configured in JAX is left alone.

    Returns:
        The directory in use, or None.
    """
    configured = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if configured:
        return Path(configured)
    folder = private_folder("xla")
    if folder is None:
        return None
    options: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder.path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_persistent_cache_enable_xla_caches": "none",  # XLA would read and write files by path
    }
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    compilation_cache._cache, compilation_cache._cache_initialized = Compiled(folder), True
    return folder.path
