"""What a caller may ask for, per request, per model and per adapter."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar

from jaxpool.errors import ValidationError

SEQUENCE_POOLING = ("CLS", "LAST", "MEAN")
TOKEN_POOLING = ("ALL", "STEP")
NO_PLUGIN = (
    "No IOProcessor plugin installed. Please refer to the documentation and to the "
    "'prithvi_geospatial_mae_io_processor' offline inference example for more details."
)
"""What vLLM says to those who ask for the task "plugin"."""

REMOVED_TASKS = {
    "score": "`score` task was removed; use `classify` instead.",
    "encode": "`encode` task was removed; use `token_embed` or `token_classify` instead.",
}


class RequestOutputKind(Enum):
    """When a request reports; pooling requests always report once, at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


def _refuse_unknown(cls: type, names: Mapping[str, object]) -> None:
    """TypeError for a keyword that is no field; called in ``__new__`` so that ``__init__`` stays typed."""
    known = {field.name for field in fields(cls)}
    for name in names:
        if name not in known:
            raise TypeError(f"Unexpected keyword argument '{name}'")


def _check_flag(name: str, value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise ValidationError(f"`{name}` must be True, False or None, got {value!r}.", parameter=name, value=value)


@dataclass(repr=False)
class PoolingParams:
    """Options of one request.

    Attributes:
        use_activation: apply softmax or sigmoid to logits, length one to embeddings; None follows the model's
            ``PoolerConfig``.
        dimensions: size to cut embeddings to; not for classification.
        step_tag_id: STEP pooling only: the token whose results are kept.
        returned_token_ids: STEP pooling only; must be the ``PoolerConfig``'s, for which programs are compiled.
        task: set by the method called; a different value than the method's is an error.
        requires_token_ids: accepted for compatibility, without effect.
        skip_reading_prefix_cache: accepted for compatibility, without effect.
        late_interaction_params: must be None; scores of token vectors come from ``LLM.score``.
        extra_kwargs: accepted for compatibility, without effect.
        output_kind: only ``FINAL_ONLY``.
    """

    use_activation: bool | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    task: str | None = None
    requires_token_ids: bool = False
    skip_reading_prefix_cache: bool | None = None
    late_interaction_params: Any = None
    extra_kwargs: dict[str, Any] | None = None
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY

    # vLLM prints these, in this order.
    _shown: ClassVar[tuple[str, ...]] = (
        "task",
        "dimensions",
        "use_activation",
        "step_tag_id",
        "returned_token_ids",
        "requires_token_ids",
        "skip_reading_prefix_cache",
        "late_interaction_params",
        "extra_kwargs",
    )

    def __new__(cls, *_args: Any, **names: Any) -> PoolingParams:
        """Refuses removed and misspelt names in vLLM's words."""
        _refuse_unknown(cls, names)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.task in REMOVED_TASKS:
            raise ValidationError(REMOVED_TASKS[self.task], parameter="task")
        if self.output_kind is not RequestOutputKind.FINAL_ONLY:
            raise ValidationError(f"For pooling output_kind has to be FINAL_ONLY, got {self.output_kind}")
        _check_flag("use_activation", self.use_activation)

    def __repr__(self) -> str:
        return f"PoolingParams({', '.join(f'{name}={getattr(self, name)}' for name in self._shown)})"

    def clone(self) -> PoolingParams:
        """A deep copy."""
        return copy.deepcopy(self)

    def for_task(self, task: str, steps: bool = False) -> PoolingParams:
        """A copy pinned to ``task``; ValidationError where it asks for what ``task`` (or other than STEP) lacks."""
        if self.task is not None and self.task != task:
            raise ValidationError(f"You cannot overwrite param.task={self.task!r} with pooling_task={task!r}!")
        if self.late_interaction_params is not None:
            raise NotImplementedError(
                f"late_interaction_params={self.late_interaction_params!r} is not possible in jaxpool; LLM.score "
                "compares the vectors of tokens where the model serves token_embed."
            )
        embeds = task in ("embed", "token_embed")
        allowed = ["dimensions", "use_activation"] if embeds else ["use_activation"]
        step = () if steps else ("step_tag_id", "returned_token_ids")
        for names, quote in (((() if embeds else ("dimensions",)), "'"), (step, "")):
            unsupported = [name for name in names if getattr(self, name) is not None]
            if unsupported:
                raise ValidationError(
                    f"Task {quote}{task}{quote} only supports {allowed} parameters, "
                    f"does not support {unsupported} parameters"
                )
        pinned = self.clone()
        pinned.task = task
        return pinned


@dataclass
class PoolerConfig:
    """How a model pools hidden states and treats logits; None means the checkpoint's own default.

    Attributes:
        task: pins the served task: classify, token_classify, embed or token_embed.
        pooling_type: short for one of the next two.
        seq_pooling_type: CLS, LAST or MEAN: one vector per text.
        tok_pooling_type: ALL or STEP: one vector per token.
        use_activation: default of requests that do not say.
        enable_flash_late_interaction: accepted for compatibility, without effect.
        dimensions: embedding only: size to cut to unless the request says otherwise.
        enable_chunked_processing: must be False: long texts are refused, or cut where a request says so.
        max_embed_len: must be None; it goes with the former.
        logit_mean: subtracted from the logits, before the activation and also without one.
        logit_sigma: divides the logits after ``logit_mean`` is taken off; not 0.
        step_tag_id: STEP pooling only: the token whose results are kept; None keeps all.
        returned_token_ids: STEP pooling only: the logits that are kept, before the activation; None keeps all.
    """

    task: str | None = None
    pooling_type: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    use_activation: bool | None = None
    enable_flash_late_interaction: bool = True
    dimensions: int | None = None
    enable_chunked_processing: bool = False
    max_embed_len: int | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None

    def __new__(cls, *_args: Any, **names: Any) -> PoolerConfig:
        """Refuses removed and misspelt names."""
        if "normalize" in names:
            raise ValidationError(
                "Parameter `normalize` was removed; use `use_activation` instead.", parameter="normalize"
            )
        _refuse_unknown(cls, names)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.pooling_type is not None:
            self._fill_from_pooling_type(self.pooling_type)
        self._check_choice("seq_pooling_type", SEQUENCE_POOLING)
        self._check_choice("tok_pooling_type", TOKEN_POOLING)
        _check_flag("use_activation", self.use_activation)
        for name in ("enable_chunked_processing", "max_embed_len"):
            if value := getattr(self, name):
                raise NotImplementedError(
                    f"{name}={value!r} is not possible in jaxpool: a text has one vector of all its tokens. Texts that "
                    "are too long are refused, or cut with truncate_prompt_tokens."
                )
        if self.logit_sigma == 0:
            raise ValidationError("logit_sigma cannot be 0 (division by zero)")

    def _fill_from_pooling_type(self, value: str) -> None:
        self._check_choice("pooling_type", SEQUENCE_POOLING + TOKEN_POOLING)
        target = "seq_pooling_type" if value in SEQUENCE_POOLING else "tok_pooling_type"
        if getattr(self, target) is not None:
            raise ValidationError(f"Cannot set both `pooling_type` and `{target}`")
        setattr(self, target, value)

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value is not None and value not in choices:
            raise ValidationError(
                f"`{name}` must be one of {', '.join(choices)}, got {value!r}.", parameter=name, value=value
            )

    @classmethod
    def of(cls, value: PoolerConfig | Mapping[str, Any] | None) -> PoolerConfig:
        """The config itself, one made from a mapping of its fields, or the default for None."""
        if value is None:
            return cls()
        if isinstance(value, Mapping):
            return cls(**value)
        if isinstance(value, cls):
            return value
        raise TypeError(f"pooler_config should be a PoolerConfig or a dict, got {type(value).__name__}")


@dataclass
class LoRARequest:
    """Names an adapter for a request.

    Attributes:
        lora_name: shown in responses.
        lora_int_id: 1 or more, unique per adapter.
        lora_path: folder or hub id.
        base_model_name: the model the adapter belongs to.
        load_inplace: reload the adapter under the same id.
        is_3d_lora_weight: accepted for compatibility, without effect.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False
    is_3d_lora_weight: bool = False

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValidationError(f"id must be > 0, got {self.lora_int_id}")


Params = PoolingParams | Sequence[PoolingParams] | None
Adapters = Sequence[LoRARequest | None] | LoRARequest | None


def broadcast(params: Params, prompts: Sequence[Any], task: str, steps: bool = False) -> list[PoolingParams]:
    """One ``PoolingParams`` per prompt, pinned to ``task``; ``steps`` says whether tokens are STEP-pooled.

    Raises:
        ValidationError: counts differ, or an option is not for ``task``.
        TypeError: ``params`` is something else.
    """
    count = len(prompts)
    if count == 1 and isinstance(prompts[0], Mapping) and "data" in prompts[0]:
        raise ValidationError("The 'data' field is only supported for the 'plugin' pooling task.")
    if params is None or isinstance(params, PoolingParams):
        return [(params or PoolingParams()).for_task(task, steps)] * count
    if not isinstance(params, Sequence) or not all(isinstance(one, PoolingParams) for one in params):
        raise TypeError(f"pooling_params should be a PoolingParams or a list of them, got {type(params).__name__}.")
    if len(params) != count:
        raise ValidationError(f"The lengths of prompts ({count}) and params ({len(params)}) must be the same.")
    return [one.for_task(task, steps) for one in params]


def per_prompt(adapters: Adapters, count: int, *, enabled: bool) -> list[LoRARequest | None]:
    """The adapter of each of ``count`` prompts: one for all of them, or a list with one, or None, for each.

    Raises:
        ValidationError: counts differ, or there is no room for adapters.
        TypeError: ``adapters`` is something else.
    """
    wanted = list(adapters) if isinstance(adapters, Sequence) else [adapters] * count
    if not all(isinstance(one, LoRARequest | None) for one in wanted):
        raise TypeError(f"lora_request should be a LoRARequest or a list of them, got {type(adapters).__name__}.")
    if not enabled and (asked := [one for one in wanted if one is not None]):
        raise ValidationError(f"Got lora_request {asked[0]} but LoRA is not enabled!")
    if len(wanted) != count:
        raise ValidationError(f"The lengths of prompts ({count}) and lora_request ({len(wanted)}) must be the same.")
    return wanted
