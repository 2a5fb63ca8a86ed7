"""Ahead-of-time programs: one compiled executable per bucket, from an abstract model, before any weight exists."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine import sharding
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.daemon_threads import DaemonThreads
from jaxpool.errors import EngineError
from jaxpool.models.classifier import Classifier
from jaxpool.ops.attention import choose
from jaxpool.ops.layout import Layout
from jaxpool.ops.pooling import activate, calibrate, pool

logger = logging.getLogger(__name__)

STACK_BYTES = 64 << 20
"""Stack of a compiling thread: XLA recurses deeply, and the default of secondary threads can overflow."""


class Inputs(NamedTuple):
    """One padded batch; B rows, T tokens.

    Attributes:
        ids: int32 ``[B, T]``, right-padded.
        types: int32 ``[B, T]`` segment types, or None for backbones without them.
        lengths: int32 ``[B]`` real tokens per row; 1 for padding rows.
        activated: bool ``[B]``; whether the row wants the activation.
    """

    ids: Any
    types: Any
    lengths: Any
    activated: Any

    @property
    def layout(self) -> Layout:
        """Where the texts lie."""
        return Layout.padded(self.lengths, self.ids.shape[1])


def abstract(spec: Spec, platform: str = "cpu") -> Classifier:
    """The classifier of ``spec`` with shapes and dtypes in place of weights, for devices of ``platform``."""
    dtype = jnp.dtype(spec.dtype)
    two_sided = not getattr(spec.config, "causal", True) and any(getattr(spec.config, "windows", ()))
    implementation = choose(platform, dtype, spec.config.head_size, two_sided_window=two_sided)
    return jax.eval_shape(lambda: Classifier(spec.family.backbone, spec.config, spec.head, dtype, implementation))


def logits(model: Classifier, inputs: Inputs, spec: Spec) -> jax.Array:
    """Raw logits, float32 ``[B, C]``, or ``[B, T, C]`` where each token has its own; embeddings where there is no head.

    Backbone, pooling, head; or head, then pooling, where the model is ``late``; or no pooling for tokens.
    """
    # On accelerators float32 matmuls are rounded to bfloat16 or TF32 passes unless this is said.
    with jax.default_matmul_precision("float32" if spec.dtype == "float32" else "default"):
        hidden_BTD = model.backbone(inputs.ids, inputs.types, inputs.layout)
    if spec.per_token:
        return model.head(hidden_BTD, last_only=spec.last_only)
    if spec.late:
        return pooled(model.head(hidden_BTD), inputs, spec)
    return model.head(pooled(hidden_BTD, inputs, spec))


def pooled(values_BTD: jax.Array, inputs: Inputs, spec: Spec) -> jax.Array:
    """One vector per row, ``[B, D]``, of one per token, as ``spec.pooling`` says."""
    ends_BT = None if spec.eos_token is None else inputs.ids == spec.eos_token
    values_BMD = pool(values_BTD, inputs.layout, spec.pooling, ends_BT)
    return values_BMD.reshape(-1, values_BMD.shape[-1])


def scores(model: Classifier, inputs: Inputs, spec: Spec) -> jax.Array:
    """What leaves the device, shaped as ``logits``: calibrated, and activated in the rows that want it."""
    values = logits(model, inputs, spec)
    if spec.columns is not None:
        values = values[..., np.array(spec.columns)]
    if spec.softcap is not None:
        values = spec.softcap * jnp.tanh(values / spec.softcap)
    if spec.num_labels:
        values = calibrate(values, spec.logit_mean, spec.logit_sigma)
    wanted = inputs.activated.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(wanted, activate(values, spec.activation), values)


class Programs:
    """The executables of one model, compiled on demand or ahead, each once.

    Attributes:
        compiles: programs compiled (or taken from the persistent cache) so far.
    """

    def __init__(self, model: Classifier, spec: Spec, mesh: Mesh) -> None:
        leaves, treedef = jax.tree.flatten(model)
        self._leaves = list(sharding.targets(model, mesh).values())
        assert len(leaves) == len(self._leaves)
        self._types, self.mesh = bool(spec.token_types), mesh
        self._one: dict[Bucket, Future[Any]] = {}
        self._lock = threading.Lock()
        self._pool: DaemonThreads | None = None
        self._sealed = False
        self.compiles = 0

        def run(leaves: list[jax.Array], inputs: Inputs) -> jax.Array:
            return scores(jax.tree.unflatten(treedef, leaves), inputs, spec)

        self._run = jax.jit(
            run,
            in_shardings=([leaf.sharding for leaf in self._leaves], self.input_shardings()),
            out_shardings=sharding.whole(mesh),
        )

    def input_shardings(self) -> Inputs:
        """Where each input lives."""
        two, one = sharding.rows(self.mesh, 2), sharding.rows(self.mesh, 1)
        return Inputs(two, two if self._types else None, one, one)

    def lower(self, bucket: Bucket) -> jax.stages.Lowered:
        """The program of one bucket before compilation (for inspection, or for a device that is not here)."""
        two = jax.ShapeDtypeStruct((bucket.rows, bucket.length), jnp.int32)
        one = jax.ShapeDtypeStruct((bucket.rows,), jnp.int32)
        flags = jax.ShapeDtypeStruct((bucket.rows,), jnp.bool_)
        # Operations that divide their own work (``ops/moe.py``) ask for the mesh.
        with jax.set_mesh(self.mesh):
            return self._run.lower(self._leaves, Inputs(two, two if self._types else None, one, flags))

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
        executable = self.lower(bucket).compile()
        with self._lock:
            self.compiles += 1
        logger.debug("compiled %s", bucket)
        return executable

    def ensure(self, buckets: Iterable[Bucket]) -> None:
        """Returns when every bucket has its program; raises what its compilation raised."""
        for future in self.start(buckets):
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
    def sealed(self) -> bool:
        """Whether compiling is over."""
        return self._sealed

    def ready(self) -> frozenset[Bucket]:
        """Buckets whose program exists."""
        with self._lock:
            return frozenset(b for b, f in self._one.items() if f.done() and not f.cancelled() and not f.exception())

    def __call__(self, bucket: Bucket, leaves: list[jax.Array], inputs: Inputs) -> jax.Array:
        """Runs one batch; returns at once with what ``scores`` is still computing."""
        return self.start((bucket,))[0].result()(leaves, inputs)

    def close(self) -> None:
        """Drops programs not begun yet and lets those under way finish."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def pad(
    rows: list[np.ndarray],
    types: list[np.ndarray | None],
    activated: list[bool],
    bucket: Bucket,
    with_types: bool,
) -> Inputs:
    """Right-pads rows of token ids into one batch of numpy arrays; missing rows become length 1."""
    ids_BT = np.zeros((bucket.rows, bucket.length), np.int32)
    types_BT = np.zeros((bucket.rows, bucket.length), np.int32) if with_types else None
    lengths_B = np.ones(bucket.rows, np.int32)
    activated_B = np.zeros(bucket.rows, np.bool_)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = row
        lengths_B[i] = len(row)
        segment = types[i]
        if types_BT is not None and segment is not None:
            types_BT[i, : len(row)] = segment
    activated_B[: len(rows)] = activated
    return Inputs(ids_BT, types_BT, lengths_B, activated_B)
