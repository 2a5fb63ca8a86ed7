"""Prometheus metrics of one application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jaxpool_serving.state import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from jaxpool.engine.buckets import Bucket
    from jaxpool.engine.prefixes import Prefixes
    from jaxpool_serving.state import RequestRecord, ServedModel

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TEXTS = tuple(float(2**power) for power in range(11))
TIMES = {
    "total": ("jaxpool_request_seconds", "Seconds from a request's arrival to its answer."),
    "tokenise": ("jaxpool_tokenise_seconds", "Seconds in the tokenizer's threads, the wait for one included."),
    "queue": ("jaxpool_queue_seconds", "Seconds until the last text of a request went to the device."),
    "device": ("jaxpool_device_seconds", "Seconds from then until its last result came back."),
}
"""Duration of a `RequestRecord` -> the histogram it goes into."""


class Metrics:
    """The metrics, in a registry of their own, so that several applications live in one process.

    Everything about a model carries its served name as ``model``. Rates, quantiles and shares (of padding, of
    refusals) are for the query: only counters, gauges and histograms are kept.

    Attributes:
        registry: what ``/metrics`` shows.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("jaxpool", "The server.", registry=registry).info({"version": VERSION})

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(f"jaxpool_{name}", about, ["model"], registry=registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"jaxpool_{name}", about, [*labels, "model"], registry=registry)

        self._requests = counter(
            "requests", "Requests by resource and status; 499: the client left.", "route", "status"
        )
        self._times = {
            part: Histogram(*name, ["model"], buckets=SECONDS, registry=registry) for part, name in TIMES.items()
        }
        # per model, since finding the child of a label costs more than counting with it
        self._times_of: dict[str, list[tuple[str, Histogram]]] = {}
        self._ready = gauge("model_ready", "1 when the model is loaded and warm.")
        self._queued_texts = gauge("queued_texts", "Texts admitted and not yet answered.")
        self._queued_tokens = gauge("queued_tokens", "Tokens of texts that wait for the device.")
        self._compiles = gauge("compiles_after_ready", "Compiles begun since the model was warm; 0 expected.")
        self._texts = counter("texts", "Texts computed.")
        self._tokens = counter("tokens", "Tokens computed, without padding.")
        self._padding = counter("padding_tokens", "Tokens of padding computed.")
        self._batches = Histogram(
            "jaxpool_batch_texts", "Texts of a device batch.", ["model"], buckets=TEXTS, registry=registry
        )
        for name in models:
            self._ready.labels(name).set(0)

    def watch(self, served: ServedModel) -> None:
        """Show a model that is warm now: its queue and its compiles are read whenever somebody asks."""
        engine, batcher, name = served.batcher.engine, served.batcher, served.name
        at_ready = engine.begun
        self._times_of[name] = [(part, histogram.labels(name)) for part, histogram in self._times.items()]
        self._ready.labels(name).set(1)
        if engine.prefixes is not None:
            self.registry.register(_PrefixCache(name, engine.prefixes))
        self._queued_texts.labels(name).set_function(lambda: batcher.queued)
        self._queued_tokens.labels(name).set_function(lambda: batcher.waiting_tokens)
        self._compiles.labels(name).set_function(lambda: engine.begun - at_ready)

    def of_batches(self, name: str) -> Callable[[Bucket, int, int], None]:
        """What the batcher of model ``name`` calls with every batch: its bucket, its texts, and their tokens."""
        texts, tokens, padding = (one.labels(name) for one in (self._texts, self._tokens, self._padding))
        sizes = self._batches.labels(name)

        def batch(bucket: Bucket, rows: int, real: int) -> None:
            sizes.observe(rows)
            texts.inc(rows)
            tokens.inc(real)
            padding.inc(bucket.rows * bucket.length - real)

        return batch

    def answered(self, _: web.Request, record: RequestRecord) -> None:
        """Count a request, and its times if it was computed; see `middleware.record_request`."""
        self._requests.labels(record.route, record.status, record.model or "").inc()
        if record.model is not None and record.status == 200:
            for part, histogram in self._times_of[record.model]:
                histogram.observe(getattr(record, part))


class _PrefixCache(Collector):
    """Shared beginnings of one model's texts, read off the store whenever somebody asks."""

    def __init__(self, name: str, prefixes: Prefixes) -> None:
        self._name, self._prefixes = name, prefixes

    def collect(self) -> Iterator[Metric]:
        """What ``/metrics`` shows of it."""
        store, name = self._prefixes.store, self._name
        for kind, called, about, value in (
            (CounterMetricFamily, "hits", "Batches behind a beginning that was computed before.", store.hits),
            (CounterMetricFamily, "misses", "Batches behind one that had to be computed.", store.misses),
            (CounterMetricFamily, "evictions", "Beginnings that gave way to others.", store.evictions),
            (CounterMetricFamily, "saved_tokens", "Tokens that were not computed again.", self._prefixes.saved),
            (GaugeMetricFamily, "bytes", "Bytes that beginnings take on each device.", store.bytes),
            (GaugeMetricFamily, "entries", "Beginnings that are kept.", len(store)),
        ):
            metric = kind(f"jaxpool_prefix_cache_{called}", about, labels=["model"])
            metric.add_metric([name], value)
            yield metric


METRICS = web.AppKey("METRICS", Metrics)
