"""Where a checkpoint is and what its ``config.json`` says: folder, hub id or embedded model; overrides."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpool.checkpoints import remote_code
from jaxpool.errors import CheckpointError, ConfigError, ValidationError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Overrides = Mapping[str, Any] | Callable[[Any], Any] | None

OUR_FIELDS = {
    *("classifier_from_token", "method", "is_original_qwen3_reranker", "head_dtype"),
    *("is_matryoshka", "matryoshka_dimensions", "sentence_transformers", "sbert_ce_default_activation_function"),
    *("is_causal", "use_bidirectional_attention", "quantization_config", "compression_config", "auto_map"),
    *("pooler_hidden_size", "padding_id", "temperature"),
}
"""Fields that jaxpool reads though few of transformers' classes have them."""

logger = logging.getLogger(__name__)
# transformers advises everyone without PyTorch to install it; we do not want it.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in str(record.msg))

DEFAULT_MODEL = Path(__file__).parents[1] / "default_model"

# Everything a tokenizer and a config may be spread over; no weights.
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "vocab*", "merges*", "*.codes"]
# Weights of other frameworks, training left-overs and second copies in the original authors' format.
NOT_OURS = ["onnx/*", "openvino/*", "coreml/*", "original/*", "*/*.safetensors", "*/*.bin"]
NOT_OURS += ["consolidated*", "optimizer*", "training_args.bin", "scheduler*", "rng_state*"]

_KINDS = {"config.json": "a checkpoint", "adapter_config.json": "a PEFT adapter"}

# Fields of config.json that something is divided by, or made of.
SIZES = ["hidden_size", "d_model", "n_embd", "vocab_size", "num_attention_heads", "num_key_value_heads", "num_heads"]
SIZES += ["n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads"]


def locate(
    model: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    weights: bool = True,
    holds: str = "config.json",
) -> Path:
    """The local folder of a checkpoint, downloaded first when it is a hub id.

    Args:
        model: a folder (used as it is), a hub id such as ``org/name``, or None for the embedded model.
        revision: branch, tag or commit of a hub id.
        token: hub token; None uses the one stored by ``hf auth login``, if any.
        cache_dir: where downloads are kept; None uses the hub's own cache.
        weights: False fetches configuration and tokenizer files only.
        holds: a file that tells that it is one; another name finds what is no checkpoint (an adapter, say).

    Raises:
        CheckpointError: no such folder, no ``config.json`` in it, or a hub id that cannot be had.
        ValidationError: a ``revision`` of what is no hub model.

    ``HF_HUB_OFFLINE=1`` and ``HF_ENDPOINT`` are honoured.
    """
    if model is None:
        _refuse_revision(revision, "the embedded model")
        if not (DEFAULT_MODEL / "config.json").is_file():
            raise CheckpointError(
                f"The embedded model is missing from {DEFAULT_MODEL}; reinstall jaxpool or name a model."
            )
        return DEFAULT_MODEL
    name = os.fspath(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _refuse_revision(revision, f"the folder {name}")
        if not (folder / holds).is_file() and (inner := _inner(folder)) is not None:
            return inner
        if weights and not (folder / holds).is_file():
            raise CheckpointError(f"The folder {name} has no {holds}, so it is not {_KINDS.get(holds, 'that')}.")
        return folder
    if folder.is_file():
        raise CheckpointError(f"{name} is a file; give the checkpoint folder that holds it.")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CheckpointError(f"There is no folder {name}.")
    return _download(name, revision, token, cache_dir, weights, holds)


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise ValidationError(f"revision={revision!r} is of a hub model, but {what} has no revisions; leave it out.")


def _inner(folder: Path) -> Path | None:
    """Where the first versions of Sentence-Transformers put the model itself: in a folder beside its modules."""
    from jaxpool.checkpoints.sentence_transformers import transformer_folder  # imports JAX

    inner = folder / transformer_folder(folder)
    return inner if inner != folder and (inner / "config.json").is_file() else None


def _download(
    name: str,
    revision: str | None,
    token: bool | str | None,
    cache_dir: str | os.PathLike[str] | None,
    weights: bool,
    holds: str,
) -> Path:
    """Asks the hub (or its cache) for ``name``; every failure becomes one sentence."""
    from huggingface_hub import errors, snapshot_download

    from jaxpool.checkpoints.sentence_transformers import dense_folders, transformer_folder  # imports JAX

    def fetch(patterns: list[str], ignored: Sequence[str] = NOT_OURS) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=os.fspath(cache_dir) if cache_dir else None,
                allow_patterns=patterns,
                ignore_patterns=list(ignored),
            )
        )

    at = f" at revision {revision}" if revision else ""
    try:
        if not weights:
            return fetch(SMALL_FILES)
        folder = fetch([*SMALL_FILES, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            folder = fetch([*SMALL_FILES, "*.bin"])
        inner = transformer_folder(folder)
        for module in [*dense_folders(folder), *([inner] if inner else [])]:
            fetch([f"{module}/*"], ())
        folder = folder / inner
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"The model {name} is gated: accept its terms on the hub, then pass a token (`hf auth login`)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder and no hub model {name} (a private one needs a token: `hf auth login`)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"The hub model {name} has no revision {revision}.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"There is no folder {name}, the hub model{at} is not in the local cache, and the hub cannot be "
            "reached (offline mode, or no network)."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a hub id of the form org/name.") from error
    except OSError as error:  # HTTP errors are OSErrors, and so is a full disk
        raise CheckpointError(f"The hub model {name}{at} could not be downloaded: {error}") from error
    if not (folder / holds).is_file():
        raise CheckpointError(f"The hub model {name}{at} has no {holds}, so it is not {_KINDS.get(holds, 'that')}.")
    return folder


def read_config(folder: Path, hf_overrides: Overrides = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """``config.json`` as transformers' configuration object, with that class's defaults.

    Args:
        folder: the checkpoint folder.
        hf_overrides: values that replace the file's; a dict for a sub-configuration is merged into it. A name that
            neither the file nor transformers' class nor jaxpool knows is refused: nothing would read it.
            A callable gets the finished configuration and returns the one to use.
        trust_remote_code: without effect; jaxpool never runs a checkpoint's own code.

    Returns:
        the configuration; ``id2label`` has the integer keys 0 to ``num_labels - 1``.

    Raises:
        ConfigError: unreadable JSON, ``model_type`` missing or unknown, bad values, labels that contradict.
    """
    if trust_remote_code:
        logger.warning("trust_remote_code has no effect: jaxpool never runs code from a checkpoint.")
    data = _read_json(folder / "config.json")
    if hf_overrides is None or isinstance(hf_overrides, Mapping):
        config = _build(data, dict(hf_overrides or {}))
    else:
        config = hf_overrides(_build(data, {}))
        if not hasattr(config, "model_type"):
            raise ConfigError(f"The hf_overrides callable must return the configuration, got {type(config).__name__}.")
    # A callable (or a sub-configuration) may have left JSON's string keys behind.
    config.id2label = label_map(config.id2label)
    config.name_or_path = str(folder)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no config.json in {path.parent}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be a configuration.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} should hold a JSON object, got {type(data).__name__}.")
    return data


def _build(data: dict[str, Any], overrides: dict[str, Any]) -> PretrainedConfig:
    """The configuration object of the merged values; refuses labels that contradict each other."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = overrides.get("model_type", data.get("model_type"))
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(
            "config.json has no `model_type`, so the architecture is unknown; add it, or pass "
            "hf_overrides={'model_type': …}."
        )
    try:
        config_class = CONFIG_MAPPING[remote_code.MODEL_TYPES.get(model_type, model_type)]
    except KeyError as error:
        hint = " and its own code is never run" if "auto_map" in data else ""
        raise ConfigError(
            f"The model_type {model_type!r} is not known to transformers {transformers.__version__}{hint}; "
            "jaxpool needs a checkpoint of an architecture that transformers implements."
        ) from error
    merged = remote_code.translated(_merge(data, overrides, config_class))
    for part in (merged, *(merged.get(name) for name in config_class.sub_configs)):
        _check_sizes(part if isinstance(part, Mapping) else {})

    def build(values: dict[str, Any]) -> PretrainedConfig:
        try:
            return config_class.from_dict(values)
        except Exception as error:  # transformers raises a dozen kinds here, all of them about bad values
            raise ConfigError(f"config.json has a value that {config_class.__name__} refuses: {error}") from error

    config = build(dict(merged))
    for name in _check_read(config, overrides, data):
        if build({key: value for key, value in merged.items() if key != name}).to_dict() == config.to_dict():
            raise ConfigError(f"hf_overrides has {name}={overrides[name]!r}, which changes nothing in this model")
    config.raw = json.loads(json.dumps(merged))  # as it is in the file: transformers drops what it does not know
    return config


def _check_read(config: Any, overrides: Mapping[str, Any], data: Mapping[str, Any], within: str = "") -> list[str]:
    """Refuses overrides that came to lie in the configuration without anyone to read them.

    Returns:
        the names that are not in the configuration: another way to say something, or nothing.
    """
    declared = {one.name for one in fields(config)} | set(dir(type(config))) | set(config.attribute_map) | OUR_FIELDS
    gone = []
    for name, value in overrides.items():
        if name not in declared and name not in vars(config):
            gone.append(name)
        elif name not in declared and name not in data:
            near = difflib.get_close_matches(name, {*declared, *data}, n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"hf_overrides has {within}{name}={value!r}, which nothing reads{hint}")
        if name in config.sub_configs and isinstance(value, Mapping):
            _check_read(getattr(config, name), value, data.get(name) or {}, f"{within}{name}.")
    return gone


def _check_sizes(config: Mapping[str, Any]) -> None:
    """ConfigError where a size that is divided by is not positive."""
    for name in SIZES:
        value = config.get(name)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"config.json has {name} {value}; it must be at least 1.")


def _merge(data: dict[str, Any], overrides: dict[str, Any], config_class: Any) -> dict[str, Any]:
    merged = {**data, **overrides}
    for name in config_class.sub_configs:
        if isinstance(overrides.get(name), Mapping) and isinstance(data.get(name), Mapping):
            merged[name] = {**data[name], **overrides[name]}
    # An override of the label count or names replaces what the file says about labels altogether.
    if {"num_labels", "id2label"} & overrides.keys():
        for name in {"num_labels", "id2label", "label2id"} - overrides.keys():
            merged.pop(name, None)
    if merged.get("id2label") is None:
        merged.pop("id2label", None)
        return merged
    merged["id2label"] = labels = label_map(merged["id2label"])
    count = merged.pop("num_labels", None)
    if count is not None and count != len(labels):
        raise ConfigError(
            f"num_labels is {count} but id2label names {len(labels)} labels ({', '.join(labels.values())}); "
            "correct one of them, in config.json or through hf_overrides."
        )
    return merged


def label_map(labels: object) -> dict[int, str]:
    """``id2label`` with integer keys, in order; JSON has made strings of them. ConfigError for others."""
    try:
        by_id = {int(key): str(name) for key, name in labels.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        by_id = {}
    if sorted(by_id) != list(range(len(by_id))) or not by_id:
        raise ConfigError(f"id2label must map 0, 1, 2, … to label names, got {labels!r}.")
    return dict(sorted(by_id.items()))
