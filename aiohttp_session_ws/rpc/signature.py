"""
Signatures of functions, read once, at registration, and the binding of a call's arguments to
them.

Arguments from a peer are converted by msgspec; injected arguments can't be passed by a peer.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from .call import Call
from .errors import INVALID_ARGUMENT, RPCError
from .session import RPCRequest, Session

__all__ = ["Binder", "Signature"]

Arguments: TypeAlias = tuple[Sequence[Any], Mapping[str, Any]]

_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_INJECTED_NAMES: Final = frozenset({"session", "request"})
_INJECTED_TYPES: Final = (Session, web.Request, RPCRequest)
_FRAMES: Final = 8  # searched from here to the code that declares a route, with some to spare
_NO_DEFAULTS: Final[Mapping[str, Any]] = {}


class Signature:
    """
    The parameters of a function, and whether it is a stream.

    Args:
        function: The function, or a class that is instantiated for sessions.
        method: Whether its first parameter is ``self``.
        parts: Names of the parts of its pattern.

    Raises:
        TypeError: If it can't be served; the message names the function and the remedy.

    Attributes:
        function: The function.
        streams: Whether it is an async generator function.
        name: Its name in error messages.
        parameters: Its parameters, without ``self``; those not annotated are ``Any``.
        returns: Its return annotation.
    """

    def __init__(
        self, function: Callable[..., Any], *, method: bool = False, parts: Sequence[str] = ()
    ) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", repr(function))
        self.parts = tuple(parts)
        try:
            signature = _resolve_signature(function)
        except (NameError, SyntaxError) as exc:
            raise self.type_error(f"has an annotation that can't be resolved ({exc})") from exc
        parameters = [
            p.replace(annotation=Any) if p.annotation is p.empty else p
            for p in signature.parameters.values()
        ]
        self.parameters = tuple(parameters[1:] if method else parameters)
        self.returns = signature.return_annotation
        made_by = (function, getattr(function, "__call__", None))  # noqa: B004  an object with one
        self.streams = any(map(inspect.isasyncgenfunction, made_by))
        for parameter in self.parameters:
            self._check(parameter)
        missing = set(parts) - {parameter.name for parameter in self.parameters}
        takes_rest = any(p.kind is p.VAR_KEYWORD for p in self.parameters)
        if missing and not takes_rest:
            names = ", ".join(sorted(missing))
            raise self.type_error(f"has no parameter for {names} of its pattern")

    def type_error(self, why: str) -> TypeError:
        """
        Return the error of a function that can't be served.
        """
        return TypeError(f"{self.name}() {why}")

    def expect_generator(self, what: str) -> None:
        """
        Expect an async generator function, whose halves run at the beginning and at the end.

        Raises:
            TypeError: If it isn't one.
        """
        if not self.streams:
            raise self.type_error(
                f"is {what}: it must be an async generator function with one 'yield'"
            )

    def _check(self, parameter: inspect.Parameter) -> None:
        if is_injected(parameter, _NO_DEFAULTS):
            if parameter.name in self.parts:
                raise self.type_error(
                    f"has {parameter.name!r} in its pattern, but that parameter is injected"
                )
            return
        try:
            msgspec.json.Decoder(parameter.annotation)
        except (TypeError, ValueError, RuntimeError, NameError) as exc:
            msg = f"has an annotation of {parameter.name!r} that msgspec can't read: {exc}"
            raise self.type_error(msg) from exc

    def check(self, defaults: Mapping[str, Any], *, injected_only: bool = False) -> None:
        """
        Check the parameters that are not injected, once the default arguments are known.

        Args:
            defaults: The default arguments of realm and application.
            injected_only: Whether peers pass no arguments except the parts of the pattern.

        Raises:
            TypeError: If a parameter has no source, or a type that no peer can send.
        """
        for p in self.parameters:
            if is_injected(p, defaults):
                continue
            remedy = f"inject it by set_default_arg({p.name!r}, …)"
            if injected_only and p.name not in self.parts and is_required(p):
                msg = f"has a required parameter {p.name!r} without a source: {remedy}"
                raise self.type_error(msg)
            try:
                msgspec.json.schema_components([p.annotation])
            except TypeError as exc:
                msg = f"takes {p.name!r} of a type that no peer can send: {remedy}"
                raise self.type_error(msg) from exc


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
        self._signature = inspect.Signature(signature.parameters)
        self._all_by_name = all(p.kind in _BY_NAME for p in signature.parameters)
        self._from_peer = inspect.Signature(sorted(given, key=lambda p: p.kind))
        self._types = {
            p.name: tuple[p.annotation, ...] if p.kind is p.VAR_POSITIONAL else p.annotation  # type: ignore[name-defined]  # made at run time
            for p in given
        }
        self._types_by_count = self._positional_types(injected)

    def _positional_types(self, injected: Sequence[inspect.Parameter]) -> dict[int, Any]:
        """
        Return the types of the arguments, for each number of them that can be bound by position.
        """
        given = list(self._from_peer.parameters.values())
        first = [p for p in given if p.kind <= p.POSITIONAL_OR_KEYWORD]
        named = [p for p in given if p.kind is p.KEYWORD_ONLY]
        in_front = list(self._signature.parameters.values())[: len(first)] == first
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
            session: The session of the caller.
            call: The call, with the arguments from the peer.
            parts: The values of the parts of the pattern.

        Raises:
            RPCError: ``invalid_argument``, with the argument's name and what is wrong.
        """
        args, kwargs = call.args, call.kwargs
        if not kwargs and not parts and (types := self._types_by_count.get(len(args))) is not None:
            try:
                values = msgspec.convert(args, types, strict=False)
            except msgspec.ValidationError:
                pass  # the argument at fault is found below
            else:
                injected = self._inject(session, call) if self._injected else self._constants
                return values, injected
        for name in self._reserved.intersection(kwargs):
            raise RPCError(INVALID_ARGUMENT, f"{name}: not for a caller to give")
        try:
            bound = self._from_peer.bind(*args, **kwargs, **parts)
        except TypeError as exc:
            raise RPCError(INVALID_ARGUMENT, str(exc)) from None
        for name, value in bound.arguments.items():
            kind = self._types[name]
            if self._from_peer.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {k: _convert(k, v, kind) for k, v in value.items()}
            else:
                bound.arguments[name] = _convert(name, value, kind)
        bound.arguments.update(self._inject(session, call))
        if self._all_by_name:
            return (), bound.arguments
        found = inspect.BoundArguments(self._signature, bound.arguments)
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


def _resolve_signature(function: Callable[..., Any]) -> inspect.Signature:
    """
    Return a signature whose annotations may use local names of the code that declares it.
    """
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:
        frame = inspect.currentframe()
        for _ in range(_FRAMES):
            if frame is not None:
                with contextlib.suppress(NameError):
                    return inspect.signature(function, eval_str=True, locals=frame.f_locals)
                frame = frame.f_back
        raise


def is_required(parameter: inspect.Parameter) -> bool:
    """
    Return whether an argument must be passed.
    """
    rest = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not rest


def is_injected(parameter: inspect.Parameter, defaults: Mapping[str, Any]) -> bool:
    """
    Return whether an argument is injected, so that a peer can't pass it.
    """
    return (
        parameter.name in _INJECTED_NAMES
        or parameter.name in defaults
        or parameter.annotation in _INJECTED_TYPES
    )


def _convert(name: str, value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise RPCError(INVALID_ARGUMENT, f"{name}: {exc}") from None
