"""One declaration of a model's arguments: what stands there is in ``LLM``, in the commands and in the documentation."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from jaxpool.commands.options import engine_options, model_arguments
from jaxpool.engine_args import ARGUMENTS, IGNORED, REFUSED, with_defaults
from jaxpool.llm import LLM

ANOTHER = """
import argparse, inspect, sys, types
from importlib.util import find_spec

# the declaration as it stands, with one more line
file = find_spec("jaxpool.engine_args").origin
source = open(file, encoding="utf-8").read()
mark = "class EngineArgs(VllmArgs, total=False):"
assert source.count(mark) == 1
line = '    drops_of_ink: Annotated[int, Argument(3, "so much ink")]'
module = sys.modules["jaxpool.engine_args"] = types.ModuleType("jaxpool.engine_args")
exec(compile(source.replace(mark, mark + chr(10) + line), file, "exec"), module.__dict__)

from jaxpool.commands.main import parser
from jaxpool.llm import LLM

assert inspect.signature(LLM).parameters["drops_of_ink"].default == 3
assert "drops_of_ink: so much ink (default: 3)." in LLM.__doc__
try:
    LLM(drops_of_inc=3)
except TypeError as error:
    assert "Did you mean 'drops_of_ink'?" in str(error) and "download_dir, drops_of_ink, dtype" in str(error)
else:
    raise AssertionError("no error")

from jaxpool.commands import classify
from jaxpool.commands.options import model_arguments
from jaxpool_serving import command as serve

for name, module in (("classify", classify), ("serve", serve)):
    args = parser([name]).parse_args([name, "--drops-of-ink", "4"])
    assert model_arguments(args, module.MODEL)["drops_of_ink"] == 4, name
    shown = argparse.ArgumentParser()
    module.add_arguments(shown)
    assert "so much ink (default: 3)" in " ".join(shown.format_help().split()), name
"""


def test_a_new_argument_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", ANOTHER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_signature_shows_every_argument() -> None:
    shown = inspect.signature(LLM).parameters
    assert list(shown) == ["model", *ARGUMENTS, "engine_args"]
    assert {name: shown[name].default for name in ARGUMENTS} == {name: one.default for name, one in ARGUMENTS.items()}
    for name in ARGUMENTS:
        assert f"\n        {name}: " in (LLM.__doc__ or "")
    assert "{" not in (LLM.__doc__ or "")


def test_every_argument_is_declared_once() -> None:
    assert not ARGUMENTS.keys() & (IGNORED.keys() | REFUSED.keys())
    assert not IGNORED.keys() & REFUSED.keys()
    assert with_defaults({}) == {name: one.default for name, one in ARGUMENTS.items()}
    assert with_defaults({"dtype": "float32", "seed": 7})["dtype"] == "float32"
    assert "seed" not in with_defaults({"seed": 7})


@pytest.mark.parametrize("command", ["classify", "serve", "bench", "convert"])
def test_commands_without_options_say_what_the_model_would_do_anyway(command: str) -> None:
    """But for what a command decides: `jaxpool serve` compiles before it is ready."""
    from jaxpool.commands.main import COMMANDS, _command_module, parser

    room = _command_module(COMMANDS[command][0])
    arguments = room.MODEL
    words = {"bench": ["serve"], "convert": ["a", "b"]}.get(command, [])
    given = model_arguments(parser([command]).parse_args([command, *words]), arguments)
    own = {"compile": "behind"} if command == "serve" else {}
    assert given == {name: engine_options(every=True)[name].default for name in arguments} | own
