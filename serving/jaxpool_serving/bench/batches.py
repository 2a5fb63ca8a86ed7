"""What a server of ours did with its device, read from its metrics."""

from __future__ import annotations

from typing import NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families


class Batches(NamedTuple):
    """Device batches so far, or between two looks.

    Attributes:
        calls: batches.
        texts: texts in them.
        tokens: tokens of these texts.
        padding: tokens computed besides.
    """

    calls: float = 0.0
    texts: float = 0.0
    tokens: float = 0.0
    padding: float = 0.0

    def since(self, before: Batches) -> Batches:
        """What came after ``before``."""
        return Batches(*(now - then for now, then in zip(self, before, strict=True)))

    def figures(self) -> dict[str, float]:
        """Texts per batch, and the share of computed tokens that is padding; nothing if there was no batch."""
        if not self.calls:
            return {}
        return {"texts_per_batch": self.texts / self.calls, "padding": self.padding / (self.tokens + self.padding)}


_NAMES = ("jaxpool_batch_texts_count", "jaxpool_texts_total", "jaxpool_tokens_total", "jaxpool_padding_tokens_total")


async def batches(session: aiohttp.ClientSession) -> Batches:
    """The counters of all models of a server; all 0 for a server that has none of ours."""
    async with session.get("/metrics") as response:
        if response.status != 200:
            return Batches()
        text = await response.text()
    sums = dict.fromkeys(_NAMES, 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
    return Batches(*sums.values())
