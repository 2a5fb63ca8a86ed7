"""What one request may ask of its own results: shorter embeddings, and the results of some tokens only.

Both are done on the host, after the program: they concern single rows, and programs are compiled for all.
"""

from __future__ import annotations

import numpy as np

from jaxpool.checkpoints.spec import Spec
from jaxpool.engine.engine import Row
from jaxpool.errors import EngineError, ValidationError
from jaxpool.params import PoolingParams


def check(spec: Spec, name: str, params: PoolingParams) -> None:
    """Raises ValidationError where a model (called ``name``) cannot do what a request asks for."""
    size, sizes = _size(spec, params), spec.matryoshka
    if size is not None:
        if sizes is None:
            raise ValidationError(
                f"Model {name!r} does not support Matryoshka embeddings; dimensions must be unset "
                f"(received dimensions={size})."
            )
        if sizes and size not in sizes:
            raise ValidationError(
                f"Model {name!r} only supports {list(sizes)} matryoshka dimensions, use other output dimensions will "
                f"lead to poor results (received dimensions={size})."
            )
        if not 1 <= size <= spec.head.size:
            raise ValidationError(f"dimensions must be from 1 to {spec.head.size}, got {size}.")
    columns = params.returned_token_ids
    if columns is not None and tuple(columns) != (spec.columns or ()):
        raise ValidationError(
            "returned_token_ids cannot differ from request to request: programs are compiled for those of the "
            f"PoolerConfig ({list(spec.columns or ())}); got {columns}.",
            parameter="returned_token_ids",
        )


def select(spec: Spec, params: PoolingParams, row: Row, values: np.ndarray) -> np.ndarray:
    """The part of a row's results that its request asks for."""
    size = _size(spec, params)
    if size is not None:
        values = values[..., :size]
        if row.activated:  # of length one again, as if cut before
            values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
    if spec.steps:
        token = spec.step_token if params.step_tag_id is None else params.step_tag_id
        if token is not None:
            values = values[np.asarray(row.ids) == token]
    return values


def _size(spec: Spec, params: PoolingParams) -> int | None:
    return spec.dimensions if params.dimensions is None else params.dimensions


def check_finite(scores: np.ndarray | list[np.ndarray]) -> None:
    """Raise EngineError, naming the first prompt, unless every number of every prompt is finite."""
    if isinstance(scores, np.ndarray):
        finite = np.isfinite(scores).all(axis=1)
    else:
        finite = np.array([np.isfinite(score).all() for score in scores])
    if not finite.all():
        index = int(np.flatnonzero(~finite)[0])
        raise EngineError(
            f"The scores of prompt {index} are not finite: {scores[index].tolist()}. The weights are "
            "damaged, or the dtype overflows (try dtype='float32')."
        )
