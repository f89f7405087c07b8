"""
What the sessions of one realm may call, in one application: the look-up of a name.
"""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from .binding import Arguments, Binder
from .errors import INVALID_URI, NO_SUCH_PROCEDURE, NOT_AUTHORIZED, RPCError
from .limits import CallLimits
from .session import RPCRequest, Session
from .signature import Kind, Signature, kind_of
from .table import RouteClass, Served, Topic

__all__ = ["Guard", "Scope"]

Action: TypeAlias = Literal["call", "subscribe", "register"]
Guard: TypeAlias = Callable[[Session, Action, str], bool | Awaitable[bool]]
StateHandler: TypeAlias = Callable[..., Any]

_MASKED: Final = "Method masked"
_NO_PARTS: Final[Mapping[str, Any]] = {}


@dataclass(slots=True)
class Target:
    """
    What a name means.

    Attributes:
        function: What to call.
        kind: How.
        binder: Binds its arguments; without one it takes the call itself.
        parts: The parts of the name, by its pattern.
        timeout: Seconds that it may take.
        owner: Whose method it is.
    """

    function: Callable[..., Any]
    kind: Kind
    binder: Binder | None
    parts: Mapping[str, str]
    timeout: float | None = None
    owner: RouteClass | None = None

    def bind(
        self, session: Session, call: tuple[str, Sequence[Any], Mapping[str, Any]]
    ) -> Arguments:
        """
        Return the arguments of a call.

        Raises:
            RPCError: If they don't fit.
        """
        if self.binder is None:
            name, args, kwargs = call
            return (RPCRequest(name, tuple(args), kwargs, session),), {}
        return self.binder.bind(session, call, self.parts)


class Scope:
    """
    What is served in one realm of an application.

    Args:
        served: The realm's tables.
        defaults: The default arguments of the realm, and of the application.
        limits: Those of each connection.

    Attributes:
        guard: Asked before anything is done.
        errors: The URIs of exceptions.
        rpc_handler: What takes all calls, if anything does.
        state_handlers: The application's, and the realm's inside of them.
    """

    def __init__(
        self,
        served: Served,
        defaults: Sequence[dict[str, Any]],
        limits: CallLimits,
        errors: Mapping[type[BaseException], str],
    ) -> None:
        self.served = served
        self.limits = limits
        self.guard: Guard | None = None
        self.rpc_handler: Callable[..., Any] | None = None
        self._defaults = ChainMap(*defaults)
        self._errors = errors
        self._targets: dict[str, Target] = {}
        self._binders: dict[Signature, Binder] = {}

    def check(self, state_handlers: Sequence[Signature]) -> None:
        """
        Check that every parameter is filled by somebody.

        Raises:
            TypeError: If one isn't; it names the function and the remedy.
        """
        for procedure in self.served.procedures:
            procedure.signature.check(self._defaults)
        for signature in (
            *(topic.signature for topic in self.served.topics),
            *(owner.signature for owner in self.served.classes.values()),
            *state_handlers,
        ):
            signature.check(self._defaults, injected_only=True)

    def find(self, name: str) -> Target:
        """
        Return what a name means.

        Raises:
            RPCError: ``no_such_procedure``.
        """
        target = self._targets.get(name)
        if target is not None:
            return target
        if self.rpc_handler is not None:
            return Target(self.rpc_handler, kind_of(self.rpc_handler), None, {})
        found = self.served.procedures.find(name)
        if found is None:
            known = any(name.startswith(f"{own}.") for own in self.served.classes)
            raise RPCError(NO_SUCH_PROCEDURE, _MASKED if known else "no such procedure")
        procedure, parts = found
        own, binder = procedure, self.binder(procedure.signature)
        function, kind = own.signature.function, own.kind
        target = Target(function, kind, binder, parts, own.timeout, own.owner)
        if not parts:  # a peer may name any number of those with parts
            self._targets[name] = target
        return target

    def find_topic(self, name: str) -> tuple[Topic, Mapping[str, str]]:
        """
        Return the topic that a name means, and what the parts of its pattern are.

        Raises:
            RPCError: ``invalid_uri``.
        """
        found = self.served.topics.find(name)
        if found is None:
            raise RPCError(INVALID_URI, "no such topic")
        return found

    def binder(self, signature: Signature) -> Binder:
        """
        Return what binds the arguments of a function.
        """
        binder = self._binders.get(signature)
        if binder is None:
            binder = self._binders[signature] = Binder(signature, self._defaults)
        return binder

    def call(
        self, signature: Signature, session: Session, parts: Mapping[str, Any] = _NO_PARTS
    ) -> Any:
        """
        Call a function that no peer gives arguments, but by the parts of a name.
        """
        values, named = self.binder(signature).bind(session, ("", (), {}), parts)
        return signature.function(*values, **named)

    def forget(self) -> None:
        """
        Forget what is bound: the default arguments have changed.
        """
        self._targets.clear()
        self._binders.clear()

    async def expect_allowed(self, session: Session, action: Action, uri: str) -> None:
        """
        Ask the guard.

        Raises:
            RPCError: ``not_authorized``.
        """
        if self.guard is not None:
            allowed = self.guard(session, action, uri)
            if inspect.isawaitable(allowed):
                allowed = await allowed
            if not allowed:
                raise RPCError(NOT_AUTHORIZED, "not authorized")

    def uri_of(self, failure: BaseException) -> str | None:
        """
        Return the URI that the realm has for an exception.
        """
        for kind in type(failure).__mro__:
            if kind in self._errors:
                return self._errors[kind]
        return None
