"""From a checkpoint folder to a running engine: programs compile while weights stream in."""

from __future__ import annotations

import hashlib
import os
import re
from math import prod
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpool.checkpoints.labels import of_text
from jaxpool.checkpoints.spec import Spec, resolve
from jaxpool.checkpoints.user_cache import private_folder
from jaxpool.engine import sharding
from jaxpool.engine.buckets import Bucket, CostModel, essential, grid, on_demand
from jaxpool.engine.chips import Chip, chip_of
from jaxpool.engine.compile_cache import enable_cache, on_disk
from jaxpool.engine.costs import Costs
from jaxpool.engine.engine import Engine
from jaxpool.engine.programs import Programs, abstract
from jaxpool.errors import ConfigError, ValidationError
from jaxpool.params import PoolerConfig
from jaxpool.version import __version__
from jaxpool_conversions.families import Family
from jaxpool_conversions.heads import FROM_2_WAY_SOFTMAX, find_head
from jaxpool_conversions.load import load
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.rules import HeadSource

FAST_SHARE, LEAST_FAST, SPILL = 0.6, 8192, 1.3
"""Share of the fast memory that activations get, fewest tokens worth it, and how much longer a token takes outside.

By libtpu's estimates of BERT-base on v5e, microseconds a token in batches of 4,096, 8,192 and 16,384: 1.77, 1.83, 2.39.
"""

TOKEN_BUDGET = {"cpu": 1024, "gpu": 32768, "tpu": 16384}
"""Platform -> most tokens of one batch on one device, padding included."""

AHEAD = {"cpu": (8, 4)}
"""Platform -> (lengths per octave, row factor) of the grid compiled ahead; (2, 4) where a compile takes seconds.

Twice the programs of (2, 4) serve a seventh more texts a second (simulated: 64 clients, lognormal lengths).
"""


def open_engine(
    folder: Path,
    config: Any,
    *,
    tokenizer: Any = None,
    runner: str = "auto",
    convert: str = "auto",
    pooler_config: PoolerConfig | None = None,
    dtype: str = "auto",
    max_model_len: int | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int | None = None,
    max_num_batched_tokens: int | None = None,
    compile: Literal["on_demand", "ahead", "behind"] = "on_demand",  # noqa: A002 - the name users know
) -> Engine:
    """Opens a checkpoint (or a converted store).

    Args:
        folder: local folder with ``config.json`` and weights, or written by ``jaxpool convert``.
        config: its transformers config, overrides applied.
        tokenizer: transformers tokenizer; needed only to look up ``classifier_from_token``.
        runner, convert, pooler_config, dtype, max_model_len: as in ``LLM``.
        tensor_parallel_size: devices that share one copy of the weights.
        data_parallel_size: copies; None for all devices that are left (on the CPU: one).
        max_num_batched_tokens: most tokens of one batch, padding included; None for the platform's default.
        compile: ``on_demand`` compiles a program when a plan first needs it; ``ahead`` compiles a whole grid while
            the weights load, and never again; ``behind`` returns when its `essential` part is compiled, and compiles
            the rest in the background.

    Raises:
        CheckpointError and its kin, ValidationError: each in words.
    """
    enable_cache()
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(jax.default_backend(), jax.default_backend())
    stored = (folder / "jaxpool.json").is_file()  # what `jaxpool convert` writes beside the arrays
    reader = None if stored else Reader(folder)
    programs: Programs | None = None
    try:
        spec = resolve(
            config,
            lambda family, labels, width: head_source(folder, reader, family, config, labels, width, tokenizer),
            folder=folder,
            stored_dtype=None if reader is None else stored_dtype(reader),
            platform=platform,
            runner=runner,
            convert=convert,
            pooler_config=pooler_config,
            dtype=dtype,
            max_model_len=max_model_len,
            tokenizer_limit=getattr(tokenizer, "model_max_length", None),
        )
        mesh = _mesh(spec, tensor_parallel_size, data_parallel_size, platform)
        model = abstract(spec, platform)
        programs = Programs(model, spec, mesh)
        budget = max_num_batched_tokens or TOKEN_BUDGET.get(platform, 8192) * mesh.shape["data"]
        if compile not in ("on_demand", "ahead", "behind"):
            raise ValidationError(
                f"compile must be 'on_demand', 'ahead' or 'behind'; got {compile!r}.", parameter="compile"
            )
        per_octave, row_factor = (16, 2) if compile == "on_demand" else AHEAD.get(platform, (2, 4))
        buckets = grid(
            spec.max_length,
            budget,
            row_multiple=mesh.shape["data"],
            per_octave=per_octave,
            row_factor=row_factor,
        )
        if compile == "on_demand":
            buckets = on_demand(buckets)
        costs = learned(spec, mesh, buckets)
        programs.noted = lambda bucket, seconds, key, found: costs.compiled(bucket, seconds, key, found=found)
        if compile != "on_demand":
            programs.start([*essential(buckets), *buckets])
        targets = sharding.targets(model, mesh)
        if reader is None:
            from jaxpool_conversions.store import (
                open_store,
            )  # imports Orbax, a second that others need not wait

            arrays = open_store(folder, targets, spec.family.table)
        else:
            for module in spec.modules:
                reader.attach(module)
            arrays = load(reader, spec.family.table, spec.source, targets)
    except BaseException:
        if programs is not None:
            programs.close()  # what waits to be compiled is for nobody
        raise
    finally:
        if reader is not None:
            reader.close()
    engine = Engine(spec, programs, [arrays[path] for path in targets], buckets, costs)
    if compile != "on_demand":
        try:
            engine.warm(essential(buckets) if compile == "behind" else None)
        except BaseException:
            engine.close()
            raise
    return engine


def prior(spec: Spec, mesh: jax.sharding.Mesh) -> CostModel:
    """What the planner assumes of a model on the devices of a mesh, before anything is measured."""
    device = mesh.devices.flat[0]
    chip, itemsize = chip_of(device.device_kind, device.platform), jnp.dtype(spec.dtype).itemsize
    per_token = spec.config.flops_per_token
    # Two FLOPs a weight and token; the embeddings, of which a batch reads few rows, do not count.
    weight_bytes = per_token / 2 * itemsize
    return CostModel(
        flops_per_token=per_token,
        flops_per_token_pair=spec.config.flops_per_pair,
        flops_per_second=chip.flops(spec.dtype) * mesh.size,
        seconds_per_call=chip.call + weight_bytes / mesh.shape["model"] / chip.bandwidth,
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


def learned(spec: Spec, mesh: jax.sharding.Mesh, buckets: tuple[Bucket, ...]) -> Costs:
    """The prior, corrected by what earlier processes measured of this model on devices of this kind."""
    if os.environ.get("JAXPOOL_MEASURE") == "off":
        return Costs(prior(spec, mesh), buckets, learns=False)
    folder = private_folder("measured")
    if folder is None:
        return Costs(prior(spec, mesh), buckets)
    device = mesh.devices.flat[0]
    model = (spec.config, spec.head, spec.dtype, spec.pooling, spec.task, spec.columns, spec.dimensions)
    about = (__version__, jax.__version__, device.platform, device.device_kind, dict(mesh.shape), os.cpu_count(), model)
    words = re.sub(r" at 0x[0-9a-f]+", "", repr(about))  # functions
    name = f"{hashlib.sha256(words.encode()).hexdigest()}.json"
    return Costs(
        prior(spec, mesh), buckets, lambda: folder.read(name), lambda content: folder.write(name, content), on_disk
    )


def _mesh(spec: Spec, model: int, data: int | None, platform: str) -> jax.sharding.Mesh:
    heads = spec.config.heads
    if model > 0 and heads % model:
        raise ValidationError(
            f"Total number of attention heads ({heads}) must be divisible by tensor parallel size ({model}).",
            parameter="tensor_parallel_size",
        )
    if data is None:
        data = 1 if platform == "cpu" else max(1, len(jax.devices()) // max(model, 1))
    return sharding.make_mesh(data, model)


def head_source(
    folder: Path,
    reader: Reader | None,
    family: Family,
    config: Any,
    labels: int | None,
    width: int,
    tokenizer: Any,
) -> HeadSource:
    """Where the head comes from, for ``resolve``.

    Args:
        folder: the checkpoint or store.
        reader: the checkpoint's tensors, or None for a store, which remembers its head.
        family, config: what the checkpoint is; ``classifier_from_token`` and ``method`` are read from the config.
        labels: declared number of labels, or None.
        width: size of the vector the head reads.
        tokenizer: looks up ``classifier_from_token``; may be None without it.
    """
    if reader is None:
        from jaxpool_conversions.store import read_head

        return read_head(folder)
    tokens, method = of_text(config, "classifier_from_token"), of_text(config, "method")
    if tokens is not None and method is None and of_text(config, "is_original_qwen3_reranker"):
        method = FROM_2_WAY_SOFTMAX
    return find_head(
        reader,
        family.table,
        num_labels=labels,
        width=width,
        token_ids=None if tokens is None else tuple(_token_id(token, tokenizer) for token in tokens),
        method=method,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
    )


def stored_dtype(reader: Reader) -> str:
    """The dtype of most of a checkpoint's weights, by size."""
    sizes: dict[str, int] = {}
    for name in reader.names():
        dtype = str(reader.dtype(name))
        sizes[dtype] = sizes.get(dtype, 0) + prod(reader.shape(name))
    return max(sizes, key=lambda dtype: sizes[dtype], default="float32")


def _token_id(token: str, tokenizer: Any) -> int:
    if tokenizer is None:
        raise ConfigError("classifier_from_token needs the tokenizer; do not pass skip_tokenizer_init.")
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ConfigError(
            f"classifier_from_token names {token!r}, which is not one token of this vocabulary; "
            "give exact vocabulary pieces."
        )
    return int(found)
