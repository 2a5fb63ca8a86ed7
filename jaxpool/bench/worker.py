"""One contender in a process of its own: ``python -m jaxpool.bench.worker``, commands in, JSON lines out."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> int:
    """Opens what the first line names, then does what each further line says, until there is none."""
    started = time.perf_counter()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print what they like elsewhere

    def tell(**figures: Any) -> None:
        out.write(json.dumps(figures) + "\n")
        out.flush()

    task = json.loads(sys.stdin.readline())
    name, texts = task["name"], task["texts"]
    try:
        ways, figures = (_ours if name == "jaxpool" else _peer)(task)
        figures["ready_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        next(iter(ways.values()))(texts[:1])
        tell(ways=list(ways), first_answer_seconds=time.perf_counter() - started, **figures)
        ours = task.get("ours")
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "settle":
                ours.settle(texts) if ours else [run(texts[: len(texts) // 4]) for run in ways.values()]
                tell(done=True)
            elif command["do"] == "bulk":
                tell(seconds=_timed(lambda: ways[command["way"]](texts)))  # noqa: B023 - called at once
            elif command["do"] == "alone":
                run = ways[command["way"]]
                tell(seconds=[_timed(lambda: run([text])) for text in command["texts"]])  # noqa: B023
            elif command["do"] == "figures":
                tell(**ours.figures(texts, command["seconds"]))
        if ours:
            ours.llm.close()
    except Exception as error:
        tell(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _ours(task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    started = time.perf_counter()
    import jaxpool.engine.opening
    import jaxpool.llm  # noqa: F401

    imported = time.perf_counter() - started
    from jaxpool.bench.ours import Ours

    started = time.perf_counter()
    ours = task["ours"] = Ours(task["folder"], task["dtype"], task["longest"], task.get("options", {}))
    figures = {"import_seconds": imported, "load_seconds": time.perf_counter() - started}
    import jax

    device = jax.devices()[0]
    spec = ours.llm.engine.spec
    about = {"device": device.device_kind, "devices": len(jax.devices()), "dtype": spec.dtype, "jax": jax.__version__}
    return {"classify": ours.classify}, {**figures, **about}


def _peer(task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from jaxpool.bench.peers import PEERS

    return dict(PEERS[task["name"]].open(task["folder"], task["dtype"], task["longest"])), {}


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
