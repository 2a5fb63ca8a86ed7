"""The command ``jaxpool run-batch``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpool.checkpoints.digest import model_digest
from jaxpool.commands.options import engine_options, model_arguments, model_options
from jaxpool_serving.batch_file import URLS, BatchFile
from jaxpool_serving.command import named_models

if TYPE_CHECKING:
    from jaxpool.llm import LLM

DESCRIPTION = f"""\
Answer a file of requests in OpenAI's batch format, as the server would, in order, with memory that does not grow.

  jaxpool run-batch -i requests.jsonl -o answers.jsonl --model my-model

A line is {{"custom_id": "1", "method": "POST", "url": "/classify", "body": {{"input": "…"}}}}; the URLs are
{", ".join(URLS)}.
A run that was killed goes on where it was when the same command is given again. A request that fails has its error in
its answer, and the others go on.
"""


MODEL = engine_options(without={"compile"})
"""Argument of a model -> its option."""

SPEED = {
    "max_num_batched_tokens",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "attention_backend",
}
"""Arguments that change how fast answers come, and not what they are: another run may go on with others."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the options of ``jaxpool run-batch``."""
    command.description = DESCRIPTION
    add = command.add_argument
    add("-i", "--input-file", metavar="FILE", type=Path, required=True, help="requests, a JSON object a line")
    add("-o", "--output-file", metavar="FILE", type=Path, required=True, help="answers; it appears when it is complete")
    add("--quiet", action="store_true", help="no progress on standard error")
    add = model_options(command, MODEL)
    add("--served-model-name", metavar="NAME", help="name in requests and responses (default: from --model)")


def main(args: argparse.Namespace) -> int:
    """Run it; 0 when every line has an answer, whatever the answers say."""
    [(name, model)] = named_models([args.model] if args.model else None, args.served_model_name).items()
    settings = model_arguments(args, MODEL)
    answers = {key: value for key, value in settings.items() if key not in SPEED}
    job = answers | {"model": model, "name": name, "digest": model_digest(model, args.revision)}
    run = BatchFile(args.input_file, args.output_file, job)

    def open_llm() -> LLM:
        from jaxpool.llm import LLM

        return LLM(model, compile="behind", **settings)

    started, told = time.monotonic(), time.monotonic()

    def report(answers: int) -> None:
        nonlocal told
        if time.monotonic() - told > 5 and not args.quiet:
            told = time.monotonic()
            speed = (answers - run.before) / (told - started)
            print(f"jaxpool run-batch: {answers} answers, {speed:.0f}/s", file=sys.stderr, flush=True)

    if run.before and not args.quiet:
        print(f"jaxpool run-batch: {run.before} answers are there already", file=sys.stderr, flush=True)
    failed = asyncio.run(run.answer(name, open_llm, report=report))
    if failed and not args.quiet:
        print(f"jaxpool run-batch: {failed} answers are errors", file=sys.stderr, flush=True)
    return 0
