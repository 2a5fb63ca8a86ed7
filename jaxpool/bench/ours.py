"""jaxpool under load: its start, what its programs take, and its host path with an engine that computes nothing."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxpool.engine.buckets import Bucket
    from jaxpool.llm import LLM

CUT = {"truncate_prompt_tokens": -1}
HOST_TEXTS = 8192
"""Texts at least for the cost of our own Python: planning is one cost a call."""

SETTLING = 6
"""Calls at most until everything that pays is compiled."""


class Ours:
    """An ``LLM`` that is measured.

    Args:
        folder, dtype, longest: the model, as for the peers.
        options: further arguments of ``LLM``.
    """

    def __init__(self, folder: str, dtype: str, longest: int, options: dict[str, Any]) -> None:
        from jaxpool.llm import LLM

        self.llm: LLM = LLM(folder, dtype=dtype, max_model_len=longest, **options)
        self._ran: Counter[Bucket] = Counter()
        self._submit = self.llm.engine.submit
        self.llm.engine.submit = self._counted  # type: ignore[method-assign]

    def _counted(self, rows: Sequence[Any], bucket: Bucket, places: Any = None) -> Future[Any]:
        self._ran[bucket] += 1
        return self._submit(rows, bucket, places)

    def classify(self, texts: Sequence[str]) -> Any:
        """Every text, cut at the longest."""
        return self.llm.classify(list(texts), use_tqdm=False, tokenization_kwargs=CUT)

    def settle(self, texts: Sequence[str]) -> None:
        """Calls until no call compiles anything any more."""
        programs = self.llm.engine.programs
        for _ in range(SETTLING):
            before = programs.begun
            self.classify(texts)
            programs.wait()
            if programs.begun == before:
                break

    def figures(self, texts: Sequence[str], seconds: float) -> dict[str, Any]:
        """All but rates, of bulk calls that took ``seconds``."""
        engine, model = self.llm.engine, self.llm.engine.cost
        encoded = self.llm.tokenizer.encode(list(texts), CUT)
        lengths = np.array([len(one.ids) for one in encoded], np.float64)
        self._ran.clear()
        self.classify(texts)
        computed = sum(bucket.tokens * count for bucket, count in self._ran.items())
        flops = float((lengths * model.flops_per_token + lengths**2 * model.flops_per_token_pair).sum())
        peak = matmul_flops(engine.spec.dtype) * engine.programs.mesh.size
        measured = engine.costs.seconds()
        return {
            "tokens": int(lengths.sum()),
            "padding": 1 - float(lengths.sum()) / computed,
            "programs": [
                {"rows": b.rows, "length": b.length, "segments": getattr(b, "segments", 1), "calls": calls,
                 "prior_seconds": engine.costs.prior.seconds(b), "measured_seconds": measured.get(b)}
                for b, calls in sorted(self._ran.items())
            ],
            "predicted_seconds": sum(model.seconds(b) * calls for b, calls in self._ran.items()),
            "flops_per_second": flops / seconds,
            "matmul_flops_per_second": peak,
            "share_of_matmul": flops / seconds / peak,
            "compiled": engine.compiles,
            **self.host(texts),
            **memory(),
        }  # fmt: skip

    def host(self, texts: Sequence[str]) -> dict[str, float]:
        """Texts per second with an engine that computes nothing, and our own Python per text, tokenising left out."""
        engine = self.llm.engine
        labels, per_token = engine.spec.head.size, engine.spec.per_token

        def free(rows: Sequence[Any], *_: Any) -> Future[Any]:
            future: Future[Any] = Future()
            zeros = np.zeros((len(rows), labels), np.float32)
            future.set_result([np.zeros((len(r.ids), labels), np.float32) for r in rows] if per_token else zeros)
            return future

        counted = engine.submit
        engine.submit = free  # type: ignore[method-assign, assignment]
        try:
            words = list(texts)
            whole, tokenising, ids = (
                [],
                [],
                [{"prompt_token_ids": one.ids} for one in self.llm.tokenizer.encode(words, CUT)],
            )
            ids *= -(-HOST_TEXTS // len(ids))
            own = []
            for _ in range(3):
                whole.append(_timed(lambda: self.classify(words)))
                tokenising.append(_timed(lambda: self.llm.tokenizer.encode(words, CUT)))
                before = time.thread_time()
                self.llm.classify(ids, use_tqdm=False)
                own.append(time.thread_time() - before)
        finally:
            engine.submit = counted  # type: ignore[method-assign]
        return {
            "host_texts_per_second": len(words) / min(whole),
            "tokenising_texts_per_second": len(words) / min(tokenising),
            "python_microseconds_per_text": min(own) / len(ids) * 1e6,
        }


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matmul_flops(dtype: str) -> float:
    """FLOP/s of a large square product on one device, best of ten."""
    import jax
    import jax.numpy as jnp

    size = 1536 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    with jax.default_matmul_precision("float32" if dtype == "float32" else "default"):
        product = jax.jit(jnp.matmul)
        product(a, a).block_until_ready()
        return 2.0 * size**3 / min(_timed(lambda: product(a, a).block_until_ready()) for _ in range(10))


def memory() -> dict[str, int]:
    """Most bytes the process had resident, and the first device in use where it tells."""
    import jax

    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    stats = jax.local_devices()[0].memory_stats() or {}
    return found | ({"peak_device_bytes": int(stats["peak_bytes_in_use"])} if "peak_bytes_in_use" in stats else {})
