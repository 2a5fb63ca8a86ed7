"""The server's resources, one module per group."""

from __future__ import annotations

from jaxpool_serving.routes import classify, health, metrics

ROUTES = (health.routes, classify.routes, metrics.routes)
