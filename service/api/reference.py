"""The page at /docs: an OpenAPI document as one HTML page without scripts, so that it works offline, in a
screen reader and in print.

Knows OpenAPI 3.1 as far as this project's own document uses it, and nothing of the project.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

Schema = dict[str, Any]
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8d8de, #3a3a42); --soft: light-dark(#f4f4f6, #22222a);
--accent: light-dark(#1d5fa8, #7db8f5); }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }
a { color: var(--accent); } code, pre { font: .9em/1.5 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; border-radius: 6px; }
h2 { margin-top: 2.5rem; } summary { cursor: pointer; padding: .6rem .25rem; }
details.operation { border-top: 1px solid var(--line); }
details.operation > div { padding: 0 .25rem 1rem; }
.verb { display: inline-block; min-width: 3.4rem; font-weight: 700; color: var(--accent); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0;
border-top: 1px solid var(--line); }
.scroll { overflow-x: auto; } .type { color: light-dark(#666, #aaa); white-space: nowrap; }
h4 { margin: 1rem 0 .25rem; }
"""


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    info, groups = document["info"], document.get("tags", [])
    operations = [
        (path, verb, item) for path, verbs in document["paths"].items() for verb, item in verbs.items()
    ]
    parts = [f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"]
    parts += [f"<p>{escape(text)}</p>" for text in info.get("description", "").split("\n\n")]
    parts.append(
        '<p>For machines and client generators: <a href="openapi.json">openapi.json</a>. The demo page: <a '
        'href="./">here</a>.</p>'
    )
    for group in groups:
        parts.append(f"<h2>{escape(group['name'])}</h2><p>{escape(group.get('description', ''))}</p>")
        parts += [
            _operation(path, verb, item)
            for path, verb, item in operations
            if group["name"] in item.get("tags", [])
        ]
    parts.append("<h2>Objects</h2>")
    parts += [
        _object(name, schema)
        for name, schema in sorted(document["components"]["schemas"].items())
        if "properties" in schema
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>'
        f"{escape(info['title'])} API</title><style>{STYLE}</style>"
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><main>{"".join(parts)}</main></body></html>'
    )


def _operation(path: str, verb: str, item: Schema) -> str:
    parts = [f"<p>{escape(item.get('description') or item.get('summary', ''))}</p>"]
    if parameters := item.get("parameters"):
        rows = [(p["name"], p["schema"], p.get("description", ""), p["in"]) for p in parameters]
        parts.append(
            "<h4>Parameters</h4>"
            + _table([(f"{name} ({place})", schema, text) for name, schema, text, place in rows])
        )
    if body := item.get("requestBody"):
        forms = "".join(
            f"<li><code>{escape(media)}</code>{_example(form)}</li>"
            for media, form in body["content"].items()
        )
        parts.append(f"<h4>Body, one of</h4><ul>{forms}</ul>")
    parts.append(
        "<h4>Answers</h4><ul>"
        + "".join(_answer(status, answer) for status, answer in item["responses"].items())
        + "</ul>"
    )
    title = (
        f'<span class="verb">{verb.upper()}</span> <code>{escape(path)}</code> '
        f"{escape(item.get('summary', ''))}"
    )
    return (
        f'<details class="operation" id="{escape(item.get("operationId", path))}"><summary>{title}</summary>'
        f"<div>{''.join(parts)}</div></details>"
    )


def _example(form: Schema) -> str:
    return f"<pre>{escape(json.dumps(form['example'], indent=1))}</pre>" if "example" in form else ""


def _answer(status: str, answer: Schema) -> str:
    kinds = dict.fromkeys(_type(content.get("schema", {})) for content in answer.get("content", {}).values())
    medias = ", ".join(answer.get("content", {}))
    return (
        f"<li><b>{status}</b> {escape(answer.get('description', ''))} <span class='type'>{escape(medias)}"
        f"</span> {' or '.join(kinds)}</li>"
    )


def _object(name: str, schema: Schema) -> str:
    rows = [(key, value, value.get("description", "")) for key, value in schema["properties"].items()]
    return (
        f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        + _table(rows)
    )


def _table(rows: list[tuple[str, Schema, str]]) -> str:
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td "
        f"class='type'>{_type(schema)}{_default(schema)}</td><td>{escape(text)}{_sample(schema)}</td></tr>"
        for name, schema, text in rows
    )
    return (
        f'<div class="scroll"><table><tr><th>Name</th><th>Type</th><th>Meaning</th></tr>{body}</table></div>'
    )


def _default(schema: Schema) -> str:
    return f" = {escape(json.dumps(schema['default']))}" if schema.get("default") is not None else ""


def _sample(schema: Schema) -> str:
    return f" <code>{escape(json.dumps(schema['examples'][0])[:80])}</code>" if schema.get("examples") else ""


def _type(schema: Schema) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema or "const" in schema:
        return escape(" | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")])))
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(_type(option) for option in schema[choice] if option.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}" if "items" in schema else "list"
    bounds = "".join(
        f" {sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema
    )
    return escape(str(schema.get("contentMediaType") or schema.get("type", "any")) + bounds)
