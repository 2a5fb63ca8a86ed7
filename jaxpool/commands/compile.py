"""``jaxpool compile``: what a model takes on TPUs that are not here, by their own compiler."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpool.commands.options import engine_options, model_options, positive
from jaxpool.errors import JaxpoolError

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket
    from jaxpool.forecast.tpu import Forecast, Model

DESCRIPTION = """\
Compile a model's programs for TPUs that are not here, and print what they take.

  jaxpool compile --topology v5e:2x2 my-model
  jaxpool compile --topology v5e:2x2 my-model --shapes 32x512,128x128
  jaxpool compile --topology v5e:2x2 my-model --texts 1e9 --pods 4

Only config.json is read. Per program: memory of a chip, products and bytes of one run (loops counted as often as they
run), what bounds it, the compiler's own estimate of its time, texts per second of all chips, collectives, kernels.
Estimates know nothing of collectives' time and are no measurements.
"""
MIX = 4096  # texts of the usual mix that the figures at the end are for


MODEL = {
    name: engine_options()[name]
    for name in (
        *("revision", "dtype", "convert", "hf_overrides", "max_model_len"),
        *("tensor_parallel_size", "pipeline_parallel_size"),
    )
}
"""Argument of a model -> its option, of those that programs depend on."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declares the options of ``jaxpool compile``."""
    command.usage = "jaxpool compile --topology v5e:2x2 MODEL [options]"
    command.description = DESCRIPTION
    command.add_argument("model_folder", metavar="MODEL", help="checkpoint folder or hub id; its config.json is read")
    model_options(command, MODEL, named=False)
    add = command.add_argument_group("forecast").add_argument
    add("--topology", required=True, metavar="NAME", help="chips and their arrangement: v5e:2x2, v6e:2x2, v5p:2x2x1 …")
    add("--shapes", type=_shapes, metavar="RxL,…", help="rows x tokens to compile (default: the grid of a server)")
    add("--batch-tokens", metavar="N", type=positive, help="most tokens of a batch (default: 16384 a chip)")
    add("--texts", type=_amount, metavar="N", help="size a job of so many texts of the usual mix, such as 1e9")
    add("--pods", type=positive, default=1, metavar="N", help="of this topology, for the job (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write every figure as JSON")


def _shapes(word: str) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d+)x(\d+)", part) for part in word.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"must be such as 32x512,128x128, not {word!r}")
    return [(int(one[1]), int(one[2])) for one in found if one]


def _amount(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 1 up, such as 1e9, not {word!r}")
    return value


def main(args: argparse.Namespace) -> int:
    """Runs the command; 1 where a program does not fit.

    Raises:
        JaxpoolError: the model or the topology cannot be had, or the weights do not fit.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # the compiler is a TPU's, what runs here is not
    from jaxpool.checkpoints.location import locate, read_config
    from jaxpool.forecast.tpu import Model, Topology

    config = read_config(locate(args.model_folder, revision=args.revision, weights=False), args.hf_overrides)
    topology = Topology(args.topology)
    model = Model(
        config,
        topology,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        dtype=args.dtype,
        convert=args.convert,
        max_model_len=args.max_model_len,
    )
    model.check_weights()
    buckets = _buckets(args, model)
    found, refused = _compile(model, buckets)
    figures = {
        "model": args.model_folder,
        "topology": topology.name,
        "chip": topology.chip.name,
        "mesh": dict(model.mesh.shape),
        "dtype": model.spec.dtype,
        "weight_bytes": model.weight_bytes,
        "stages": [[stage.first, stage.end] for stage in model.stages],
        "programs": [_figures(one) for one in found],
        "refused": refused,
    }
    _print(model, found)
    for line in refused:
        print(line)
    if found and not refused:
        figures["mix"] = _mix(model, found, args)
        print(_job(figures["mix"], topology.name))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if refused else 0


def _buckets(args: argparse.Namespace, model: Model) -> list[Bucket]:
    from jaxpool.engine.buckets import Bucket
    from jaxpool.engine.opening import TOKEN_BUDGET, menu
    from jaxpool.engine.prior import prior

    data = model.mesh.shape["data"]
    if args.shapes is None:
        budget = args.batch_tokens or TOKEN_BUDGET["tpu"] * data
        spec, assumed = model.spec, prior(model.spec, model.mesh)
        found = menu(spec.max_length, budget, data, assumed, "tpu", ahead=True, packs=spec.family.packs)
        return sorted(found, key=lambda bucket: (bucket.length, bucket.rows))
    for rows, length in args.shapes:
        if rows % data or not 0 < length <= model.spec.max_length:
            raise JaxpoolError(
                f"{rows}x{length} is no shape of this model here: rows are multiples of {data} (copies of the "
                f"weights), lengths go up to {model.spec.max_length}."
            )
    return [Bucket(rows, length) for rows, length in args.shapes]


def _compile(model: Model, buckets: Sequence[Bucket]) -> tuple[list[Forecast], list[str]]:
    """Forecasts of what fits, and a sentence for each shape that does not."""
    from tqdm import tqdm

    chip, found, refused = model.topology.chip, [], []
    for bucket in tqdm(buckets, desc=f"compiling for {chip.name}", unit="program", leave=False, delay=1):
        one = model.forecast(bucket)
        if one is not None and one.fits:
            found.append(one)
            continue
        most = model.largest(bucket)
        needs = "more than" if one is None else f"{one.memory / 1e9:.1f} GB of"
        refused.append(
            f"refused: {bucket.rows}x{bucket.length} needs {needs} the {chip.memory / 1e9:.1f} GB of a {chip.name}; "
            + (
                f"not even {model.mesh.shape['data']} rows of this length fit (--tensor-parallel-size shares weights)"
                if most is None
                else f"the largest batch that fits is {most.bucket.rows}x{bucket.length} "
                f"({most.memory / 1e9:.1f} GB): --batch-tokens {most.bucket.tokens}"
            )
        )
    return found, refused


def _figures(one: Forecast) -> dict[str, Any]:
    return {
        "rows": one.bucket.rows,
        "length": one.bucket.length,
        "memory_bytes": one.memory,
        "flops": one.counts.flops,
        "bytes": one.counts.bytes,
        "cycles": one.counts.cycles,
        "seconds": one.times,
        "bound": one.bound,
        "texts_per_second": one.texts_per_second,
        "share_of_peak": one.share_of_peak,
        "collectives": dict(one.counts.collectives),
        "kernels": dict(one.counts.kernels) or {"xla": 1},
        "unknown_loops": one.counts.unknown_loops,
        "stages": [_figures(stage) for stage in one.stages],
    }


def _print(model: Model, found: Sequence[Forecast]) -> None:
    from jaxpool.files.terminal import table

    chip = model.topology.chip
    print(
        f"{model.spec.architecture}, {model.spec.dtype}, on {model.topology.name}: {dict(model.mesh.shape)}, weights "
        f"{model.weight_bytes / 1e9:.2f} GB of {chip.memory / 1e9:.1f} GB a chip"
    )
    head = ("shape", "memory", "GFLOP", "GB", "ms products", "ms memory", "ms cycles", "bound", "peak", "texts/s",
            "collectives", "kernel")  # fmt: skip
    rows = []
    for one in found:
        times = one.times
        rows.append(
            (
                f"{one.bucket.rows}x{one.bucket.length}",
                f"{one.memory / chip.memory:.0%}",
                f"{one.counts.flops / 1e9:,.0f}",
                f"{one.counts.bytes / 1e9:.2f}",
                f"{times['products'] * 1e3:.2f}",
                f"{times['memory'] * 1e3:.2f}",
                f"{times['cycles'] * 1e3:.2f}" if "cycles" in times else "?",
                one.bound,
                f"{one.share_of_peak:.0%}",
                f"{one.texts_per_second:,.0f}",
                _collectives(one),
                ", ".join(one.counts.kernels) or "xla",
            )
        )
    print(table(head, rows))
    if model.stages:
        print("Of these the slowest stage counts, as all of them work at once:")
        print(table(("shape", "stage", "layers", "weights", "memory", "ms", "collectives"), _stages(model, found)))


def _collectives(one: Forecast) -> str:
    from jaxpool.forecast.tpu import UNREAD

    found = ", ".join(f"{n} {name}" for name, n in one.counts.collectives.items())
    return "?" if UNREAD in one.counts.kernels else found or "none"


def _stages(model: Model, found: Sequence[Forecast]) -> list[tuple[str, ...]]:
    return [
        (
            f"{one.bucket.rows}x{one.bucket.length}",
            str(number),
            f"from {stage.first}" if stage.end is None else f"{stage.first} to {stage.end - 1}",
            f"{weights / 1e9:.2f} GB",
            f"{its.memory / model.topology.chip.memory:.0%}",
            f"{its.seconds * 1e3:.2f}",
            _collectives(its),
        )
        for one in found
        for number, (stage, weights, its) in enumerate(zip(model.stages, model.stage_bytes, one.stages))
    ]


def _mix(model: Model, found: Sequence[Forecast], args: argparse.Namespace) -> dict[str, float]:
    """Texts per second of the usual mix, cut at the model's longest, planned with these programs alone."""
    from jaxpool.bench.texts import lengths as usual
    from jaxpool.engine.buckets import CostModel, plan, waste

    config, programs = model.spec.config, [one.bucket for one in found]
    cost = CostModel(
        config.flops_per_token, config.flops_per_pair, 1.0, 0.0, 0.0, known={one.bucket: one.seconds for one in found}
    )
    lengths = usual(MIX, longest=max(bucket.length for bucket in programs))
    batches = plan(lengths, programs, cost, programs, sealed=True)
    rate = MIX / sum(cost.seconds(batch.bucket) for batch in batches)
    sizes: dict[str, float] = {"texts_per_second": rate, "padding": waste(batches, lengths), "pods": args.pods}
    if args.texts:
        sizes |= {"texts": args.texts, "hours": args.texts / rate / args.pods / 3600}
    return sizes


def _job(mix: dict[str, float], topology: str) -> str:
    lines = f"usual mix: {mix['texts_per_second']:,.0f} texts/s a pod predicted, padding {mix['padding']:.1%}"
    if "hours" in mix:
        day = ceil(mix["hours"] * mix["pods"] / 24)
        lines += (
            f"\n{mix['texts']:,.0f} texts on {mix['pods']:,.0f} x {topology}: {mix['hours']:,.2f} hours, starts left "
            f"out; {day:,} pods do it in a day"
        )
    return lines
