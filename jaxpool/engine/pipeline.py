"""Pipeline parallelism: a model's layers in stages, each on devices of its own, with a program per stage and bucket.

A batch passes the stages one after another; hidden states are sent from the devices of one to those of the next, and
everything is only enqueued, so several batches are under way at once and every stage has work: GPipe (Huang et al.
2019, arXiv:1811.06965) without its bubble at the end of every call. Models know nothing of it: see ``models/parts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.sharding import Mesh, NamedSharding

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.batches import Inputs, empty
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.chips import chip_of
from jaxpool.engine.cutting import cut
from jaxpool.engine.programs import Programs, scores
from jaxpool.errors import ValidationError
from jaxpool.models.classifier import Classifier
from jaxpool.models.groups import cuts, held
from jaxpool.models.parts import Part, Stack

LAYERS = "backbone.layers."
USUAL = Bucket(32, 128)
"""The batch that stages are balanced for."""

Read = Callable[[Any], np.ndarray]
"""A slice of a parameter of a checkpoint, for an index."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        first, end: its layers; ``end`` is None where the head follows.
        mesh: its devices.
        leaves: shape, dtype and sharding of what it holds of each parameter, by dotted path.
        rows: for the same paths, what that is of the parameter's leading axis; None for all of the parameter.
    """

    first: int
    end: int | None
    mesh: Mesh
    leaves: dict[str, jax.ShapeDtypeStruct]
    rows: dict[str, slice | None]

    @property
    def bytes(self) -> int:
        """What its parameters take, all its devices together, copies left out."""
        return sum(map(_bytes, self.leaves.values()))

    def place(self, path: str, read: Read) -> jax.Array:
        """A parameter's part on the stage's devices; ``read`` gives slices of the whole parameter."""
        target, rows = self.leaves[path], self.rows[path]

        def own(index: Any) -> np.ndarray:
            if rows is None:
                return read(index)
            begin, end, _ = index[0].indices(target.shape[0])
            return read((slice(rows.start + begin, rows.start + end), *index[1:]))

        assert target.sharding is not None
        return jax.make_array_from_callback(target.shape, target.sharding, own)


class Pipeline(Programs):
    """As ``Programs``, in stages: leaves are those of all stages in turn, inputs a batch for each of them.

    Args:
        model, spec: as there.
        mesh: from ``sharding.make_mesh`` with stages.

    Attributes:
        stages: in the order in which a batch passes them.

    Raises:
        ValidationError: the model cannot be cut, or not into so many stages.
    """

    def __init__(self, model: Classifier, spec: Spec, mesh: Mesh) -> None:
        super().__init__(model, spec, mesh)
        self._spec, self._treedef, self._targets = spec, jax.tree.structure(model), sharding.targets(model, mesh)
        self._probe = _abstract(empty(Bucket(mesh.shape["data"], 16), self._types))
        meshes = sharding.stages(mesh)
        with jax.set_mesh(meshes[0]):
            self._stack = _stack(model, spec, self._probe, len(meshes))
        limits = self._limits(meshes)
        self.stages = tuple(map(self._stage, limits, [*limits[1:-1], None], meshes))
        self.depth = len(self.stages)
        self._jitted = [self._jitted_stage(stage) for stage in self.stages]

    def place(self, inputs: Inputs) -> list[Inputs]:
        """A batch on the devices of every stage: all ask where its texts lie."""
        return [sharding.placed(inputs, sharding.rows(stage.mesh)) for stage in self.stages]

    def place_leaf(self, path: str, _target: jax.ShapeDtypeStruct, read: Read) -> list[jax.Array]:
        """What each stage holds of a parameter, straight on its devices."""
        return [stage.place(path, read) for stage in self.stages if path in stage.leaves]

    def ordered(self, arrays: Mapping[str, Any]) -> list[jax.Array]:
        """The leaves that programs take, of what ``place_leaf`` made of every parameter."""
        left = {path: iter(parts) for path, parts in arrays.items()}
        return [next(left[path]) for stage in self.stages for path in stage.leaves]

    def lowered(self, bucket: Bucket) -> list[jax.stages.Lowered]:
        """The programs of one bucket before compilation, stage by stage."""
        inputs, x, found = _abstract(empty(bucket, self._types)), None, []
        for stage, jitted in zip(self.stages, self._jitted):
            with jax.set_mesh(stage.mesh):
                found.append(jitted.lower(list(stage.leaves.values()), inputs, x))
            x = jax.ShapeDtypeStruct(found[-1].out_info.shape, found[-1].out_info.dtype)
        return found

    def _build(self, bucket: Bucket) -> Any:
        programs = [lowered.compile() for lowered in self.lowered(bucket)]
        limits = pairwise(accumulate((len(stage.leaves) for stage in self.stages), initial=0))
        steps = list(zip(programs, limits, (sharding.rows(stage.mesh) for stage in self.stages)))

        def run(leaves: list[jax.Array], inputs: list[Inputs]) -> jax.Array:
            x: Any = None
            for (program, (first, end), arrival), its in zip(steps, inputs):
                # From devices to devices; nothing here waits for what it enqueues.
                x = program(leaves[first:end], its, x if x is None else jax.device_put(x, arrival))
            return x

        return run

    def _jitted_stage(self, stage: Stage) -> Any:
        rows = sharding.rows(stage.mesh)
        return jax.jit(
            self._runner(stage),
            in_shardings=([leaf.sharding for leaf in stage.leaves.values()], rows, rows),
            out_shardings=sharding.whole(stage.mesh) if stage.end is None else rows,
        )

    def _runner(self, stage: Stage) -> Callable[..., jax.Array]:
        spec, treedef, targets = self._spec, self._treedef, self._targets

        def run(leaves: list[jax.Array], inputs: Inputs, x: jax.Array | None) -> jax.Array:
            own = dict(zip(stage.leaves, leaves))
            # Nothing that a stage computes depends on what it does not hold. Were that ever wrong, it would show.
            filled = [own[p] if p in own else jnp.full(t.shape, jnp.nan, t.dtype) for p, t in targets.items()]
            model = jax.tree.unflatten(treedef, filled)
            return Part(stage.first, stage.end, x).run(lambda: scores(model, inputs, spec))

        return run

    def _stage(self, first: int, end: int | None, mesh: Mesh) -> Stage:
        """The stage of these layers: it holds their own parameters, and of the others what it computes with."""
        stack, leaves, rows = self._stack, {}, {}
        for path, target in self._targets.items():
            name, its, shape = path.removeprefix(LAYERS), None, target.shape
            if name != path and not stack.shared:
                its = held(stack, name, first, stack.depth if end is None else end)
                if its is None:
                    continue
                shape = (its.stop - its.start, *shape[1:])
            assert isinstance(target.sharding, NamedSharding)
            spread = NamedSharding(mesh, target.sharding.spec)
            leaves[path], rows[path] = jax.ShapeDtypeStruct(shape, target.dtype, sharding=spread), its
        x = self._stack.hidden if first else None
        with jax.set_mesh(mesh):
            whole = Stage(first, end, mesh, leaves, rows)
            traced = jax.make_jaxpr(self._runner(whole))(list(leaves.values()), self._probe, x)
        kept = [path for path, wanted in zip(leaves, _used(traced.jaxpr)) if wanted]
        return Stage(first, end, mesh, {path: leaves[path] for path in kept}, {path: rows[path] for path in kept})

    def _limits(self, meshes: list[Mesh]) -> list[int]:
        """The first layer of every stage, and the depth: stages of about equal time by what is known of the chip."""
        stack, spec, shape = self._stack, self._spec, self.mesh.shape
        places, total = cuts(stack), len(meshes)
        if len(places) <= total:
            periods = f": they repeat from layers {', '.join(map(str, places[:-1]))}" * (len(places) <= stack.depth)
            raise ValidationError(
                f"pipeline_parallel_size={total} is too much for {spec.architecture}: its {stack.depth} layers can be "
                f"cut into at most {len(places) - 1} stages{periods}.",
                parameter="pipeline_parallel_size",
            )
        device = self.mesh.devices.flat[0]
        chip = chip_of(device.device_kind, device.platform)
        peak, bandwidth = chip.flops(spec.dtype) * shape["model"] * shape["data"], chip.bandwidth * shape["model"]
        ends = [self._stage(0, places[1], meshes[0]), self._stage(places[-2], None, meshes[0])]
        outside = [
            sum(_bytes(leaf) for path, leaf in one.leaves.items() if not path.startswith(LAYERS)) for one in ends
        ]
        units = [self._layer_bytes(first, end) for first, end in pairwise(places)]
        flops = self.layer_flops()
        hidden = USUAL.tokens * stack.hidden.shape[-1] * stack.hidden.dtype.itemsize
        boundaries = cut(
            [sum(flops[first:end]) / peak + size / bandwidth for (first, end), size in zip(pairwise(places), units)],
            total,
            # Of the embedding a row is read for every token, and one written; the head reads a vector per text.
            before=2 * hidden / chip.bandwidth,
            after=outside[1] / bandwidth + USUAL.rows * outside[1] / 2 / peak,
            sizes=units,
            size_before=outside[0],
            size_after=outside[1],
        )
        return [places[unit] for unit in boundaries]

    def layer_flops(self) -> list[float]:
        """FLOPs of the usual batch through each layer."""
        config, depth = self._spec.config, self._stack.depth
        per_token = getattr(config, "layer_flops", None) or (config.flops_per_token / depth,) * depth
        return [USUAL.tokens * (one + USUAL.length * config.flops_per_pair / depth) for one in per_token]

    def _layer_bytes(self, first: int, end: int) -> float:
        """What the parameters of these layers take."""
        if self._stack.shared:  # every stage holds all of them
            return 0.0
        found = 0.0
        for path, target in self._targets.items():
            name = path.removeprefix(LAYERS)
            rows = held(self._stack, name, first, end) if name != path else None
            if rows is not None:
                found += _bytes(target) * (rows.stop - rows.start) / target.shape[0]
        return found


def _stack(model: Classifier, spec: Spec, inputs: Inputs, stages: int) -> Stack:
    """The layers of a model, where all of them run one after another and nothing but hidden states passes between."""
    whole = Part()

    def probed(model: Classifier, inputs: Inputs) -> jax.Array:
        found = whole.run(lambda: scores(model, inputs, spec))
        same = [one.layers is getattr(model.backbone, "layers", None) for one in whole.stacks]
        if same != [True]:
            raise ValidationError(
                f"pipeline_parallel_size={stages} is not possible for {spec.architecture}: its layers do not run in "
                "one scan, so they cannot be cut into stages. Use tensor_parallel_size or data_parallel_size.",
                parameter="pipeline_parallel_size",
            )
        return found

    jax.eval_shape(probed, model, inputs)
    return whole.stacks[0]


def _abstract(arrays: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _used(jaxpr: Any) -> list[bool]:
    """Which inputs of a traced computation its results depend on."""
    live = {out for out in jaxpr.outvars if not isinstance(out, Literal)}
    for step in reversed(jaxpr.eqns):
        if not live.isdisjoint(step.outvars):
            live.update(one for one in step.invars if not isinstance(one, Literal))
    return [one in live for one in jaxpr.invars]
