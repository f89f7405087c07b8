"""
Arguments: from what a peer sends to what a function is called with.

What a peer gives is converted by msgspec; what is injected can't be given by a peer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from .call import Call
from .errors import INVALID_ARGUMENT, RPCError
from .session import RPCRequest, Session
from .signature import Signature, is_injected

__all__ = ["Binder"]

Arguments: TypeAlias = tuple[Sequence[Any], Mapping[str, Any]]

_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Binder:
    """
    Binds one function's arguments, with the default arguments of one realm.

    Args:
        signature: The function's.
        defaults: The default arguments.
    """

    def __init__(self, signature: Signature, defaults: Mapping[str, Any]) -> None:
        injected = [p for p in signature.parameters if is_injected(p, defaults)]
        given = [
            p.replace(kind=p.KEYWORD_ONLY) if p.name in signature.parts else p
            for p in signature.parameters
            if p not in injected
        ]
        self._constants = {p.name: defaults[p.name] for p in injected if p.name in defaults}
        self._injected = {p.name: p.annotation for p in injected if p.name not in defaults}
        self._reserved = {*signature.parts, *self._constants, *self._injected}
        self._all = inspect.Signature(signature.parameters)
        self._named = all(p.kind in _BY_NAME for p in signature.parameters)
        self._given = inspect.Signature(sorted(given, key=lambda p: p.kind))
        self._types = {
            p.name: tuple[p.annotation, ...] if p.kind is p.VAR_POSITIONAL else p.annotation  # type: ignore[name-defined]  # made at run time
            for p in given
        }
        self._whole = self._shortcuts(injected)

    def _shortcuts(self, injected: Sequence[inspect.Parameter]) -> dict[int, Any]:
        """
        Return, for each number of arguments that binds by position alone, their types.
        """
        given = list(self._given.parameters.values())
        first = [p for p in given if p.kind <= p.POSITIONAL_OR_KEYWORD]
        named = [p for p in given if p.kind is p.KEYWORD_ONLY]
        in_front = list(self._all.parameters.values())[: len(first)] == first
        required = any(p.default is p.empty for p in named)
        if not in_front or required or any(p.kind is p.POSITIONAL_ONLY for p in injected):
            return {}
        least = sum(p.default is p.empty for p in first)
        return {
            n: tuple[tuple(p.annotation for p in first[:n])] if n else tuple[()]  # type: ignore[misc]  # made at run time
            for n in range(least, len(first) + 1)
        }

    def bind(self, session: Session, call: Call, parts: Mapping[str, str]) -> Arguments:
        """
        Return the arguments of a call.

        Args:
            session: Whose call.
            call: What came with it.
            parts: The parts of its name, by the pattern.

        Raises:
            RPCError: ``invalid_argument``, with the argument's name and what is wrong.
        """
        args, kwargs = call.args, call.kwargs
        if not kwargs and not parts and (types := self._whole.get(len(args))) is not None:
            try:
                values = msgspec.convert(args, types, strict=False)
            except msgspec.ValidationError:
                pass  # by whose fault is found out below
            else:
                injected = self._inject(session, call) if self._injected else self._constants
                return values, injected
        for name in self._reserved.intersection(kwargs):
            raise RPCError(INVALID_ARGUMENT, f"{name}: not for a caller to give")
        try:
            bound = self._given.bind(*args, **kwargs, **parts)
        except TypeError as exc:
            raise RPCError(INVALID_ARGUMENT, str(exc)) from None
        for name, value in bound.arguments.items():
            kind = self._types[name]
            if self._given.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {k: _convert(k, v, kind) for k, v in value.items()}
            else:
                bound.arguments[name] = _convert(name, value, kind)
        bound.arguments.update(self._inject(session, call))
        if self._named:
            return (), bound.arguments
        found = inspect.BoundArguments(self._all, bound.arguments)
        return found.args, found.kwargs

    def _inject(self, session: Session, call: Call) -> Mapping[str, Any]:
        values = dict(self._constants)
        for name, annotation in self._injected.items():
            if annotation is RPCRequest:
                values[name] = call.request(session)
            elif annotation is web.Request or (name == "request" and annotation is not Session):
                values[name] = session.request
            else:
                values[name] = session
        return values


def _convert(name: str, value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise RPCError(INVALID_ARGUMENT, f"{name}: {exc}") from None
