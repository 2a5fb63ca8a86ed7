"""A model whose layers are shared among devices, behind a real server."""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np

from jaxpool import LLM, AsyncClient

from .conftest import MODELS
from .test_lifecycle import SMALL, queued, server

TEXTS = [[7], [5, 9, 11], list(range(20, 36)), [3, 3]]


async def test_the_real_command_serves_in_stages() -> None:
    """As many requests at once as fill both stages, and the third slot; then the scores of one device."""
    model = str(MODELS / "gpt2-cls")
    with LLM(model, max_model_len=16) as llm:
        offline = [
            one.outputs.probs for one in llm.classify([{"prompt_token_ids": ids} for ids in TEXTS], use_tqdm=False)
        ]
    with server("--model", model, "-pp", "2", *SMALL) as (_, address):
        async with aiohttp.ClientSession(address) as session:
            await queued(session)
        async with AsyncClient(address) as client:
            asked = [client.post("/classify", {"input": [ids]}) for ids in TEXTS * 4]
            answers = await asyncio.gather(*asked)
    found = [answer["data"][0]["probs"] for answer in answers]
    np.testing.assert_allclose(found, offline * 4, atol=1e-5)
