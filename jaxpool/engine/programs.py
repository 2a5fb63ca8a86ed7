"""Ahead-of-time programs: one compiled executable per bucket, from an abstract model, before any weight exists."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.batches import Inputs, Past, shapes
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.compile_cache import noting
from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool.errors import EngineError
from jaxpool.models.classifier import Classifier
from jaxpool.models.low_rank import AdapterSizes, chosen
from jaxpool.ops.kernels import ANYWHERE, Implementation
from jaxpool.ops.pooling import activate, calibrate, pool, pooled_index
from jaxpool_conversions.load import Place, place

logger = logging.getLogger(__name__)

STACK_BYTES = 64 << 20
"""Stack of a compiling thread: XLA recurses deeply, and the default of secondary threads can overflow."""


def abstract(spec: Spec, at: Implementation = ANYWHERE, adapters: AdapterSizes | None = None) -> Classifier:
    """The classifier of ``spec`` with shapes and dtypes in place of weights, for devices as ``at`` says.

    With room for ``adapters``, whose heads have a bias, and labels enough for theirs and the model's own.
    """
    dtype, head = jnp.dtype(spec.dtype), spec.head
    if adapters is not None and head.labels:
        head = replace(head, labels=max(head.labels, adapters.labels), bias=True)
    return jax.eval_shape(lambda: Classifier(spec.family.backbone, spec.config, head, dtype, at, adapters))


def logits(model: Classifier, inputs: Inputs, spec: Spec) -> jax.Array:
    """Raw logits, float32 ``[N, C]`` of the N = B * M texts, or ``[B, T, C]`` of tokens; embeddings without a head.

    Backbone, pooling, head; or head, then pooling, where the model is ``late``; or no pooling for tokens. Where pooling
    takes one token of a text, and the backbone can, its last layer computes that token alone.
    """
    picks = getattr(model.backbone, "picks", False) and not spec.per_token and spec.pooling != "MEAN"
    layout = inputs.layout
    at = (pooled_index(layout, spec.pooling, _marks(inputs, spec)),) if picks else ()
    with _precision(spec), chosen(inputs.slots, layout):
        hidden_BTD = model.backbone(inputs.ids, inputs.types, layout, *at)
    of_texts = of_tokens = None
    if inputs.slots is not None:
        of_texts = inputs.slots.reshape(-1)
        of_tokens = jnp.broadcast_to(layout.spread(inputs.slots[..., None])[..., 0], inputs.ids.shape)
    if picks:
        return model.answered(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), of_texts)
    if spec.per_token:
        return model.answered(hidden_BTD, of_tokens, last_only=spec.last_only)
    if spec.late:
        return pooled(model.answered(hidden_BTD, of_tokens), inputs, spec)
    return model.answered(pooled(hidden_BTD, inputs, spec), of_texts)


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
    """What leaves the device, shaped as ``logits``: calibrated, and activated in the rows that want it.

    With adapters nothing is activated here: what becomes of logits, and how many there are, differs from text to text.
    """
    values = logits(model, inputs, spec)
    if spec.columns is not None:
        values = values[..., np.array(spec.columns)]
    if spec.softcap is not None:
        values = spec.softcap * jnp.tanh(values / spec.softcap)
    if spec.num_labels:
        values = calibrate(values, spec.logit_mean, spec.logit_sigma)
    if inputs.slots is not None:
        return values
    wanted = inputs.activated.reshape(-1, 1)
    if spec.per_token:
        wanted = inputs.layout.spread(inputs.activated)[:, :, None]
    return jnp.where(wanted, activate(values, spec.activation), values)


class Programs:
    """The executables of one model, compiled on demand or ahead, each once.

    Attributes:
        adapted: whether texts may have adapters.
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
        self._types, self.mesh, self.adapted = bool(spec.token_types), mesh, model.adapters is not None
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
            with _precision(spec), chosen(inputs.slots, layout):
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
        inputs, run = shapes(bucket, self._types, self.adapted), self._run
        # Operations that divide their own work (``ops/moe.py``) ask for the mesh.
        with jax.set_mesh(self.mesh):
            if not bucket.segments:
                placed = self._noted(bucket)[1]
                run = jax.jit(self._note, in_shardings=(self._placed, self.input_sharding), out_shardings=placed)
            elif bucket.prefix:
                past, placed = self.past(bucket.prefix)
                shards = jax.tree.map(lambda _: self.input_sharding, inputs)
                run = self._jit(in_shardings=(self._placed, shards._replace(past=placed)))
                inputs = inputs._replace(past=past)
            return run.lower(self._leaves, inputs)

    def beginning(self, reach: int) -> Bucket:
        """The program that computes beginnings of at most so many tokens; of its rows the first one counts."""
        return Bucket(self.mesh.shape["data"], reach, segments=0)

    def past(self, reach: int) -> tuple[Past, Past]:
        """Shapes and shardings of a beginning with so many places, as programs behind it take it."""
        notes, placed = self._noted(self.beginning(reach))
        length = jax.ShapeDtypeStruct((), np.int32)
        return Past(reach, length, notes), Past(reach, sharding.whole(self.mesh), placed)

    def noted_bytes(self, reach: int) -> int:
        """What is kept of a beginning with so many places, on each device."""
        with jax.set_mesh(self.mesh):
            notes, placed = self._noted(self.beginning(reach))
        return sharding.bytes_of(notes, placed)

    def _noted(self, bucket: Bucket) -> tuple[Any, Any]:
        """Shapes and shardings of what layers note of a beginning."""
        notes = jax.eval_shape(self._note, self._leaves, shapes(bucket, self._types, self.adapted))
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
