"""Conversations as text: what a template sees. What vLLM makes of them is in ``tests/serving/test_chat.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxpool import ValidationError
from jaxpool.text import chat
from jaxpool.text.vocabulary import read_tokenizer

MODEL = Path(__file__).parents[2] / "data" / "models" / "qwen2-cls"
DUMP = "{{ messages | tojson }}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return read_tokenizer(MODEL)


def test_the_tokenizers_own_template(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Well?"}]
    text = "<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n"
    assert chat.render(tokenizer, messages) == text
    assert chat.render(tokenizer, messages, add_generation_prompt=True) == f"{text}<|im_start|>assistant\n"
    assert chat.render(tokenizer, messages, continue_final_message=True) == text.removesuffix("<|im_end|>\n")
    assert chat.render(tokenizer, messages, variables={"extra": "x", "tokenize": True}) == f"{text}EXTRA:x"
    assert tokenizer.chat_template is not None  # and nothing of it has changed


def test_named_templates() -> None:
    tokenizer = read_tokenizer(MODEL)
    tokenizer.chat_template = {"default": "D", "tool_use": "T", "mine": "M"}
    message = [{"role": "user", "content": "a"}]
    assert chat.render(tokenizer, message) == "D"
    assert chat.render(tokenizer, message, "mine") == "M"
    assert chat.render(tokenizer, message, variables={"tools": [{"type": "function"}]}) == "T"
    tokenizer.chat_template = None
    with pytest.raises(ValidationError, match="must provide a chat template"):
        chat.render(tokenizer, message)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", "openai"),
        ("{% for m in messages %}{%- for c in m['content'] -%}{{ c.text }}{% endfor %}{% endfor %}", "openai"),
        ('{% for m in messages %}{% for c in m["content"] | list %}{{ c.text }}{% endfor %}{% endfor %}', "openai"),
        ("{% set content = messages[0].content %}{% for c in content %}{{ c.text }}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for c in contents %}{{ c }}{% endfor %}{{ m.content }}{% endfor %}", "string"),
    ],
)
def test_templates_get_contents_as_they_want_them(tokenizer: Any, template: str, wanted: str) -> None:
    messages = [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]
    assert chat.render(tokenizer, messages, template) == ("a\nb" if wanted == "string" else "ab")
    assert chat.render(tokenizer, messages, DUMP + template, content_format="openai").startswith(
        '[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]'
    )


def test_a_template_that_knows_developers_sees_them(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "developer", "content": "b"}]
    roles = "{% for m in messages %}{{ m.role }} {% endfor %}"
    assert chat.render(tokenizer, messages, roles) == "system user "
    assert chat.render(tokenizer, messages, roles + "{# 'developer' #}") == "user developer "


def test_what_the_caller_passed_stays_as_it_was(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '"arguments": {"a": 1}' in chat.render(tokenizer, messages, DUMP)
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "^roles must alternate$"),
        ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ bad", "unexpected end of template"),
    ],
)
def test_templates_that_fail_say_why(tokenizer: Any, template: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        chat.render(tokenizer, [{"role": "user", "content": "a"}], template)


def test_check_only_compiles() -> None:
    chat.check("{{ raise_exception('not now') }}{% generation %}{% endgeneration %}")
    with pytest.raises(ValidationError, match="not well-formed"):
        chat.check("{% for %}")
