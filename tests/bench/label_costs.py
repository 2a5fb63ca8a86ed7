"""What 20 candidate labels of 1 to 4 tokens cost against one, by the clock and counted.

    python tests/bench/label_costs.py [--shape qwen2.5-0.5b] [--texts 64] [--rounds 5] [--beginning 512]

Random weights of the shape, texts of the usual mix behind a beginning that is the same for all; the two questions take
turns, and all programs are compiled before the clock starts. Prints medians, and the ratio of the floating-point
operations (see ``flops``). Let nothing else run on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.bench.shapes import SHAPES, write
from jaxpool.bench.texts import WORDS, mix

PROMPT = "{text} is about"


def labels(count: int = 20, most: int = 4, seed: int = 0) -> list[str]:
    """Different labels of 1 to ``most`` words, each a token of its own to the tokenizer of ``shapes.write``."""
    rng, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < count:
        found[" ".join(rng.choice(WORDS, 1 + len(found) % most))] = None
    return list(found)


def flops(works: Sequence[Sequence[Any]], shape: dict[str, Any]) -> float:
    """Operations of a decoder of this shape, padding left out: the layers of every token, and the vocabulary's logits
    of every hidden state that an answer of several tokens is read from.
    """
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    keys = width // heads * shape["num_key_value_heads"]
    weights = shape["num_hidden_layers"] * (2 * width * (width + keys) + 3 * width * shape["intermediate_size"])
    pairs = 4 * width * shape["num_hidden_layers"]
    total = 0.0
    for piece in (piece for work in works for piece in work):
        reads = len(piece.reads) if piece.absolute else 0
        total += (
            2 * weights * len(piece.ids) + pairs * len(piece.ids) ** 2 / 2 + 2 * reads * width * shape["vocab_size"]
        )
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[name for name in SHAPES if name.startswith("qwen")], default="qwen2.5-0.5b")
    parser.add_argument("--layers", type=int, help="instead of the shape's, to try the script")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beginning", type=int, default=512, help="words before every text")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    beginning = " ".join(np.random.default_rng(1).choice(WORDS, args.beginning))
    texts, prompt = mix(args.texts), f"{beginning} {PROMPT}"
    if args.layers:
        SHAPES[args.shape]["num_hidden_layers"] = args.layers
    with tempfile.TemporaryDirectory() as name:
        folder = write(args.shape, Path(name) / "model", args.dtype)
        config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Qwen2ForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
        measure(folder, texts, prompt, args.rounds, SHAPES[args.shape])


def measure(folder: Path, texts: list[str], prompt: str, rounds: int, shape: dict[str, Any]) -> None:
    """Both questions in turn; prints what they took."""
    from jaxpool import LLM
    from jaxpool.zero_shot.kinds import kind_of
    from jaxpool.zero_shot.options import Question

    asked = {"1 label": labels(1), "1 label of 4 tokens": labels(4)[-1:], "20 labels": labels(20)}
    with LLM(folder, max_model_len=2048) as llm:
        counted = {}
        for name, names in asked.items():
            question = Question.of({"candidate_labels": names, "prompt": prompt})
            assert question is not None
            counted[name] = flops(kind_of(question, llm.engine.spec, llm.tokenizer).work(texts), shape)
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        for turn in range(rounds + 1):
            for name, names in asked.items():
                started = time.perf_counter()
                llm.classify(texts, candidate_labels=names, prompt=prompt, use_tqdm=False)
                if turn:  # the first one compiles
                    seconds[name].append(time.perf_counter() - started)
        first = float(np.median(seconds["1 label"]))
        for name in asked:
            took = float(np.median(seconds[name]))
            print(
                f"{name:<20} {took:8.3f} s  {len(texts) / took:8.1f} texts/s  {took / first:5.2f} x  "
                f"counted {counted[name] / counted['1 label']:5.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
