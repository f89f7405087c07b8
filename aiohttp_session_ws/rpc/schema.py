"""
JSON Schema of what an application serves, for documentation and for types of other languages.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from .realm import Realm
from .signature import is_injected, is_required
from .table import Entry, Procedure

__all__ = ["schema_of"]

_REFERENCE: Final = "#/$defs/{name}"
#: Returns the dict that will hold the schema of a type.
SchemaOf: TypeAlias = Callable[[Any], Any]

#: ``in`` for arguments that are variadic, or passed by name only.
_PLACES: Final[Mapping[Any, str]] = {
    inspect.Parameter.VAR_POSITIONAL: "rest",
    inspect.Parameter.VAR_KEYWORD: "named rest",
    inspect.Parameter.KEYWORD_ONLY: "named",
}
_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)


def schema_of(realms: Mapping[str, Realm], default_args: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the procedures and topics of realms, with the definitions that their types refer to.

    Raises:
        TypeError: If a type has no schema; the message names the function and the remedy.
    """
    types: list[Any] = []
    results: list[dict[str, Any]] = []

    def schema(kind: Any) -> dict[str, Any]:
        types.append(_describable(kind))
        results.append({})
        return results[-1]

    described = {
        uri: _realm(realm, {**default_args, **realm.default_args}, schema)
        for uri, realm in realms.items()
    }
    schemas, definitions = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    for result, found in zip(results, schemas, strict=True):
        result.update(found)
    return {"realms": described, "$defs": definitions}


def _realm(realm: Realm, defaults: Mapping[str, Any], schema: SchemaOf) -> dict[str, Any]:
    return {
        "procedures": {p.name: _procedure(p, defaults, schema) for p in realm.served.procedures},
        "topics": {t.name: _described(t, defaults, schema) for t in realm.served.topics},
        "errors": sorted(set(realm.errors.values())),
    }


def _procedure(
    procedure: Procedure, defaults: Mapping[str, Any], schema: SchemaOf
) -> dict[str, Any]:
    signature = procedure.signature
    signature.check(defaults)
    described = _described(procedure, defaults, schema)
    if signature.streams:
        described |= {"result": schema(None), "progress": schema(_part_of(signature.returns))}
    else:
        described["result"] = schema(signature.returns)
    if procedure.timeout is not None:
        described["timeout"] = procedure.timeout
    return described


def _described(entry: Entry, defaults: Mapping[str, Any], schema: SchemaOf) -> dict[str, Any]:
    """
    Return the description of an entry, and the arguments that a peer may pass, in order.
    """
    text = inspect.getdoc(entry.signature.function)
    found: list[dict[str, Any]] = []
    for p in entry.signature.parameters:
        if is_injected(p, defaults):
            continue
        found.append({"name": p.name, "schema": schema(p.annotation)})
        place = "name" if p.name in entry.parts else _PLACES.get(p.kind)
        if place is not None:
            found[-1]["in"] = place
        found[-1]["required"] = is_required(p)
    return ({"description": text} if text else {}) | {"arguments": found}


def _part_of(annotation: Any) -> Any:
    """
    Return the type that a stream yields, from its return annotation.
    """
    if typing.get_origin(annotation) in _STREAMS:
        return typing.get_args(annotation)[0]
    return Any


def _describable(kind: Any) -> Any:
    """
    Return *kind*; ``Any`` for a missing annotation, and for a type without a schema (RPCResult).
    """
    try:
        msgspec.json.schema_components([kind])
    except TypeError:
        return Any
    return Any if kind is inspect.Signature.empty else kind
