"""The server's resources: one module a group, each with a table of its routes.

A handler reads a body (`bodies.parse_body`), finds the model (`models.find_model`), has prompts computed
(`compute.compute`) and makes an answer of the result; what bodies and answers look like stands in `schemas`.
"""

from __future__ import annotations

from jaxpool_serving.routes import adapters, classify, embeddings, sagemaker, scoring, server, tokenize

RESOURCES = (classify, embeddings, scoring, tokenize, sagemaker, adapters, server)
ROUTES = tuple(resource.routes for resource in RESOURCES)
