"""Our rendering of chat templates against transformers' own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from jaxpool.text import chat_template
from jaxpool.text.vocabulary import Vocabulary, read_tokenizer

MODEL = Path(__file__).parents[2] / "data" / "models" / "qwen2-cls"
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": " Be <fair> & brief. "},
    {"role": "user", "content": "Wéll?\n"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "hm",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"b": [1, None], "a": 0.5}}}],
    },
    {"role": "tool", "content": "7", "tool_call_id": "x"},
    {"role": "assistant", "content": "So ends  "},
]
TEMPLATES = [
    None,
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=2, sort_keys=True) }}{{ tools }}{{ documents }}{{ extra }}{{ padding }}",
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ add_generation_prompt }}",
    "{% for m in messages %}\n  {% if m.role == 'tool' %}{% continue %}{% endif %}\n{{ loop.index }}{{ m.content }}\n"
    "{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ dict(a=1) }}{{ dict.fromkeys(['x', 'y'], 2) }}{{ {'k': [1, (2, 3)]} }}",
    "{% for m in messages %}{% generation %}{{ m.thinking }}{{ m.reasoning_content }}{% endgeneration %}{% endfor %}",
    "{% macro show(m) %}[{{ m.role | upper }}]{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
    "{% for m in messages %}{{ m.content | default('', true) | trim }}|{% endfor %}",
    "{% for m in messages %}{% if m.content %}{{ m.content }}.{% endif %}{% endfor %}",
]


@pytest.fixture(scope="module")
def hf() -> Any:
    return read_tokenizer(MODEL)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"continue_final_message": True}], ids=str)
def test_a_text_is_transformers(hf: Any, template: str | None, options: dict[str, bool]) -> None:
    variables = {"tools": [{"type": "function"}], "documents": [{"title": "t", "text": "u"}], "extra": [1, "é"]}
    try:
        theirs = hf.apply_chat_template(TALK, chat_template=template, tokenize=False, **options, **variables)
    except ValueError:
        theirs = None
    template = template or hf.chat_template
    named = {**hf.special_tokens_map, **variables, "padding": "x"}
    if theirs is None:
        with pytest.raises(ValueError, match="continue_final_message"):
            chat_template.rendered(template, TALK, named, **options)
    else:
        assert chat_template.rendered(template, TALK, named, **options) == theirs


def test_reserved_names_are_transformers(hf: Any) -> None:
    names = set(inspect.signature(hf.apply_chat_template).parameters) - {"tools", "documents", "kwargs"}
    assert names == chat_template.RESERVED


def test_a_vocabulary_knows_what_templates_need(hf: Any) -> None:
    vocabulary = Vocabulary.of(read_tokenizer(MODEL))
    assert vocabulary.chat_template == hf.chat_template
    assert vocabulary.special_tokens_map == hf.special_tokens_map


def test_objects_are_no_way_out(hf: Any) -> None:
    template = "{{ messages[0].content }}{{ messages[0].content.path is defined }}{{ extra }}"
    told = chat_template.rendered(template, [{"role": "user", "content": hf}], {"extra": Path})
    assert told == f"<{type(hf).__name__}>False<{type(Path).__name__}>"


def test_a_text_has_a_bound() -> None:
    template = "{% for i in range(100000) %}{{ 'abcd' }}{% endfor %}"
    assert len(chat_template.rendered(template, TALK, {}, max_chars=400_000)) == 400_000
    with pytest.raises(ValueError, match="more than 399999 characters"):
        chat_template.rendered(template, TALK, {}, max_chars=399_999)
