"""A page for people, made of the OpenAPI document; it needs nothing else, no script and no other server."""

from __future__ import annotations

import json
import re
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
    """An OpenAPI document as HTML: every route, every status, every body."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    lines = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>',
        f"<h1>{title}</h1><p>{_text(document['info']['description'])} <a href='openapi.json'>openapi.json</a></p>",
    ]
    statuses: dict[str, Mapping[str, Any]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += [f"<h2><code>{method.upper()} {escape(path)}</code></h2>", *_operation(operation)]
            statuses |= operation["responses"]
    lines.append('<h1 id="statuses">Statuses</h1><table><tr><th>status<th>when<th>body</tr>')
    for status, answer in sorted(statuses.items()):
        body = "" if status == "200" else _content(answer["content"])
        lines.append(f"<tr><td>{status}<td>{_text(answer['description'])}<td>{body}</tr>")
    lines.append("</table><h1>Bodies</h1>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += [f'<h2 id="{escape(name)}">{escape(name)}</h2>', *_body(schema)]
    return "\n".join(lines)


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{_text(operation['summary'])}</p><ul>"
    if request := operation.get("requestBody"):
        yield f"<li>Request: {_content(request['content'])}"
    yield f"<li>Answer: {_content(operation['responses']['200'].get('content', {})) or 'empty'}"
    if refusals := [status for status in operation["responses"] if status != "200"]:
        yield f'<li><a href="#statuses">Refusals</a>: {", ".join(refusals)}'
    yield "</ul>"


def _content(content: Mapping[str, Any]) -> str:
    return " or ".join(
        _kind(media["schema"]) if "schema" in media else f"<code>{escape(name)}</code>"
        for name, media in content.items()
    )


def _body(schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{_text(schema.get('description', ''))}</p><table><tr><th>field<th>type<th>default</tr>"
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in schema.get("required", ()) else _default(field)
        yield f"<tr><td><code>{escape(name)}</code><td>{_kind(field)}<td>{default}</tr>"
    yield "</table>"


def _default(field: Mapping[str, Any]) -> str:
    return f"<code>{escape(json.dumps(field['default']))}</code>" if "default" in field else ""


def _text(markdown: str) -> str:
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", escape(markdown))


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
        items = _kind(schema.get("items", {}))
        return f"list of ({items})" if " or " in items else f"list of {items}"
    limits = [f"{words} {schema[key]}" for key, words in LIMITS.items() if key in schema]
    return " ".join([escape(schema.get("type", "anything")), *limits])


LIMITS = {"minimum": "from", "maximum": "to", "exclusiveMinimum": "above"}
