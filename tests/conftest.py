"""Eight fake devices for the sharding tests, no network, programs cached between runs in the user's cache."""

from __future__ import annotations

import os

# Before anyone imports jax.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAXPOOL_MEASURE"] = "off"  # plans are those of the prior, whatever the machine was doing before
os.environ["TOKENIZERS_PARALLELISM"] = "false"
