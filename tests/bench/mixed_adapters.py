"""What adapters cost: texts a second with so many mixed adapters against none, and the time to load one into a server.

Writes a checkpoint of a known shape with random weights, and random adapters of every linear layer; needs torch and
PEFT. Rounds alternate between both models, on the same texts, in one process:

    python tests/bench/mixed_adapters.py --shape bert-base --adapters 8 --rank 16 --texts 512 --json figures.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool import LLM, LoRARequest
from jaxpool.bench.shapes import SHAPES, write
from jaxpool.bench.texts import WORDS


def adapters(base: Path, folder: Path, count: int, rank: int) -> list[Path]:
    """Random adapters of every linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=rank))
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.copy_(torch.randn(weight.shape) * 0.02)
        made.append(folder / f"adapter{seed}")
        wrapped.save_pretrained(made[-1])
    return made


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of a lognormal mix of lengths, about 80 words on average."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(60), 0.8, count), 1, 500).astype(int)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def offline(base: Path, folders: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Texts a second, medians of alternating rounds after as many that teach the planner."""
    prompts = texts(options.texts)
    requests = [LoRARequest(path.name, i + 1, str(path)) for i, path in enumerate(folders)]
    which = [requests[i % len(requests)] for i in range(len(prompts))]
    room = {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": options.rank}
    seconds: dict[str, list[float]] = {"none": [], "mixed": []}
    with LLM(str(base), dtype=options.dtype) as plain, LLM(str(base), dtype=options.dtype, **room) as adapted:
        for number in range(2 * options.rounds):
            for name, llm, asked in (("none", plain, None), ("mixed", adapted, which)):
                started = time.perf_counter()
                llm.classify(prompts, lora_request=asked, use_tqdm=False)
                if number >= options.rounds:
                    seconds[name].append(time.perf_counter() - started)
        loads = []
        for _ in range(5):
            adapted.engine.adapters.drop(folders[0].name)
            started = time.perf_counter()
            adapted.engine.adapters.of(requests[:1])
            loads.append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "texts_per_second": {name: len(prompts) / value for name, value in median.items()},
        "slowdown": median["mixed"] / median["none"],
        "load_seconds": statistics.median(loads),
    }


async def server(base: Path, folders: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds until ``/v1/load_lora_adapter`` answers, of a server that is warm and idle, and programs it compiled."""
    from aiohttp.test_utils import TestClient, TestServer

    from jaxpool_serving.app import init_app
    from jaxpool_serving.options import Options

    room = {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": options.rank}
    sizes = {"max_num_batched_tokens": 512, "max_model_len": 128, "compile": "ahead", "dtype": options.dtype}
    with LLM(str(base), **room, **sizes) as llm:
        app = init_app({"model": llm}, Options(allow_runtime_lora_updating=True))
        async with TestClient(TestServer(app)) as client:
            before, found = llm.engine.begun, []
            for path in folders:
                started = time.perf_counter()
                answer = await client.post(
                    "/v1/load_lora_adapter", json={"lora_name": path.name, "lora_path": str(path)}
                )
                found.append(time.perf_counter() - started)
                assert answer.status == 200, await answer.text()
            compiles = llm.engine.begun - before
    return {"server_load_seconds": found, "compiles_by_loading": compiles}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = write(options.shape, Path(name) / "base", options.dtype)
        folders = adapters(base, Path(name), options.adapters, options.rank)
        figures = {"shape": options.shape, "adapters": options.adapters, "rank": options.rank}
        figures |= offline(base, folders, options) | asyncio.run(server(base, folders, options))
    print(json.dumps(figures, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
