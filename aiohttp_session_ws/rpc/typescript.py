"""
What an application serves, as types for its browser client: the text of ``session-ws.d.ts``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["typescript_of"]

_NAME: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_PART: Final = re.compile(r"\{[^}]*\}")
_SIMPLE: Final = {
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
    "string": "string",
    "array": "unknown[]",
    "object": "Record<string, unknown>",
}
#: The types that are the same for all; what is served takes the place of its last lines.
_BASE: Final = Path(__file__).parent.parent / "static" / "session-ws.d.ts"
_MARK: Final = "// What is served\n"


def typescript_of(schema: Mapping[str, Any]) -> str:
    """
    Return the declarations for what :meth:`Application.schema` returns.
    """
    definitions = schema["$defs"]
    head, mark, _ = _BASE.read_text().partition(_MARK)
    lines = [head + mark]
    for name, definition in sorted(definitions.items()):
        lines += _comment(definition, "")
        lines.append(f"export type {_identifier(name)} = {_type(definition)};\n")
    procedures: dict[str, Any] = {}
    topics: set[str] = set()
    for realm in schema["realms"].values():
        procedures |= realm["procedures"]
        topics.update(map(_key_type, realm["topics"]))
    lines.append("export interface Procedures {")
    for name, procedure in sorted(procedures.items(), key=lambda item: ("{" in item[0], item)):
        lines += _procedure(name, procedure)
    lines += ["}", "", f"export type Topic = {' | '.join(sorted(topics)) or 'never'};", ""]
    return "\n".join(lines)


def _procedure(name: str, procedure: Mapping[str, Any]) -> Iterator[str]:
    own = [a for a in procedure["arguments"] if a.get("in") != "name"]
    progress = _type(procedure["progress"]) if "progress" in procedure else "never"
    yield from _comment(procedure, "  ")
    yield f"  {f'[name: {_key_type(name)}]' if '{' in name else json.dumps(name)}: {{"
    yield f"    args: [{', '.join(_positional(own))}];"
    yield f"    named: {_named(own)};"
    yield f"    result: {_type(procedure['result'])};"
    yield f"    progress: {progress};"
    yield "  };"


def _positional(arguments: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for argument in arguments:
        name, schema = _identifier(argument["name"]), argument["schema"]
        if argument.get("in") == "rest":
            yield f"...{name}: Array<{_type(schema)}>"
        elif "in" not in argument:
            yield _field(name, schema, required=argument["required"])


def _named(arguments: Iterable[Mapping[str, Any]]) -> str:
    fields, rest = [], ""
    for argument in arguments:
        if argument.get("in") == "named rest":
            rest = f" & Record<string, {_type(argument['schema'])}>"
        elif argument.get("in") != "rest":
            name, required = _key(argument["name"]), argument["required"]
            fields.append(_field(name, argument["schema"], required=required))
    return ("{ " + "; ".join(fields) + " }" if fields else "Record<string, never>") + rest


def _type(schema: Mapping[str, Any]) -> str:
    """
    Return the type of what a JSON Schema describes.
    """
    if "$ref" in schema:
        return _identifier(schema["$ref"].rpartition("/")[2])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " | ".join(dict.fromkeys(map(_type, schema[several])))
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_type({**schema, "type": one}) for one in kind)
    if kind == "string" and schema.get("contentEncoding") == "base64":
        return "Uint8Array"
    if kind == "array":
        return _array(schema)
    if kind == "object":
        return _object(schema)
    return _SIMPLE.get(str(kind), "any")


def _array(schema: Mapping[str, Any]) -> str:
    if schema.get("prefixItems"):
        return "[" + ", ".join(map(_type, schema["prefixItems"])) + "]"
    items = schema.get("items")
    return f"Array<{_type(items)}>" if isinstance(items, dict) else "unknown[]"


def _object(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    fields = [
        _field(_key(name), one, required=name in required)
        for name, one in schema.get("properties", {}).items()
    ]
    if fields:
        return "{ " + "; ".join(fields) + " }"
    others = schema.get("additionalProperties")
    return f"Record<string, {_type(others) if isinstance(others, dict) else 'unknown'}>"


def _field(name: str, schema: Mapping[str, Any], *, required: bool) -> str:
    return f"{name}{'' if required else '?'}: {_type(schema)}"


def _key(name: str) -> str:
    return name if _NAME.fullmatch(name) else json.dumps(name)


def _key_type(name: str) -> str:
    """
    Return the type of the names that fit a pattern.
    """
    return f"`{_PART.sub('${string}', name)}`" if "{" in name else json.dumps(name)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _comment(described: Mapping[str, Any], indent: str) -> list[str]:
    text = str(described.get("description", "")).replace("*/", "* /").strip()
    lines = [f"{indent} * {line}".rstrip() for line in text.splitlines()]
    return [f"{indent}/**", *lines, f"{indent} */"] if lines else []
