"""
TypeScript types of what an application serves, for its browser client: ``session-ws.d.ts``.
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
}
_MARK: Final = "// What is served\n"
_FILE: Final = Path(__file__).parent.parent / "static" / "session-ws.d.ts"
#: The part that is the same for all applications; what follows it is generated.
_BASE: Final = "".join(_FILE.read_text().partition(_MARK)[:2])
#: The names that this part uses or declares, which are not available for definitions.
_UNAVAILABLE: Final = frozenset({
    "AbortSignal", "Array", "ArrayBufferLike", "ArrayBufferView", "AsyncGenerator", "Blob",
    "Called", "Error", "EventTarget", "Exclude", "Name", "Omit", "Procedures", "Promise", "Record",
    "Topic", "URL", "Uint8Array",
    *re.findall(r"\b(?:class|interface|type|function|const) (\w+)", _BASE),
})  # fmt: skip
#: Names that are valid for an argument in Python, but not for a tuple element in TypeScript.
_RESERVED: Final = frozenset({
    "case", "catch", "const", "debugger", "default", "delete", "do", "enum", "export", "extends",
    "false", "function", "instanceof", "new", "null", "super", "switch", "this", "throw", "true",
    "typeof", "var", "void",
})  # fmt: skip


def typescript_of(schema: Mapping[str, Any]) -> str:
    """
    Return the declarations for a schema from :meth:`Application.schema`.
    """
    lines = [_BASE]
    for name, definition in sorted(schema["$defs"].items()):
        lines += _comment(definition, "")
        lines.append(f"export type {_identifier(name)} = {_type(definition)};\n")
    procedures: dict[str, Any] = {}
    topics: set[str] = set()
    for realm in schema["realms"].values():
        procedures |= realm["procedures"]
        topics.update(map(_key_type, realm["topics"]))
    lines.append("export interface Procedures {")
    for name, procedure in sorted(procedures.items()):
        lines += _procedure(name, procedure)
    # Exact names first, then patterns with more words first: ${string} also matches dots.
    patterns = [name for name in procedures if "{" in name]
    patterns.sort(key=lambda name: (name.count("."), name), reverse=True)
    names = [f"Exclude<keyof Procedures, {' | '.join(map(json.dumps, patterns)) or 'never'}>"]
    names += map(_key_type, patterns)
    lines += ["}", "", f"export type Name = {' | '.join(names)};"]
    lines += [
        "",
        "export type Called<N extends Name> =",
        "  N extends keyof Procedures ? Procedures[N] :",
    ]
    lines += [
        f"  N extends {_key_type(one)} ? Procedures[{json.dumps(one)}] :" for one in patterns
    ]
    lines += ["  never;", "", f"export type Topic = {' | '.join(sorted(topics)) or 'never'};", ""]
    return "\n".join(lines)


def _procedure(name: str, procedure: Mapping[str, Any]) -> Iterator[str]:
    own = [a for a in procedure["arguments"] if a.get("in") != "name"]
    progress = _type(procedure["progress"]) if "progress" in procedure else "never"
    yield from _comment(procedure, "  ")
    yield f"  {json.dumps(name)}: {{"
    by_name = any(a.get("in") == "named" and a["required"] for a in own)
    yield f"    args: {'never' if by_name else '[' + ', '.join(_positional(own)) + ']'};"
    yield f"    named: {_named(own)};"
    yield f"    result: {_type(procedure['result'])};"
    yield f"    progress: {progress};"
    yield "  };"


def _positional(arguments: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for argument in arguments:
        name, schema = argument["name"], argument["schema"]
        name += "_" * (name in _RESERVED)
        if argument.get("in") == "rest":
            yield f"...{name}: Array<{_type(schema)}>"
        elif "in" not in argument:
            yield _field(name, schema, required=argument["required"])


def _named(arguments: Iterable[Mapping[str, Any]]) -> str:
    fields = []
    for argument in arguments:
        if argument.get("in") == "named rest":
            fields.append("[name: string]: any")  # any: a type would have to fit all fields
        elif argument.get("in") != "rest":
            name, required = _key(argument["name"]), argument["required"]
            fields.append(_field(name, argument["schema"], required=required))
    return "{ " + "; ".join(fields) + " }" if fields else "Record<string, never>"


def _type(schema: Mapping[str, Any]) -> str:
    """
    Return the TypeScript type for a JSON Schema made by msgspec.
    """
    if "$ref" in schema:
        return _identifier(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    kind = schema.get("type")
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
    Return the type of the names that match a pattern.
    """
    return f"`{_PART.sub('${string}', name)}`" if "{" in name else json.dumps(name)


def _identifier(name: str) -> str:
    """
    Return the identifier for a definition; one whose name is taken gets an underscore.
    """
    own = f"{name}_" if name in _UNAVAILABLE else name
    return re.sub(r"\W", "_", own)


def _comment(described: Mapping[str, Any], indent: str) -> list[str]:
    text = str(described.get("description", "")).replace("*/", "* /").strip()
    lines = [f"{indent} * {line}".rstrip() for line in text.splitlines()]
    return [f"{indent}/**", *lines, f"{indent} */"] if lines else []
