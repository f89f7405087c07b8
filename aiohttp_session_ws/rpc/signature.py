"""
Signatures: what a function takes, read once, at registration.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
from aiohttp import web

from .session import RPCRequest, Session

__all__ = ["Signature"]

Kind: TypeAlias = Literal["coroutine", "stream", "plain"]

_NAMES: Final = frozenset({"session", "request"})
_ANNOTATIONS: Final = (Session, web.Request, RPCRequest)
_FRAMES: Final = 8  # from here to whoever declares a route, and a bit
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
        kind: How the function is run.
        name: How an error calls it.
        parameters: What it takes, without the object; anything is fit where nothing is said.
        returns: The annotation of what it returns or yields.
    """

    def __init__(
        self, function: Callable[..., Any], *, method: bool = False, parts: Sequence[str] = ()
    ) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", repr(function))
        self.parts = tuple(parts)
        try:
            signature = _read(function)
        except (NameError, SyntaxError) as exc:
            raise self.unfit(f"has an annotation that can't be read here ({exc})") from exc
        parameters = [
            p.replace(annotation=Any) if p.annotation is p.empty else p
            for p in signature.parameters.values()
        ]
        self.parameters = tuple(parameters[1:] if method else parameters)
        self.returns = signature.return_annotation
        self.kind = _kind_of(function)
        for parameter in self.parameters:
            self._check(parameter)
        missing = set(parts) - {parameter.name for parameter in self.parameters}
        takes_rest = any(p.kind is p.VAR_KEYWORD for p in self.parameters)
        if missing and not takes_rest:
            raise self.unfit(f"doesn't take {', '.join(sorted(missing))} of its pattern")

    def unfit(self, why: str) -> TypeError:
        """
        Return the error of a function that can't be served.
        """
        return TypeError(f"{self.name}() {why}")

    def expect_halves(self, what: str) -> None:
        """
        Expect what has to do with the beginning and the end of something.

        Raises:
            TypeError: If it has no two halves.
        """
        if self.kind != "stream":
            raise self.unfit(f"is {what}, an async function with one 'yield' between its halves")

    def _check(self, parameter: inspect.Parameter) -> None:
        if is_injected(parameter, _NOTHING):
            if parameter.name in self.parts:
                raise self.unfit(f"has {parameter.name!r} in its pattern, but that is injected")
            return
        try:
            msgspec.json.Decoder(parameter.annotation)
        except (TypeError, ValueError, RuntimeError, NameError) as exc:
            msg = f"has an annotation of {parameter.name!r} that msgspec can't read: {exc}"
            raise self.unfit(msg) from exc

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
                raise self.unfit(f"takes {p.name!r}, which nobody gives: {remedy}")
            try:
                msgspec.json.schema_components([p.annotation])
            except TypeError as exc:
                msg = f"takes {p.name!r} of a type that no peer can send: {remedy}"
                raise self.unfit(msg) from exc


def _read(function: Callable[..., Any]) -> inspect.Signature:
    """
    Read a signature whose annotations may name what is local to whoever declares it.
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


def _kind_of(function: Callable[..., Any]) -> Kind:
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
