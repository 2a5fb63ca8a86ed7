"""What a config says of its labels: how many, their names, what they mean, and how scores become probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jaxpool.errors import ConfigError
from jaxpool.ops.pooling import Activation

Problem = Literal["single", "multi", "regression"]

PROBLEM_TYPES: dict[Problem, str] = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
"""What ``config.json`` calls them."""

_TORCH_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity",
    "Sigmoid": "classify",  # vLLM's reading: softmax from two labels on
    "Softmax": "classify",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Softplus": "softplus",
    "ELU": "elu",
}


def text_configs(config: Any) -> list[Any]:
    """A config, and the text part of one of text and images."""
    text = getattr(config, "text_config", None)
    return [config] if text is None else [config, text]


def config_field(config: Any, name: str) -> Any:
    """A field of a config, or of its text part where the config itself does not have it; else None."""
    values = (getattr(part, name, None) for part in text_configs(config))
    return next((value for value in values if value is not None), None)


def padding_token(config: Any) -> int | None:
    """The padding token of a config, or of its text part: the one that transformers' classifiers pass over."""
    token = getattr(text_configs(config)[-1], "pad_token_id", None)
    return None if token is None else int(token)


def refuse_quantised(config: Any) -> None:
    """Raises ConfigError, naming the method, where a config says that the weights are quantised."""
    for part in text_configs(config):
        for name in ("quantization_config", "compression_config"):
            settings = getattr(part, name, None)
            if not settings:
                continue
            values = settings if isinstance(settings, Mapping) else vars(settings)
            bits = [key for key in ("load_in_4bit", "load_in_8bit") if values.get(key)]
            method = values.get("quant_method") or ("bitsandbytes" if bits else "an unnamed method")
            raise ConfigError(
                f"the checkpoint is quantised with {method} ({name} in config.json), which jaxpool does not read; "
                "use the same model in float32, float16 or bfloat16."
            )


def declared_labels(config: Any) -> int | None:
    """Number of labels that a config declares: of models of text and images, the text part's where the whole says 2.

    2 is what transformers fills in by itself. None if LM-head rows decide.
    """
    if config_field(config, "classifier_from_token"):
        return None
    text = getattr(config, "text_config", None)
    return int(config.num_labels if text is None or config.num_labels != 2 else getattr(text, "num_labels", 2))


def label_names(config: Any, num_labels: int) -> tuple[str, ...]:
    """A name for each of the labels that the head has."""
    named = [names for part in text_configs(config) if (names := getattr(part, "id2label", None))]
    chosen = next((one for one in named if len(one) == num_labels), named[0] if named else {})
    names = {int(key): str(value) for key, value in chosen.items()}
    return tuple(names.get(i, f"LABEL_{i}") for i in range(num_labels))


def problem_of(config: Any) -> Problem:
    """What labels mean: one holds (``single``), any may (``multi``), or a number is predicted."""
    kinds = {name: problem for problem, name in PROBLEM_TYPES.items()}
    return kinds.get(getattr(config, "problem_type", None) or "", "single")


def activation_of(config: Any, filed: str | None = None) -> Activation:
    """The activation a config asks for, in vLLM's order: problem_type, Sentence-Transformers keys, the default.

    ``filed`` is the torch class that ``config_sentence_transformers.json`` names, where newer versions keep it.
    """
    problem = getattr(config, "problem_type", None)
    if problem is not None:
        activations: dict[str, Activation] = {
            "regression": "identity",
            "single_label_classification": "classify",
            "multi_label_classification": "sigmoid",
        }
        if problem not in activations:
            raise ConfigError(f"config.json sets problem_type={problem!r}; known are {', '.join(activations)}.")
        return activations[problem]
    nested = getattr(config, "sentence_transformers", None)
    name = nested.get("activation_fn") if isinstance(nested, Mapping) else None
    name = name or getattr(config, "sbert_ce_default_activation_function", None) or filed
    if name is None:
        return "classify"
    return torch_activation(name, "config.json")


def torch_activation(name: str, file: str) -> Activation:
    """The activation that a ``file`` names by the dotted path of its torch class.

    Raises:
        ConfigError: jaxpool has no such activation.
    """
    if not name.startswith("torch.nn.modules."):
        raise ConfigError(
            "Loading of activation functions is restricted to torch.nn.modules for security reasons; "
            f"{file} names {name!r}."
        )
    short = name.rsplit(".", 1)[-1]
    if short not in _TORCH_ACTIVATIONS:
        raise ConfigError(
            f"{file} names the activation {name!r}, which jaxpool does not implement; "
            f"it implements {', '.join(_TORCH_ACTIVATIONS)}."
        )
    return _TORCH_ACTIVATIONS[short]
