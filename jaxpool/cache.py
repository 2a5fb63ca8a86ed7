"""Where jaxpool keeps what it may read back in another process: compiled programs, what configs say."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)


def private_folder(name: str) -> Path | None:
    """``name`` in ``$JAXPOOL_CACHE_DIR`` or ``~/.cache/jaxpool``, made if need be.

    What is read back is trusted (a compiled program is code), so a folder that others may write to is refused, with a
    warning in the log.

    Returns:
        The folder, or None: ``JAXPOOL_CACHE_DIR=off``, others may write there, or it cannot be made.
    """
    asked = os.environ.get("JAXPOOL_CACHE_DIR")
    if asked == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = (Path(asked) if asked else Path(home) / "jaxpool") / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError as error:
        logger.warning("nothing is kept in %s: %s", folder, error)
        return None
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        logger.warning("nothing is kept in %s: others may write to it", folder)
        return None
    return folder
