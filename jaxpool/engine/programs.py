"""Ahead-of-time programs: one compiled executable per bucket, from an abstract model, before any weight exists."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.compile_cache import noting
from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool.errors import EngineError
from jaxpool.models.classifier import Classifier
from jaxpool.ops.kernels import ANYWHERE, Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.pooling import activate, calibrate, pool, pooled_index
from jaxpool_conversions.load import Place, place

logger = logging.getLogger(__name__)

STACK_BYTES = 64 << 20
"""Stack of a compiling thread: XLA recurses deeply, and the default of secondary threads can overflow."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Past:
    """A beginning of texts, computed.

    Attributes:
        reach: places for its tokens.
        length: int32 scalar, how many it has.
        notes: what the layers noted of it, as ``models.groups`` stacks it.
    """

    reach: int = field(metadata={"static": True})
    length: Any
    notes: Any


class Inputs(NamedTuple):
    """One batch; B rows, T tokens, M texts of a row: 1 where padded.

    Attributes:
        ids: int32 ``[B, T]``.
        types: int32 ``[B, T]`` token types, or None for backbones without them.
        lengths: int32 ``[B, M]`` tokens of each text; where there is none 1 if padded, 0 if packed.
        activated: bool ``[B, M]``; whether the text wants the activation.
        starts: int32 ``[B, M]``, where in its row each text begins; None if padded: at 0.
        segments: int32 ``[B, T]``, the text that a token belongs to, from 1, 0 for padding; None if padded.
        past: what the rows' texts begin with and the rows do not hold; None where they hold all.
    """

    ids: Any
    types: Any
    lengths: Any
    activated: Any
    starts: Any = None
    segments: Any = None
    past: Past | None = None

    @property
    def layout(self) -> Layout:
        """Where the texts lie."""
        if self.segments is None:
            layout = Layout.padded(self.lengths[:, 0], self.ids.shape[1])
        else:
            layout = Layout.packed(self.segments, self.starts, self.lengths)
        return layout if self.past is None else layout.behind(self.past.length, self.past.notes, self.past.reach)


def abstract(spec: Spec, at: Implementation = ANYWHERE) -> Classifier:
    """The classifier of ``spec`` with shapes and dtypes in place of weights, for devices as ``at`` says."""
    dtype = jnp.dtype(spec.dtype)
    return jax.eval_shape(lambda: Classifier(spec.family.backbone, spec.config, spec.head, dtype, at))


def logits(model: Classifier, inputs: Inputs, spec: Spec) -> jax.Array:
    """Raw logits, float32 ``[N, C]`` of the N = B * M texts, or ``[B, T, C]`` of tokens; embeddings without a head.

    Backbone, pooling, head; or head, then pooling, where the model is ``late``; or no pooling for tokens. Where pooling
    takes one token of a text, and the backbone can, its last layer computes that token alone.
    """
    picks = getattr(model.backbone, "picks", False) and not spec.per_token and spec.pooling != "MEAN"
    layout = inputs.layout
    at = (pooled_index(layout, spec.pooling, _marks(inputs, spec)),) if picks else ()
    with _precision(spec):
        hidden_BTD = model.backbone(inputs.ids, inputs.types, layout, *at)
    if picks:
        return model.head(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]))
    if spec.per_token:
        return model.head(hidden_BTD, last_only=spec.last_only)
    if spec.late:
        return pooled(model.head(hidden_BTD), inputs, spec)
    return model.head(pooled(hidden_BTD, inputs, spec))


def _precision(spec: Spec) -> Any:
    """On accelerators float32 matmuls are rounded to bfloat16 or TF32 passes unless this is said."""
    return jax.default_matmul_precision("float32" if spec.dtype == "float32" else "default")


def pooled(values_BTD: jax.Array, inputs: Inputs, spec: Spec) -> jax.Array:
    """One vector per text, ``[N, D]``, of one per token, as ``spec.pooling`` says."""
    values_BMD = pool(values_BTD, inputs.layout, spec.pooling, _marks(inputs, spec))
    return values_BMD.reshape(-1, values_BMD.shape[-1])


def _marks(inputs: Inputs, spec: Spec) -> jax.Array | None:
    """Which tokens ``pool`` looks for, bool ``[B, T]``, or None where it does not ask."""
    if spec.pooling == "EOS":
        return inputs.ids == spec.eos_token
    return inputs.ids != spec.pad_token if spec.pooling == "NOT_PAD" else None


def scores(model: Classifier, inputs: Inputs, spec: Spec) -> jax.Array:
    """What leaves the device, shaped as ``logits``: calibrated, and activated in the rows that want it."""
    values = logits(model, inputs, spec)
    if spec.columns is not None:
        values = values[..., np.array(spec.columns)]
    if spec.softcap is not None:
        values = spec.softcap * jnp.tanh(values / spec.softcap)
    if spec.num_labels:
        values = calibrate(values, spec.logit_mean, spec.logit_sigma)
    wanted = inputs.activated.reshape(-1, 1)
    if spec.per_token:
        wanted = inputs.layout.spread(inputs.activated)[:, :, None]
    return jnp.where(wanted, activate(values, spec.activation), values)


class Programs:
    """The executables of one model, compiled on demand or ahead, each once.

    Attributes:
        compiles: programs compiled (or taken from the persistent cache) so far.
        depth: stages that a batch passes one after another, each on devices of its own.
        noted: called with each bucket whose program is there, the seconds that took, its key in the cache on disk (or
            None), and whether it was found there.
    """

    depth = 1
    place_leaf: Place = staticmethod(place)

    def __init__(self, model: Classifier, spec: Spec, mesh: Mesh) -> None:
        leaves, treedef = jax.tree.flatten(model)
        self._leaves = list(sharding.targets(model, mesh).values())
        assert len(leaves) == len(self._leaves)
        self._types, self.mesh = bool(spec.token_types), mesh
        self._one: dict[Bucket, Future[Any]] = {}
        self._lock = threading.Lock()
        self._pool: DaemonThreads | None = None
        self._sealed = False
        self._ready: frozenset[Bucket] = frozenset()
        self.compiles, self._busy = 0, 0
        self.noted: Callable[[Bucket, float, str | None, bool], object] = lambda *_: None

        def run(leaves: list[jax.Array], inputs: Inputs) -> jax.Array:
            return scores(jax.tree.unflatten(treedef, leaves), inputs, spec)

        def note(leaves: list[jax.Array], inputs: Inputs) -> Any:
            layout = inputs.layout.noting()
            with _precision(spec):
                jax.tree.unflatten(treedef, leaves).backbone(inputs.ids, inputs.types, layout)
            assert layout.notes is not None
            return layout.notes["layers"]

        self._note, self._jit = note, partial(jax.jit, run, out_shardings=sharding.whole(mesh))
        self._placed = [leaf.sharding for leaf in self._leaves]
        self._run = self._jit(in_shardings=(self._placed, self.input_sharding))

    @property
    def input_sharding(self) -> NamedSharding:
        """Where every input lives: rows spread over the mesh."""
        return sharding.rows(self.mesh)

    def place(self, inputs: Inputs) -> Any:
        """A batch in numpy arrays, on the devices, as the programs take it."""
        return sharding.placed(inputs, self.input_sharding)

    def ordered(self, arrays: Mapping[str, Any]) -> list[jax.Array]:
        """The leaves that programs take, of what ``place_leaf`` made of every parameter, in the model's order."""
        return list(arrays.values())

    def lower(self, bucket: Bucket) -> jax.stages.Lowered:
        """The program of one bucket before compilation (for inspection, or for a device that is not here)."""
        inputs, run = _shapes(bucket, self._types), self._run
        # Operations that divide their own work (``ops/moe.py``) ask for the mesh.
        with jax.set_mesh(self.mesh):
            if not bucket.segments:
                placed = self._noted(bucket)[1]
                run = jax.jit(self._note, in_shardings=(self._placed, self.input_sharding), out_shardings=placed)
            elif bucket.prefix:
                notes, placed = self._noted(self.beginning(bucket.prefix))
                shards = jax.tree.map(lambda _: self.input_sharding, inputs)
                shards = shards._replace(past=Past(bucket.prefix, sharding.whole(self.mesh), placed))
                run = self._jit(in_shardings=(self._placed, shards))
                inputs = inputs._replace(past=Past(bucket.prefix, jax.ShapeDtypeStruct((), np.int32), notes))
            return run.lower(self._leaves, inputs)

    def beginning(self, reach: int) -> Bucket:
        """The program that computes beginnings of at most so many tokens; of its rows the first one counts."""
        return Bucket(self.mesh.shape["data"], reach, segments=0)

    def noted_bytes(self, reach: int) -> int:
        """What is kept of a beginning with so many places, on each device."""
        with jax.set_mesh(self.mesh):
            notes, placed = self._noted(self.beginning(reach))
        return sharding.bytes_of(notes, placed)

    def _noted(self, bucket: Bucket) -> tuple[Any, Any]:
        """Shapes and shardings of what layers note of a beginning."""
        notes = jax.eval_shape(self._note, self._leaves, _shapes(bucket, self._types))
        return notes, jax.tree.map(lambda leaf: sharding.noted(leaf, self.mesh), notes)

    def lowered(self, bucket: Bucket) -> list[jax.stages.Lowered]:
        """As ``lower``, of every stage."""
        return [self.lower(bucket)]

    def _build(self, bucket: Bucket) -> Any:
        return self.lower(bucket).compile()

    def start(self, buckets: Iterable[Bucket]) -> list[Future[Any]]:
        """Begins to compile what is missing, in background threads; one future per bucket.

        Raises:
            EngineError: if a program is missing and no compile is allowed any more.
        """
        with self._lock:
            return [self._one.get(bucket) or self._submit(bucket) for bucket in buckets]

    def _submit(self, bucket: Bucket) -> Future[Any]:
        if self._sealed:
            raise EngineError(f"no program for {bucket}: every program was compiled before ready. Please report this.")
        if self._pool is None:
            self._pool = DaemonThreads(max(2, (os.cpu_count() or 2) // 2), "jaxpool-compile", STACK_BYTES)
            # Also when the interpreter ends, which a thread inside XLA would turn into an abort. Whoever cannot wait
            # for the compiles under way leaves with ``os._exit``, as the server does.
            weakref.finalize(self, self._pool.shutdown, wait=True, cancel_futures=True)
        self._one[bucket] = future = self._pool.submit(self._compile, bucket)
        return future

    def _compile(self, bucket: Bucket) -> Any:
        started = time.perf_counter()
        with self._lock:
            self._busy += 1
        try:
            with noting() as note:
                executable = self._build(bucket)
        finally:
            with self._lock:
                self._busy -= 1
        with self._lock:
            self.compiles += 1
            self._ready |= {bucket}
        logger.debug("compiled %s", bucket)
        self.noted(bucket, time.perf_counter() - started, note.key, note.found)
        return executable

    def ensure(self, buckets: Iterable[Bucket]) -> None:
        """Returns when every bucket has its program; raises what its compilation raised."""
        for future in self.start(buckets):
            future.result()

    def wait(self) -> None:
        """Returns when all that was begun is there; raises what its compilation raised."""
        with self._lock:
            begun = list(self._one.values())
        for future in begun:
            future.result()

    def seal(self) -> None:
        """From now on a missing program is an error, never a compile."""
        with self._lock:
            self._sealed = True

    @property
    def begun(self) -> int:
        """Programs that are compiled, being compiled, or in line for it."""
        return len(self._one)

    @property
    def shares_cores(self) -> bool:
        """Whether compiling takes cores from computing."""
        return bool(self.mesh.devices.flat[0].platform == "cpu")

    @property
    def busy(self) -> bool:
        """Whether something is being compiled now."""
        return self._busy > 0

    @property
    def sealed(self) -> bool:
        """Whether compiling is over."""
        return self._sealed

    def ready(self) -> frozenset[Bucket]:
        """Buckets whose program exists."""
        return self._ready

    def __call__(self, bucket: Bucket, leaves: list[jax.Array], inputs: Any) -> Any:
        """Runs a batch from ``place``; returns at once with what ``scores`` is still computing, or what layers note."""
        return self.start((bucket,))[0].result()(leaves, inputs)

    def close(self) -> None:
        """Drops programs not begun yet and lets those under way finish."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def empty(bucket: Bucket, with_types: bool) -> Inputs:
    """A batch without texts, in numpy arrays."""
    tokens, texts = (bucket.rows, bucket.length), (bucket.rows, max(bucket.segments, 1))
    ids, types = np.zeros(tokens, np.int32), np.zeros(tokens, np.int32) if with_types else None
    if bucket.segments <= 1:
        return Inputs(ids, types, np.ones(texts, np.int32), np.zeros(texts, np.bool_))
    lengths, starts = np.zeros(texts, np.int32), np.zeros(texts, np.int32)
    return Inputs(ids, types, lengths, np.zeros(texts, np.bool_), starts, np.zeros(tokens, np.int32))


def _shapes(bucket: Bucket, with_types: bool) -> Inputs:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), empty(bucket, with_types))


def fill(
    texts: Sequence[np.ndarray],
    types: Sequence[np.ndarray | None],
    activated: Sequence[bool],
    bucket: Bucket,
    with_types: bool,
    places: Sequence[int] | np.ndarray | None = None,
) -> tuple[Inputs, np.ndarray]:
    """One batch of texts.

    Args:
        texts: token ids of each.
        types: token types of each, or None for zeros.
        activated: whether each wants the activation.
        bucket: the shape.
        with_types: whether the backbone reads token types.
        places: the row of each text; None: each has its own. The caller sees to it that they fit.

    Returns:
        the batch, and int64 ``[texts, 3]``: row, place among the row's texts and first token of each text.
    """
    inputs = empty(bucket, with_types)
    where = np.zeros((len(texts), 3), np.int64)
    used, filled = [0] * bucket.rows, [0] * bucket.rows
    for i, ids in enumerate(texts):
        row = i if places is None else int(places[i])
        segment, start = used[row], filled[row]
        used[row], filled[row] = segment + 1, start + len(ids)
        where[i] = row, segment, start
        inputs.ids[row, start : filled[row]] = ids
        kinds = types[i]
        if inputs.types is not None and kinds is not None:
            inputs.types[row, start : filled[row]] = kinds
        if inputs.segments is not None:
            inputs.segments[row, start : filled[row]] = segment + 1
    inputs.lengths[where[:, 0], where[:, 1]] = [len(ids) for ids in texts]
    inputs.activated[where[:, 0], where[:, 1]] = activated
    if inputs.starts is not None:
        inputs.starts[where[:, 0], where[:, 1]] = where[:, 2]
    return inputs, where


def pad(
    rows: Sequence[np.ndarray],
    types: Sequence[np.ndarray | None],
    activated: Sequence[bool],
    bucket: Bucket,
    with_types: bool,
) -> Inputs:
    """As ``fill``, one text to a row."""
    return fill(rows, types, activated, bucket, with_types)[0]
