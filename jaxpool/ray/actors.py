"""What an actor of a pool asks of its host."""

from __future__ import annotations

import os
from typing import Any


def resources(tpus: float = 0, gpus: float = 0, cpus: float | None = None) -> dict[str, Any]:
    """Arguments of ``map_batches`` for one actor, which has its host's accelerators to itself.

    Args:
        tpus: chips of a host, Ray's resource ``TPU`` (4 on a v5e or v6e host of a pod).
        gpus: GPUs of a host.
        cpus: CPUs of a host that it reserves; None: 1 beside an accelerator; without one whatever the process that
            asks has, so that one actor fills one host.
    """
    if cpus is None:
        cpus = 1 if tpus or gpus else os.cpu_count() or 1
    found: dict[str, Any] = {"num_cpus": cpus}
    if tpus:
        found["resources"] = {"TPU": tpus}
    if gpus:
        found["num_gpus"] = gpus
    return found
