"""All that is read of a model before its weights: folders, config, vocabulary, the recipe of a published one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpool.checkpoints import parsed_cache, recipes
from jaxpool.checkpoints.location import locate
from jaxpool.errors import ValidationError
from jaxpool.params import PoolerConfig
from jaxpool.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from jaxpool_conversions.peft_folder import PeftAdapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What lies beside the weights.

    Attributes:
        folder: of the checkpoint.
        tokenizer_folder: of the tokenizer files, the same unless another tokenizer was named.
        config: transformers config, overrides applied.
        vocabulary: None where there is none, or none was wanted.
        recipe: of a published model, or None.
        convert, pooler: as given, or as the recipe has them.
        adapter: what is merged into the weights, or None.
        find_adapter: reads another one, of a folder or hub id.
    """

    folder: Path
    tokenizer_folder: Path
    config: Any
    vocabulary: Vocabulary | None
    recipe: recipes.Recipe | None
    convert: str
    pooler: PoolerConfig
    adapter: PeftAdapter | None
    find_adapter: Callable[[str], PeftAdapter]


def read_model(model: str | os.PathLike[str] | None, args: Mapping[str, Any]) -> ModelFiles:
    """Finds and reads a model's small files.

    Args:
        model: as for ``LLM``.
        args: the arguments of ``LLM``, all of them.

    Raises:
        CheckpointError: or one of its kin: something cannot be found or read.
        ValidationError: arguments contradict each other.
    """
    tokenizer, pooler = args["tokenizer"], PoolerConfig.of(args["pooler_config"])
    hub: dict[str, Any] = {"token": args["hf_token"], "cache_dir": args["download_dir"]}
    folder = locate(model, revision=args["revision"], **hub)
    tokenizer_folder = folder
    if tokenizer is None and (revision := args["tokenizer_revision"]) is not None:
        raise ValidationError(f"tokenizer_revision={revision!r} needs a tokenizer=… from the hub.")
    if tokenizer is not None:
        tokenizer_folder = locate(tokenizer, revision=args["tokenizer_revision"], weights=False, **hub)
    if args["trust_remote_code"]:
        logger.warning("trust_remote_code has no effect: jaxpool never runs code from a checkpoint.")
    read_from = None if args["skip_tokenizer_init"] else tokenizer_folder
    config, vocabulary = parsed_cache.read(folder, read_from, args["hf_overrides"])
    convert = args["convert"]
    overridden = recipes.is_overridden(args["runner"], convert, args["hf_overrides"])
    known = recipes.find(args["recipe"], model, folder, overridden=overridden)
    if known is not None:
        convert, pooler = recipes.apply(known, config, vocabulary, convert, pooler)

    def found(path: str) -> PeftAdapter:
        return find_adapter(path, **hub)

    adapter = None if args["merge_lora"] is None else found(args["merge_lora"])
    return ModelFiles(folder, tokenizer_folder, config, vocabulary, known, convert, pooler, adapter, found)


def find_adapter(path: str | os.PathLike[str], **hub: Any) -> PeftAdapter:
    """As ``adapters.open_adapter``, which brings JAX."""
    from jaxpool.checkpoints.adapters import open_adapter

    return open_adapter(path, **hub)
