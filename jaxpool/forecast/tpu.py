"""A model on a topology of TPUs, from its ``config.json`` alone: each program compiled by libtpu, and what it takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.checkpoints.spec import Spec, resolve
from jaxpool.engine import sharding
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.chips import Chip, chip_of
from jaxpool.engine.pipeline import Pipeline
from jaxpool.engine.programs import Programs, abstract
from jaxpool.errors import ValidationError
from jaxpool.forecast.hlo import Counts, count
from jaxpool.ops.kernels import Implementation
from jaxpool_conversions.rules import HeadSource

QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask which TPU this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Environment that libtpu needs where there is no TPU; set before it is loaded."""

UNREAD = "HLO unread"
"""In place of a kernel: the figures are the model's own, cycles and collectives are not known."""

LABELS = 2
"""Labels of a model whose config does not say: the head weighs next to nothing."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One program on one chip; of a pipeline the slowest stage's, in which its devices wait for nobody.

    Attributes:
        bucket: its shape, all devices together.
        memory: bytes it needs on each: weights, inputs, results, temporary; of stages the most.
        counts: per device.
        chip: what runs it.
        dtype: of its products.
        stages: those of a pipeline, in order; empty for one program.
    """

    bucket: Bucket
    memory: float
    counts: Counts
    chip: Chip
    dtype: str
    stages: tuple[Forecast, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the chip has that much memory."""
        return self.memory <= self.chip.memory

    @property
    def times(self) -> dict[str, float]:
        """Bound -> seconds it asks for at least: of products, of memory, and of the compiler's cycles."""
        times = {
            "products": self.counts.flops / self.chip.peak_of(self.dtype),
            "memory": self.counts.bytes / self.chip.bandwidth,
        }
        if self.chip.hertz and UNREAD not in self.counts.kernels:
            times["cycles"] = self.counts.cycles / self.chip.hertz
        return times

    @property
    def bound(self) -> str:
        """What holds: products or memory where the compiler's estimate is near either, else other work of the cores."""
        times = self.times
        hard = max(("products", "memory"), key=lambda name: times[name])
        return hard if times.get("cycles", 0.0) < 1.25 * times[hard] else "other work"

    @property
    def seconds(self) -> float:
        """Predicted seconds of one run, collectives left out."""
        return max(self.times.values())

    @property
    def texts_per_second(self) -> float:
        """Rows per second, none of them empty."""
        return self.bucket.rows / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Of the chip's products."""
        return self.times["products"] / self.seconds


class Topology:
    """Devices that are not here.

    Args:
        name: such as ``v5e:2x2``.

    Raises:
        ValidationError: libtpu is not installed, or knows no such topology.
    """

    def __init__(self, name: str) -> None:
        for variable, value in QUIET.items():
            os.environ.setdefault(variable, value)
        try:
            import libtpu  # noqa: F401 - its presence is asked
        except ModuleNotFoundError:
            raise ValidationError(
                "The TPU's compiler is not installed; get it with: pip install 'jaxpool[tpu]'"
            ) from None
        from jax.experimental import topologies

        if ":" not in name:
            raise ValidationError(f"A topology is a chip and its arrangement, such as v5e:2x2; got {name!r}.")
        try:
            found: Any = topologies.get_topology_desc(platform="tpu", topology_name=name)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ValidationError(f"The TPU's compiler knows no topology {name!r}: {reason}") from error
        self.devices: Sequence[Any] = found.devices
        self.name, self.chip = name, chip_of(str(self.devices[0].device_kind), "tpu")


class Model:
    """A model laid out on a topology, without weights.

    Args:
        config: its transformers config, overrides applied.
        topology: where.
        tensor_parallel_size: devices that share every layer.
        pipeline_parallel_size: groups of such devices that share the layers of one copy of the weights.
        dtype, convert, max_model_len: as in ``LLM``.

    Raises:
        ConfigError and its kin, ValidationError: each in words.
    """

    def __init__(
        self,
        config: Any,
        topology: Topology,
        *,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        dtype: str = "auto",
        convert: str = "auto",
        max_model_len: int | None = None,
    ) -> None:
        self.topology = topology
        self.spec: Spec = resolve(
            config,
            lambda _family, labels, _width: HeadSource("head.weight", "head.bias", labels or LABELS),
            platform="tpu",
            convert=convert,
            dtype=dtype,
            max_model_len=max_model_len,
        )
        devices, heads = topology.devices, self.spec.config.heads
        shared = tensor_parallel_size * pipeline_parallel_size
        if min(tensor_parallel_size, pipeline_parallel_size) < 1 or len(devices) % shared:
            raise ValidationError(
                f"tensor_parallel_size={tensor_parallel_size} times pipeline_parallel_size={pipeline_parallel_size} "
                f"must divide the {len(devices)} devices of {topology.name}."
            )
        if heads % tensor_parallel_size:
            raise ValidationError(
                f"tensor_parallel_size={tensor_parallel_size} must divide the model's {heads} heads. Sizes that would "
                f"work: {', '.join(str(size) for size in sharding.divisors(heads) if len(devices) % size == 0)}.",
                parameter="tensor_parallel_size",
            )
        # Stages are alike, and libtpu 0.0.52 fails on the first host of several alone: all are compiled for the last.
        its = list(devices[-(len(devices) // pipeline_parallel_size) :])
        self.mesh = sharding.make_mesh(
            len(devices) // shared, tensor_parallel_size, its * pipeline_parallel_size, stages=pipeline_parallel_size
        )
        model = abstract(self.spec, Implementation("tpu"))
        self._programs = (Programs if pipeline_parallel_size == 1 else Pipeline)(model, self.spec, self.mesh)
        self.stages = self._programs.stages if isinstance(self._programs, Pipeline) else ()
        held = [stage.leaves for stage in self.stages] or [sharding.targets(model, self.mesh)]
        self.stage_bytes = [sum(map(_device_bytes, leaves.values())) for leaves in held]
        self.weight_bytes = max(self.stage_bytes)

    def check_weights(self) -> None:
        """Raise ValidationError where the weights alone are too much for a chip."""
        chip = self.topology.chip
        if self.weight_bytes > chip.memory:
            raise ValidationError(
                f"The weights take {self.weight_bytes / 1e9:.1f} GB on each chip, and a {chip.name} has "
                f"{chip.memory / 1e9:.1f} GB. Share them among more chips (--tensor-parallel-size, "
                "--pipeline-parallel-size)."
            )

    def forecast(self, bucket: Bucket) -> Forecast | None:
        """What one program takes; None where the compiler finds no room for it."""
        found: list[Forecast] = []
        known: dict[Any, Forecast | None] = {}
        for number, lowered in enumerate(self._programs.lowered(bucket)):
            alike = self._alike(number)  # the same program on other devices is the same forecast
            if alike not in known:
                known[alike] = self._compiled(lowered, bucket, number)
            one = known[alike]
            if one is None:
                return None
            found.append(one)
        if len(found) == 1:
            return found[0]
        slowest = max(found, key=lambda stage: stage.seconds)
        return replace(slowest, memory=max(stage.memory for stage in found), stages=tuple(found))

    def _alike(self, number: int) -> Any:
        if not self.stages:
            return number
        stage = self.stages[number]
        return stage.first == 0, stage.end is None, tuple((path, leaf.shape) for path, leaf in stage.leaves.items())

    def _compiled(self, lowered: jax.stages.Lowered, bucket: Bucket, number: int) -> Forecast | None:
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return None
            raise
        about = compiled.memory_analysis()
        assert about is not None
        try:
            counts = count(compiled.as_text() or "")
        except jax.errors.JaxRuntimeError:  # some programs of v5p this compiler makes and cannot print
            counts = self._assumed(bucket, number, about.argument_size_in_bytes)
        memory = (
            about.argument_size_in_bytes
            + about.output_size_in_bytes
            - about.alias_size_in_bytes
            + about.temp_size_in_bytes
            + about.generated_code_size_in_bytes
        )
        return Forecast(bucket, memory, counts, self.topology.chip, self.spec.dtype)

    def _assumed(self, bucket: Bucket, number: int, read: float) -> Counts:
        """What a program takes by the model's own formula, where its HLO cannot be had: products, and its inputs."""
        config = self.spec.config
        flops = bucket.tokens * (config.flops_per_token + bucket.length * config.flops_per_pair)
        if isinstance(self._programs, Pipeline):
            per_layer = self._programs.layer_flops()
            stage = self.stages[number]
            flops = sum(per_layer[stage.first : stage.end]) / sum(per_layer) * flops
        per_stage = self.mesh.size // max(1, len(self.stages))
        return Counts(flops=flops / per_stage, bytes=read, kernels=Counter({UNREAD: 1}))

    def largest(self, bucket: Bucket) -> Forecast | None:
        """The most rows (this many, halved and halved again) that do fit at this length."""
        step = self.mesh.shape["data"]
        rows = bucket.rows // 2 // step * step
        while rows >= step:
            found = self.forecast(Bucket(rows, bucket.length))
            if found is not None and found.fits:
                return found
            rows = rows // 2 // step * step
        return None


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> float:
    assert leaf.sharding is not None
    return float(prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize)
