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

from .errors import INVALID_ARGUMENT, RPCError
from .session import RPCRequest, Session
from .signature import Signature, is_injected, type_of

__all__ = ["Binder"]

Arguments: TypeAlias = tuple[Sequence[Any], Mapping[str, Any]]

_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Binder:
    """
    Binds one function's arguments, with the default arguments of one realm.

    Args:
        signature: The function's.
        defaults: The default arguments.
    """

    __slots__ = (
        "_by_name",
        "_constants",
        "_injected",
        "_parameters",
        "_positional",
        "_rest",
        "_rest_named",
        "_whole",
    )

    def __init__(self, signature: Signature, defaults: Mapping[str, Any]) -> None:
        self._parameters = signature.parameters
        injected = [p for p in self._parameters if is_injected(p, defaults)]
        self._constants = {p.name: defaults[p.name] for p in injected if p.name in defaults}
        self._injected = {p.name: p.annotation for p in injected if p.name not in defaults}
        given = [p for p in self._parameters if p not in injected]
        self._positional = [
            p for p in given if p.kind in _POSITIONAL and p.name not in signature.parts
        ]
        self._by_name = {
            p.name: p for p in given if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        self._rest = next((p for p in given if p.kind is p.VAR_POSITIONAL), None)
        self._rest_named = next((p for p in given if p.kind is p.VAR_KEYWORD), None)
        self._whole = {} if signature.parts else self._shortcuts(injected)

    def _shortcuts(self, injected: Sequence[inspect.Parameter]) -> dict[int, Any]:
        """
        Return, for each number of arguments that binds by position alone, their types.
        """
        first = self._parameters[: len(self._positional)]
        named = [p for p in self._by_name.values() if p not in self._positional]
        by_position = any(p.kind is p.POSITIONAL_ONLY for p in injected)
        if list(first) != self._positional or by_position:
            return {}
        if any(p.default is p.empty for p in named):
            return {}
        least = sum(p.default is p.empty for p in self._positional)
        return {
            n: tuple[tuple(type_of(p) for p in first[:n])] if n else tuple[()]  # type: ignore[misc]  # made at run time
            for n in range(least, len(first) + 1)
        }

    def bind(
        self,
        session: Session,
        call: tuple[str, Sequence[Any], Mapping[str, Any]],
        parts: Mapping[str, Any],
    ) -> Arguments:
        """
        Return the arguments of a call.

        Args:
            session: Whose call.
            call: The name that was called, and what came with it.
            parts: The parts of that name, by the pattern.

        Raises:
            RPCError: ``invalid_argument``, with the argument's name and what is wrong.
        """
        _, args, kwargs = call
        if not kwargs and (types := self._whole.get(len(args))) is not None:
            try:
                values = msgspec.convert(args, types, strict=False)
            except msgspec.ValidationError:
                pass  # by whose fault is found out below
            else:
                return values, self._inject(session, call)
        given, rest, named = self._sort(args, kwargs, parts)
        for name in given:
            given[name] = _convert(name, given[name], type_of(self._by_name[name]))
        for name, parameter in self._by_name.items():
            if parameter.default is parameter.empty and name not in given:
                raise RPCError(INVALID_ARGUMENT, f"{name}: missing")
        given.update(self._inject(session, call))
        return self._arrange(given, rest, named)

    def _inject(
        self, session: Session, call: tuple[str, Sequence[Any], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        if not self._injected:
            return self._constants
        values = dict(self._constants)
        for name, annotation in self._injected.items():
            if annotation is RPCRequest:
                values[name] = RPCRequest(call[0], tuple(call[1]), call[2], session)
            elif annotation is web.Request or (name == "request" and annotation is not Session):
                values[name] = session.request
            else:
                values[name] = session
        return values

    def _sort(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], parts: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        """
        Tell which argument is which: those with a name, the rest, and the rest by name.
        """
        given = {name: value for name, value in parts.items() if name in self._by_name}
        named = {name: value for name, value in parts.items() if name not in given}
        for parameter, value in zip(self._positional, args, strict=False):
            given[parameter.name] = value
        rest = list(args[len(self._positional) :])
        if rest and self._rest is None:
            most = len(self._positional)
            raise RPCError(INVALID_ARGUMENT, f"{len(args)} arguments given, {most} at most taken")
        for name, value in kwargs.items():
            if name in self._injected or name in self._constants:
                raise RPCError(INVALID_ARGUMENT, f"{name}: not for a caller to give")
            if name in given or name in named:
                raise RPCError(INVALID_ARGUMENT, f"{name}: given twice")
            own = self._by_name.get(name)
            if own is not None and own.kind is not own.POSITIONAL_ONLY:
                given[name] = value
            elif self._rest_named is not None:
                named[name] = _convert(name, value, type_of(self._rest_named))
            else:
                raise RPCError(INVALID_ARGUMENT, f"{name}: unknown")
        if self._rest is not None:
            kind = type_of(self._rest)
            rest = [_convert(f"*{self._rest.name}", value, kind) for value in rest]
        return given, rest, named

    def _arrange(self, given: dict[str, Any], rest: list[Any], named: dict[str, Any]) -> Arguments:
        """
        Put the arguments where the function takes them.
        """
        values: list[Any] = []
        for parameter in self._parameters:
            if parameter.kind not in _POSITIONAL or parameter.name not in given:
                break
            values.append(given.pop(parameter.name))
        return values + rest, given | named


def _convert(name: str, value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise RPCError(INVALID_ARGUMENT, f"{name}: {exc}") from None
