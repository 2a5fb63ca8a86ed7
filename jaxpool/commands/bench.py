"""``jaxpool bench``: how fast a model is here, alone or against others; ``jaxpool bench serve`` measures a server."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from jaxpool.commands.options import engine_options, model_options, positive
from jaxpool.errors import JaxpoolError

if TYPE_CHECKING:
    from jaxpool.bench.contenders import Contender

DESCRIPTION = """\
Measure a model offline, or a server under load. Run it alone on the machine.

  jaxpool bench --model my-model
  jaxpool bench --model my-model --dtype float32 --against transformers --against onnxruntime --json figures.json
  jaxpool bench serve --model my-model

Texts are the lines of --input, or a seeded mix of lognormal lengths (median 60 tokens, sigma 0.8, at most 512). Every
contender runs in a process of its own, and they take turns. Ratios are texts per second of jaxpool over the other's.
"""
SERVE = "jaxpool_serving.bench.command"  # found by name: nobody imports the server
LATENCIES = 40
ODD = (37, 101, 203)
"""Words of texts whose exact lengths nothing was asked for before."""


MODEL = {name: engine_options()[name] for name in ("revision", "dtype", "convert", "hf_overrides", "max_model_len")}
MODEL["max_model_len"] = replace(MODEL["max_model_len"], unset="512, or the model's", also=())
"""Argument of a model -> its option, of those that the contenders know as well."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares the options of ``jaxpool bench`` and of ``jaxpool bench serve``."""
    command.usage = (
        "jaxpool bench [--model MODEL] [--input FILE] [--against NAME] [options]\n       jaxpool bench serve …"
    )
    command.description = DESCRIPTION
    what = command.add_subparsers(dest="what", metavar="serve", title="a server instead")
    serve = what.add_parser("serve", help="answer times and throughput of the HTTP server")
    serve.set_defaults(missing=None)
    try:
        importlib.import_module(SERVE).add_arguments(serve)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("jaxpool"):
            raise
        serve.set_defaults(missing=error.name)
    model_options(command, MODEL)
    add = command.add_argument_group("load").add_argument
    add("--input", metavar="FILE", type=Path, help="texts, one a line (default: the seeded mix)")
    add("--texts", metavar="N", type=positive, default=2048, help="of the mix, or at most (default: %(default)s)")
    add("--rounds", metavar="N", type=positive, default=3, help="medians of so many (default: %(default)s)")
    about = "transformers, onnxruntime or vllm: compare with it, repeatable"
    add(
        "--against",
        action="append",
        default=[],
        metavar="NAME",
        choices=("transformers", "onnxruntime", "vllm"),
        help=about,
    )
    about = "interpreter of another environment for a peer; jaxpool's folder must be on its path"
    add("--python", action="append", default=[], metavar="NAME=PATH", help=about)
    add("--json", metavar="FILE", type=Path, help="write every figure as JSON")


def main(args: argparse.Namespace) -> int:
    """Measures and reports; 1 if a peer that was asked for could not be measured.

    Raises:
        JaxpoolError: the model cannot be opened, or fails.
    """
    if args.what == "serve":
        if args.missing:
            raise JaxpoolError(
                f"the package {args.missing!r} is not installed; get it with: pip install 'jaxpool[serve]'"
            )
        code: int = importlib.import_module(SERVE).main(args)
        return code
    texts, alone = _texts(args)
    figures = _measure(args, texts, alone)
    _print(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if figures["not_measured"] else 0


def _texts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Texts for bulk calls, and others of the same kind to send alone."""
    from jaxpool.bench.texts import LONGEST, mix

    if args.input is None:
        longest = min(args.max_model_len or LONGEST, LONGEST)
        return mix(args.texts, longest=longest), mix(LATENCIES, longest=longest, seed=1)
    lines = [line.strip() for line in args.input.read_text(encoding="utf-8").splitlines()]
    texts = [line for line in lines if line][: args.texts]
    if not texts:
        raise JaxpoolError(f"{args.input} holds no texts")
    return texts, texts[:: max(1, len(texts) // LATENCIES)][:LATENCIES]


def _measure(args: argparse.Namespace, texts: Sequence[str], alone: Sequence[str]) -> dict[str, Any]:
    from jaxpool.bench.contenders import alternate, rate, running
    from jaxpool.bench.peers import PEERS
    from jaxpool.checkpoints.location import locate, read_config
    from jaxpool.version import __version__

    folder = locate(args.model, revision=args.revision)
    config = read_config(folder, args.hf_overrides)
    known = getattr(config, "max_position_embeddings", None) or 512
    longest = args.max_model_len or min(512, known)
    task = {"folder": str(folder), "dtype": args.dtype, "longest": longest, "texts": list(texts)}
    task["options"] = {"convert": args.convert, "hf_overrides": args.hf_overrides}
    pythons = dict(word.partition("=")[::2] for word in args.python)
    not_measured: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        environment = {"JAXPOOL_CACHE_DIR": str(Path(place).resolve())}
        with running("jaxpool", task, environment=environment) as cold:
            start = {"cold": cold.about}
            cold.settle()
        ours = stack.enter_context(running("jaxpool", task, environment=environment))
        start["warm"] = ours.about
        contenders = [ours]
        # as ours decided: a peer measured in another precision is another model
        task = {**task, "dtype": ours.about["dtype"]}
        for name in dict.fromkeys(args.against):
            absent = [] if name in pythons else PEERS[name].absent
            if absent:
                not_measured[name] = f"{', '.join(absent)} not installed; get it with: {PEERS[name].get}"
                continue
            try:
                contenders.append(stack.enter_context(running(name, task, python=pythons.get(name, sys.executable))))
            except JaxpoolError as error:
                not_measured[name] = str(error)
        for one in contenders:
            one.settle()
        seconds = alternate(contenders, args.rounds)
        rates = {key: rate(len(texts), found) for key, found in seconds.items()}
        mine = rates["jaxpool", "classify"]
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"jaxpool": __version__, "jax": ours.about["jax"]},
            "model": args.model or "embedded",
            "device": ours.about["device"],
            "devices": ours.about["devices"],
            "dtype": ours.about["dtype"],
            "texts": len(texts),
            "rounds": args.rounds,
            "start": start,
            "contenders": [
                {"name": one.name, "way": way, "texts_per_second": rates[one.name, way],
                 "ratio": mine / rates[one.name, way], "seconds": seconds[one.name, way],
                 "alone_ms": median(one.alone(way, alone)) * 1e3}
                for one in contenders for way in one.about["ways"]
            ],
            "first_of_its_length_ms": _odd(ours),
            "jaxpool": ours.figures(median(seconds["jaxpool", "classify"])),
            "not_measured": not_measured,
        }  # fmt: skip


def _odd(ours: Contender) -> list[float]:
    from jaxpool.bench.texts import WORDS

    texts = [" ".join((WORDS * 2)[:count]) for count in ODD]
    return [seconds * 1e3 for seconds in ours.alone("classify", texts)]


def _print(figures: dict[str, Any]) -> None:
    from jaxpool.files.terminal import table

    ours = figures["jaxpool"]
    print(
        f"{figures['model']}, {figures['dtype']}, {figures['devices']} x {figures['device']}, {figures['texts']} texts"
    )
    rows = [
        (
            f"{one['name']} ({one['way']})",
            f"{one['texts_per_second']:,.1f}",
            f"{one['alone_ms']:.2f}",
            f"{one['ratio']:.2f}",
        )
        for one in figures["contenders"]
    ]
    print(table(("", "texts/s", "ms alone", "jaxpool : it"), rows))
    facts = {
        "first of its length": ", ".join(f"{ms:.1f} ms" for ms in figures["first_of_its_length_ms"]),
        "padding": f"{ours['padding']:.1%}",
        "predicted : measured": f"{ours['predicted_seconds']:.3f} s : "
        f"{median(figures['contenders'][0]['seconds']):.3f} s",
        "achieved": f"{ours['flops_per_second'] / 1e9:,.0f} GFLOP/s, {ours['share_of_matmul']:.0%} of a matmul's "
        f"{ours['matmul_flops_per_second'] / 1e9:,.0f}",
        "host alone": f"{ours['host_texts_per_second']:,.0f} texts/s, of which tokenising "
        f"{ours['tokenising_texts_per_second']:,.0f}, our Python {ours['python_microseconds_per_text']:.1f} us a text",
        "peak memory": f"{ours['peak_resident_bytes'] / 2**20:,.0f} MiB resident"
        + (f", {ours['peak_device_bytes'] / 2**20:,.0f} MiB on the device" if "peak_device_bytes" in ours else ""),
    }
    for when, start in figures["start"].items():
        facts[f"start, {when} cache"] = (
            f"import {start['import_seconds']:.2f} s, load {start['load_seconds']:.2f} s, first answer "
            f"{start['first_answer_seconds']:.2f} s after that"
        )
    print("\n" + table(("", ""), list(facts.items())).strip("\n"))
    programs = [
        (f"{p['rows']}x{p['length']}" + (f", {p['segments']} a row" if p["segments"] > 1 else ""), str(p["calls"]),
         f"{p['prior_seconds'] * 1e3:.2f}", f"{p['measured_seconds'] * 1e3:.2f}" if p["measured_seconds"] else "-")
        for p in ours["programs"]
    ]  # fmt: skip
    print("\n" + table(("program", "calls", "ms prior", "ms measured"), programs))
    for name, why in figures["not_measured"].items():
        print(f"not measured: {name}: {why}")
