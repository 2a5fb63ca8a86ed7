"""Labels of a caller's own, by language models: against torch, one label and one text at a time."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams
from jaxpool.engine.costs import Costs
from tests.support.tiny import save

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
TEXTS = ["The update broke everything.", "Good", "I was charged twice for one coffee, please pay it back to me."]
LABELS = ["billing", "bug report", "bug", "praise for the team", "praise"]
PROMPT = "Text: {text}\nKind:"

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    # a window shorter than the prompt: distances along a branch are those of positions
    "gemma2": {"head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_size": 32},  # ALiBi
    "cohere": {"logit_scale": 0.25},
    "phi": {"partial_rotary_factor": 0.5},  # a head with a bias
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3},
    "deepseek_v3": {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 16, "num_key_value_heads": 4,
    },
}  # fmt: skip


def make(folder: Path, family: str) -> Path:
    """A tiny language model with the tokenizer of another."""
    from transformers import AutoTokenizer

    source = MODELS / "llama-causal"
    vocab = len(AutoTokenizer.from_pretrained(source))
    sizes = {} if family in ("gpt2", "bloom") else SIZES
    save(folder, family, head="causal", vocab_size=vocab, **{**sizes, **FAMILIES[family]})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32") as llm:
        yield llm


@functools.lru_cache(1)
def torch_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def torch_scores(folder: Path, contexts: list[str], labels: list[str], **wanted: bool) -> np.ndarray:
    """Log-probability of each label's tokens behind each context, a forward pass each: ``[contexts, labels]``."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), torch_model(folder)
    scores = np.zeros((len(contexts), len(labels)))
    for i, context in enumerate(contexts):
        start = tokenizer(context)["input_ids"]
        for j, label in enumerate(labels):
            ids = tokenizer(f"{context} {label}")["input_ids"]
            assert ids[: len(start)] == start
            with torch.no_grad():
                found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            one = [float(found[at - 1, ids[at]]) for at in range(len(start), len(ids))]
            scores[i, j] = np.mean(one) if wanted.get("mean") else np.sum(one)
    return scores


def contexts(texts: list[str] = TEXTS) -> list[str]:
    return [PROMPT.replace("{text}", text) for text in texts]


def found(llm: LLM, texts: list[str] = TEXTS, activated: bool = False, **options: Any) -> np.ndarray:
    options = {"candidate_labels": LABELS, "prompt": PROMPT} | options
    params = PoolingParams(use_activation=activated)
    return np.array(
        [one.outputs.probs for one in llm.classify(texts, pooling_params=params, use_tqdm=False, **options)]
    )


def test_labels_of_several_tokens_are_torchs(llm: LLM, folder: Path) -> None:
    wanted = torch_scores(folder, contexts(), LABELS)
    np.testing.assert_allclose(found(llm), wanted, atol=1e-4)
    powers = np.exp(wanted - wanted.max(1, keepdims=True))
    np.testing.assert_allclose(found(llm, activated=True), powers / powers.sum(1, keepdims=True), atol=1e-4)


NAMED = ("llama", "qwen3", "gemma2", "gpt2", "mixtral", "jamba")


@pytest.mark.parametrize("folder", NAMED, indirect=True)
def test_every_way_of_asking_is_torchs(llm: LLM, folder: Path) -> None:
    """Means, calibration and yes/no questions; the labels have one token or several, and one begins another."""
    texts, labels = TEXTS[:2], LABELS[1:]
    sums, means = (torch_scores(folder, contexts([*texts, ""]), labels, mean=mean) for mean in (False, True))
    asked: dict[str, Any] = {"texts": texts, "candidate_labels": labels}
    np.testing.assert_allclose(found(llm, **asked, length_normalize=True), means[:-1], atol=1e-4)
    both = found(llm, **asked, length_normalize=True, calibrate=True)
    np.testing.assert_allclose(both, means[:-1] - means[-1], atol=1e-4)
    np.testing.assert_allclose(found(llm, **asked, calibrate=True), sums[:-1] - sums[-1], atol=1e-4)
    prompts = [f"Is {label} in {text}? No, Yes:" for text in texts for label in labels]
    scores = torch_scores(folder, prompts, ["No", "Yes"])
    wanted = (scores[:, 1] - scores[:, 0]).reshape(len(texts), -1)
    several = found(llm, **asked, prompt="Is {label} in {text}? {labels}:", multi_label=True)
    np.testing.assert_allclose(several, wanted, atol=1e-4)


@pytest.mark.parametrize("folder", ["gemma2", "gpt2", "jamba", "bloom", "deepseek_v3"], indirect=True)
def test_what_prompts_begin_with_is_computed_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a token is dear; windows, learned positions, states, distances and latent keys behind branches."""
    prefixes, engine = llm.engine.prefixes, llm.engine
    assert prefixes is not None
    examples = [("I was charged twice.", "billing"), ("Thank you for the coffee.", "praise for the team")] * 2
    read: dict[str, Any] = {"examples": examples, "texts": [*TEXTS * 2, "The team"]}
    wanted, changed = found(llm, **read), found(llm, texts=TEXTS[1:2], examples=examples[1:])
    assert prefixes.store.misses == 0, "of a tiny model a compile costs more"
    monkeypatch.setattr(engine, "costs", Costs(replace(engine.costs.prior, flops_per_second=1e3), learns=False))
    np.testing.assert_allclose(found(llm, **read), wanted, atol=1e-5, rtol=0)
    [beginning] = prefixes.store._entries
    assert beginning.length >= 32
    # A text is a row, or as many as it has branches where the model carries a state along.
    rows, rest = divmod(prefixes.saved + beginning.length, 7 * beginning.length)
    assert rest == 0 < rows
    saved = prefixes.saved + rows * beginning.length
    # One text of a later call finds it; other examples do not.
    one = found(llm, texts=TEXTS[1:2], examples=examples)
    np.testing.assert_allclose(one, wanted[1:2], atol=1e-5, rtol=0)
    assert prefixes.saved == saved
    np.testing.assert_allclose(found(llm, texts=TEXTS[1:2], examples=examples[1:]), changed, atol=1e-5, rtol=0)
    assert prefixes.saved == saved or rows > 1, "rows of one text share it, nobody else does"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("one"), "llama")


@pytest.fixture(scope="module")
def opened(llama: Path) -> Iterator[LLM]:
    with LLM(llama, dtype="float32", max_model_len=96) as llm:
        yield llm


def one_token_labels(llm: LLM, count: int = 3) -> list[str]:
    tokenizer = llm.get_tokenizer()
    words = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    fitting = (word[1:] for word in words if word.startswith(" ") and word.strip().isalpha())
    found = [word for word in fitting if len(tokenizer.tokenize(f"x {word}")) == len(tokenizer.tokenize("x")) + 1]
    return found[:count]


def test_labels_of_one_token_are_rows_of_the_language_model(opened: LLM, llama: Path) -> None:
    labels = one_token_labels(opened)
    pieces = [opened.get_tokenizer().tokenize(f"x {label}")[-1] for label in labels]
    overrides = {"classifier_from_token": pieces, "method": "no_post_processing"}
    with LLM(llama, convert="classify", hf_overrides=overrides, dtype="float32") as other:
        params = PoolingParams(use_activation=False)
        wanted = [one.outputs.probs for one in other.classify(contexts(), pooling_params=params, use_tqdm=False)]
    np.testing.assert_allclose(found(opened, candidate_labels=labels), wanted, atol=1e-5)


def test_mean_calibration_and_examples(opened: LLM, llama: Path) -> None:
    sums, means = (torch_scores(llama, contexts([*TEXTS, ""]), LABELS, mean=mean) for mean in (False, True))
    np.testing.assert_allclose(found(opened, length_normalize=True), means[:-1], atol=1e-4)
    np.testing.assert_allclose(found(opened, calibrate=True), sums[:-1] - sums[-1], atol=1e-4)
    shot = contexts(["Thank you!"])[0] + " praise\n\n"
    wanted = torch_scores(llama, [shot + context for context in contexts()], LABELS)
    np.testing.assert_allclose(found(opened, examples=[("Thank you!", "praise")]), wanted, atol=1e-4)


def test_several_labels_at_once(opened: LLM, llama: Path) -> None:
    prompt = "Is {label} in {text}? {labels}:"
    asked = [f"Is {label} in {text}? No, Yes:" for text in TEXTS for label in LABELS]
    scores = torch_scores(llama, asked, ["No", "Yes"])
    wanted = (scores[:, 1] - scores[:, 0]).reshape(len(TEXTS), -1)
    np.testing.assert_allclose(found(opened, prompt=prompt, multi_label=True), wanted, atol=1e-4)
    outputs = opened.classify(TEXTS, candidate_labels=LABELS, prompt=prompt, multi_label=True, use_tqdm=False)
    for output, row in zip(outputs, wanted):
        assert output.outputs.labels == [label for label, score in zip(LABELS, row) if score > 0]
        np.testing.assert_allclose(output.outputs.probs, 1 / (1 + np.exp(-row)), atol=1e-4)


def test_a_tree_that_does_not_fit_beside_its_text_is_computed_in_rows(opened: LLM, llama: Path) -> None:
    text = " ".join(one_token_labels(opened, 66))
    tokens = len(opened.get_tokenizer()(contexts([text])[0])["input_ids"])
    labels = [f"{word} this that" for word in ("bug", "praise", "money", "coffee", "update", "team", "paying", "back")]
    spare = 96 - tokens
    longest = max(len(opened.get_tokenizer().tokenize(" " + label)) for label in labels)
    assert longest < spare < sum(len(opened.get_tokenizer().tokenize(" " + label)) for label in labels) - len(labels)
    wanted = torch_scores(llama, contexts([text]), labels)
    np.testing.assert_allclose(found(opened, [text], candidate_labels=labels), wanted, atol=1e-4)


def test_a_second_call_compiles_nothing(opened: LLM) -> None:
    found(opened)
    programs = opened._judge.programs
    before = programs.begun
    found(opened, candidate_labels=LABELS[::-1], prompt="Kind of {text}:")
    assert programs.begun == before > 0


def test_conversations(llama: Path, tmp_path: Path) -> None:
    """A template is applied, thinking switched off, examples are turns, and the answer begins where it may."""
    shutil.copytree(llama, folder := tmp_path / "chat")
    template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}none\n{% endif %}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    shot = "<user>Text: Thanks\nKind:\n<assistant>praise\n"
    wanted = [f"{shot}<user>{context}\n<assistant>none\n" for context in contexts()]
    with LLM(folder, dtype="float32") as llm:
        params = PoolingParams(use_activation=False)
        asked: dict[str, Any] = {"candidate_labels": LABELS, "prompt": PROMPT, "examples": [("Thanks", "praise")]}
        outputs = llm.classify(TEXTS, pooling_params=params, use_tqdm=False, **asked)
        tokenizer = llm.get_tokenizer()
        assert [one.prompt_token_ids for one in outputs] == [
            tokenizer(context, add_special_tokens=False)["input_ids"] for context in wanted
        ]
        assert np.array([one.outputs.probs for one in outputs]).std() > 0
    (folder / "chat_template.jinja").write_text("{{ messages[0].role }}")
    with LLM(folder) as llm, pytest.raises(ValueError, match="drops the text"):
        llm.classify(TEXTS, candidate_labels=LABELS, use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "Kind:"}, r"The prompt needs \{text\}"),
        ({"prompt": "{text}", "multi_label": True}, r"needs \{label\}"),
        ({"prompt": 3}, "prompt should be a text"),
        ({"candidate_labels": "billing"}, "should be a list of texts"),
        ({"candidate_labels": []}, "candidate_labels is empty"),
        ({"candidate_labels": ["a", " "]}, "a text that is not empty"),
        ({"candidate_labels": ["a", 3]}, "a text that is not empty"),
        ({"candidate_labels": ["bug", "bug"]}, "'bug' is named twice"),
        ({"candidate_labels": ["bug", "bug "]}, None),
        ({"candidate_labels": None}, "is of use with candidate_labels only"),
        ({"examples": [("text", "other")]}, "'other', which is none of candidate_labels"),
        ({"examples": ["text"]}, "pair of texts"),
        ({"examples": [("text", "bug")], "multi_label": True, "prompt": "{text}{label}"}, "into the prompt"),
        ({"calibrate": 1}, "calibrate should be True or False"),
        ({"multi_label": True, "answers": "yes", "prompt": "{text}{label}"}, "answers should be two texts"),
        ({"prompt": "{text}" + " word" * 100}, "maximum context length is 96|the model reads 96"),
        ({"tokenization_kwargs": {"truncation": True}}, "shorten the texts"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(opened: LLM, options: dict[str, Any], message: str | None) -> None:
    if message is None:
        found(opened, **options)
        return
    with pytest.raises(ValueError, match=message) as caught:
        found(opened, **options)
    assert len(str(caught.value)) < 300


def test_other_bad_input(opened: LLM) -> None:
    with pytest.raises(TypeError, match="did you mean 'candidate_labels'"):
        opened.classify(TEXTS, candidate_label=LABELS, use_tqdm=False)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="no labels of its own: pass some"):
        opened.classify(TEXTS, use_tqdm=False)
    for prompt in ([1, 2], {"prompt": "a", "text_pair": "b"}):
        with pytest.raises(ValueError, match="pass texts"):
            opened.classify([prompt], candidate_labels=LABELS, use_tqdm=False)


def test_labels_that_are_the_same_tokens(llama: Path, tmp_path: Path) -> None:
    """As where a tokenizer lower-cases."""
    import json

    shutil.copytree(llama, folder := tmp_path / "lower")
    made = json.loads((folder / "tokenizer.json").read_text())
    made["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(made))
    with LLM(folder) as llm, pytest.raises(ValueError, match="'Bug' and 'bug' are the same tokens"):
        llm.classify(TEXTS, candidate_labels=["Bug", "bug"], prompt=PROMPT, use_tqdm=False)


def test_a_closed_llm_says_so(llama: Path) -> None:
    llm = LLM(llama)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.classify(TEXTS, candidate_labels=LABELS, use_tqdm=False)
