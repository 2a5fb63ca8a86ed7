"""How numbers travel: as JSON numbers, or as the bytes of one of several types."""

from __future__ import annotations

import sys
from typing import Any, Literal

import ml_dtypes
import numpy as np

from jaxpool_serving.schemas.common import exact

EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
EmbedDType = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]

DTYPES: dict[EmbedDType, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


def numbers(values: np.ndarray) -> list[Any]:
    """Float32 values as lists of JSON numbers, nested as the axes are."""
    return [numbers(row) if values.ndim > 1 else exact(row) for row in values]


def binary(values: np.ndarray, dtype: EmbedDType, endianness: Endianness) -> bytes:
    """Values in C order; those too large for a small type become its infinity or NaN."""
    with np.errstate(over="ignore"):
        typed = values.astype(DTYPES[dtype])
    if endianness not in ("native", sys.byteorder):
        typed = typed.view(f"u{typed.itemsize}").byteswap()
    return typed.tobytes()
