"""One open model for all tests of jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from batch_jobs import MODEL

from jaxpool import LLM


@pytest.fixture(scope="package")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, pooler_config={"task": "classify"}) as llm:
        yield llm
