"""An LLM belongs to the process that made it, and says so."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from jaxpool import LLM

MODEL = str(Path(__file__).parents[1] / "data" / "models" / "bert-cls")

FORK = """
import multiprocessing, sys, warnings
warnings.simplefilter("ignore")  # JAX warns of forks
from jaxpool import LLM


def in_child(llm):
    for ask in (lambda: llm.classify("a", use_tqdm=False), lambda: llm.encode([[5]], pooling_task="classify")):
        try:
            ask()
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    llm.close()
    sys.exit(7)


with LLM(sys.argv[1]) as llm:
    llm.classify("a", use_tqdm=False)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(llm,))
    child.start()
    child.join(60)
    assert child.exitcode == 7, child.exitcode
    assert len(llm.classify(["a", "b"], use_tqdm=False)) == 2
"""


@pytest.mark.skipif(not hasattr(sys, "setdlopenflags"), reason="there is no fork")
def test_a_forked_child_is_told_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, MODEL], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all(line.startswith("EngineError This LLM was made before the process forked;") for line in said)


def test_pickling_says_what_to_do() -> None:
    with LLM(MODEL) as llm, pytest.raises(TypeError, match="make the LLM in the process that uses it"):
        pickle.dumps(llm)
