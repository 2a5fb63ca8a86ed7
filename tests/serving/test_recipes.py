"""Published models served without an override: guards read conversations, rerankers score pairs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxpool import LLM
from jaxpool.commands.main import main
from tests.support.tiny import save

from .conftest import MODELS, serving

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2}
TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Go away"}]


def make(folder: Path) -> Path:
    from transformers import AutoTokenizer

    vocab = len(AutoTokenizer.from_pretrained(MODELS / "llama-causal"))
    save(folder, "qwen3", head="causal", vocab_size=vocab, head_dim=8, max_position_embeddings=512, **SIZES)
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
        async with serving(llm, name="reranker") as client:
            body = {"queries": "tea", "documents": ["pots"]}
            scored = await (await client.post("/score", json=body)).json()
            ranked = await (await client.post("/rerank", json={"query": "tea", "documents": ["pots"]})).json()
            chat = await client.post("/classify", json={"messages": TURNS})
            assert chat.status == 400
            assert "compares two texts" in await chat.text()
    assert scored["data"][0]["score"] == pytest.approx(score.outputs.score, abs=1e-6)
    assert ranked["results"][0]["relevance_score"] == pytest.approx(score.outputs.score, abs=1e-6)


def test_labels_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    model = str(make(tmp_path / "mine"))
    asked = ["classify", "--model", model, "--quiet", "good tea", "a bug"]
    labels = ["--candidate-labels", "praise, bug report", "--prompt", "{text} is"]
    assert main([*asked, *labels]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with LLM(model) as llm:
        options: Any = {"candidate_labels": ["praise", "bug report"], "prompt": "{text} is"}
        wanted = llm.classify(["good tea", "a bug"], use_tqdm=False, **options)
    for row, output in zip(shown, wanted, strict=True):
        assert row["label"] == output.outputs.label
        assert list(row["probs"]) == ["praise", "bug report"]
        assert list(row["probs"].values()) == pytest.approx(output.outputs.probs, abs=1e-6)
    assert main(asked) == 1
    assert "no labels of its own" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*asked, "--prompt", "{text}"])
