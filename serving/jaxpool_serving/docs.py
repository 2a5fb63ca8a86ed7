"""A page for people, made of the OpenAPI document; it needs nothing else, no script and no other server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
code { background: #f3f3f3; padding: 0 .2em } h2 { border-top: 1px solid #ddd; padding-top: 1rem }
table { border-collapse: collapse; width: 100% } td, th { border: 1px solid #ddd; padding: .3em .6em; text-align: left }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } code { background: #333 } }
"""


def page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML: every route, then every body."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    lines = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>',
        f"<h1>{title}</h1><p>{escape(document['info']['description'])} <a href='openapi.json'>openapi.json</a></p>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += [f"<h2><code>{method.upper()} {escape(path)}</code></h2>", *_operation(operation)]
    lines.append("<h1>Bodies</h1>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += [f'<h2 id="{escape(name)}">{escape(name)}</h2>', *_body(schema)]
    return "\n".join(lines)


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{escape(operation['summary'])}</p>"
    if request := operation.get("requestBody"):
        yield f"<p>Request: {_content(request['content'])}</p>"
    yield "<table><tr><th>status<th>when<th>body</tr>"
    for status, answer in operation["responses"].items():
        yield f"<tr><td>{status}<td>{escape(answer['description'])}<td>{_content(answer.get('content', {}))}</tr>"
    yield "</table>"


def _content(content: Mapping[str, Any]) -> str:
    return " or ".join(
        _kind(media["schema"]) if "schema" in media else f"<code>{escape(name)}</code>"
        for name, media in content.items()
    )


def _body(schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{escape(schema.get('description', ''))}</p><table><tr><th>field<th>type<th>default</tr>"
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in schema.get("required", ()) else _default(field)
        yield f"<tr><td><code>{escape(name)}</code><td>{_kind(field)}<td>{default}</tr>"
    yield "</table>"


def _default(field: Mapping[str, Any]) -> str:
    return f"<code>{escape(json.dumps(field['default']))}</code>" if "default" in field else ""


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a value in words, named ones as links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(map(_kind, schema[union]))
    if "const" in schema or "enum" in schema:
        return " or ".join(
            f"<code>{escape(json.dumps(one))}</code>" for one in schema.get("enum", [schema.get("const")])
        )
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    limits = [f"{words} {schema[key]}" for key, words in LIMITS.items() if key in schema]
    return " ".join([escape(schema.get("type", "anything")), *limits])


LIMITS = {"minimum": "from", "maximum": "to", "exclusiveMinimum": "above"}
