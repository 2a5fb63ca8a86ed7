"""One OpenTelemetry span per request, sent to a collector. Needs the extra ``jaxpool[otel]``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import web

from jaxpool.errors import JaxpoolError
from jaxpool_serving.state import OBSERVERS, OPTIONS, PROBES, VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from jaxpool_serving.state import RequestRecord


def provider(endpoint: str) -> TracerProvider:
    """A provider that sends spans in batches to ``endpoint`` (OTLP over HTTP, the full URL).

    The environment variables ``OTEL_…`` (service name, resource attributes, sampler, headers) are honoured.

    Raises:
        JaxpoolError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        message = f"the package {error.name!r} is not installed; traces need: pip install 'jaxpool[otel]'"
        raise JaxpoolError(message) from error
    ours = Resource.create({"service.name": "jaxpool", "service.version": VERSION})
    # Not the global provider: two applications in one process may send to two places.
    found = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    found.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return found


async def tracing_context(app: web.Application) -> AsyncIterator[None]:
    """A cleanup context of the application: traces requests if its options name a collector."""
    endpoint = app[OPTIONS].otlp_traces_endpoint
    if endpoint is None:
        yield
        return
    spans = provider(endpoint)

    from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer, propagator = spans.get_tracer("jaxpool.serving", VERSION), TraceContextTextMapPropagator()

    def answered(request: web.Request, record: RequestRecord) -> None:
        """A request's span, made once all is known of it."""
        if record.path in PROBES:
            return
        span = tracer.start_span(
            f"{record.method} {record.route}",
            propagator.extract(request.headers),
            SpanKind.SERVER,
            start_time=round(record.time * 1e9),
            attributes=_attributes(record),
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(round((record.time + record.total) * 1e9))
        record.trace_id = format_trace_id(span.get_span_context().trace_id)

    app[OBSERVERS].insert(0, answered)  # before the access log, which shows the trace's id
    yield
    await asyncio.to_thread(spans.shutdown)  # sends what is left


def _attributes(record: RequestRecord) -> dict[str, str | int | float]:
    """OpenTelemetry's names for what is HTTP, ours for the rest."""
    found: dict[str, str | int | float] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "jaxpool.request_id": record.request_id,
    }
    if record.model is not None:
        found |= {f"jaxpool.{name}": getattr(record, name) for name in ("model", "texts", "tokens")}
        found |= {f"jaxpool.{part}_seconds": getattr(record, part) for part in ("tokenise", "queue", "device")}
    return found
