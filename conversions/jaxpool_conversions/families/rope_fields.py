"""Rotary positions as ``config.json`` declares them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from jaxpool.errors import ConfigError
from jaxpool.ops.rope import Rope, RopeKind
from jaxpool_conversions.families.config_fields import Fields


def rope(fields: Fields, head_size: int, *, partial: bool = False, parameters: Mapping[str, Any] | None = None) -> Rope:
    """Reads ``rope_parameters`` (or the older fields, which transformers folds into it).

    Args:
        fields: of ``config.json``.
        head_size: width of a head, of its rotated part where that is fixed (MLA).
        partial: whether the architecture honours ``partial_rotary_factor``.
        parameters: the dict itself, where layers have several.

    Raises:
        ConfigError: naming what is not implemented.
    """
    given: dict[str, Any] = dict(fields.get("rope_parameters") or {} if parameters is None else parameters)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in get_args(RopeKind):
        raise ConfigError(
            f"config.json asks for rope_type={kind!r}, which jaxpool does not implement yet; "
            f"it implements {', '.join(map(repr, get_args(RopeKind)))}."
        )
    part = given.get("partial_rotary_factor")
    part = 1.0 if part is None else part
    if part != 1.0 and not partial:
        raise ConfigError(
            f"config.json sets partial_rotary_factor={part!r}, which jaxpool does not implement for model_type "
            f"{fields.model_type!r}."
        )
    size = int(head_size * part) if kind != "proportional" else head_size
    if size % 2:
        raise ConfigError(f"config.json rotates {size} of {head_size} numbers per head; that must be an even number.")
    common: dict[str, Any] = {"theta": given["rope_theta"], "kind": kind, "size": size}
    longest = fields.get("max_position_embeddings")
    original = given.get("original_max_position_embeddings") or longest
    if kind in ("linear", "llama3", "dynamic"):
        common["factor"] = given["factor"]
    if kind in ("llama3", "yarn", "longrope"):
        common["original_length"] = original
    match kind:
        case "dynamic":
            common["original_length"] = longest
        case "proportional":
            common |= {"factor": given.get("factor", 1.0), "rotating": int(part * head_size // 2)}
        case "llama3":
            common |= {"low_frequency": given["low_freq_factor"], "high_frequency": given["high_freq_factor"]}
        case "yarn":
            factor = given.get("factor") or longest / original
            common |= {
                "factor": factor,
                "attention_factor": _yarn_attention(given, factor),
                "beta_fast": given.get("beta_fast") or 32.0,
                "beta_slow": given.get("beta_slow") or 1.0,
                # transformers looks for it beside the layer types, where it never is.
                "truncate": given.get("truncate", True) if parameters is None else True,
            }
        case "longrope":
            factor = given.get("factor") or longest / original
            attention = given.get("attention_factor")
            if attention is None:
                attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
            common |= {
                "attention_factor": attention,
                "short": tuple(given["short_factor"]),
                "long": tuple(given["long_factor"]),
            }
    return Rope(**common)


def _yarn_attention(given: Mapping[str, Any], factor: float) -> float:
    """What ``yarn`` multiplies cosines and sines by, unless the config says."""
    attention, scale, scale_all = (given.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if attention is not None:
        return float(attention)
    if scale and scale_all:
        return _yarn_scale(factor, scale) / _yarn_scale(factor, scale_all)
    return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def layer_ropes(
    fields: Fields, head_size: int, *, partial: bool = False
) -> tuple[tuple[Rope, ...], tuple[int | None, ...]]:
    """The rotary tables of a model whose layer types have one each, and which table each layer uses."""
    types, given = fields.get("layer_types"), fields.get("rope_parameters")
    kinds = sorted(set(types))
    ropes = tuple(rope(fields, head_size, partial=partial, parameters=given[kind]) for kind in kinds)
    return ropes, tuple(map(kinds.index, types))
