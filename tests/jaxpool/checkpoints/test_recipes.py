"""Each recipe on a tiny model of its architecture, against transformers and the steps of the model's own card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams
from jaxpool.checkpoints.recipes import RECIPES
from tests.support.tiny import save

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
QUERY, DOCUMENT = "Who sells {text} tea?", "The shop at the corner does; {pair} of pots."
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 1024}

CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}{{ guideline }}"
    "{% if guardian_config %}{{ guardian_config.risk_name }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Stands for each model's own template: shows roles, the variables of guards, and whether an answer is begun."""

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-guard-3": ("Llama-Guard-3-8B", "llama", {}),
    "shieldgemma": ("shieldgemma-2b", "gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "qwen3guard": ("Qwen3Guard-Gen-0.6B", "qwen3", {"head_dim": 8}),
    "granite-guardian": ("granite-guardian-3.1-2b", "granite", {"logits_scaling": 3.0}),
    "qwen3-reranker": ("Qwen3-Reranker-0.6B", "qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "bge-reranker-v2-gemma": ("bge-reranker-v2-gemma", "gemma", {"head_dim": 8}),
    "mxbai-rerank-v2": ("mxbai-rerank-base-v2", "qwen2", {"tie_word_embeddings": True}),
    "zerank": ("zerank-1-small", "qwen3", {"head_dim": 8}),
}
"""Recipe -> name of a model that has it, its model type, what differs from the usual sizes."""


def make(folder: Path, kind: str, head: str = "causal", **more: Any) -> Path:
    from transformers import AutoTokenizer

    source = MODELS / "llama-causal"
    save(folder, kind, head=head, vocab_size=len(AutoTokenizer.from_pretrained(source)), **{**SIZES, **more})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def last_logits(folder: Path, ids: list[int]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()


def softmax(values: Any) -> np.ndarray:
    powers = np.exp(np.array(values, np.float64) - np.max(values))
    return powers / powers.sum()


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - np.log(np.exp(values.astype(np.float64) - values.max()).sum()) - values.max()


def guard(answers: list[str], ending: str = "", **template: Any) -> Callable[[Path, Any], np.ndarray]:
    def steps(folder: Path, tokenizer: Any) -> np.ndarray:
        chat = [{"role": "user", "content": QUERY}, {"role": "assistant", "content": DOCUMENT}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, **template)
        ids = tokenizer(text + ("" if text.endswith(ending) else ending), add_special_tokens=False)["input_ids"]
        first = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in answers]
        return softmax(last_logits(folder, ids)[first])

    return steps


def qwen3_reranker(folder: Path, tokenizer: Any) -> np.ndarray:
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    task = "Given a web search query, retrieve relevant passages that answer the query"
    body = f"<Instruct>: {task}\n<Query>: {QUERY}\n<Document>: {DOCUMENT}"
    text = prefix + body + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    logits = last_logits(folder, tokenizer(text, add_special_tokens=False)["input_ids"])
    no, yes = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("no", "yes"))
    return softmax(logits[[no, yes]])[1:]


def mxbai(folder: Path, tokenizer: Any) -> np.ndarray:
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    )
    text = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nquery: {QUERY}\ndocument: {DOCUMENT}\n{task}<|im_end|>\n<|im_start|>assistant\n"
    )
    logits = last_logits(folder, tokenizer(text, add_special_tokens=False)["input_ids"])
    zero, one = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in "01")
    return softmax(logits[[zero, one]])[1:]


def bge_gemma(folder: Path, tokenizer: Any) -> np.ndarray:
    task = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'."
    )
    logits = last_logits(folder, tokenizer(f"A: {QUERY}\nB: {DOCUMENT}\n{task}")["input_ids"])
    return 1 / (1 + np.exp(-logits[tokenizer("Yes", add_special_tokens=False)["input_ids"][:1]]))


def zerank(folder: Path, tokenizer: Any) -> np.ndarray:
    chat = [{"role": "system", "content": QUERY}, {"role": "user", "content": DOCUMENT}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    logits = last_logits(folder, tokenizer(text, add_special_tokens=False)["input_ids"])
    return 1 / (1 + np.exp(-logits[tokenizer.encode("Yes", add_special_tokens=False)[:1]] / 5.0))


CARDS: dict[str, Callable[[Path, Any], np.ndarray]] = {
    "llama-guard-3": guard(["safe", "unsafe"], "\n\n"),
    "shieldgemma": guard(
        ["No", "Yes"], guideline=next(r for r in RECIPES if r.name == "shieldgemma").frame.variables["guideline"]
    ),  # type: ignore[union-attr]
    "qwen3guard": guard([" Safe", " Controversial", " Unsafe"], "Safety:"),
    "granite-guardian": guard(["No", "Yes"], guardian_config={"risk_name": "harm"}, add_generation_prompt=True),
    "qwen3-reranker": qwen3_reranker,
    "bge-reranker-v2-gemma": bge_gemma,
    "mxbai-rerank-v2": mxbai,
    "zerank": zerank,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_steps_of_the_card(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder_name, kind, more = ARCHITECTURES[name]
    folder = make(tmp_path / folder_name, kind, **more)
    wanted = CARDS[name](folder, AutoTokenizer.from_pretrained(folder))
    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    with LLM(folder, dtype="float32") as llm:  # by its folder's name
        pair = {"text": QUERY, "text_pair": DOCUMENT}
        [output] = llm.classify(pair, use_tqdm=False)
        np.testing.assert_allclose(output.outputs.probs, wanted, atol=1e-5)
        if len(wanted) == 1:
            [score] = llm.score(QUERY, DOCUMENT, use_tqdm=False)
            assert score.outputs.score == pytest.approx(float(wanted[0]), abs=1e-5)
        else:
            assert llm.labels == recipe.labels
            turns = [{"role": "user", "content": QUERY}, {"role": "assistant", "content": DOCUMENT}]
            [same] = llm.classify([{"messages": turns}], use_tqdm=False)
            assert same.outputs.probs == output.outputs.probs
        with pytest.raises(ValueError, match="shorten the text itself"):
            llm.classify(pair, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": 4})
        if recipe.frame is not None and recipe.frame.layout:
            with pytest.raises(ValueError, match="compares two texts"):
                llm.classify(QUERY, use_tqdm=False)


@pytest.mark.parametrize(("name", "variable"), [("qwen3-reranker", "instruction"), ("zerank", "guideline")])
def test_instructions_and_limits_of_a_reranker(name: str, variable: str, tmp_path: Path) -> None:
    """An instruction takes the place of the recipe's own; a template's variables reach it; sides are cut alone."""
    from transformers import AutoTokenizer

    folder_name, kind, more = ARCHITECTURES[name]
    folder = make(tmp_path / folder_name, kind, **more)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with LLM(folder, dtype="float32") as llm:
        plain = llm.score(QUERY, DOCUMENT, use_tqdm=False)[0]
        given: dict[str, Any] = {"chat_template_kwargs": {variable: "Find tea."}}
        for extra in (given, {"instruction": "Find tea."}) if variable == "instruction" else (given,):
            [asked] = llm.score(QUERY, DOCUMENT, use_tqdm=False, pooling_params=PoolingParams(extra_kwargs={**extra}))
            said = tokenizer.decode(asked.prompt_token_ids)
            assert "Find tea." in said
            assert ("retrieve relevant" in said) is False
            assert asked.outputs.score != plain.outputs.score
        short = PoolingParams(extra_kwargs={"max_tokens_per_query": 2, "max_tokens_per_doc": 3})
        [cut] = llm.score(QUERY, DOCUMENT, use_tqdm=False, pooling_params=short)
        with llm.tokenizer.reading() as vocabulary:
            sides = vocabulary.beginning(QUERY, 2), vocabulary.beginning(DOCUMENT, 3)
        assert cut.prompt_token_ids == llm.score(*sides, use_tqdm=False)[0].prompt_token_ids
        assert len(cut.prompt_token_ids) < len(plain.prompt_token_ids)
        if variable == "instruction":
            with pytest.raises(ValueError, match="instruction should be a text"):
                llm.score("a", "b", use_tqdm=False, pooling_params=PoolingParams(extra_kwargs={"instruction": 3}))


def test_a_reward_model_reads_chats_if_asked_and_texts_if_not(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make(tmp_path / "Skywork-Reward-V2-Qwen3-0.6B", "qwen3", "sequence", head_dim=8, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": QUERY}, {"role": "assistant", "content": DOCUMENT}]
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    with LLM(folder, dtype="float32") as plain:
        raw = PoolingParams(use_activation=False)
        [by_ids] = plain.classify(ids, pooling_params=raw, use_tqdm=False)
        [text] = plain.classify(QUERY, pooling_params=raw, use_tqdm=False)
        assert text.prompt_token_ids == tokenizer(QUERY)["input_ids"]
        [chat] = plain.classify([{"messages": turns}], pooling_params=raw, use_tqdm=False)  # said to be a chat
        assert (chat.prompt_token_ids, chat.outputs.probs) == (ids, by_ids.outputs.probs)
    with LLM(folder, dtype="float32", recipe="skywork-reward") as llm:
        [chat] = llm.classify([{"messages": turns}], use_tqdm=False)
        assert chat.prompt_token_ids == ids
        assert chat.outputs.probs == by_ids.outputs.probs  # no sigmoid


def test_llama_guard_4_reads_texts(tmp_path: Path) -> None:
    """A whole checkpoint, images and all, against what transformers makes of its text."""
    import torch
    from transformers import AutoTokenizer, Llama4Config, Llama4ForConditionalGeneration

    folder, source = tmp_path / "Llama-Guard-4-12B", MODELS / "llama-causal"
    text = SIZES | {"moe_layers": [], "intermediate_size_mlp": 40, "head_dim": 8, "num_hidden_layers": 4}
    text |= {"vocab_size": len(AutoTokenizer.from_pretrained(source)), "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32}
    torch.manual_seed(0)
    config = Llama4Config(text_config=text, vision_config=vision | {"projector_output_dim": 32})
    model = Llama4ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": QUERY}, {"role": "assistant", "content": DOCUMENT}]
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "\n\n"
    ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
    first = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in ("safe", "unsafe")]
    with torch.no_grad():
        # Not the whole model: that of transformers 5.24 fails where there are no images.
        wanted = softmax(model.language_model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()[first])
    with LLM(folder, dtype="float32") as llm:
        [output] = llm.classify([{"messages": turns}], use_tqdm=False)
        assert llm.labels == ("safe", "unsafe")
        assert output.prompt_token_ids == ids
        np.testing.assert_allclose(output.outputs.probs, wanted, atol=1e-5)


def test_a_router_gives_the_probability_of_each_route(tmp_path: Path) -> None:
    """The card's two prompts around routes and a conversation, both JSON; the answer is JSON, too."""
    from transformers import AutoTokenizer

    folder = make(tmp_path / "Arch-Router-1.5B", "qwen2", tie_word_embeddings=True)
    routes, text = ["code", 'code "review"', "other"], 'Fix {label}:\n"if x"'
    shown = json.dumps([{"name": name, "description": name} for name in routes])
    task = (
        "\nYou are a helpful assistant designed to find the best suited route.\nYou are provided with route "
        f"description within <routes></routes> XML tags:\n<routes>\n\n{shown}\n\n</routes>\n\n<conversation>\n\n"
        f"{json.dumps([{'role': 'user', 'content': text}])}\n\n</conversation>\n"
    )
    form = (
        "\nYour task is to decide which route is best suit with user intent on the conversation in <conversation>"
        "</conversation> XML tags.  Follow the instruction:\n1. If the latest intent from user is irrelevant or user "
        'intent is full filled, response with other route {"route": "other"}.\n2. You must analyze the route '
        "descriptions and find the best match route for user latest intent. \n3. You only response the name of the "
        "route that best matches the user's request, use the exact name in the <routes></routes>.\n\nBased on your "
        "analysis, provide your response in the following JSON formats if you decide to match any route:\n"
        '{"route": "route_name"} \n'
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": task + form}]
    start = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + '{"route": "'
    wanted = []
    for name in routes:
        spelled = start + json.dumps(name)[1:] + "}"
        before, ids = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in (start, spelled))
        first = next((i for i, (a, b) in enumerate(zip(before, ids)) if a != b), len(before))
        scores = [log_softmax(last_logits(folder, ids[:at]))[ids[at]] for at in range(first, len(ids))]
        wanted.append(sum(scores))
    with LLM(folder, dtype="float32") as llm:
        [output] = llm.classify(text, candidate_labels=routes, use_tqdm=False)
        np.testing.assert_allclose(output.outputs.probs, softmax(wanted), atol=1e-5)
        [plain] = llm.classify(text, candidate_labels=routes, prompt="{text} {labels}:", use_tqdm=False)
        assert "<routes>" not in tokenizer.decode(plain.prompt_token_ids)


def test_prompt_guard_has_names_for_its_labels(tmp_path: Path) -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
    folder = tmp_path / "Llama-Prompt-Guard-2-86M"
    save(folder, "deberta-v2", vocab_size=64, **sizes)
    with LLM(folder, skip_tokenizer_init=True) as llm:
        assert llm.labels == ("benign", "malicious")


def test_what_is_overridden_or_unknown_is_untouched(tmp_path: Path) -> None:
    folder = make(tmp_path / "Qwen3-Reranker-0.6B", "qwen3", head_dim=8)
    overrides = {"classifier_from_token": ["a", "b"], "method": "no_post_processing"}
    with LLM(folder, convert="classify", hf_overrides=overrides) as llm:
        assert llm.tokenizer.frame is None
        assert len(llm.labels) == 2
    with LLM(folder.rename(tmp_path / "mine")) as llm:
        assert llm.pooling_task == "zero_shot"
    config = json.loads((tmp_path / "mine" / "config.json").read_text()) | {"_name_or_path": "Qwen/Qwen3-Reranker-0.6B"}
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    with LLM(tmp_path / "mine") as llm:  # as a copy of it says
        assert llm.tokenizer.frame is not None
    with pytest.raises(ValueError, match="no recipe 'qwen4'; there are llama-guard-3"):
        LLM(tmp_path / "mine", recipe="qwen4")


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    from jaxpool.commands.main import main

    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(recipe.name in shown and recipe.source in shown for recipe in RECIPES)
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
