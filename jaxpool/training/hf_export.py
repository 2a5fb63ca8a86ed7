"""From a store back to a Hugging Face folder: what ``jaxpool convert --to safetensors`` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxpool.errors import ValidationError


def write_checkpoint(store: Path, new: Path) -> None:
    """Writes the parameters of a store under their Hugging Face names, with configuration and tokenizer.

    A head that was made of a language model's rows becomes an ordinary one, and the configuration says so.

    Args:
        store: a folder written by ``jaxpool convert``.
        new: the folder to make.

    Raises:
        ValidationError: ``store`` is no store.
        CheckpointError: or one of its kin: it is damaged, or made with other conversion rules.
        OSError: ``new`` cannot be written.
    """
    from jaxpool.checkpoints.location import read_config
    from jaxpool.checkpoints.spec import resolve
    from jaxpool.engine import sharding
    from jaxpool.engine.programs import abstract
    from jaxpool_conversions.export import export
    from jaxpool_conversions.output_folder import copy_companions
    from jaxpool_conversions.store import is_store, open_store, read_head

    if not is_store(store):
        raise ValidationError(f"{store} is no converted store; --to safetensors writes a checkpoint back from one")
    config = read_config(store)
    spec = resolve(config, lambda *_: read_head(store), folder=store)
    leaves = open_store(store, sharding.targets(abstract(spec), sharding.make_mesh()), spec.family.table)
    tensors = export(leaves, spec.family.table, spec.source)
    for rows in ("classifier_from_token", "method", "is_original_qwen3_reranker"):  # they are an ordinary head now
        if hasattr(config, rows):
            delattr(config, rows)
    new.mkdir()
    copy_companions(store, new)
    config.save_pretrained(new)
    for module in spec.modules:  # Dense layers of a sentence encoder live in folders of their own
        start = f"{module}.linear."
        inner = {name: tensor for name, tensor in tensors.items() if start in name}
        (new / module).mkdir(exist_ok=True)
        _save({f"linear.{name.partition(start)[2]}": inner[name] for name in inner}, new / module)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in inner}
    _save(tensors, new)


def _save(tensors: dict[str, np.ndarray], folder: Path) -> None:
    from safetensors.numpy import save_file

    # transformers refuses files that do not say which framework's layout they have.
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode & 0o666)
