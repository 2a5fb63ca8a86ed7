"""``jaxpool completion``: a script that completes commands, options and files in a shell. shtab writes it."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = """\
Write a script that completes commands, options and file names.

  jaxpool completion bash > ~/.local/share/bash-completion/completions/jaxpool
  jaxpool completion zsh > "${fpath[1]}/_jaxpool"
  jaxpool completion fish > ~/.config/fish/completions/jaxpool.fish
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``jaxpool completion``."""
    command.usage = f"jaxpool completion {{{','.join(SHELLS)}}}"
    command.description = DESCRIPTION
    command.add_argument("shell", choices=SHELLS, help="the shell that is to read the script")


def main(args: argparse.Namespace) -> int:
    """Runs the command. Options of commands whose packages are not installed are left out."""
    import shtab

    from jaxpool.commands.main import parser

    whole = parser(everything=True)
    _mark_files(whole)
    print(shtab.complete(whole, args.shell))
    return 0


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Tells shtab which arguments are names of files or folders."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_files(command)
        elif action.dest in {"input", "output", "source", "target", "train", "validation", "model"}:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
