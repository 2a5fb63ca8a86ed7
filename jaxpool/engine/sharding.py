"""Where arrays live: the mesh, and one table from logical axes to mesh axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpool.errors import ValidationError

MESH_AXIS: dict[str | None, str | None] = {
    "batch": "data",
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    # Experts are split inside, each over its inner width, and not from one another: every device then has equal work
    # whichever experts a text asks, and products of tokens sorted by expert divide as plain ones do.
    "expert": None,
    "embed": None,
    "layer": None,
    None: None,
}
"""Logical to mesh axis: weights split over ``model`` (Shoeybi et al. 2019, arXiv:1909.08053), rows over ``data``."""


def make_mesh(data: int = 1, model: int = 1, devices: Sequence[Any] | None = None, *, stages: int = 1) -> Mesh:
    """A ``(data, model)`` mesh over the first ``data * model`` devices; of several stages ``(stage, data, model)``.

    Raises:
        ValidationError: if there are fewer devices than that.
    """
    devices = jax.devices() if devices is None else devices
    if min(data, model, stages) < 1 or data * model * stages > len(devices):
        times = f" times pipeline_parallel_size={stages}" if stages != 1 else ""
        raise ValidationError(
            f"data_parallel_size={data} times tensor_parallel_size={model}{times} asks for {data * model * stages} "
            f"devices; this machine has {len(devices)}."
        )
    # Devices next to one another share weights: tensors travel in every layer, hidden states once a stage.
    grid = np.asarray(devices[: data * model * stages]).reshape(stages, data, model)
    if stages == 1:
        return Mesh(grid[0], ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    return Mesh(grid, ("stage", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def divisors(count: int) -> list[int]:
    """Numbers of devices that can share so many of something alike."""
    return [size for size in range(1, count + 1) if count % size == 0]


def stages(mesh: Mesh) -> list[Mesh]:
    """The mesh of each stage, ``(data, model)``."""
    if "stage" not in mesh.axis_names:
        return [mesh]
    return [Mesh(devices, mesh.axis_names[1:], axis_types=mesh.axis_types[1:]) for devices in mesh.devices]


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every parameter of a (possibly abstract) module by dotted path, in the order of ``jax.tree.leaves(model)``."""
    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Variable))[0]
    return {".".join(key.name for key in path): variable for path, variable in found}


def targets(model: nnx.Module, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every parameter of an abstract module, by dotted path, in leaf order."""
    return {
        path: jax.ShapeDtypeStruct(
            variable.get_value().shape,
            variable.get_value().dtype,
            sharding=NamedSharding(mesh, _spec(variable, mesh)),
        )
        for path, variable in parameters(model).items()
    }


def undivided(model: nnx.Module, mesh: Mesh) -> list[str]:
    """Parameters that devices should share and every one holds whole, because their number does not divide them."""
    meant = {path: set(variable.get_metadata()["axes"]) - {"batch"} for path, variable in parameters(model).items()}
    return [
        path
        for path, target in targets(model, mesh).items()
        if any(MESH_AXIS[axis] for axis in meant[path])
        and isinstance(target.sharding, NamedSharding)
        and not any(target.sharding.spec)
    ]


def _spec(variable: nnx.Variable, mesh: Mesh) -> PartitionSpec:
    """The partition of one parameter; a dimension that the mesh axis does not divide is replicated.

    But for a vocabulary: a table that cannot be split by rows is split by columns.
    """
    metadata, shape = variable.get_metadata(), variable.get_value().shape
    axes = metadata["axes"]
    # Layers built by `stacked` have leading dimensions their parameters know nothing of.
    axes = ("layer",) * (len(shape) - len(axes)) + tuple(axes)

    def place(axis: str | None, size: int) -> str | None:
        mesh_axis = MESH_AXIS[axis]
        if mesh_axis is None:
            return None
        units = metadata["units"] or size
        return mesh_axis if units % mesh.shape[mesh_axis] == 0 else None

    found = [place(axis, size) for axis, size in zip(axes, shape)]
    if "vocab" in axes and "embed" in axes and (split := MESH_AXIS["vocab"]) not in found:
        columns = axes.index("embed")
        found[columns] = split if shape[columns] % mesh.shape[split] == 0 else None
    return PartitionSpec(*found)


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch's arrays: rows over ``data``, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXIS["batch"]))


def whole(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def noted(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Where what layers note of a beginning lives.

    Keys and values, ``[layers, P, K, h]``, by head; what state spaces note, ``[layers, …, I]``, by channel.
    """
    axis = 2 if leaf.ndim == 4 else leaf.ndim - 1
    model = MESH_AXIS["kv_heads"] if leaf.shape[axis] % mesh.shape["model"] == 0 else None
    return NamedSharding(mesh, PartitionSpec(*(model if i == axis else None for i in range(leaf.ndim))))


def bytes_of(arrays: Any, shardings: Any = None) -> int:
    """Bytes of a pytree of arrays on each device; ``shardings`` where they are only shapes."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, arrays) if shardings is None else shardings
    sizes = jax.tree.map(lambda leaf, at: prod(at.shard_shape(leaf.shape)) * leaf.dtype.itemsize, arrays, shardings)
    return int(sum(jax.tree.leaves(sizes)))


def placed(arrays: Any, sharding: NamedSharding) -> Any:
    """A pytree of numpy arrays on the devices of ``sharding``, of which this process fills its own.

    Where devices of other processes are among them every process must hold the same arrays; nothing is compared or
    sent, as ``jax.device_put`` would.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(arrays, sharding)

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, arrays)
