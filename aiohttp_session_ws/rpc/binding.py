"""
Arguments: from what a peer sends to what a function is called with.

A signature is read once, at registration. What a peer gives is converted by msgspec; what is
injected can't be given by a peer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
from aiohttp import web

from .errors import INVALID_ARGUMENT, RPCError
from .session import RPCRequest, Session

__all__ = ["Binder", "Signature"]

Kind: TypeAlias = Literal["coroutine", "stream", "plain", "thread"]
Arguments: TypeAlias = tuple[Sequence[Any], Mapping[str, Any]]

_NAMES: Final = frozenset({"session", "request"})
_ANNOTATIONS: Final = (Session, web.Request, RPCRequest)
_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_NOTHING: Final[Mapping[str, Any]] = {}


class Signature:
    """
    What a function takes, and of what kind it is.

    Args:
        function: The function, or a class whose instances are made for sessions.
        method: Whether its first parameter is the object.
        parts: Names of the parts of its pattern.

    Raises:
        TypeError: If it can't be served; it names the function and the remedy.

    Attributes:
        function: The function.
        name: How an error calls it.
        parameters: What it takes, without the object.
        returns: The annotation of what it returns or yields.
    """

    __slots__ = ("_kind", "function", "name", "parameters", "parts", "returns")

    def __init__(
        self, function: Callable[..., Any], *, method: bool = False, parts: Sequence[str] = ()
    ) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", repr(function))
        self.parts = tuple(parts)
        try:
            signature = inspect.signature(function, eval_str=True)
        except (NameError, SyntaxError) as exc:
            raise self._unfit(f"has an annotation that can't be read here ({exc})") from exc
        parameters = list(signature.parameters.values())
        self.parameters = tuple(parameters[1:] if method else parameters)
        self.returns = signature.return_annotation
        self._kind = kind_of(function)
        for parameter in self.parameters:
            self._check(parameter)
        missing = set(parts) - {parameter.name for parameter in self.parameters}
        if missing and not self._takes_rest:
            raise self._unfit(f"doesn't take {', '.join(sorted(missing))} of its pattern")

    @property
    def kind(self) -> Kind:
        """
        How the function is run.
        """
        return self._kind

    @property
    def _takes_rest(self) -> bool:
        return any(p.kind is p.VAR_KEYWORD for p in self.parameters)

    def _unfit(self, why: str) -> TypeError:
        return TypeError(f"{self.name}() {why}")

    def _check(self, parameter: inspect.Parameter) -> None:
        if is_injected(parameter, _NOTHING):
            if parameter.name in self.parts:
                raise self._unfit(f"has {parameter.name!r} in its pattern, but that is injected")
            return
        try:
            msgspec.json.Decoder(type_of(parameter))
        except (TypeError, ValueError, RuntimeError) as exc:
            msg = f"has an annotation of {parameter.name!r} that msgspec can't read: {exc}"
            raise self._unfit(msg) from exc

    def check(self, defaults: Mapping[str, Any], *, injected_only: bool = False) -> None:
        """
        Check what can only be checked once the default arguments are known.

        Args:
            defaults: The default arguments of realm and application.
            injected_only: Whether no peer gives arguments but by the pattern.

        Raises:
            TypeError: If a parameter can be filled by nobody.
        """
        for p in self.parameters:
            if is_injected(p, defaults):
                continue
            remedy = f"give it by set_default_arg({p.name!r}, …)"
            if injected_only and p.name not in self.parts and is_required(p):
                raise self._unfit(f"takes {p.name!r}, which nobody gives: {remedy}")
            try:
                msgspec.json.schema_components([type_of(p)])
            except TypeError as exc:
                msg = f"takes {p.name!r} of a type that no peer can send: {remedy}"
                raise self._unfit(msg) from exc


def kind_of(function: Callable[..., Any]) -> Kind:
    """
    Tell how a function is run.
    """
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    for one in (function, call):
        if inspect.isasyncgenfunction(one):
            return "stream"
        if inspect.iscoroutinefunction(one):
            return "coroutine"
    return "plain"


def type_of(parameter: inspect.Parameter) -> Any:
    """
    Return what an argument is converted to.
    """
    return Any if parameter.annotation is parameter.empty else parameter.annotation


def is_required(parameter: inspect.Parameter) -> bool:
    """
    Tell whether an argument must be given.
    """
    rest = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not rest


def is_injected(parameter: inspect.Parameter, defaults: Mapping[str, Any]) -> bool:
    """
    Tell whether a peer can't give an argument.
    """
    return (
        parameter.name in _NAMES
        or parameter.name in defaults
        or parameter.annotation in _ANNOTATIONS
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
