"""The arguments of a model, each declared once: for ``LLM``, for the commands that open one, for type checkers."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from jaxpool.params import PoolerConfig
from jaxpool.vllm_args import Ignored, Refused, VllmArgs

Class = TypeVar("Class")
logger = logging.getLogger(__name__)
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Argument:
    """What an argument means, for Python and for the command line.

    Attributes:
        default: what it is if nobody says.
        about: what it means; the help text of its option.
        unset: in words, what None does.
        python: what ``about`` leaves out because only callers from Python need it.
        choices: what it may be, for the command line; Python is told by whoever reads the value.
        metavar: what its option takes; else its type decides.
        option: whether commands have it, as ``--max-model-len`` for ``max_model_len``.
        also: other spellings of the option.
        kind: its type, as annotated.
    """

    default: Any
    about: str
    unset: str = ""
    python: str = ""
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    option: bool = True
    also: tuple[str, ...] = ()
    kind: Any = None

    @property
    def default_in_words(self) -> str:
        """The default as documentation has it; nothing where the text says enough."""
        return self.unset if self.default is None else "" if self.default is False else str(self.default)


class EngineArgs(VllmArgs, total=False):
    """Every argument of ``LLM`` but the model itself: jaxpool's, beside what else vLLM has."""

    runner: Annotated[
        str,
        Argument(
            "auto",
            "pooling: an architecture that is no classifier by its name gives embeddings",
            choices=("auto", "pooling"),
            metavar="HOW",
        ),
    ]
    convert: Annotated[
        str,
        Argument(
            "auto",
            "classify: make a classifier of a language model; embed: an embedder of any model",
            choices=("auto", "classify", "embed"),
            metavar="HOW",
        ),
    ]
    tokenizer: Annotated[PathLike | None, Argument(None, "folder or hub id of another tokenizer", option=False)]
    chat_template: Annotated[
        PathLike | None,
        Argument(None, "a Jinja template, or its file, that ``score`` reads pairs through", option=False),
    ]
    skip_tokenizer_init: Annotated[bool, Argument(False, "load none; prompts are token ids then", option=False)]
    trust_remote_code: Annotated[bool, Argument(False, "accepted; a checkpoint's own code is never run", option=False)]
    tensor_parallel_size: Annotated[int, Argument(1, "devices that share every layer of a copy")]
    pipeline_parallel_size: Annotated[int, Argument(1, "groups of such devices that share the layers of a copy")]
    data_parallel_size: Annotated[int | None, Argument(None, "copies", "as many as the devices allow")]
    dtype: Annotated[
        str,
        Argument(
            "auto",
            "of the weights: auto, float32, bfloat16",
            choices=("auto", "float32", "bfloat16", "float", "half", "float16"),
            metavar="DTYPE",
        ),
    ]
    revision: Annotated[str | None, Argument(None, "branch, tag or commit of a hub id")]
    tokenizer_revision: Annotated[str | None, Argument(None, "the same for ``tokenizer``", option=False)]
    hf_token: Annotated[bool | str | None, Argument(None, "token for the hub", option=False)]
    hf_overrides: Annotated[
        Mapping[str, Any] | Callable[..., Any] | None,
        Argument(None, "changes to config.json", python="a dict, or a callable from config to config"),
    ]
    pooler_config: Annotated[
        PoolerConfig | Mapping[str, Any] | None,
        Argument(None, "how the model pools, fields of vLLM's PoolerConfig, task for one", "as the model is made"),
    ]
    max_model_len: Annotated[
        int | None, Argument(None, "most tokens of a text", "the model's limit", also=("--max-length",))
    ]
    max_num_batched_tokens: Annotated[
        int | None, Argument(None, "most tokens of a batch, padding included", also=("--batch-tokens",))
    ]
    merge_lora: Annotated[
        PathLike | None,
        Argument(None, "a PEFT adapter to put into the weights", metavar="ADAPTER", also=("--lora",)),
    ]
    enable_lora: Annotated[
        bool,
        Argument(
            False,
            "make room for PEFT adapters, each chosen by request",
            option=False,
            python="``lora_request`` then names one, for a call or for each prompt",
        ),
    ]
    max_loras: Annotated[int, Argument(1, "adapters that are loaded at a time", option=False)]
    max_lora_rank: Annotated[
        int, Argument(16, "the largest rank of theirs: 1, 8, 16, 32, 64, 128, 256, 320 or 512", option=False)
    ]
    max_lora_cls_labels: Annotated[
        int | None, Argument(None, "most labels of theirs", "as many as the model has", option=False)
    ]
    download_dir: Annotated[PathLike | None, Argument(None, "where hub downloads are kept", option=False)]
    recipe: Annotated[
        str | None,
        Argument(None, "of a published model, see jaxpool recipes", "by the model's name", metavar="NAME"),
    ]
    compile: Annotated[
        Literal["on_demand", "ahead", "behind"],
        Argument(
            "on_demand",
            "ahead: ready when every program is compiled; behind: ready with a few, the others follow",
            python="on_demand: each when it is first needed. With ahead and behind no prompt ever waits for a compile",
        ),
    ]
    deterministic: Annotated[
        bool,
        Argument(
            False,
            "scores do not depend on the texts computed beside a text, bit for bit; slower",
            python="else short prompts may share a row of a batch, and scores differ by rounding, 1e-6 in float32",
        ),
    ]
    enable_prefix_caching: Annotated[
        bool | None,
        Argument(
            None,
            "compute what texts begin with alike once; for causal models",
            "where the model allows it",
            python="never with deterministic",
        ),
    ]
    kv_cache_memory_bytes: Annotated[
        int | None,
        Argument(
            None,
            "most bytes of shared beginnings that are kept, on each device",
            "a tenth of what is free",
            metavar="BYTES",
        ),
    ]
    attention_backend: Annotated[
        str | None,
        Argument(
            None,
            "kernel of every attention that it can compute: dense, blocks, cudnn (GPU) or splash (TPU)",
            "chosen call by call",
            metavar="NAME",
            python="see ``jaxpool.ops.kernels``; vLLM's names have no effect",
        ),
    ]


_HINTS = get_type_hints(EngineArgs, include_extras=True)
_DECLARED = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}

ARGUMENTS: dict[str, Argument] = {
    name: replace(one, kind=_HINTS[name].__origin__) for name, one in _DECLARED.items() if isinstance(one, Argument)
}
"""Arguments that mean something here."""
IGNORED: dict[str, str] = {name: one.why for name, one in _DECLARED.items() if isinstance(one, Ignored)}
"""Accepted for compatibility and without effect; the value is why."""
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    name: (one.harmless, one.why) for name, one in _DECLARED.items() if isinstance(one, Refused)
}
"""Would change results: the values that ask for nothing, and why any other is an error."""


def with_defaults(given: EngineArgs) -> EngineArgs:
    """The arguments that mean something here, those that are not given with their defaults.

    Args:
        given: keyword arguments of ``LLM``.

    Raises:
        TypeError: an argument nobody knows.
        NotImplementedError: an argument of vLLM's that jaxpool cannot honour.
    """
    for name, value in given.items():
        if name not in _DECLARED:
            near = difflib.get_close_matches(name, ["model", *_DECLARED], n=1, cutoff=0.7)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            taken = ", ".join(sorted(["model", *ARGUMENTS]))
            raise TypeError(
                f"LLM() got an unexpected keyword argument {name!r}; it takes {taken}, and vLLM's others.{hint}"
            )
        check(name, value)
    if ignored := sorted(given.keys() & IGNORED.keys()):
        logger.info("accepted without effect: %s", "; ".join(f"{name} ({IGNORED[name]})" for name in ignored))
    found: Any = {name: given.get(name, one.default) for name, one in ARGUMENTS.items()}
    return found


def check(name: str, value: Any, refused: tuple[tuple[Any, ...], str] | None = None) -> None:
    """Raises NotImplementedError where an argument of vLLM's asks for what jaxpool cannot honour.

    Args:
        name, value: of the argument.
        refused: the values that ask for nothing, and why others are errors; None: as declared.
    """
    harmless, why = refused or REFUSED.get(name, ((value,), ""))
    if value not in harmless:
        raise NotImplementedError(f"{name}={value!r} is not possible in jaxpool: {why}.")


def takes_engine_args(of: type[Class]) -> type[Class]:
    """A decorator of a class made from ``**engine_args``: its signature and its documentation show `ARGUMENTS`."""
    init: Any = of.__init__
    signature = inspect.signature(init)
    *first, rest = signature.parameters.values()
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.kind)
        for name, one in ARGUMENTS.items()
    ]
    init.__signature__ = signature.replace(parameters=[*first, *named, rest])
    if of.__doc__ is not None:  # python -OO
        lines = [textwrap.fill(_described(name, one), 112, subsequent_indent="    ") for name, one in ARGUMENTS.items()]
        of.__doc__ = of.__doc__.replace("        {ARGUMENTS}", textwrap.indent("\n".join(lines), " " * 8))
    return of


def _described(name: str, one: Argument) -> str:
    parts = [one.about, *([one.python] if one.python else [])]
    default = f" (default: {one.default_in_words})" if one.default_in_words else ""
    return f"{name}: {'; '.join(parts)}{default}."
