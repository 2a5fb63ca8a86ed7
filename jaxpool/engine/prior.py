"""What the planner assumes of a model on a chip before anything is measured, and what earlier processes measured."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.checkpoints.spec import Spec
from jaxpool.checkpoints.user_cache import private_folder
from jaxpool.engine.buckets import Bucket, CostModel
from jaxpool.engine.chips import Chip, chip_of
from jaxpool.engine.compile_cache import on_disk
from jaxpool.engine.costs import Costs
from jaxpool.models.low_rank import AdapterSizes
from jaxpool.version import __version__

FAST_SHARE, LEAST_FAST, SPILL = 0.6, 8192, 1.3
"""Share of the fast memory that activations get, fewest tokens worth it, and how much longer a token takes outside.

By libtpu's estimates of BERT-base on v5e, microseconds a token in batches of 4,096, 8,192 and 16,384: 1.77, 1.83, 2.39.
"""

SCORE_PRICE = {"cpu": 2.5, "tpu": 1.75}
"""Platform -> how much dearer a FLOP of attention is than one of a matrix product; 1 where it is not said.

Softmax is not counted in FLOPs. Measured on two cores (7 % of BERT-base at 8 x 128, where 2.8 % of its FLOPs are);
on TPUs by the compiler's cycles for the usual mix, in rows of 512 with splash attention and in rows of 128 and 512.
"""


def prior(spec: Spec, mesh: jax.sharding.Mesh) -> CostModel:
    """What the planner assumes of a model on the devices of a mesh, before anything is measured."""
    device = mesh.devices.flat[0]
    chip, itemsize = chip_of(device.device_kind, device.platform), jnp.dtype(spec.dtype).itemsize
    per_token = spec.config.flops_per_token
    # Two FLOPs a weight and token; the embeddings, of which a batch reads few rows, do not count.
    weight_bytes = per_token / 2 * itemsize
    return CostModel(
        flops_per_token=per_token,
        flops_per_token_pair=spec.config.flops_per_pair * SCORE_PRICE.get(device.platform, 1.0),
        flops_per_second=chip.flops(spec.dtype) * mesh.size,
        seconds_per_call=chip.call + weight_bytes / (mesh.size // mesh.shape["data"]) / chip.bandwidth,
        seconds_per_compile=chip.compile,
        fast_tokens=fast_tokens(spec.config, chip, itemsize) * mesh.shape["data"],
        spill=SPILL,
    )


def fast_tokens(config: Any, chip: Chip, itemsize: int) -> float:
    """Tokens whose activations (a layer's width, and that of its MLP) the compiler keeps beside the cores.

    Infinite for models too wide to gain: fewer than `LEAST_FAST` tokens would fit, and each call reads all weights.
    """
    layers, width = getattr(config, "layers", 0), getattr(config, "width", 0)
    if not (chip.fast_memory and isinstance(layers, int) and layers and width):
        return float("inf")
    weights = config.flops_per_token / 2 / layers
    inner = max(width, (weights - 4 * width**2) / (2 * width))
    tokens = FAST_SHARE * chip.fast_memory / (itemsize * (width + inner))
    return tokens if tokens >= LEAST_FAST else float("inf")


def learned(
    assumed: CostModel,
    spec: Spec,
    mesh: jax.sharding.Mesh,
    buckets: tuple[Bucket, ...],
    adapters: AdapterSizes | None = None,
) -> Costs:
    """The prior, corrected by what earlier processes measured of this model on devices of this kind.

    With room for ``adapters``, what they measured with as much room.
    """
    if os.environ.get("JAXPOOL_MEASURE") == "off":
        return Costs(assumed, buckets, learns=False)
    folder = private_folder("measured")
    if folder is None:
        return Costs(assumed, buckets)
    device = mesh.devices.flat[0]
    model = (spec.config, spec.head, spec.dtype, spec.pooling, spec.task, spec.columns, spec.dimensions)
    where = (device.platform, device.device_kind, dict(mesh.shape), os.cpu_count())
    about: tuple[Any, ...] = (__version__, jax.__version__, *where, model)
    about = about if adapters is None else (*about, adapters)
    words = re.sub(r" at 0x[0-9a-f]+", "", repr(about))  # functions
    name = f"{hashlib.sha256(words.encode()).hexdigest()}.json"
    return Costs(assumed, buckets, lambda: folder.read(name), lambda content: folder.write(name, content), on_disk)
