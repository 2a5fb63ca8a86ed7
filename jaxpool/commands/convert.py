"""``jaxpool convert``: a checkpoint into a store of parameters as the model holds them; and a store back into one."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpool.commands.options import engine_options, model_arguments, model_options
from jaxpool.errors import CheckpointError, ValidationError
from jaxpool.files.destinations import check_folder, probe, reason

DESCRIPTION = """\
Write a checkpoint as a store: its parameters renamed, stacked and cast once, so that
opening it is only reading.

  jaxpool convert org/some-classifier some-classifier-store
  jaxpool classify --model some-classifier-store "Loved the new café."

--convert, --hf-overrides and --dtype are settled here; the store needs none of them.
An adapter (PEFT's LoRA) is put into the weights with --lora. The way back, to a folder that
transformers reads:

  jaxpool convert some-classifier-store some-classifier --to safetensors
"""

MODEL = {name: engine_options()[name] for name in ("revision", "dtype", "convert", "hf_overrides", "merge_lora")}
MODEL["convert"] = replace(
    MODEL["convert"], about="classify: make a classifier of a language model", choices=("auto", "classify")
)
"""Argument of a model -> its option, of those that a store settles."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares the options of ``jaxpool convert``."""
    command.usage = "jaxpool convert SRC DST [--force] [options]"
    command.description = DESCRIPTION
    command.add_argument("source", metavar="SRC", help="checkpoint folder or hub id")
    command.add_argument("target", metavar="DST", type=Path, help="folder to write")
    command.add_argument(
        "--to",
        choices=("store", "safetensors"),
        default="store",
        help="safetensors: write a Hugging Face folder back from a store (default: store)",
    )
    command.add_argument("--force", action="store_true", help="replace DST if it is a store already")
    model_options(command, MODEL, named=False)


def main(args: argparse.Namespace) -> int:
    """Runs the command; errors are JaxpoolErrors for the caller to print."""
    if args.to == "safetensors":
        unconvert(args.source, args.target, force=args.force)
    else:
        convert(args.source, args.target, force=args.force, **model_arguments(args, MODEL))
    size = sum(path.stat().st_size for path in args.target.rglob("*") if path.is_file())
    print(f"jaxpool: wrote {args.target} ({size / 1e6:,.1f} MB)", file=sys.stderr)
    return 0


def convert(
    source: str | os.PathLike[str],
    target: Path,
    *,
    force: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    convert: str = "auto",
    hf_overrides: dict[str, Any] | None = None,
    merge_lora: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a store; ``target`` appears under its name only when complete.

    Args:
        source: checkpoint folder or hub id.
        target: the folder to make.
        force: replace ``target`` if it is a store, never anything else.
        revision, dtype, convert, hf_overrides, merge_lora: as in ``LLM``.

    Raises:
        ValidationError: ``target`` exists, or may not be replaced, or ``source`` is a store already.
        CheckpointError: or one of its kin: ``source`` cannot be opened, ``target`` cannot be written.
    """
    check_target(target, source, force)
    probe(target.parent)

    import jax

    from jaxpool.checkpoints.adapters import adapt, open_adapter
    from jaxpool.checkpoints.labels import config_field, text_configs
    from jaxpool.checkpoints.location import locate, read_config
    from jaxpool.checkpoints.sentence_transformers import modules_root
    from jaxpool.checkpoints.spec import resolve
    from jaxpool.engine import sharding
    from jaxpool.engine.merging import merged
    from jaxpool.engine.opening import head_source, stored_dtype
    from jaxpool.engine.programs import abstract
    from jaxpool.text.vocabulary import read_tokenizer
    from jaxpool.version import __version__
    from jaxpool_conversions.families.token_heads import REWARDS
    from jaxpool_conversions.load import load
    from jaxpool_conversions.output_folder import copy_companions
    from jaxpool_conversions.reader import Reader
    from jaxpool_conversions.store import fingerprint, is_store, write_store

    folder = locate(source, revision=revision)
    if is_store(folder):
        raise ValidationError(f"{source} is a converted store already; convert its original checkpoint instead")
    config = read_config(folder, hf_overrides)
    adapter = None if merge_lora is None else open_adapter(merge_lora)
    if adapter is not None:
        adapt(config, adapter)
    tokenizer = read_tokenizer(folder) if config_field(config, "classifier_from_token") else None
    with Reader(folder) as reader:
        if adapter is not None:
            reader.replace(adapter.replaced, adapter.folder)
        spec = resolve(
            config,
            lambda family, labels, width: head_source(folder, reader, family, config, labels, width, tokenizer),
            folder=folder,
            stored_dtype=stored_dtype(reader),
            platform=jax.default_backend(),
            dtype=dtype,
            convert=convert,
        )
        for module in spec.modules:
            reader.attach(module, modules_root(folder))
        targets = sharding.targets(abstract(spec), sharding.make_mesh())
        leaves = load(reader, spec.family.table, spec.source, targets)
    if adapter is not None:
        leaves = merged(leaves, adapter, spec.family.table)

    meta = {
        "jaxpool": __version__,
        "architecture": spec.architecture,
        "dtype": spec.dtype,
        "table": fingerprint(spec.family.table),
    }
    # What was decided here is written down, so that the store needs no flags.
    own = ("ForSequenceClassification", "ForTokenClassification", *REWARDS)
    if not spec.num_labels:
        config.architectures = [f"{spec.family.prefix_class}Model"]
    elif spec.labels and not spec.architecture.endswith(own):
        config.architectures = [f"{spec.family.prefix_class}ForSequenceClassification"]
        if spec.pooling == "LAST":  # but a class of that name passes over padding tokens, where it knows any
            text_configs(config)[-1].pad_token_id = -1
    if spec.labels:
        config.id2label = dict(enumerate(spec.labels))
        config.label2id = {label: index for index, label in config.id2label.items()}
    config.dtype = spec.dtype
    with _replacing(target) as new:
        write_store(new, leaves, spec.source, meta, folder)
        copy_companions(modules_root(folder), new)  # of a model in a folder below them
        vars(config).pop("raw", None)
        config.save_pretrained(new)
        check_target(target, source, force)  # minutes have passed


def check_target(target: Path, source: str | os.PathLike[str], force: bool) -> None:
    """Refuses to write where something would be lost: an existing folder is replaced by ``force`` if it is a store.

    Raises:
        ValidationError: ``target`` is not free, and why it stays.
    """
    from jaxpool_conversions.store import is_store, strays

    check_folder(target, [Path(source).expanduser()] if Path(source).expanduser().exists() else [])
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not is_store(target):
        raise ValidationError(
            f"{target} exists already and is no store of jaxpool's, which is all that --force replaces; "
            "choose another folder"
        )
    if not force:
        raise ValidationError(f"{target} exists already; choose another folder, or replace this store with --force")
    if foreign := strays(target):
        raise ValidationError(
            f"{target} is a store, but also holds {foreign[0]}, which jaxpool did not write and will not delete; "
            "move it, or choose another folder"
        )


def unconvert(source: str | os.PathLike[str], target: Path, *, force: bool = False) -> None:
    """Writes a Hugging Face folder back from a store; ``target`` appears under its name only when complete.

    Args:
        source: a folder written by ``convert``.
        target: the folder to make.
        force: replace an existing ``target``, if it is a store.

    Raises:
        ValidationError: ``target`` exists, or may not be replaced, or ``source`` is no store.
        CheckpointError: or one of its kin: ``source`` is damaged, ``target`` cannot be written.
    """
    check_target(target, source, force)
    probe(target.parent)

    from jaxpool.training.hf_export import write_checkpoint

    with _replacing(target) as new:
        write_checkpoint(Path(source).expanduser(), new)
        check_target(target, source, force)  # minutes may have passed


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A name beside ``target`` to write under; takes the place of ``target`` when the block ends well."""
    target = target.resolve()
    new, old = (target.with_name(f".{target.name}.{os.getpid()}.{state}") for state in ("new", "old"))
    try:
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(new), str(target))) from error
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {reason(error)}") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (new, old):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
