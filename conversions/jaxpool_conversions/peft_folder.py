"""Reading a PEFT folder: which weights an adapter changes, under Hugging Face names, and by what.

Every field of ``adapter_config.json`` and every tensor is used, or is known to change nothing, or is refused by name.
Formulas: LoRA (Hu et al. 2021, arXiv:2106.09685), rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732), DoRA
(Liu et al. 2024, arXiv:2402.09353); names and layouts as PEFT 0.21 writes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.errors import CheckpointError, ConfigError, WeightsError
from jaxpool_conversions.accounting import listed
from jaxpool_conversions.reader import SafetensorsFile, refuse_pointer, torch_file

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

USED = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters"),
    *("use_dora", "lora_bias", "bias", "task_type"),
}
SAYS_NOTHING = {
    # where it came from, and how it was trained
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_core"),
    "qalora_group_size",  # of use_qalora, which is refused
    # which modules: the tensors' own names say it; which way a Conv1D lies: the conversion table knows
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` for which the weights under the adapter are not the base model's any more."""

TASKS = (None, "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", "CAUSAL_LM")

_PREFIX = "base_model.model."
_PARTS = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?P<kind>\.weight|\.bias)?"
)


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to one weight, ``W + left_out @ right_in``, float32.

    Attributes:
        name: of the weight in a checkpoint.
        a: ``[r, in]``, or ``[experts, r, in]``.
        b: ``[out, r]``, or ``[experts, out, r]``, scaled.
        table: whether the weight is an embedding ``[in, out]``, whatever its rule says.
        magnitude: ``[out]``: DoRA's length of each output's weights; None without it.
        bias: ``[out]``, scaled: added to the output; None for nothing.
    """

    name: str
    a: np.ndarray
    b: np.ndarray
    table: bool = False
    magnitude: np.ndarray | None = None
    bias: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """An adapter as it lies in its folder.

    Attributes:
        folder: where.
        updates: what is added to weights.
        replaced: tensors that take the place of the base model's, float32, by name: heads, biases.
        rank: the largest rank.
        saved: modules that were trained whole.
        task: PEFT's ``task_type``, one of `TASKS`.
        config: ``config.json`` beside it, if there is one: label names and what they mean, which PEFT does not save.
    """

    folder: Path
    updates: tuple[Update, ...]
    replaced: Mapping[str, np.ndarray]
    rank: int
    saved: tuple[str, ...] = ()
    task: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def read_peft(folder: str | Path) -> PeftAdapter:
    """Reads an adapter.

    Raises:
        CheckpointError: there is none, or its files are damaged.
        ConfigError: it asks for what jaxpool does not do; the field is named.
        WeightsError: its tensors do not fit together, or one has no known meaning.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    parts: dict[str, dict[str, np.ndarray]] = {}
    replaced: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        if not name.startswith(_PREFIX):
            raise WeightsError(f"tensor {name} of {folder} does not begin with {_PREFIX!r}, as PEFT's names do")
        plain = name.removeprefix(_PREFIX)
        if not np.isfinite(values).all():
            raise WeightsError(f"tensor {name} of {folder} holds NaN or infinite values; the adapter is damaged")
        found = _PARTS.fullmatch(plain)
        if ".original_module." in plain:
            continue  # of a module that was trained whole: what it was before
        if found is not None:
            parts.setdefault(found["module"], {})[_part(found)] = values
        elif "lora_" in plain or "token_adapter" in plain:
            raise WeightsError(f"tensor {name} of {folder} is of a kind of adapter that jaxpool does not know")
        else:
            saved = plain.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
            replaced[saved.replace(".base_layer.", ".")] = values
    updates = [_update(module, of, config, folder) for module, of in parts.items()]
    if not updates and not replaced:
        raise WeightsError(f"{folder} holds no tensors of an adapter")
    ranks = [update.a.shape[-2] for update in updates]
    named = tuple(config.get("modules_to_save") or ())
    _check_saved(named, config, replaced, {update.name for update in updates}, folder)
    return PeftAdapter(
        folder,
        tuple(updates),
        replaced,
        max(ranks, default=0),
        named,
        config.get("task_type"),
        _beside(folder),
    )


def _part(found: re.Match[str]) -> str:
    """``lora_A``, ``lora_B``, ``bias``, ``lora_embedding_A``, ``lora_embedding_B`` or ``lora_magnitude_vector``."""
    if found["kind"] == ".bias":
        return "bias" if found["part"] == "lora_B" else f"{found['part']}.bias"
    return found["part"]


def _update(module: str, parts: Mapping[str, np.ndarray], config: Mapping[str, Any], folder: Path) -> Update:
    """The update of one module from its tensors."""
    plain = module.replace(".base_layer", "")
    table = "lora_embedding_A" in parts
    named = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A", "lora_B")
    left = parts.keys() - {*named, "lora_magnitude_vector", "bias"}
    if missing := [name for name in named if name not in parts]:
        raise WeightsError(f"{folder} has no {missing[0]} for {plain}")
    if left:
        raise WeightsError(f"{folder} has {plain}.{min(left)}, which jaxpool does not know")
    a, b = (parts[name] for name in named)
    key, name = plain, f"{plain}.weight"
    parameter = _parameter(module, plain, config)
    if parameter is not None:
        key = name = f"{plain}.{parameter}"
    rank = int(_of_pattern(config, "rank_pattern", "r", key))
    alpha = float(_of_pattern(config, "alpha_pattern", "lora_alpha", key))
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not rank or a.shape[0] % rank:
        raise WeightsError(
            f"{plain} of {folder} has {named[0]} {list(a.shape)} and {named[1]} {list(b.shape)}, which make no update "
            f"of the rank {rank} that {CONFIG} says"
        )
    experts = a.shape[0] // rank
    if experts > 1 and parameter is None:
        raise WeightsError(f"{plain} of {folder} has rank {a.shape[0]}, but {CONFIG} says {rank}")
    scale = np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    if experts > 1:
        a = a.reshape(experts, rank, -1)
        b = np.moveaxis(b.reshape(len(b), rank, experts), 2, 0)
    magnitude, bias = parts.get("lora_magnitude_vector"), parts.get("bias")
    for flag, given in (("use_dora", magnitude), ("lora_bias", bias)):
        if bool(config.get(flag)) != (given is not None):
            raise WeightsError(
                f"{CONFIG} of {folder} says {flag}={config.get(flag)!r}, but {plain} has "
                f"{'no such tensor' if given is None else 'one'}"
            )
    if magnitude is not None and bias is not None:
        raise ConfigError(f"{folder} has both use_dora and lora_bias, which jaxpool does not implement together")
    return Update(
        name,
        a,
        b * scale,
        table,
        None if magnitude is None else magnitude.reshape(-1),
        None if bias is None else bias * scale,
    )


def _parameter(module: str, plain: str, config: Mapping[str, Any]) -> str | None:
    """Which of ``target_parameters`` the tensors of a module are for; None: of its weight.

    Of several in one module the one that the module's class makes last is outermost, the others lie under
    ``base_layer``. All of transformers' mixtures make what leaves an expert last; shapes would tell if one did not.
    """
    targets = sorted(set(config.get("target_parameters") or ()), key=lambda name: ("down" in name, name))
    here = [name for name in targets if f".{plain}".endswith(f".{name.rpartition('.')[0]}") and "." in name]
    if not here:
        return None
    depth = module.count(".base_layer")
    if depth >= len(here):
        raise WeightsError(f"{module} lies deeper than the target_parameters of {plain}: {', '.join(here)}")
    return here[-1 - depth].rpartition(".")[2]


def _of_pattern(config: Mapping[str, Any], patterns: str, default: str, key: str) -> Any:
    """PEFT's rule: the first pattern that the end of a module's name matches."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", key):
            return value
    return config.get(default, 8)


def _read_config(folder: Path) -> dict[str, Any]:
    config = _json(folder / CONFIG)
    if config is None:
        raise CheckpointError(f"{folder} is no PEFT adapter: it has no {CONFIG}")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{folder} is an adapter of the kind {kind!r}; jaxpool reads peft_type LORA")
    if config.get("task_type") not in TASKS:
        raise ConfigError(f"{CONFIG} of {folder} says task_type={config['task_type']!r}, which is no task of texts")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ConfigError(
            f"{CONFIG} of {folder} says init_lora_weights={start!r}, so the adapter fits weights that differ from the "
            "base model's; convert it to ordinary LoRA, with path_initial_model_for_weight_conversion=… of PEFT's "
            "save_pretrained"
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise ConfigError(f"{CONFIG} of {folder} says bias={config['bias']!r}; known are none, all and lora_only")
    known = {*USED, *SAYS_NOTHING, "peft_type", "init_lora_weights"}
    asked = [f"{name}={value!r}" for name, value in config.items() if name not in known and value]
    if asked:
        raise ConfigError(f"{CONFIG} of {folder} sets {listed(asked)}, which jaxpool does not implement")
    return config


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has no weights of an adapter: looked for {' and '.join(WEIGHTS)}")
    refuse_pointer(path)
    file = torch_file(path) if path.suffix == ".bin" else SafetensorsFile(path)
    try:
        return {
            name: np.asarray(file.read(name, tuple(slice(0, size) for size in file.shape(name))), np.float32)
            for name in file.names()
        }
    finally:
        file.close()


def _check_saved(
    saved: tuple[str, ...], config: Mapping[str, Any], replaced: Mapping[str, Any], updated: set[str], folder: Path
) -> None:
    """Every tensor that replaces one was announced, and what was announced is there.

    PEFT saves an embedding beside its update, unasked, and heads, whatever modules_to_save says.
    """

    def within(module: str, name: str) -> bool:
        # As PEFT finds them, by the end of their names: classifier means pre_classifier, too.
        return f"{module}." in name

    biases = config.get("bias", "none") != "none"
    strays = [
        name
        for name in replaced
        if not any(within(module, name) for module in saved) and not (biases and name.endswith(".bias"))
    ]
    strays = [name for name in strays if name.split(".")[0] not in ("classifier", "score") and name not in updated]
    if strays:
        raise WeightsError(
            f"{folder} holds {listed(sorted(strays))}, which neither modules_to_save nor bias of {CONFIG} announces"
        )
    heads = [module for module in saved if module in ("classifier", "score")]
    others = [module for module in saved if module not in heads]
    missing = [module for module in others if not any(within(module, name) for name in replaced)]
    if heads and not any(within(module, name) for module in heads for name in replaced):
        missing += [" or ".join(heads)]
    if missing:
        raise WeightsError(
            f"{CONFIG} of {folder} says that {', '.join(missing)} was trained (modules_to_save), but its tensors are "
            "not in the file; save the adapter again with a newer PEFT"
        )


def _beside(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json") or {}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found
