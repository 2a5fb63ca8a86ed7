"""Eight fake devices for the sharding tests, no network, programs cached between runs in the user's cache."""

from __future__ import annotations

import os

# Before anyone imports jax. Most of the tests' time is compiling, and much of that LLVM optimising loops that run once:
# `JAXPOOL_TEST_QUICKLY=1` goes without, for those who change something and wait.
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if os.environ.get("JAXPOOL_TEST_QUICKLY"):
    flags.append("--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] = " ".join(flags).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAXPOOL_MEASURE"] = "off"  # plans are those of the prior, whatever the machine was doing before
os.environ["TOKENIZERS_PARALLELISM"] = "false"
