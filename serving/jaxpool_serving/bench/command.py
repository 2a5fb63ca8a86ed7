"""The command ``jaxpool bench serve``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxpool.bench.texts import LONGEST, mix
from jaxpool.commands.options import engine_options, model_options, positive
from jaxpool.errors import ValidationError
from jaxpool_serving.bench.load import Sample, closed_loop, connect, open_loop
from jaxpool_serving.bench.server import Running, own_server, read_batches

STEPS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1)
"""Rates of the ramp, as shares of the best closed-loop throughput."""

TEXTS = 2048
MODEL = engine_options(without={"runner", "pooler_config", "compile"})
"""Argument of a model -> its option, passed on to the server."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``jaxpool bench serve``."""
    parser.epilog = (
        "Starts `jaxpool serve` with the model options given here, sends it single texts with lognormal lengths "
        "(median 60 tokens, sigma 0.8, at most 512), and reports throughput and latency. Servers named with --against "
        "are measured in the same rounds, in turn. Run it alone on the machine."
    )
    parser.usage = "jaxpool bench serve [--model MODEL | --url URL] [--against NAME=URL] [options]"
    model_options(parser, MODEL)
    load = parser.add_argument_group("load").add_argument
    load("--url", help="measure the server there instead of starting one")
    load("--against", action="append", default=[], metavar="NAME=URL", help="another server to compare, repeatable")
    load("--api-key", metavar="KEY", help="bearer token for all of them")
    load("--clients", type=_numbers, default=(1, 16, 64, 256), metavar="N,N", help="clients (default: 1,16,64,256)")
    load("--seconds", type=float, default=10.0, metavar="S", help="of each measurement (default: %(default)s)")
    load("--rounds", type=positive, default=3, metavar="N", help="medians of so many (default: %(default)s)")
    load("--ramp", action="store_true", help="then Poisson arrivals, up to more than it can serve")
    load("--overload", type=float, metavar="X", help="then X times what it can serve")
    load("--overload-seconds", type=float, default=60.0, metavar="S", help="for so long (default: %(default)s)")
    load("--output", type=Path, metavar="FILE", help="write every figure as JSON")


def _numbers(word: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in word.split(","))


def main(args: argparse.Namespace) -> int:
    """Measure and report; 0 if every request was answered.

    Raises:
        JaxpoolError: a server does not start or is not there.
    """
    figures = asyncio.run(_measure(args, Console()))
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if not any(figure["lost"] for figure in figures["load"]) else 1


async def _measure(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    others = [Running(*_named(word)) for word in args.against]
    texts = mix(TEXTS, longest=min(args.max_model_len or LONGEST, LONGEST))
    async with contextlib.AsyncExitStack() as stack:
        if args.url:
            first = Running("server", args.url)
        else:
            first = await stack.enter_async_context(own_server(_server_options(args)))
            console.print(f"ready after {first.ready:.1f} s, {first.resident_mib() or 0:.0f} MiB resident")
        servers = [first, *others]
        sessions = [await stack.enter_async_context(connect(server.url, args.api_key)) for server in servers]
        figures: list[dict[str, Any]] = []
        for clients in args.clients:
            samples: list[list[Sample]] = [[] for _ in servers]
            before = await read_batches(sessions[0])
            with console.status(f"{clients} clients"):
                for _ in range(args.rounds):
                    for session, found in zip(sessions, samples, strict=True):
                        found.append(await closed_loop(session, texts, clients, args.seconds))
            for server, found in zip(servers, samples, strict=True):
                figures.append(_figure(server, f"{clients} clients", found))
            figures[-len(servers)] |= (await read_batches(sessions[0])).since(before).figures()
        best = max(figure["texts_per_second"] for figure in figures if figure["server"] == first.name)
        for step in STEPS if args.ramp else ():
            sample = await open_loop(sessions[0], texts, step * best, args.seconds)
            figures.append(_figure(first, f"{step * best:.0f}/s", [sample]))
        if args.overload:
            rate = args.overload * best
            resident = first.resident_mib()
            sample = await open_loop(sessions[0], texts, rate, args.overload_seconds)
            after = await closed_loop(sessions[0], texts, 1, 2.0)
            figures.append(_figure(first, f"{rate:.0f}/s", [sample]) | _memory(resident, first.resident_mib()))
            figures.append(_figure(first, "then 1 client", [after]))
    console.print(_table(figures))
    return {"ready_seconds": first.ready, "texts": len(texts), "load": figures}


def _figure(server: Running, load: str, samples: Sequence[Sample]) -> dict[str, Any]:
    statuses: dict[str, int] = {}
    for sample in samples:
        for status, count in sample.statuses.items():
            statuses[str(status)] = statuses.get(str(status), 0) + count
    return {
        "server": server.name,
        "load": load,
        "texts_per_second": median(sample.rate for sample in samples),
        "p50_ms": median(sample.percentile(50) for sample in samples),
        "p99_ms": median(sample.percentile(99) for sample in samples),
        "statuses": statuses,
        "lost": statuses.get("0", 0),
    }


def _memory(before: float | None, after: float | None) -> dict[str, Any]:
    return {} if before is None or after is None else {"resident_mib": [before, after]}


def _table(figures: Sequence[dict[str, Any]]) -> Table:
    table = Table("server", "load", "texts/s", "p50 ms", "p99 ms", "per batch", "padding", "answers", box=None)
    table.columns[1].no_wrap = True
    for figure in figures:
        answers = ", ".join(
            f"{count} {'lost' if status == '0' else status}" for status, count in sorted(figure["statuses"].items())
        )
        numbers = (f"{figure[name]:.1f}" for name in ("texts_per_second", "p50_ms", "p99_ms"))
        batch = (f"{figure['texts_per_batch']:.1f}", f"{figure['padding']:.1%}") if "padding" in figure else ("", "")
        table.add_row(figure["server"], figure["load"], *numbers, *batch, answers)
    return table


def _server_options(args: argparse.Namespace) -> list[str]:
    options = {
        "--model": args.model,
        **{f"--{name.replace('_', '-')}": getattr(args, name) for name in MODEL},
        "--api-key": args.api_key,
    }
    return [word for name, value in options.items() for word in _option(name, value)]


def _option(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    return [name] if value is True else [name, json.dumps(value) if isinstance(value, dict) else str(value)]


def _named(word: str) -> tuple[str, str]:
    name, sign, url = word.partition("=")
    if not sign:
        raise ValidationError(f"--against takes NAME=URL, not {word!r}.")
    return name, url
