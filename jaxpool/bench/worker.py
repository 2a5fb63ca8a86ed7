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
            texts = command.get("texts") or task["texts"]
            run = ways[command["way"]] if "way" in command else None
            if command["do"] == "settle":
                if ours:
                    ours.settle(texts)
                else:
                    for one in ways.values():
                        one(texts[: max(1, len(texts) // 4)])
                tell(done=True)
            elif command["do"] == "bulk":
                tell(seconds=_timed(run, texts))
            elif command["do"] == "alone":
                tell(seconds=[_timed(run, [text]) for text in texts])
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


def _timed(run: Any, texts: list[str]) -> float:
    started = time.perf_counter()
    run(texts)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
