"""The converted store: parameters as the model holds them, so that opening one is no work at all.

``params/`` is an ordinary Orbax checkpoint, written uncompressed with one chunk per parameter. Each parameter
is then one plain file of numbers in the order of memory (zarr format 2 says so beside it), and the reader maps
these files instead of asking Orbax to restore them: no import of Orbax, no copy on the CPU, and only its own
slice for each device. A store whose layout Orbax chose otherwise is restored by Orbax.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from jaxpool.errors import CheckpointError
from jaxpool_conversions.load import Place
from jaxpool_conversions.load import place as _whole
from jaxpool_conversions.output_folder import copy_companions, is_companion, new_folder
from jaxpool_conversions.reader import Index
from jaxpool_conversions.rules import HeadSource, Table

if TYPE_CHECKING:
    import jax

FORMAT = 2
_MANIFEST = "jaxpool.json"
_PARAMS = "params"
_REMEDY = "convert the checkpoint again with `jaxpool convert`"


def is_store(folder: str | Path) -> bool:
    """Whether a folder was written by :func:`write_store`."""
    return (Path(folder) / _MANIFEST).is_file()


def strays(folder: str | Path) -> list[str]:
    """Files of a store's folder that :func:`write_store` does not write, as paths within it."""
    files = (path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if not path.is_dir())
    return [str(path) for path in files if path.parts[0] != _PARAMS and not is_companion(path)]


def fingerprint(table: Table) -> str:
    """A short digest of a conversion table: changes when parameters would be filled differently."""
    return hashlib.sha256(repr(table).encode()).hexdigest()[:16]


def write_store(
    destination: str | Path,
    leaves: Mapping[str, jax.Array | np.ndarray],
    head: HeadSource,
    meta: Mapping[str, Any],
    source_folder: str | Path,
) -> None:
    """Write a store; the folder appears under its name only when complete.

    Args:
        destination: folder to make; must not exist, or be empty.
        leaves: the parameters, by dotted path.
        head: where the head came from; given back by :func:`read_head`.
        meta: what else to note (name of the model, ``fingerprint(table)`` …), as JSON; given back by
            :func:`read_manifest` under ``meta``.
        source_folder: the checkpoint, whose ``config.json`` and tokenizer files are copied.

    Raises:
        CheckpointError: the destination exists or cannot be written.
    """
    import orbax.checkpoint as ocp

    source = Path(source_folder)
    arrays = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    manifest = {
        "format": FORMAT,
        "source": {"name": source.name, "files": _source_files(source)},
        "head": asdict(head),
        "parameters": {path: [str(array.dtype), list(array.shape)] for path, array in arrays.items()},
        "meta": dict(meta),
    }
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False, use_compression=False)
    with new_folder(Path(destination)) as folder, _quiet_orbax():
        copy_companions(source, folder)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder / _PARAMS, args=ocp.args.PyTreeSave(arrays))
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The contents of a store's ``jaxpool.json``.

    Raises:
        CheckpointError: it is damaged or of another format version.
    """
    path = Path(folder) / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, _ = manifest["format"], (manifest["parameters"].items(), manifest["head"]["weight"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error!r}); {_REMEDY}") from error
    if version != FORMAT:
        raise CheckpointError(f"{folder} is a store of format {version}, but this jaxpool reads {FORMAT}; {_REMEDY}")
    return manifest


def read_head(folder: str | Path) -> HeadSource:
    """Where the head of a store came from. CheckpointError as :func:`read_manifest`."""
    fields = read_manifest(folder)["head"]
    try:
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return HeadSource(**{**fields, **lists})
    except TypeError as error:
        raise CheckpointError(f"{Path(folder) / _MANIFEST} is damaged ({error}); {_REMEDY}") from error


def open_store(
    folder: str | Path,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    table: Table | None = None,
    place: Place = _whole,
) -> dict[str, Any]:
    """Put the parameters of a store onto devices.

    Args:
        folder: the store.
        targets: shape, dtype and sharding of each parameter, as for
            :func:`~jaxpool_conversions.load.load`. A dtype other than the stored one is cast to.
        table: the family's rules of today; a store whose ``meta`` has the fingerprint of others under ``table`` is
            refused.
        place: as for :func:`~jaxpool_conversions.load.load`.

    Raises:
        CheckpointError: the store is damaged, incomplete, or holds other parameters than ``targets``.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    made_by = manifest.get("meta", {}).get("table")
    if table is not None and made_by not in (None, fingerprint(table)):
        raise CheckpointError(f"{folder} was made with other conversion rules than this jaxpool has; {_REMEDY}")
    stored = {path: tuple(shape) for path, (_, shape) in manifest["parameters"].items()}
    wanted = {path: target.shape for path, target in targets.items()}
    if stored != wanted:
        differing = sorted(p for p in stored.keys() | wanted.keys() if stored.get(p) != wanted.get(p))
        path = differing[0]
        raise CheckpointError(
            f"{folder} does not hold the parameters of this model: {len(differing)} differ, the first is {path} "
            f"(stored {stored.get(path, 'not')}, needed {wanted.get(path, 'not')}); {_REMEDY}"
        )
    mapped = {path: _map(folder / _PARAMS / path, shape) for path, shape in wanted.items()} if _plain(folder) else {}

    def put(path: str, values: np.ndarray) -> Any:
        def slice_of(index: Index | None) -> np.ndarray:
            return values[index or ...].astype(targets[path].dtype, copy=False)

        return place(path, targets[path], slice_of)

    placed = {path: put(path, values) for path, values in mapped.items() if values is not None}
    if len(placed) == len(targets):
        return placed
    if place is not _whole:
        raise CheckpointError(f"{folder} is laid out in chunks, which only whole models are read from; {_REMEDY}")
    return _restore(folder, targets)


def _plain(folder: Path) -> bool:
    """Whether Orbax wrote one folder per parameter in zarr format 2, as :func:`write_store` has it do."""
    path = folder / _PARAMS / "_METADATA"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        return not metadata["use_ocdbt"] and not metadata["use_zarr3"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}); {_REMEDY}") from error


def _map(folder: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """One parameter as a memory map, or None if it is not one plain file.

    The map is private: should anybody ever write into it, the file stays as it is.
    """
    try:
        layout = json.loads((folder / ".zarray").read_text(encoding="utf-8"))
        plain = {"zarr_format": 2, "compressor": None, "filters": None, "order": "C", "chunks": list(shape)}
        if any(layout[key] != value for key, value in plain.items()):
            return None
        dtype = np.dtype(ml_dtypes.bfloat16 if layout["dtype"] == "bfloat16" else layout["dtype"])
        with (folder / (".".join("0" * len(shape)) or "0")).open("rb") as file:
            size = prod(shape) * dtype.itemsize
            found = os.fstat(file.fileno()).st_size
            if found != size or layout["shape"] != list(shape):
                raise ValueError(f"{found} bytes where {size} are needed")
            if size == 0:
                return np.empty(shape, dtype)
            pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the parameter {folder} is missing or damaged ({error}); {_REMEDY}") from error
    if hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_WILLNEED)  # the disk starts reading while programs compile
    return np.frombuffer(pages, dtype).reshape(shape)


def _restore(folder: Path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Have Orbax restore a store whose parameters are cut into chunks or compressed."""
    import jax
    import orbax.checkpoint as ocp

    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    item = {
        path: jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=target.sharding or first)
        for path, target in targets.items()
    }
    restore = ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item))
    try:
        with _quiet_orbax(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(folder / _PARAMS, args=restore)
    except Exception as error:  # Orbax and tensorstore raise a dozen kinds
        raise CheckpointError(f"{folder / _PARAMS} cannot be restored ({error}); {_REMEDY}") from error
    return {path: restored[path] for path in targets}


def _source_files(folder: Path) -> dict[str, list[int | str]]:
    """Size of each weight file and a digest of its first 64 KiB (the header): enough to tell checkpoints apart."""
    files: dict[str, list[int | str]] = {}
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        with path.open("rb") as file:
            files[path.name] = [path.stat().st_size, hashlib.sha256(file.read(1 << 16)).hexdigest()]
    return files


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without Orbax's warnings about its own internals, and the traces it logs of errors that it raises anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
