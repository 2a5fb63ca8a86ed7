"""Texts behind one shared beginning: with the store of beginnings, without it, and other libraries, in turns.

    python tests/bench/shared_beginning.py [--shape qwen2.5-0.5b] [--texts 256] [--beginning 512] [--rounds 3]
        [--against vllm --python vllm=PATH] [--json FILE]

Random weights: what is measured does not depend on them. Every round every contender classifies all texts in one call,
once it is warm; texts per second are by the median. Run it on a machine that does nothing else. A peer takes its
settings from its own environment variables (vLLM on a CPU: VLLM_CPU_OMP_THREADS_BIND, VLLM_CPU_KVCACHE_SPACE).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from jaxpool.bench.contenders import alternate, rate, running
from jaxpool.bench.peers import PEERS
from jaxpool.bench.shapes import SHAPES, write
from jaxpool.bench.texts import WORDS, mix

CONTENDERS = {"shared": None, "whole": False}
"""Name -> what `enable_prefix_caching` is."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--beginning", type=int, default=512, help="tokens that all texts begin with")
    parser.add_argument("--longest", type=int, default=512, help="most tokens of what follows")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", nargs="*", choices=list(PEERS), default=[])
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="a peer's own interpreter")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    pythons = dict(word.partition("=")[::2] for word in args.python)
    beginning = " ".join(np.random.default_rng(1).choice(WORDS, args.beginning))
    texts = [f"{beginning} {text}" for text in mix(args.texts, longest=args.longest)]
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        folder = write(args.shape, place / "model", args.dtype)
        task = {"folder": str(folder), "dtype": args.dtype, "texts": texts, "longest": args.beginning + args.longest}
        contenders = []
        for name, on in CONTENDERS.items():
            options = {"options": {"enable_prefix_caching": on}}
            one = running("jaxpool", {**task, **options}, environment={"JAXPOOL_CACHE_DIR": str(place / name)})
            contenders.append(stack.enter_context(one))
            contenders[-1].name = name
        for name in args.against:
            contenders.append(stack.enter_context(running(name, task, python=pythons.get(name, sys.executable))))
        for one in contenders:
            one.settle()
        seconds = alternate(contenders, args.rounds)
        programs = {one.name: one.figures(1.0)["programs"] for one in contenders if one.name in CONTENDERS}
    rates = {" ".join(key): rate(len(texts), found) for key, found in seconds.items()}
    mine = rates["shared classify"]
    print(f"{args.shape}, {args.dtype}: {len(texts)} texts behind {args.beginning} tokens, {args.rounds} rounds")
    for name, found in rates.items():
        print(f"{name:<24} {found:>10.2f} texts/s   shared : it = {mine / found:.2f}")
    if args.json is not None:
        figures = {"arguments": vars(args), "texts_per_second": rates, "seconds": list(seconds.values())}
        args.json.write_text(json.dumps({**figures, "programs": programs}, default=str, indent=1))


if __name__ == "__main__":
    main()
