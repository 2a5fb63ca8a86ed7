"""What chips can do, from their makers and from compilers: what the planner assumes before it has measured anything."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

TPU_FLOAT32_PASSES = 6
"""Products of bfloat16 that make one of float32, as XLA does for TPU at the precision we ask for."""


@dataclass(frozen=True, slots=True)
class Chip:
    """One device as JAX counts them: a chip, or a core of a v7x.

    Attributes:
        name: ours, also in ``--topology`` (``v5e`` …).
        peak: FLOP/s of dense bfloat16 products.
        peak_float32: the same for float32, as exact as we ask for.
        sustained: share of ``peak`` that whole models reach, guessed before anything is measured.
        bandwidth: bytes/s of its memory; every call reads all weights once.
        memory: bytes of its memory; 0 where the machine decides.
        fast_memory: bytes beside its cores that the compiler keeps activations in.
        hertz: of its cores, to turn a compiler's cycles into seconds; 0 where there are none.
        call: seconds that a batch costs besides its work, batches being started ahead of one another.
        compile: seconds of compiling one program of a base-sized encoder, two at once.
        source: where the figures come from.
    """

    name: str
    peak: float
    peak_float32: float
    sustained: float
    bandwidth: float
    memory: float
    fast_memory: float
    hertz: float
    call: float
    compile: float
    source: str

    def flops(self, dtype: str) -> float:
        """FLOP/s that a model of ``dtype`` is expected to sustain."""
        return self.sustained * self.peak_of(dtype)

    def peak_of(self, dtype: str) -> float:
        """FLOP/s at most, by dtype."""
        return self.peak_float32 if dtype == "float32" else self.peak


MIB = 2.0**20
_TPU = "peaks, memory: jax's table of TPUs (jax/_src/pallas/mosaic/tpu_info.py); "
_SHARES = "share, compile: libtpu 0.0.52's estimates of BERT and Qwen2.5 (`jaxpool compile`)"
_GUESSED = "share, compile: guessed from v5e and v6e"
_NVIDIA = "NVIDIA's data sheet, dense; share, compile: guessed, never measured here"


def _tpu(name: str, peak: float, sustained: float, bandwidth: float, memory: float, fast: float, ghz: float,
         compile_seconds: float, source: str) -> Chip:  # fmt: skip
    return Chip(name, peak, peak / TPU_FLOAT32_PASSES, sustained, bandwidth, memory, fast * MIB, ghz * 1e9, 5e-5,
                compile_seconds, _TPU + source)  # fmt: skip


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", 2.75e14, 0.40, 1.23e12, 34.4e9, 128, 1.05, 5.0, _GUESSED),
        _tpu("v5e", 1.97e14, 0.40, 8.2e11, 17.2e9, 128, 1.5, 5.0, _SHARES),
        _tpu("v5p", 4.59e14, 0.35, 2.46e12, 103e9, 128, 1.75, 6.0, _SHARES),
        _tpu("v6e", 9.2e14, 0.20, 1.64e12, 34.4e9, 128, 1.75, 10.0, _SHARES),
        _tpu("v7x", 1.155e15, 0.20, 3.7e12, 103e9, 64, 0, 10.0, _GUESSED),
        Chip("A100", 3.12e14, 1.95e13, 0.45, 2.0e12, 80e9, 0, 0, 5e-5, 3.0, _NVIDIA),
        Chip("H100", 9.89e14, 6.7e13, 0.35, 3.35e12, 80e9, 0, 0, 5e-5, 3.0, _NVIDIA),
        Chip("H200", 9.89e14, 6.7e13, 0.35, 4.8e12, 141e9, 0, 0, 5e-5, 3.0, _NVIDIA),
        # one core; `chip_of` counts them
        Chip("CPU", 2.0e11, 1.0e11, 0.75, 2e10, 0, 0, 0, 3e-4, 0.5,
             "measured on two cores of an AMD EPYC with AVX-512, XLA's matmuls alone and BERT-base"),
    )
}  # fmt: skip
"""Name -> chip."""

KINDS = {
    r"TPU v4": "v4",
    r"TPU v5 ?lite|TPU v5e": "v5e",
    r"TPU v5p?$": "v5p",
    r"TPU v6": "v6e",
    r"TPU ?v?7": "v7x",
    r"A100": "A100",
    r"H200|GH200": "H200",
    r"H100": "H100",
}
"""Pattern of JAX's ``device_kind`` -> name; the first that is found."""

LIKELY = {"tpu": "v5e", "gpu": "A100", "cuda": "A100", "rocm": "A100"}
"""Platform -> the chip that an unknown kind is taken for."""


def chip_of(device_kind: str, platform: str) -> Chip:
    """The chip of a JAX device by its ``device_kind`` and ``platform``; on a CPU all cores together."""
    if platform == "cpu":
        core, cores = CHIPS["CPU"], os.cpu_count() or 1
        return replace(core, peak=core.peak * cores, peak_float32=core.peak_float32 * cores)
    for pattern, name in KINDS.items():
        if re.search(pattern, device_kind):
            return CHIPS[name]
    return CHIPS[LIKELY.get(platform, "A100")]
