"""
What the sessions of one realm may call, in one application: the look-up of a name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .._logging import log
from .._tasks import maybe_await
from ..exceptions import WebSocketDisconnect
from . import errors
from .binding import Arguments, Binder
from .errors import RPCError, SessionGone
from .limits import CallLimits
from .realm import Action, Realm
from .session import RPCRequest, Session
from .signature import Signature
from .table import RouteClass, Topic

__all__ = ["Scope"]

_GONE: Final = (SessionGone, WebSocketDisconnect, ConnectionError, asyncio.CancelledError)
_MASKED: Final = "Method masked"
_NO_PARTS: Final[Mapping[str, Any]] = {}


@dataclass(slots=True)
class Target:
    """
    What a name means.

    Attributes:
        function: What to call.
        binder: Binds its arguments; without one it takes the call itself.
        parts: The parts of the name, by its pattern.
        timeout: Seconds that it may take.
        threaded: Whether it runs in a thread.
        owner: Whose method it is.
    """

    function: Callable[..., Any]
    binder: Binder | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    threaded: bool = False
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
    What is served in one realm of an application, with the default arguments of a moment.

    Args:
        realm: Whose tables, guard and errors.
        defaults: The default arguments of the application.
        limits: Those of each connection.
    """

    def __init__(self, realm: Realm, defaults: Mapping[str, Any], limits: CallLimits) -> None:
        self.realm = realm
        self.limits = limits
        self._defaults = {**defaults, **realm.default_args}
        self._targets: dict[str, Target] = {}
        self._binders: dict[Signature, Binder] = {}

    def check(self, state_handlers: Sequence[Signature]) -> None:
        """
        Check that every parameter is filled by somebody.

        Raises:
            TypeError: If one isn't; it names the function and the remedy.
        """
        for procedure in self.realm.served.procedures:
            procedure.signature.check(self._defaults)
        for signature in (
            *(topic.signature for topic in self.realm.served.topics),
            *(owner.signature for owner in self.realm.served.classes.values()),
            *state_handlers,
        ):
            signature.check(self._defaults, injected_only=True)

    def find(self, name: str) -> Target:
        """
        Return what a name means.

        Raises:
            RPCError: ``no_such_procedure``.
        """
        if self.realm.rpc_handler is not None:
            return Target(self.realm.rpc_handler)
        target = self._targets.get(name)
        if target is not None:
            return target
        found = self.realm.served.procedures.find(name)
        if found is None:
            known = any(name.startswith(f"{own}.") for own in self.realm.served.classes)
            raise RPCError(errors.NO_SUCH_PROCEDURE, _MASKED if known else "no such procedure")
        own, parts = found
        binder = self._binder(own.signature)
        function = own.signature.function
        target = Target(function, binder, parts, own.timeout, own.threaded, own.owner)
        if not parts:  # a peer may name any number of those with parts
            self._targets[name] = target
        return target

    def find_topic(self, name: str) -> tuple[Topic, Mapping[str, str]]:
        """
        Return the topic that a name means, and what the parts of its pattern are.

        Raises:
            RPCError: ``invalid_uri``.
        """
        found = self.realm.served.topics.find(name)
        if found is None:
            raise RPCError(errors.INVALID_URI, "no such topic")
        return found

    def _binder(self, signature: Signature) -> Binder:
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
        values, named = self._binder(signature).bind(session, ("", (), {}), parts)
        return signature.function(*values, **named)

    async def expect_allowed(self, session: Session, action: Action, uri: str) -> None:
        """
        Ask the guard.

        Raises:
            RPCError: ``not_authorized``.
        """
        guard = self.realm.guard
        if guard is not None and not await maybe_await(guard(session, action, uri)):
            raise RPCError(errors.NOT_AUTHORIZED, "not authorized")

    def explain(self, failure: BaseException, what: str, *, gone: bool) -> RPCError:
        """
        Return what the peer is told of a failure; log what it isn't.

        Args:
            failure: What was raised.
            what: What has failed, for the log.
            gone: Whether the peer is, which is no failure then.
        """
        if isinstance(failure, RPCError):
            return failure
        for kind in type(failure).__mro__:
            if kind in self.realm.errors:
                return RPCError(self.realm.errors[kind])
        if not (gone and _is_gone(failure)):
            log.error("a call failed: %s", what, exc_info=failure)
        return RPCError(errors.RUNTIME_ERROR)


def encode_error(encode: Callable[[RPCError], bytes], error: RPCError) -> bytes:
    """
    Encode an error; one that can't be is a runtime error.
    """
    try:
        return encode(error)
    except Exception:
        log.exception("an error can't be encoded: %s", error.uri)
        return encode(RPCError(errors.RUNTIME_ERROR))


def _is_gone(failure: BaseException) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return all(_is_gone(one) for one in failure.exceptions)
    return isinstance(failure, _GONE)
