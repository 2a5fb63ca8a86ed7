"""What a job is: its settings, its inputs, its model; and ``job.json``, which refuses to go on with something else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxpool.batch.inputs import File
from jaxpool.batch.storage import Place, in_words
from jaxpool.batch.units import UNIT_BYTES
from jaxpool.checkpoints.digest import model_digest
from jaxpool.errors import JaxpoolError, ValidationError
from jaxpool.text.windows import LongText
from jaxpool.version import __version__

JOB = "job.json"
_SHOWN = 3  # differences of inputs named one by one


@dataclass(frozen=True, slots=True)
class Settings:
    """What changes the result of a job. Another value makes another job.

    Attributes:
        model, revision, dtype, convert, hf_overrides, max_length: as in ``LLM``.
        text_column, pair_column: what is classified.
        encoding: of files of lines.
        input_format: of all inputs; None goes by suffix.
        output_format: "parquet" or "jsonl".
        prefix: of the names of the columns added.
        logits: scores before the activation.
        top_k: labels kept of each row; None keeps all.
        long_text, window, overlap, aggregate: see ``jaxpool.text.windows.LongText``.
        recipe: as in ``LLM``.
        question: ``candidate_labels`` and what goes with them in ``LLM.classify``; None for the model's own labels.
        unit_bytes: size of a unit, about.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    convert: str = "auto"
    hf_overrides: Mapping[str, Any] | None = None
    max_length: int | None = None
    text_column: str = "text"
    pair_column: str | None = None
    encoding: str = "utf-8"
    input_format: str | None = None
    output_format: str = "parquet"
    prefix: str = ""
    logits: bool = False
    top_k: int | None = None
    long_text: str = "error"
    window: int | None = None
    overlap: int | None = None
    aggregate: str | None = None
    recipe: str | None = None
    question: Mapping[str, Any] | None = None
    unit_bytes: int = UNIT_BYTES

    def __post_init__(self) -> None:
        if self.output_format not in ("parquet", "jsonl"):
            raise ValidationError(f"parts are written as parquet or jsonl, not {self.output_format!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ValidationError(f"top_k must be 1 or more, not {self.top_k}")
        if self.unit_bytes < 1:
            raise ValidationError(f"unit_bytes must be 1 or more, not {self.unit_bytes}")

        for name, idle in (("pair_column", None), ("long_text", "error")):
            if self.question and getattr(self, name) != idle:
                raise ValidationError(f"{name} does not go with candidate_labels: they are asked of whole texts.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are classified."""
        return (self.text_column, *([self.pair_column] if self.pair_column else []))

    @property
    def kind(self) -> str:
        """Name of the column of scores."""
        return self.prefix + ("logits" if self.logits else "probs")

    def long(self, longest: int) -> LongText | None:
        """What becomes of long texts, for a model that reads ``longest`` tokens."""
        names = ("long_text", "window", "overlap", "aggregate")
        return LongText.of({name: getattr(self, name) for name in names}, longest)

    def open_model(self, **more: Any) -> Any:
        """The ``LLM`` that these settings name; ``more`` are arguments that change no result."""
        from jaxpool.llm import LLM

        return LLM(
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            convert=self.convert,
            hf_overrides=self.hf_overrides,
            max_model_len=self.max_length,
            recipe=self.recipe,
            pooler_config=None if self.question else {"task": "classify"},
            **more,
        )


def describe(settings: Settings, files: Sequence[File], units: int, json_columns: Mapping[str, str]) -> dict[str, Any]:
    """What ``job.json`` says.

    Args:
        settings: of the job.
        files: its inputs.
        units: how many units they became.
        json_columns: for parts of Parquet made of ``.jsonl``: column -> Arrow type.
    """
    return {
        "jaxpool": __version__,
        "settings": asdict(settings),
        "model": {"sha256": model_digest(settings.model, settings.revision)},
        "json_columns": dict(json_columns),
        "units": units,
        "inputs": [[file.url, file.size, file.changed] for file in files],
    }


def open_job(output: Place, described: Mapping[str, Any]) -> dict[str, Any]:
    """Begins a job in a folder, or goes on with the one that is there.

    Returns:
        what ``job.json`` says.

    Raises:
        JaxpoolError: the folder holds another job; the message says what differs.
    """
    known = read_job(output)
    if known is None:
        if any(info.base_name.startswith("part-") for info in (output / "parts").listing()):
            raise JaxpoolError(f"{output} holds parts but no {JOB}; choose an empty folder")
        with in_words(output):
            output.filesystem.create_dir(output.path, recursive=True)
        # Every process of a job describes it alike, so that it is no matter whose description stays.
        (output / JOB).write((json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode())
        known = json.loads(json.dumps(described))
    if differences := compare(known, json.loads(json.dumps(described))):
        raise JaxpoolError(
            f"{output} holds another job, and nothing in it was touched. What differs: {'; '.join(differences)}. "
            "Run the job as it was begun, or choose another folder for a new one."
        )
    return known


def read_job(output: Place) -> dict[str, Any] | None:
    """What ``job.json`` of a folder says, or None where there is none."""
    content = (output / JOB).read()
    if content is None:
        return None
    try:
        found: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise JaxpoolError(f"{output / JOB} is no JSON ({error}); was it written by jaxpool batch?") from error
    return found


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes two descriptions two jobs, in words; jaxpool's version does not."""
    found = []
    for name in sorted(then["settings"].keys() | now["settings"].keys()):
        old, new = then["settings"].get(name), now["settings"].get(name)
        if old != new:
            found.append(f"{name} was {json.dumps(old)} and is {json.dumps(new)}")
    if then["model"] != now["model"] and not any(one.startswith(("model ", "revision ")) for one in found):
        found.append("the model's files have other contents")
    old_files, new_files = ({url: rest for url, *rest in each["inputs"]} for each in (then, now))
    changes = [f"{url} is gone" for url in old_files if url not in new_files]
    changes += [f"{url} is new" for url in new_files if url not in old_files]
    for url in old_files.keys() & new_files.keys():
        (size, changed), (new_size, new_changed) = old_files[url], new_files[url]
        if size != new_size:
            changes.append(f"{url} had {size} bytes and has {new_size}")
        elif changed != new_changed:
            changes.append(f"{url} was written again")
    changes.sort()
    if not changes and list(old_files) != list(new_files):
        changes = ["the inputs are in another order"]
    more = f" and {len(changes) - _SHOWN} more inputs" if len(changes) > _SHOWN else ""
    if changes:
        found.append("; ".join(changes[:_SHOWN]) + more)
    if not found and then["json_columns"] != now["json_columns"]:
        found.append("the columns of the inputs")
    return found


def absolute(model: str | os.PathLike[str] | None) -> str | None:
    """A model's name in a form that means the same from any folder."""
    if model is None:
        return None
    word = os.fspath(model)
    return str(Path(word).absolute()) if Path(word).is_dir() else word
