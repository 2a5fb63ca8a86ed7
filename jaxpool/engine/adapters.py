"""Adapters in their slots: read, written beside the weights of a running engine, found again by request.

Arrays never change: loading makes new ones and swaps them, so a batch under way keeps what it began with. A slot is
free again when nobody holds its adapter any more: neither this room nor a text that waits to be computed.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.checkpoints.adapters import Answers, answers, own_labels
from jaxpool.checkpoints.spec import Spec
from jaxpool.engine.merging import stretch, updated
from jaxpool.errors import EngineError, MissingHeadError, ValidationError, WeightsError
from jaxpool.models.low_rank import AdapterSizes
from jaxpool.ops.host_activations import activate
from jaxpool.params import LoRARequest
from jaxpool_conversions.accounting import listed, matching
from jaxpool_conversions.low_rank import changes
from jaxpool_conversions.peft_folder import PeftAdapter
from jaxpool_conversions.rules import Table

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes that ``max_lora_rank`` may have (vLLM's): programs are compiled for few of them."""

PATIENCE, POLL = 60.0, 0.005
"""Seconds that loading waits for a slot, and between two looks at them."""


def room_for(max_loras: int, max_lora_rank: int, max_labels: int | None, own: int) -> AdapterSizes:
    """Sizes from the arguments of ``LLM``; ``own`` is the model's number of labels.

    Raises:
        ValidationError: an argument has no such value.
    """
    if max_loras < 1:
        raise ValidationError(f"max_loras must be 1 or more, got {max_loras}.", parameter="max_loras")
    if max_lora_rank not in RANKS:
        raise ValidationError(
            f"max_lora_rank must be one of {', '.join(map(str, RANKS))}; got {max_lora_rank}.",
            parameter="max_lora_rank",
        )
    if max_labels is not None and max_labels < 1:
        raise ValidationError(f"max_lora_cls_labels must be 1 or more, got {max_labels}.")
    return AdapterSizes(max_loras, max_lora_rank, max(own, max_labels or 0))


_SERIALS = itertools.count(1)


class Loaded:
    """An adapter in its slot, for as long as anybody holds it.

    Attributes:
        name: as its request had it.
        path: where it came from.
        slot: its place, from 1.
        serial: its number among all that were ever loaded, from 1: unlike names, ids and slots it never comes back.
        answers: its labels and what becomes of its logits.
    """

    def __init__(self, name: str, path: str, slot: int, meant: Answers) -> None:
        self.name, self.path, self.slot, self.answers = name, path, slot, meant
        self.serial = next(_SERIALS)

    def __repr__(self) -> str:
        return f"Loaded({self.name!r}, slot={self.slot}, labels={self.answers.labels})"


class Adapters:
    """The adapters of one engine. Thread-safe.

    Args:
        spec: the model.
        leaves: its parameters, in the order of ``paths``; those of slots are swapped in place.
        paths: their dotted paths.
        sizes: how much room there is.
        opened: reads an adapter by its path.
        headless: whether the model has no head, so that only texts with an adapter that brings one have an answer.

    Attributes:
        spec, sizes, headless: as given.
        own: how the model itself answers.
    """

    def __init__(
        self,
        spec: Spec,
        leaves: list[jax.Array],
        paths: Sequence[str],
        sizes: AdapterSizes,
        opened: Callable[[str], PeftAdapter],
        *,
        headless: bool = False,
    ) -> None:
        self.spec, self.sizes, self._leaves = spec, sizes, leaves
        self.own = Answers(spec.labels, spec.activation, spec.problem)
        self._opened, self.headless = opened, headless
        self._index = {path: i for i, path in enumerate(paths)}
        self._slotted = [path for path in paths if ".low_rank." in path or path.startswith("head.")]
        self._free = list(range(sizes.slots, 0, -1))
        self._lock = threading.RLock()
        self._held: dict[int, tuple[LoRARequest, Loaded]] = {}  # by id, the one used last at the end
        self._write = self._compile()

    def of(self, requests: Sequence[LoRARequest | None]) -> list[Loaded | None]:
        """The adapters that texts ask for, loaded where they are not yet; the one unused for longest makes room.

        Raises:
            ValidationError: they are more than there is room for, or one does not fit.
            CheckpointError: or one of its kin: one cannot be read.
        """
        wanted = {one.lora_int_id: one for one in requests if one is not None}
        if len(wanted) > self.sizes.slots:
            raise ValidationError(
                f"These prompts ask for {len(wanted)} adapters, and there is room for {self.sizes.slots}; raise "
                "max_loras.",
                parameter="max_loras",
            )
        with self._lock:
            for number, request in wanted.items():
                self._hold(number, request, keep=wanted.keys())
            return [None if one is None else self._held[one.lora_int_id][1] for one in requests]

    def _hold(self, number: int, request: LoRARequest, keep: Any) -> None:
        known = self._held.get(number)
        if known is not None and not request.load_inplace:
            if (known[0].lora_name, known[0].lora_path) != (request.lora_name, request.lora_path):
                raise ValidationError(
                    f"The id {number} is that of the adapter {known[0].lora_name!r} from {known[0].lora_path}; give "
                    f"{request.lora_name!r} another one, or load_inplace=True to replace it.",
                    parameter="lora_int_id",
                )
            self._held[number] = self._held.pop(number)
            return
        adapter = self._opened(request.lora_path)
        values = self._values(adapter)  # what does not fit is refused before anything gives way
        if known is None or not self._free:  # with a slot to spare, what is replaced answers until it is
            known = None  # nobody else may hold what gives way
            self._held.pop(number, None)
            while len(self._held) >= self.sizes.slots:
                del self._held[next(other for other in self._held if other not in keep)]
        self._held[number] = (request, self._load(request, adapter, values))

    def add(self, name: str, path: str, *, replace: bool = False) -> Loaded:
        """Loads an adapter under a name, to stay until it is dropped.

        Args:
            name: what requests call it.
            path: folder or hub id.
            replace: whether one of that name is replaced; texts that wait for it still get it.

        Raises:
            ValidationError: the name is taken, there is no room, or the adapter does not fit.
            CheckpointError: or one of its kin: it cannot be read.
        """
        with self._lock:
            ids = {request.lora_name: number for number, (request, _) in self._held.items()}
            if name in ids and not replace:
                raise ValidationError(
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                    "'load_inplace' to True.",
                    parameter="lora_name",
                )
            if name not in ids and len(ids) >= self.sizes.slots:
                raise ValidationError(
                    f"There is room for {self.sizes.slots} adapters, and {', '.join(ids)} take it; unload one, or "
                    "start with more max_loras.",
                    parameter="max_loras",
                )
            number = ids.get(name, max(ids.values(), default=0) + 1)
            self._hold(number, LoRARequest(name, number, path, load_inplace=replace), keep=set(ids.values()))
            return self._held[number][1]

    def drop(self, name: str) -> bool:
        """Lets go of the adapter of this name; whether there was one. Texts that wait for it still get it."""
        with self._lock:
            found = [number for number, (request, _) in self._held.items() if request.lora_name == name]
            for number in found:
                del self._held[number]
            return bool(found)

    def held(self) -> dict[str, Loaded]:
        """The adapters that are loaded, by name. Never waits for one that is being loaded."""
        return {request.lora_name: loaded for request, loaded in list(self._held.values())}

    def answer(self, loaded: Loaded | None, values: np.ndarray, *, activated: bool) -> np.ndarray:
        """A text's results of its own labels only, ``[…, C]`` of what the program made, activated if wanted."""
        meant = self.own if loaded is None else loaded.answers
        if self.spec.num_labels and self.spec.columns is None:
            values = values[..., : len(meant.labels)]
        return activate(values, meant.activation) if activated else values.copy()

    def _check(self, adapter: PeftAdapter) -> None:
        labels = own_labels(adapter, self.spec.family.table)
        if self.headless and labels is None:
            raise MissingHeadError(
                f"The adapter {adapter.folder} brings no head, and the model it is for has none: save the adapter with "
                "modules_to_save."
            )
        for what, has, most, name in (
            ("rank", adapter.rank, self.sizes.rank, "max_lora_rank"),
            ("labels", labels or 0, self.sizes.labels, "max_lora_cls_labels"),
        ):
            if has > most:
                raise ValidationError(
                    f"The adapter {adapter.folder} has {what} {has}, and there is room for {most}; raise {name}.",
                    parameter=name,
                )

    def _load(self, request: LoRARequest, adapter: PeftAdapter, values: dict[str, np.ndarray]) -> Loaded:
        """Writes an adapter into a free slot."""
        self._wait_for_slot()
        slot = self._free.pop()
        meant = answers(adapter, self.spec.family.table, self.own)
        loaded = Loaded(request.lora_name, request.lora_path, slot, meant)
        weakref.finalize(loaded, self._free.append, slot)
        old = [self._leaves[self._index[path]] for path in self._slotted]
        number = jnp.int32(slot)
        for path, leaf in zip(self._slotted, self._write(old, [values[path] for path in self._slotted], number)):
            self._leaves[self._index[path]] = leaf
        return loaded

    def _wait_for_slot(self) -> None:
        """Returns when texts that wait for an adapter that gave way have been computed."""
        for turn in range(round(PATIENCE / POLL)):
            if self._free:
                return
            if turn == 1:
                gc.collect()  # one that failed may be held by a traceback
            time.sleep(POLL)
        raise EngineError("All slots for adapters are taken by texts that wait to be computed; try again.")

    def _values(self, adapter: PeftAdapter) -> dict[str, np.ndarray]:
        """What goes into one slot of every parameter that has slots."""
        self._check(adapter)
        shapes = {path: self._shape(path) for path in self._index if ".low_rank." not in path}
        found = changes(adapter, self.spec.family.table, shapes)
        values: dict[str, np.ndarray] = {}
        for path in self._slotted:
            leaf = self._leaves[self._index[path]]
            axis = _axis(path, leaf.ndim)
            shape = (*leaf.shape[:axis], *leaf.shape[axis + 1 :])
            own = np.asarray(leaf[0], np.float32) if path.startswith("head.") else np.zeros(shape, np.float32)
            values[path] = own.copy()
        refused: list[str] = []
        for path, factors in found.factors.items():
            if path.startswith("head."):
                values[path][..., : factors.right.shape[-1]] = np.asarray(
                    updated(jnp.asarray(values[path][..., : factors.right.shape[-1]]), factors)
                )
                continue
            room = f"{path.rpartition('.')[0]}.low_rank"
            if f"{room}.a" not in values:
                refused.append(path)
                continue
            rank = factors.left.shape[-1]
            values[f"{room}.a"][..., :rank] = factors.left
            values[f"{room}.b"][..., :rank, :] = factors.right
            values[f"{room}.stretch"][...] = np.asarray(stretch(self._leaves[self._index[path]], factors))
        for module, bias in found.biases.items():
            where = f"{module}.bias" if module.startswith("head.") else f"{module}.low_rank.bias"
            if where not in values:
                refused.append(f"{module}.bias")
            else:
                values[where][..., : bias.shape[-1]] += bias
        for path, places in found.whole.items():
            for place, whole in places.items():
                if not self._replaced(path, place, whole, values):
                    refused.append(path)
        if refused:
            raise WeightsError(
                f"the adapter {adapter.folder} changes {listed(sorted(set(refused)))}, which cannot differ from text "
                "to text; put it into the weights instead: merge_lora=…"
            )
        return values

    def _replaced(self, path: str, place: tuple[int, ...], whole: np.ndarray, values: Mapping[str, np.ndarray]) -> bool:
        """Puts a replaced parameter into its slot; False where there is none for it."""
        if path.startswith("head."):
            values[path][...] = 0.0
            values[path][tuple(slice(0, size) for size in whole.shape)] = whole
            return True
        own = np.asarray(self._leaves[self._index[path]][place], np.float32)
        module, _, kind = path.rpartition(".")
        room = f"{module}.low_rank.bias"
        if kind == "bias" and room in values:
            values[room][place] += whole - own
            return True
        # PEFT saves an embedding beside its update; the same one changes nothing.
        return bool(np.array_equal(own, whole.astype(self._leaves[self._index[path]].dtype).astype(np.float32)))

    def _shape(self, path: str) -> tuple[int, ...]:
        shape = tuple(self._leaves[self._index[path]].shape)
        return shape[1:] if path.startswith("head.") else shape

    def _compile(self) -> Any:
        """The program that writes one slot of all parameters that have slots: compiled once, before any is loaded."""
        old = [self._leaves[self._index[path]] for path in self._slotted]
        axes = [_axis(path, leaf.ndim) for path, leaf in zip(self._slotted, old)]

        def write(leaves: list[jax.Array], values: list[jax.Array], slot: jax.Array) -> list[jax.Array]:
            at = [slot if path.startswith("head.") else slot - 1 for path in self._slotted]
            return [
                jax.lax.dynamic_update_index_in_dim(leaf, value.astype(leaf.dtype), number, axis)
                for leaf, value, number, axis in zip(leaves, values, at, axes)
            ]

        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for leaf in old]
        values = [
            jax.ShapeDtypeStruct((*leaf.shape[:axis], *leaf.shape[axis + 1 :]), jnp.float32)
            for leaf, axis in zip(old, axes)
        ]
        program = jax.jit(write, out_shardings=[leaf.sharding for leaf in old])
        return program.lower(shapes, values, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def _axis(path: str, ndim: int) -> int:
    """The axis of slots: first in the head; else before what a layer's adapter has, behind the stack of layers."""
    if path.startswith("head."):
        return 0
    return ndim - (3 if path.endswith((".a", ".b")) else 2)


def without_head(
    targets: Mapping[str, jax.ShapeDtypeStruct], names: Iterable[str], table: Table
) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters that a checkpoint without a head can fill: those before the last layer perhaps (BERT's pooler).

    Args:
        targets: all parameters, by dotted path.
        names: tensors of the checkpoint.
        table: the family's rules.
    """
    filled = {rule.target for name in names for rule, _ in matching(name, table)}
    return {path: target for path, target in targets.items() if not path.startswith("head.") or path in filled}


def with_slots(arrays: Mapping[str, jax.Array], targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Parameters of a model with room for adapters from those of one without: every slot empty, every head its own.

    Args:
        arrays: parameters by dotted path.
        targets: shape, dtype and sharding of those that are wanted.
    """
    out = {}
    for path, target in targets.items():
        if path in arrays and not path.startswith("head."):
            out[path] = arrays[path]
            continue
        values = np.zeros(target.shape, target.dtype)
        if path in arrays:
            own = np.asarray(arrays[path])
            values[(slice(None), *(slice(0, size) for size in own.shape))] = own
        out[path] = jax.device_put(values, target.sharding)
    return out
