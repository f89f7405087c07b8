"""
What an application serves, as JSON Schema: for documents, and for types of other languages.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from .realm import Realm
from .signature import Signature, is_injected, is_required, type_of
from .table import Procedure

__all__ = ["schema_of"]

_REFERENCE: Final = "#/$defs/{name}"
_STREAMS: Final = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


def schema_of(realms: Mapping[str, Realm], default_args: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the procedures and topics of realms, and the definitions that their types use.

    Raises:
        TypeError: If a type has no schema; it names the function and the remedy.
    """
    types: list[Any] = []
    found: dict[str, Any] = {}
    for uri, realm in realms.items():
        defaults = {**default_args, **realm.default_args}
        procedures = {p.name: _procedure(p, defaults, types) for p in realm.served.procedures}
        topics = {
            t.name: _described(t.signature)
            | {"arguments": _arguments(t.signature, t.parts, defaults, types)}
            for t in realm.served.topics
        }
        errors = sorted(set(realm.errors.values()))
        found[uri] = {"procedures": procedures, "topics": topics, "errors": errors}
    schemas, definitions = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    return {"realms": _fill_in(found, list(schemas)), "$defs": definitions}


class _Slot(int):
    """
    The place of a type's schema, by the number of the type.
    """


def _procedure(
    procedure: Procedure, defaults: Mapping[str, Any], types: list[Any]
) -> dict[str, Any]:
    signature = procedure.signature
    signature.check(defaults)
    returns = signature.returns
    progress = None
    if signature.kind == "stream":
        progress, returns = _part_of(returns), None
    described = _described(signature) | {
        "arguments": _arguments(signature, procedure.parts, defaults, types),
        "result": _slot(returns, types),
    }
    if progress is not None:
        described["progress"] = _slot(progress, types)
    if procedure.timeout is not None:
        described["timeout"] = procedure.timeout
    return described


def _described(signature: Signature) -> dict[str, Any]:
    text = inspect.getdoc(signature.function)
    return {"description": text} if text else {}


def _arguments(
    signature: Signature, parts: Iterable[str], defaults: Mapping[str, Any], types: list[Any]
) -> list[dict[str, Any]]:
    """
    Return what a peer may give, in order.
    """
    found: list[dict[str, Any]] = []
    for p in signature.parameters:
        if is_injected(p, defaults):
            continue
        found.append({"name": p.name, "schema": _slot(type_of(p), types)})
        if p.name in parts:
            found[-1]["in"] = "name"
        elif p.kind is p.VAR_POSITIONAL or p.kind is p.VAR_KEYWORD:
            found[-1]["in"] = "rest" if p.kind is p.VAR_POSITIONAL else "named rest"
        elif p.kind is p.KEYWORD_ONLY:
            found[-1]["in"] = "named"
        found[-1]["required"] = is_required(p)
    return found


def _part_of(annotation: Any) -> Any:
    """
    Return what a stream yields.
    """
    if typing.get_origin(annotation) in _STREAMS:
        return typing.get_args(annotation)[0]
    return Any


def _slot(kind: Any, types: list[Any]) -> _Slot:
    kind = Any if kind is inspect.Signature.empty else kind
    try:
        msgspec.json.schema_components([kind])
    except TypeError:
        kind = Any  # a result of ours, which says nothing about its types
    types.append(kind)
    return _Slot(len(types) - 1)


def _fill_in(value: Any, schemas: list[Any]) -> Any:
    if isinstance(value, _Slot):
        return schemas[value]
    if isinstance(value, dict):
        return {key: _fill_in(one, schemas) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill_in(one, schemas) for one in value]
    return value
