"""Ahead-of-time programs: one compiled executable per bucket, from an abstract model, before any weight exists."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
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
from jaxpool.models.low_rank import AdapterSizes, chosen
from jaxpool.ops.kernels import ANYWHERE, Implementation
from jaxpool.ops.layout import Layout
from jaxpool.ops.pooling import activate, calibrate, pool, pooled_index

logger = logging.getLogger(__name__)

STACK_BYTES = 64 << 20
"""Stack of a compiling thread: XLA recurses deeply, and the default of secondary threads can overflow."""


class Inputs(NamedTuple):
    """One batch; B rows, T tokens, M texts of a row: 1 where padded.

    Attributes:
        ids: int32 ``[B, T]``.
        types: int32 ``[B, T]`` token types, or None for backbones without them.
        lengths: int32 ``[B, M]`` tokens of each text; where there is none 1 if padded, 0 if packed.
        activated: bool ``[B, M]``; whether the text wants the activation.
        starts: int32 ``[B, M]``, where in its row each text begins; None if padded: at 0.
        segments: int32 ``[B, T]``, the text that a token belongs to, from 1, 0 for padding; None if padded.
        slots: int32 ``[B, M]``, the adapter of each text, from 1, 0 for none; None for a model without adapters.
    """

    ids: Any
    types: Any
    lengths: Any
    activated: Any
    starts: Any = None
    segments: Any = None
    slots: Any = None

    @property
    def layout(self) -> Layout:
        """Where the texts lie."""
        if self.segments is None:
            return Layout.padded(self.lengths[:, 0], self.ids.shape[1])
        return Layout.packed(self.segments, self.starts, self.lengths)


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
    # On accelerators float32 matmuls are rounded to bfloat16 or TF32 passes unless this is said.
    with (
        jax.default_matmul_precision("float32" if spec.dtype == "float32" else "default"),
        chosen(inputs.slots, layout),
    ):
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
        noted: called with each bucket whose program is there, the seconds that took, its key in the cache on disk (or
            None), and whether it was found there.
    """

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

        self._run = jax.jit(
            run,
            in_shardings=([leaf.sharding for leaf in self._leaves], self.input_sharding),
            out_shardings=sharding.whole(mesh),
        )

    @property
    def input_sharding(self) -> NamedSharding:
        """Where every input lives: rows spread over the mesh."""
        return sharding.rows(self.mesh)

    def lower(self, bucket: Bucket) -> jax.stages.Lowered:
        """The program of one bucket before compilation (for inspection, or for a device that is not here)."""
        batch = empty(bucket, self._types, self.adapted)
        inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        # Operations that divide their own work (``ops/moe.py``) ask for the mesh.
        with jax.set_mesh(self.mesh):
            return self._run.lower(self._leaves, inputs)

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
                executable = self.lower(bucket).compile()
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

    def __call__(self, bucket: Bucket, leaves: list[jax.Array], inputs: Inputs) -> jax.Array:
        """Runs one batch; returns at once with what ``scores`` is still computing."""
        return self.start((bucket,))[0].result()(leaves, inputs)

    def close(self) -> None:
        """Drops programs not begun yet and lets those under way finish."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def empty(bucket: Bucket, with_types: bool, with_slots: bool = False) -> Inputs:
    """A batch without texts, in numpy arrays."""
    tokens, texts = (bucket.rows, bucket.length), (bucket.rows, bucket.segments)
    ids, types = np.zeros(tokens, np.int32), np.zeros(tokens, np.int32) if with_types else None
    slots = np.zeros(texts, np.int32) if with_slots else None
    if bucket.segments == 1:
        return Inputs(ids, types, np.ones(texts, np.int32), np.zeros(texts, np.bool_), slots=slots)
    lengths, starts = np.zeros(texts, np.int32), np.zeros(texts, np.int32)
    return Inputs(ids, types, lengths, np.zeros(texts, np.bool_), starts, np.zeros(tokens, np.int32), slots)


def fill(
    texts: Sequence[np.ndarray],
    types: Sequence[np.ndarray | None],
    activated: Sequence[bool],
    bucket: Bucket,
    with_types: bool,
    places: Sequence[int] | np.ndarray | None = None,
    slots: Sequence[int] | None = None,
) -> tuple[Inputs, np.ndarray]:
    """One batch of texts.

    Args:
        texts: token ids of each.
        types: token types of each, or None for zeros.
        activated: whether each wants the activation.
        bucket: the shape.
        with_types: whether the backbone reads token types.
        places: the row of each text; None: each has its own. The caller sees to it that they fit.
        slots: the adapter of each text, from 1, 0 for none; None for a model without adapters.

    Returns:
        the batch, and int64 ``[texts, 3]``: row, place among the row's texts and first token of each text.
    """
    inputs = empty(bucket, with_types, slots is not None)
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
    if inputs.slots is not None:
        inputs.slots[where[:, 0], where[:, 1]] = slots
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
