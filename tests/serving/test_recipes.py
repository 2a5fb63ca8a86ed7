"""Published models served without an override: guards read conversations, rerankers score pairs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxpool import LLM, PoolingParams
from tests.support.tiny import save

from .conftest import MODELS, serving

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2}
TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Go away"}]


def make(folder: Path, head: str = "causal", **more: Any) -> Path:
    from transformers import AutoTokenizer

    vocab = len(AutoTokenizer.from_pretrained(MODELS / "llama-causal"))
    save(folder, "qwen3", head=head, vocab_size=vocab, head_dim=8, max_position_embeddings=512, **SIZES, **more)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama-causal" / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.mark.asyncio
async def test_a_guard_and_a_reranker(tmp_path: Path) -> None:
    guard = make(tmp_path / "Qwen3Guard-Gen-0.6B")
    with LLM(guard) as llm:
        [wanted] = llm.classify([{"messages": TURNS}], use_tqdm=False)
        [text] = llm.classify("Hello", use_tqdm=False)
        async with serving(llm, name="guard") as client:
            answer = await (await client.post("/classify", json={"messages": TURNS})).json()
            plain = await (await client.post("/classify", json={"input": "Hello"})).json()
    assert answer["data"][0]["label"] == wanted.outputs.label
    assert answer["data"][0]["probs"] == pytest.approx(wanted.outputs.probs, abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == len(wanted.prompt_token_ids)
    assert plain["data"][0]["probs"] == pytest.approx(text.outputs.probs, abs=1e-6)

    with LLM(guard.rename(tmp_path / "Qwen3-Reranker-0.6B")) as llm:
        [score] = llm.score("tea", "pots", use_tqdm=False)
        asked = PoolingParams(extra_kwargs={"instruction": "Find tea.", "max_tokens_per_doc": 1})
        [other] = llm.score("tea", "pots", use_tqdm=False, pooling_params=asked)
        async with serving(llm, name="reranker") as client:
            body = {"queries": "tea", "documents": ["pots"]}
            scored = await (await client.post("/score", json=body)).json()
            ranked = await (await client.post("/rerank", json={"query": "tea", "documents": ["pots"]})).json()
            told = {**body, "instruction": "Find tea.", "max_tokens_per_doc": 1}
            instructed = await (await client.post("/score", json=told)).json()
            chat = await client.post("/classify", json={"messages": TURNS})
            assert chat.status == 400
            assert "compares two texts" in await chat.text()
    assert instructed["data"][0]["score"] == pytest.approx(other.outputs.score, abs=1e-6)
    assert instructed["data"][0]["score"] != scored["data"][0]["score"]
    assert scored["data"][0]["score"] == pytest.approx(score.outputs.score, abs=1e-6)
    assert ranked["results"][0]["relevance_score"] == pytest.approx(score.outputs.score, abs=1e-6)


@pytest.mark.asyncio
@pytest.mark.parametrize("recipe", [None, "skywork-reward"])
async def test_a_reward_model_reads_a_conversation(tmp_path: Path, recipe: str | None) -> None:
    """Without its recipe as vLLM serves it: chats are chats, texts are texts, and the score is a probability."""
    with LLM(make(tmp_path / "Skywork-Reward-V2", "sequence", num_labels=1), recipe=recipe) as llm:
        [wanted] = llm.classify([{"messages": TURNS}], use_tqdm=False)
        async with serving(llm, name="reward") as client:
            answer = await (await client.post("/classify", json={"messages": TURNS})).json()
    assert answer["data"][0]["probs"] == pytest.approx(wanted.outputs.probs, abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == len(wanted.prompt_token_ids)
