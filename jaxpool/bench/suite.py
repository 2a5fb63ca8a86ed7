"""Five models of known shapes under four loads, in a given time: ``python -m jaxpool.bench.suite --json FILE``.

Made for an accelerator: BERT-base, BERT-large, ModernBERT-base, Qwen2.5-0.5B and 1.5B in bfloat16, texts of 50, 128 and
512 tokens and the usual mix, against transformers with torch.compile and SDPA on sorted batches. It reports throughput,
the share of a matmul measured in the same run, ratios, and how busy the device was. What the time did not suffice for
is named. ``--models tiny --texts 64`` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

from jaxpool.bench.contenders import Contender, running
from jaxpool.bench.peers import PEERS
from jaxpool.bench.shapes import SHAPES, write
from jaxpool.bench.texts import WORDS, mix
from jaxpool.errors import JaxpoolError
from jaxpool.version import __version__

LENGTHS = (50, 128, 512)
LONGEST = 512
MODELS = ("bert-base", "bert-large", "modernbert-base", "qwen2.5-0.5b", "qwen2.5-1.5b")
ROUNDS = 3
GOALS = {("bert-large", "512"): 0.50, ("qwen2.5-1.5b", "512"): 0.60}
"""(model, load) -> share of a measured matmul that an H100 should reach."""


def loads(count: int) -> dict[str, list[str]]:
    """Name -> texts: of equal lengths in tokens (two of them special), and the mix."""
    same = {
        str(length): [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(length - 2)) for i in range(count)]
        for length in LENGTHS
    }
    return {**same, "mix": mix(count)}


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """Per cent of the time that the first NVIDIA device was busy, sampled inside the context; empty without one."""
    seen: list[float] = []
    if shutil.which("nvidia-smi") is None:
        yield seen
        return
    query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    try:
        yield seen
    finally:
        process.terminate()
        told, _ = process.communicate()
        seen += [float(word) for word in told.split() if word.replace(".", "").isdigit()]


def measure(
    name: str, place: Path, count: int, dtype: str, deadline: float, against: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Figures of one model, load by load, until the time is over.

    Raises:
        JaxpoolError: a contender failed.
    """
    task = {"folder": str(write(name, place / name, dtype)), "dtype": dtype, "longest": LONGEST, "texts": ["the of"]}
    # A share of the device's memory each: both are there at once.
    limits = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(running("jaxpool", task, environment=limits))
        peers = [stack.enter_context(running(peer, task)) for peer in against]
        for load, texts in loads(count).items():
            if time.monotonic() > deadline:
                yield {"model": name, "load": load, "skipped": "the time was over"}
                continue
            for one in (ours, *peers):
                one.settle(texts)
            seconds: list[float] = []
            others: dict[str, list[float]] = {}
            with watched() as busy:
                for _ in range(ROUNDS):
                    seconds.append(ours.bulk("classify", texts))
            for peer in peers:
                way = _best(peer)
                others[f"{peer.name} ({way})"] = [peer.bulk(way, texts) for _ in range(2)]
            figures = ours.figures(median(seconds), texts)
            rate = count / median(seconds)
            yield {
                "model": name,
                "load": load,
                "device": ours.about["device"],
                "jax": ours.about["jax"],
                "texts_per_second": rate,
                "share_of_matmul": figures["share_of_matmul"],
                "goal": GOALS.get((name, load)),
                "ratios": {peer: rate * min(found) / count for peer, found in others.items()},
                "device_busy": mean(busy) / 100 if busy else None,
                "figures": figures,
            }


def _best(peer: Contender) -> str:
    """Its fastest way, by name: compiled where there is such, else sorted."""
    ways: list[str] = peer.about["ways"]
    return next((way for word in ("compiled", "sorted") for way in ways if word in way), ways[0])


def main() -> int:
    """Runs the suite; 1 if something failed."""
    parser = argparse.ArgumentParser("python -m jaxpool.bench.suite", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--texts", type=int, default=2048, help="per load (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="after which nothing is begun (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    against = [name for name in ("transformers",) if not PEERS[name].absent]
    deadline, found, failed = time.monotonic() + args.minutes * 60, [], {}
    with tempfile.TemporaryDirectory() as place:
        for name in args.models.split(","):
            if time.monotonic() > deadline:
                failed[name] = "not begun: the time was over"
                continue
            try:
                for one in measure(name, Path(place), args.texts, args.dtype, deadline, against):
                    found.append(one)
                    print(_line(one), flush=True)
            except JaxpoolError as error:
                failed[name] = str(error)
                print(f"{name}: {error}", file=sys.stderr)
            shutil.rmtree(Path(place) / name, ignore_errors=True)
    report = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "jaxpool": __version__,
              "command": " ".join(sys.argv), "loads": found, "failed": failed}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _line(one: dict[str, Any]) -> str:
    if "skipped" in one:
        return f"{one['model']} {one['load']}: skipped, {one['skipped']}"
    ratios = ", ".join(f"{ratio:.2f} of {peer}" for peer, ratio in one["ratios"].items())
    busy = "" if one["device_busy"] is None else f", device busy {one['device_busy']:.0%}"
    goal = f" (goal {one['goal']:.0%})" if one["goal"] else ""
    return (
        f"{one['model']} {one['load']}: {one['texts_per_second']:,.1f} texts/s, {one['share_of_matmul']:.0%} of a "
        f"matmul{goal}{busy}; {ratios}"
    )


if __name__ == "__main__":
    sys.exit(main())
