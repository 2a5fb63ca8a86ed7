"""Every causal family: hidden states behind a beginning that was computed before are those of the whole text."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import FAST, batch, build
from parity_cases import CASES, FIRST
from transformers import AutoConfig

from jaxpool.engine.batches import Inputs
from jaxpool.engine.buckets import Bucket
from jaxpool_conversions.families import find
from jaxpool_conversions.families.config_fields import Fields

LENGTHS, PLACES = (22, 30, 41, 25), (0, 0, 1, 1)
SHARED = 21
REACH = 24
WHOLE, BEGINNING, REST = Bucket(4, 41), Bucket(1, REACH), Bucket(2, 72, 3)


def configured(case: str) -> Any:
    model_type, fields = CASES[case]
    return find(model_type).config(Fields(AutoConfig.for_model(model_type, **{"pad_token_id": 0, **fields})))


def continues(case: str) -> bool:
    asked = getattr(configured(case), "continues", None)
    return asked is not None and asked(max(LENGTHS))


FAMILIES = [case for case in (*FIRST.values(), "llama", "mistral") if case in CASES and continues(case)]


def test_causal_families_are_here_and_others_are_not() -> None:
    assert len(FAMILIES) >= 50
    assert {"gpt2", "bloom", "gemma2", "mixtral", "deepseek-v3", "jamba"} <= set(FAMILIES)
    assert not any(continues(case) for case in ("bert", "modernbert", "t5", "deberta-v2") if case in CASES)


def test_positions_scaled_by_the_whole_length_share_nothing() -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    fields = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    fields |= {"intermediate_size": 16, "max_position_embeddings": 32, "rope_parameters": scaled}
    config = find("llama").config(Fields(AutoConfig.for_model("llama", **fields)))
    assert config.continues(32)
    assert not config.continues(64)


@pytest.mark.parametrize("case", FAMILIES)
def test_what_follows_a_beginning_equals_the_whole_text(case: str) -> None:
    """Beginnings of one token, of all but one of the shortest text, and in between; packed, as texts mostly are."""
    model, vocab = build(case)
    rng = np.random.default_rng(2)
    shared = rng.integers(1, vocab, SHARED)
    texts = [np.concatenate([shared, rng.integers(1, vocab, size - SHARED)]) for size in LENGTHS]

    @partial(jax.jit, compiler_options=FAST)
    def both(model: Any, whole: Inputs, begun: Inputs, before: jax.Array, rest: Inputs) -> tuple[jax.Array, jax.Array]:
        noting = begun.layout.noting()
        model(begun.ids, begun.types, noting)
        behind = rest.layout.behind(before, noting.notes["layers"], REACH)  # type: ignore[index]
        return model(whole.ids, whole.types, whole.layout), model(rest.ids, rest.types, behind)

    whole, _ = batch(texts, WHOLE, None)
    for before in (1, 16, SHARED):
        rest, where = batch([text[before:] for text in texts], REST, PLACES)
        begun, _ = batch([shared[:before]], BEGINNING, None)
        wanted, found = map(np.asarray, both(model, whole, begun, jnp.int32(before), rest))
        for i, (row, _, start) in enumerate(where):
            theirs = wanted[i, before : LENGTHS[i]]
            ours = found[row, start : start + len(theirs)]
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()), rtol=0, err_msg=str(i))
    changed, _ = batch([(shared[:SHARED] + 1) % vocab], BEGINNING, None)
    _, other = both(model, whole, changed, jnp.int32(SHARED), rest)
    assert np.abs(np.asarray(other) - found).max() > 1e-3, "the beginning must matter, or the comparison says nothing"
