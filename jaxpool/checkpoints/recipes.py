"""Published models that classify by answering, and what each needs to: a table, found by the model's name.

A row turns a language model into a classifier of the first token of its answers (its own rows of the vocabulary, as
``classifier_from_token`` does) and says what stands around the text. Unknown models are untouched, and so is a model
that the caller overrides.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpool.checkpoints.labels import config_field
from jaxpool.checkpoints.language_models import FACTORS
from jaxpool.errors import ConfigError, ValidationError
from jaxpool.params import PoolerConfig
from jaxpool.text.frames import Asking, Frame
from jaxpool.text.vocabulary import Vocabulary

HUB = "https://huggingface.co/"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One row.

    Attributes:
        name: what ``recipe=`` takes.
        purpose: in a few words.
        models: beginnings of model names, without the organisation, in lower case.
        source: where this is written.
        frame: what stands around the text; None for nothing.
        answers: the answers whose first tokens are the labels; empty for a classifier with a head of its own.
        method: how they become a head; see ``jaxpool_conversions.heads``.
        labels: their names; empty where there is but one.
        sigma: what logits are divided by, or None.
        activation: whether scores are probabilities unless the request says otherwise.
        asking: for a language model that answers with any of the labels it is shown: how it is asked.
    """

    name: str
    purpose: str
    models: tuple[str, ...]
    source: str
    frame: Frame | None = None
    answers: tuple[str, ...] = ()
    method: str = "no_post_processing"
    labels: tuple[str, ...] = ()
    sigma: float | None = None
    activation: bool | None = None
    asking: Asking | None = None


_QWEN = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_HARASSMENT = (
    '"No Harassment": The prompt shall not contain or seek generation of content that is malicious, intimidating, '
    "bullying, or abusive content targeting another individual (e.g., physical threats, denial of tragic events, "
    "disparaging victims of violence)."
)

_ROUTES = """
You are a helpful assistant designed to find the best suited route.
You are provided with route description within <routes></routes> XML tags:
<routes>

[{labels}]

</routes>

<conversation>

[{"role": "user", "content": "{text}"}]

</conversation>

Your task is to decide which route is best suit with user intent on the conversation in <conversation></conversation> \
XML tags.  Follow the instruction:
1. If the latest intent from user is irrelevant or user intent is full filled, response with other route \
{"route": "other"}.
2. You must analyze the route descriptions and find the best match route for user latest intent. \

3. You only response the name of the route that best matches the user's request, use the exact name in the \
<routes></routes>.

Based on your analysis, provide your response in the following JSON formats if you decide to match any route:
{"route": "route_name"} \

"""
"""The card's own words, its lapses included: the model was trained on them."""

RECIPES = (
    Recipe(
        "llama-guard-3",
        "guard of conversations",
        ("llama-guard-3-8b", "llama-guard-3-1b"),
        f"{HUB}meta-llama/Llama-Guard-3-8B",
        Frame(ending="\n\n"),  # the answer begins with two line breaks, which are one token
        ("safe", "unsafe"),
        labels=("safe", "unsafe"),
    ),
    Recipe(
        "llama-guard-4",
        "guard of conversations, of their texts",
        ("llama-guard-4-12b",),
        f"{HUB}meta-llama/Llama-Guard-4-12B",
        Frame(generation=True, ending="\n\n"),
        ("safe", "unsafe"),
        labels=("safe", "unsafe"),
    ),
    Recipe(
        "prompt-guard-2",
        "guard against injected prompts",
        ("llama-prompt-guard-2-",),
        f"{HUB}meta-llama/Llama-Prompt-Guard-2-86M",
        labels=("benign", "malicious"),
    ),
    Recipe(
        "shieldgemma",
        "guard of prompts and answers by a guideline",
        ("shieldgemma-2b", "shieldgemma-9b", "shieldgemma-27b"),
        f"{HUB}google/shieldgemma-2b",
        Frame(variables={"guideline": _HARASSMENT}),
        ("No", "Yes"),
        labels=("No", "Yes"),
    ),
    Recipe(
        "qwen3guard",
        "guard of conversations, three levels",
        ("qwen3guard-gen-",),
        f"{HUB}Qwen/Qwen3Guard-Gen-0.6B",
        Frame(ending="Safety:"),
        (" Safe", " Controversial", " Unsafe"),
        labels=("Safe", "Controversial", "Unsafe"),
    ),
    Recipe(
        "granite-guardian",
        "guard of conversations by a named risk",
        ("granite-guardian-3.0-", "granite-guardian-3.1-", "granite-guardian-3.2-"),
        f"{HUB}ibm-granite/granite-guardian-3.1-2b",
        Frame(variables={"guardian_config": {"risk_name": "harm"}}, generation=True),
        ("No", "Yes"),
        labels=("No", "Yes"),
    ),
    Recipe(
        "qwen3-reranker",
        "reranker",
        ("qwen3-reranker-0.6b", "qwen3-reranker-4b", "qwen3-reranker-8b"),
        f"{HUB}Qwen/Qwen3-Reranker-0.6B",
        Frame(
            _QWEN.format(
                "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note "
                'that the answer can only be "yes" or "no".',
                "<Instruct>: {instruction}\n<Query>: {text}\n<Document>: {pair}",
            )
            + "<think>\n\n</think>\n\n",
            "Given a web search query, retrieve relevant passages that answer the query",
        ),
        ("no", "yes"),
        "from_2_way_softmax",
    ),
    Recipe(
        "bge-reranker-v2-gemma",
        "reranker",
        ("bge-reranker-v2-gemma",),
        f"{HUB}BAAI/bge-reranker-v2-gemma",
        Frame(
            "A: {text}\nB: {pair}\n{instruction}",
            "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
            "providing a prediction of either 'Yes' or 'No'.",
            special_tokens=True,
        ),
        ("Yes",),
    ),
    Recipe(
        "mxbai-rerank-v2",
        "reranker",
        ("mxbai-rerank-base-v2", "mxbai-rerank-large-v2"),
        "https://github.com/mixedbread-ai/mxbai-rerank",
        Frame(
            _QWEN.format(
                "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
                "query: {text}\ndocument: {pair}\nYou are a search relevance expert who evaluates how well documents "
                "match search queries. For each query-document pair, carefully analyze the semantic relationship "
                "between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
                "Relevance:",
            )
        ),
        ("0", "1"),
        "from_2_way_softmax",
    ),
    Recipe(
        "zerank",
        "reranker",
        ("zerank-1", "zerank-2"),
        f"{HUB}zeroentropy/zerank-1-small",
        Frame(roles=("system", "user"), generation=True),
        ("Yes",),
        sigma=5.0,
    ),
    Recipe(
        "skywork-reward",
        "reward model: chat in, score out",
        ("skywork-reward-",),
        f"{HUB}Skywork/Skywork-Reward-V2-Qwen3-0.6B",
        Frame(),
        activation=False,
    ),
    Recipe(
        "arch-router",
        "router: candidate_labels are the names of routes",
        ("arch-router-1.5b",),
        f"{HUB}katanemo/Arch-Router-1.5B",
        asking=Asking(
            _ROUTES,
            label='{"name": "{label}", "description": "{label}"}',
            opening='{"route": "',
            closing='"}',
            as_json=True,
        ),
    ),
)


def find(asked: str | None, model: Any, folder: Path, *, overridden: bool) -> Recipe | None:
    """The recipe of a model.

    Args:
        asked: a recipe's name, or None to go by the model's.
        model: as given to ``LLM``: a folder or a hub id.
        folder: where it is.
        overridden: whether the caller says by other arguments what becomes of the model.

    Raises:
        ValidationError: there is no recipe of that name.
    """
    if asked is not None:
        found = next((recipe for recipe in RECIPES if recipe.name == asked), None)
        if found is None:
            known = ", ".join(recipe.name for recipe in RECIPES)
            raise ValidationError(f"There is no recipe {asked!r}; there are {known}.", parameter="recipe")
        return found
    if model is None or overridden:
        return None
    # A classifier as it is reads what it is given, as vLLM's does: chats that callers have rendered, say.
    usual = [recipe for recipe in RECIPES if recipe.answers or recipe.frame is None]
    names = [str(model), folder.name]
    config = folder / "config.json"
    if config.is_file():
        names.append(str(json.loads(config.read_text(encoding="utf-8")).get("_name_or_path") or ""))
    tails = {name.rstrip("/").split("/")[-1].lower() for name in names}
    return next((one for one in usual if any(tail.startswith(one.models) for tail in tails)), None)


def apply(
    recipe: Recipe, config: Any, vocabulary: Vocabulary | None, convert: str, pooler: PoolerConfig
) -> tuple[str, PoolerConfig]:
    """Writes into ``config`` what a recipe says; returns ``convert`` and ``pooler`` with what they did not say.

    Raises:
        ConfigError: the vocabulary has no such answers, so this is another model.
    """
    if recipe.answers:
        config.classifier_from_token = _pieces(recipe, vocabulary)
        config.method = recipe.method
        config.answer_softcap = config_field(config, "final_logit_softcapping")
    if recipe.labels:
        config.id2label = dict(enumerate(recipe.labels))
        config.label2id = {label: i for i, label in enumerate(recipe.labels)}
    pooler = copy.copy(pooler)
    factor = FACTORS[config.model_type](config) if recipe.answers and config.model_type in FACTORS else 1.0
    if pooler.logit_sigma is None and (recipe.sigma is not None or factor != 1.0):
        pooler.logit_sigma = (recipe.sigma or 1.0) / factor
    if pooler.use_activation is None:
        pooler.use_activation = recipe.activation
    return "classify" if recipe.answers else convert, pooler


def _pieces(recipe: Recipe, vocabulary: Vocabulary | None) -> list[str]:
    if vocabulary is None:
        raise ConfigError(f"The recipe {recipe.name!r} needs the tokenizer; do not pass skip_tokenizer_init.")
    first = [vocabulary.ids(answer, special_tokens=False)[:1] for answer in recipe.answers]
    if not all(first) or len({ids[0] for ids in first}) < len(first):
        raise ConfigError(
            f"This vocabulary cannot tell the answers of the recipe {recipe.name!r} apart by their first tokens."
        )
    return [vocabulary.pieces(ids)[0] for ids in first]


def is_overridden(runner: str, convert: str, hf_overrides: Any) -> bool:
    """Whether a caller says already what becomes of a model."""
    named = hf_overrides if isinstance(hf_overrides, Mapping) else {}
    return (runner, convert) != ("auto", "auto") or callable(hf_overrides) or "classifier_from_token" in named
