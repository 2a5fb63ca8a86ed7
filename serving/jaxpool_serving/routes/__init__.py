"""The server's resources, one module per group."""

from __future__ import annotations

from jaxpool_serving.routes import (
    classify,
    docs,
    health,
    invocations,
    metrics,
    pooling,
    predict,
    scoring,
    server,
    tokenize,
)

RESOURCES = (classify, pooling, scoring, predict, tokenize, invocations, server, health, metrics, docs)
ROUTES = tuple(resource.routes for resource in RESOURCES)
