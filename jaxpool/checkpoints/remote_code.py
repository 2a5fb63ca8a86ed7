"""Configs of checkpoints that came with code of their own, in the words of transformers' class for the same model."""

from __future__ import annotations

from typing import Any

from jaxpool.errors import ConfigError

NAMES = {"llama_bidirec": "llama", "new": "gte"}
"""Model types that such checkpoints give to architectures of transformers."""

_GTE: dict[str, Any] = {
    "layer_norm_type": "layer_norm",
    "position_embedding_type": "rope",
    "logn_attention_scale": False,
    "pack_qkv": True,
}
"""Switches of Alibaba's code (``NewModel``), and the values that transformers' GTE has built in."""


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ``config.json``, whose ``model_type`` is now one of transformers'.

    Raises:
        ConfigError: the checkpoint's own code could do what transformers' class does not.
    """
    model_type = config["model_type"]
    if model_type in ("new", "gte"):
        for name, built_in in _GTE.items():
            if config.get(name, built_in) != built_in:
                raise ConfigError(
                    f"config.json sets {name}={config[name]!r}, which jaxpool does not implement for model_type "
                    f"{model_type!r}; it implements {built_in!r}."
                )
    if model_type == "new":
        config = {"rope_theta": 10000.0} | config
    return config | {"model_type": NAMES.get(model_type, model_type)}
