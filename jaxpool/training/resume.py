"""Training that was interrupted goes on where it stood: its state on disk, after every epoch, until it is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.errors import JaxpoolError
from jaxpool.training.data import Labelled
from jaxpool.training.loop import Epoch, State
from jaxpool.training.metrics import Errors, Scores
from jaxpool.training.recipe import Recipe
from jaxpool.version import __version__

_FILE = "state.safetensors"


class Saved:
    """The state of one training, in a hidden folder beside its output.

    Args:
        output: the folder that training will write.
        recipe, parts: what the training is; a state of another one is not taken.
        model: folder that it started from.
    """

    def __init__(self, output: Path, recipe: Recipe, parts: tuple[Labelled, ...], model: Path) -> None:
        self.folder = output.with_name(f".{output.name}.training")
        digest = hashlib.sha256()
        for piece in (__version__, str(model.resolve()), dataclasses.astuple(recipe)):
            digest.update(repr(piece).encode())
        for part in parts:
            for text, label in zip(part.texts, part.labels):
                digest.update(repr((text, label)).encode())
        self._key = digest.hexdigest()

    def load(self) -> State | None:
        """Where the same training stood, or None where there is no state of it.

        Raises:
            JaxpoolError: the state is of another training (other texts, options, model or version), or damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not (self.folder / _FILE).is_file():
            return None
        try:
            with safe_open(self.folder / _FILE, framework="numpy") as file:
                notes = json.loads(file.metadata()["notes"])
                arrays: dict[str, np.ndarray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if notes["key"] != self._key:
                raise JaxpoolError(
                    f"{self.folder} holds an interrupted training of other texts, options, model or version; remove "
                    "it, or leave out --resume to begin anew."
                )
            return _state(notes, arrays)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise JaxpoolError(f"{self.folder} is damaged ({error}); remove it to begin anew.") from error

    def save(self, state: State) -> None:
        """Replaces what was saved, all at once. JaxpoolError where it cannot be written."""
        from safetensors.numpy import save_file

        arrays = {f"trained/{path}": array for path, array in state.trained.items()}
        arrays |= {f"best/{path}": array for path, array in state.best.items()}
        arrays |= {f"moment/{i:06}": array for i, array in enumerate(state.moments)}
        notes = {
            "key": self._key,
            "best_epoch": state.best_epoch,
            "history": [dataclasses.asdict(epoch) for epoch in state.history],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self.folder / f"{_FILE}.new"
            contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            save_file(contiguous, new, {"notes": json.dumps(notes)})
            new.replace(self.folder / _FILE)
        except OSError as error:
            raise JaxpoolError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def remove(self) -> None:
        """Forgets the state."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _state(notes: dict[str, Any], arrays: dict[str, np.ndarray]) -> State:
    def of(kind: str) -> dict[str, np.ndarray]:
        return {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{kind}/")}

    history = []
    for line in notes["history"]:
        scores = line["scores"]
        if "r2" in scores:
            line["scores"] = Errors(**scores)
        else:
            tuples = {name: tuple(value) for name, value in scores.items() if isinstance(value, list)}
            tuples["confusion"] = tuple(map(tuple, tuples["confusion"]))
            line["scores"] = Scores(**{**scores, **tuples})
        history.append(Epoch(**line))
    moments = of("moment")
    return State(of("trained"), [moments[name] for name in sorted(moments)], of("best"), notes["best_epoch"], history)
