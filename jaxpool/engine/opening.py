"""From a checkpoint folder to a running engine: programs compile while weights stream in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import jax

from jaxpool.checkpoints.adapters import adapt, as_classifier, open_adapter
from jaxpool.checkpoints.cross_encoder import read_scoring
from jaxpool.checkpoints.labels import config_field
from jaxpool.checkpoints.sentence_transformers import modules_root
from jaxpool.checkpoints.spec import Spec, resolve
from jaxpool.engine import prefixes, sharding
from jaxpool.engine.adapters import Adapters, room_for, with_slots, without_head
from jaxpool.engine.buckets import Bucket, CostModel, essential, grid, on_demand
from jaxpool.engine.compile_cache import enable_cache
from jaxpool.engine.engine import Engine
from jaxpool.engine.merging import merged
from jaxpool.engine.packing import ahead_grid, packed_grid, pays
from jaxpool.engine.pipeline import Pipeline
from jaxpool.engine.prior import learned, prior
from jaxpool.engine.programs import Programs, abstract
from jaxpool.errors import ConfigError, MissingHeadError, ValidationError
from jaxpool.models.low_rank import AdapterSizes
from jaxpool.ops.kernels import Implementation, available
from jaxpool.params import PoolerConfig
from jaxpool_conversions.families import Family
from jaxpool_conversions.heads import FROM_2_WAY_SOFTMAX, NO_POST_PROCESSING, find_head, find_vocabulary
from jaxpool_conversions.load import load
from jaxpool_conversions.peft_folder import PeftAdapter
from jaxpool_conversions.reader import Reader
from jaxpool_conversions.rules import NO_HEAD, HeadSource

logger = logging.getLogger(__name__)

IN_STAGES = (
    "Adapters are not for models in stages (pipeline_parallel_size) yet; convert with the adapter first: "
    "jaxpool convert --lora ADAPTER CHECKPOINT STORE."
)
STORED = "An adapter is merged before a store is written: jaxpool convert --lora ADAPTER CHECKPOINT STORE."

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
    pipeline_parallel_size: int | None = 1,
    data_parallel_size: int | None = None,
    max_num_batched_tokens: int | None = None,
    compile: Literal["on_demand", "ahead", "behind"] = "on_demand",  # noqa: A002 - the name users know
    deterministic: bool = False,
    attention_backend: str | None = None,
    merge_lora: PeftAdapter | None = None,
    room: Callable[[int], AdapterSizes] | None = None,
    find_adapter: Callable[[str], PeftAdapter] = open_adapter,
    enable_prefix_caching: bool | None = None,
    kv_cache_memory_bytes: int | None = None,
) -> Engine:
    """Opens a checkpoint (or a converted store).

    Args:
        folder: local folder with ``config.json`` and weights, or written by ``jaxpool convert``.
        config: its transformers config, overrides applied.
        tokenizer: transformers tokenizer; needed only to look up ``classifier_from_token``.
        runner, convert, pooler_config, dtype, max_model_len: as in ``LLM``.
        tensor_parallel_size: devices that share every layer.
        pipeline_parallel_size: stages, groups of such devices that share the layers of one copy of the weights.
        data_parallel_size: copies; None for all devices that are left (on the CPU: one).
        max_num_batched_tokens: most tokens of one batch, padding included; None for the platform's default.
        compile: ``on_demand`` compiles a program when a plan first needs it; ``ahead`` compiles a whole grid while
            the weights load, and never again; ``behind`` returns when its `essential` part is compiled, and compiles
            the rest in the background.
        attention_backend: as in ``LLM``.
        merge_lora: an adapter whose changes the weights are opened with.
        room: sizes of the room for adapters, of the model's number of labels; None for no room.
        find_adapter: reads an adapter by its path or hub id.
        deterministic: whether a text's scores must not depend on its neighbours, bit for bit: nothing is packed, and no
            beginning shared.
        enable_prefix_caching: whether to compute what texts begin with alike once; None: where the model allows it.
            Never in stages, nor on devices of several processes.
        kv_cache_memory_bytes: most bytes of that on each device; None for a share of what is free.

    Raises:
        CheckpointError and its kin, ValidationError: each in words.
    """
    enable_cache()
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(jax.default_backend(), jax.default_backend())
    stored = (folder / "jaxpool.json").is_file()  # what `jaxpool convert` writes beside the arrays
    if stored and merge_lora is not None:
        raise ValidationError(STORED, parameter="merge_lora")
    reader = None if stored else Reader(folder)
    programs: Programs | None = None
    try:
        if reader is not None and merge_lora is not None:
            adapt(config, merge_lora)
            reader.replace(merge_lora.replaced, merge_lora.folder)
        if room is not None and convert == "classify":
            as_classifier(config)
        headless = False

        def head_of(family: Family, labels: int | None, width: int) -> HeadSource:
            nonlocal headless
            try:
                return head_source(folder, reader, family, config, labels, width, tokenizer)
            except MissingHeadError:
                if room is None:
                    raise
                headless = True  # each adapter brings one
                return HeadSource("", None, num_labels=labels or 1)

        spec = resolve(
            config,
            head_of,
            find_vocabulary=lambda family, width: _vocabulary(folder, reader, family, config, width),
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
        if spec.language is not None and room is not None:
            raise ValidationError(
                "Adapters need a model with a head of its own, or one made with convert='classify'; this is a language "
                "model.",
                parameter="enable_lora",
            )
        stages = 1 if pipeline_parallel_size is None else pipeline_parallel_size
        if spec.language is not None and stages != 1:
            raise ValidationError(
                f"pipeline_parallel_size={stages} is for models with a head of their own; make a "
                "classifier of this language model (convert='classify'), or use tensor_parallel_size.",
                parameter="pipeline_parallel_size",
            )
        if stages != 1 and (room is not None or merge_lora is not None):
            raise ValidationError(IN_STAGES, parameter="pipeline_parallel_size")
        mesh = _mesh(spec, tensor_parallel_size, data_parallel_size, platform, stages)
        sizes, at = None if room is None else room(spec.num_labels), _implementation(platform, attention_backend)
        model = abstract(spec, at, sizes)
        if mesh.shape["model"] > 1 and (whole := sharding.undivided(model, mesh)):
            logger.warning(
                "every device holds all of %s: tensor_parallel_size=%d does not divide them",
                ", ".join(whole),
                mesh.shape["model"],
            )
        programs = (Programs if stages == 1 else Pipeline)(model, spec, mesh)
        budget = max_num_batched_tokens or TOKEN_BUDGET.get(platform, 8192) * mesh.shape["data"]
        if compile not in ("on_demand", "ahead", "behind"):
            raise ValidationError(
                f"compile must be 'on_demand', 'ahead' or 'behind'; got {compile!r}.", parameter="compile"
            )
        if spec.language is not None:
            compile = "on_demand"  # noqa: A001 - texts are asked about with programs of the room zero_shot
        assumed = prior(spec, mesh)
        packs = spec.family.packs and not deterministic
        buckets = menu(
            spec.max_length,
            budget,
            mesh.shape["data"],
            assumed,
            platform,
            ahead=compile != "on_demand",
            packs=packs,
        )
        shapes: dict[int, tuple[Bucket, ...]] = {}
        # A stage would have to keep what its own layers note. Processes that share a mesh must plan alike, and what
        # they have room for differs.
        one = stages == 1 and sharding.whole(mesh).is_fully_addressable
        if enable_prefix_caching is not False and not deterministic and one and prefixes.suits(spec):
            shapes = prefixes.menus(spec.max_length, budget, mesh.shape["data"], ahead=compile != "on_demand")
        costs = learned(
            assumed, spec, mesh, (*buckets, *(bucket for menu in shapes.values() for bucket in menu)), sizes
        )
        programs.noted = lambda bucket, seconds, key, found: costs.compiled(bucket, seconds, key, found=found)
        if compile != "on_demand":
            programs.start([*essential(buckets), *buckets])
        targets = sharding.targets(model if sizes is None else abstract(spec, at), mesh)
        if reader is None:
            from jaxpool_conversions.store import (
                open_store,
            )  # imports Orbax, a second that others need not wait

            arrays = open_store(folder, targets, spec.family.table, programs.place_leaf)
        else:
            for module in spec.modules:
                reader.attach(module, modules_root(folder))
            wanted = without_head(targets, reader.names(), spec.family.table) if headless else targets
            arrays = load(reader, spec.family.table, NO_HEAD if headless else spec.source, wanted, programs.place_leaf)
            if merge_lora is not None:
                arrays = merged(arrays, merge_lora, spec.family.table)
    except BaseException:
        if programs is not None:
            programs.close()  # what waits to be compiled is for nobody
        raise
    finally:
        if reader is not None:
            reader.close()
    adapters: Adapters | None = None
    if sizes is None:
        leaves = programs.ordered({path: arrays[path] for path in targets})
    else:
        arrays = with_slots(arrays, sharding.targets(model, mesh))
        leaves = list(arrays.values())
        adapters = Adapters(spec, leaves, list(arrays), sizes, find_adapter, headless=headless)
    shared = None
    if shapes:
        shared = prefixes.Prefixes(spec, programs, shapes, kv_cache_memory_bytes, ahead=compile != "on_demand")
    engine = Engine(spec, programs, leaves, buckets, costs, shared, adapters)
    if compile != "on_demand":
        try:
            engine.warm(essential(buckets) if compile == "behind" else None)
        except BaseException:
            engine.close()
            raise
    return engine


def room_of(args: Mapping[str, Any]) -> Callable[[int], AdapterSizes] | None:
    """What the arguments of ``LLM`` say of room for adapters, for ``open_engine``.

    Raises:
        ValidationError: of ``enable_lora`` together with ``merge_lora``.
    """
    if not args["enable_lora"]:
        return None
    if args["merge_lora"] is not None:
        raise ValidationError(
            "Adapters are trained on a model as it was, so none can be served beside one with merge_lora.",
            parameter="merge_lora",
        )
    return partial(room_for, args["max_loras"], args["max_lora_rank"], args["max_lora_cls_labels"])


def _implementation(platform: str, wanted: str | None) -> Implementation:
    """Where attention runs, and the kernel the user wants for it."""
    capability = float(getattr(jax.devices()[0], "compute_capability", 0.0) or 0.0) if platform == "gpu" else 0.0
    if wanted is None or wanted == "auto":
        return Implementation(platform, capability=capability)
    if wanted.lower() in (names := available(platform)):
        return Implementation(platform, wanted.lower(), capability)  # type: ignore[arg-type]
    if wanted.isupper():
        logger.warning("attention_backend=%s is vLLM's and has no effect; here there are %s.", wanted, ", ".join(names))
        return Implementation(platform, capability=capability)
    raise ValidationError(
        f"attention_backend must be one of {', '.join(names)} on this {platform.upper()}, or None; got {wanted!r}.",
        parameter="attention_backend",
    )


def menu(
    max_length: int, budget: int, row_multiple: int, cost: CostModel, platform: str, *, ahead: bool, packs: bool
) -> tuple[Bucket, ...]:
    """The shapes a model may be compiled for: all of them ``ahead``, or those that plans ask for.

    Args:
        max_length, budget, row_multiple: as for `buckets.grid`.
        cost: says whether packed shapes or padded ones serve the usual mix better, where one of them is compiled ahead.
        platform: of the devices.
        ahead: whether all are compiled.
        packs: whether texts may share rows.
    """
    per_octave, row_factor = AHEAD.get(platform, (2, 4)) if ahead else (16, 2)
    padded = grid(max_length, budget, row_multiple=row_multiple, per_octave=per_octave, row_factor=row_factor)
    if not ahead:
        padded = on_demand(padded)
    if not packs:
        return padded
    if not ahead:
        return (*padded, *packed_grid(max_length, budget, row_multiple=row_multiple))
    packed = ahead_grid(max_length, budget, row_multiple=row_multiple)
    return packed if pays(packed, padded, cost) else padded


def _mesh(spec: Spec, model: int, data: int | None, platform: str, stages: int = 1) -> jax.sharding.Mesh:
    heads = spec.config.heads
    if model > 0 and heads % model:
        raise ValidationError(
            f"Total number of attention heads ({heads}) must be divisible by tensor parallel size ({model}). "
            f"Sizes that would work: {', '.join(map(str, sharding.divisors(heads)))}.",
            parameter="tensor_parallel_size",
        )
    if data is None:
        data = 1 if platform == "cpu" else max(1, len(jax.devices()) // max(model * stages, 1))
    if stages != 1 and jax.process_count() > 1:
        raise ValidationError(
            "pipeline_parallel_size is for the devices of one process; this one shares a mesh with "
            f"{jax.process_count() - 1} others.",
            parameter="pipeline_parallel_size",
        )
    return sharding.make_mesh(data, model, stages=stages)


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
    tokens, method = config_field(config, "classifier_from_token"), config_field(config, "method")
    scoring = read_scoring(folder)
    if tokens is None and scoring is not None and scoring.tokens is not None:
        return find_head(
            reader,
            family.table,
            num_labels=None,
            width=width,
            token_ids=scoring.tokens,
            method=FROM_2_WAY_SOFTMAX if len(scoring.tokens) == 2 else NO_POST_PROCESSING,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
        )
    if tokens is not None and method is None and config_field(config, "is_original_qwen3_reranker"):
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


def _vocabulary(folder: Path, reader: Reader | None, family: Family, config: Any, width: int) -> HeadSource:
    """Where the head of a language model comes from, for ``resolve``."""
    if reader is None:
        raise MissingHeadError(f"{folder} was converted without its language model's head; open its checkpoint itself.")
    return find_vocabulary(reader, family.table, width, tied=bool(config_field(config, "tie_word_embeddings")))


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
