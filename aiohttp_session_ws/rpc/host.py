"""
State shared by the conversations of one application: realms and their routes, sessions, topics
and signals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .._logging import log
from .._tasks import maybe_await
from ..exceptions import WebSocketDisconnect
from ..signals import Signal
from . import errors
from .call import Call, CallDetails, EventDetails
from .errors import NotRegistered, RPCError, SessionGone
from .limits import CallLimits
from .realm import Action, Realm
from .session import Session
from .signature import Binder, Signature
from .table import Procedure, Topic
from .topics import Topics

__all__ = ["Host", "Scope"]

_DISCONNECTS: Final = (SessionGone, WebSocketDisconnect, ConnectionError, asyncio.CancelledError)
_MAX_LOGGED_NAME: Final = 200  # characters of a name that are logged
_MASKED: Final = "Method masked"
_NOT_REGISTERED: Final = "the client that is asked has not registered what it is asked"
_NO_CALL: Final = Call(0, "", (), {}, 0)
_NO_PARTS: Final[Mapping[str, str]] = {}


class Scope:
    """
    One realm of an application, with a snapshot of the default arguments.

    Args:
        realm: The realm, with its tables, guard and errors.
        defaults: The default arguments of the application.

    Attributes:
        realm: The realm.
        version: The version of the realm's default arguments in the snapshot.
    """

    def __init__(self, realm: Realm, defaults: Mapping[str, Any]) -> None:
        self.realm = realm
        self.version = realm.version
        self._defaults = {**defaults, **realm.default_args}
        self._binders: dict[Signature, Binder] = {}

    def check(self, state_handlers: Sequence[Signature]) -> None:
        """
        Check that every parameter has a source, and a type that peers can send.

        Raises:
            TypeError: If one hasn't; the message names the function and the remedy.
        """
        for procedure in self.realm.served.procedures:
            procedure.signature.check(self._defaults)
        for signature in (
            *(topic.signature for topic in self.realm.served.topics),
            *(owner.signature for owner in self.realm.served.classes.values()),
            *state_handlers,
        ):
            signature.check(self._defaults, injected_only=True)

    def find(self, name: str) -> tuple[Procedure, Mapping[str, str]]:
        """
        Return the procedure for a name, and the values of the parts of its pattern.

        Raises:
            RPCError: ``no_such_procedure``.
        """
        found = self.realm.served.procedures.find(name)
        if found is None:
            known = any(name.startswith(f"{own}.") for own in self.realm.served.classes)
            raise RPCError(errors.NO_SUCH_PROCEDURE, _MASKED if known else "no such procedure")
        return found

    def find_topic(self, name: str) -> tuple[Topic, Mapping[str, str]]:
        """
        Return the topic for a name, and the values of the parts of its pattern.

        Raises:
            RPCError: ``invalid_uri``.
        """
        found = self.realm.served.topics.find(name)
        if found is None:
            raise RPCError(errors.INVALID_URI, "no such topic")
        return found

    def binder(self, signature: Signature) -> Binder:
        """
        Return the binder of a function's arguments, made at the first call.
        """
        binder = self._binders.get(signature)
        if binder is None:
            binder = self._binders[signature] = Binder(signature, self._defaults)
        return binder

    def call(
        self, signature: Signature, session: Session, parts: Mapping[str, str] = _NO_PARTS
    ) -> Any:
        """
        Call a function to which peers pass no arguments except the parts of a name.
        """
        values, named = self.binder(signature).bind(session, _NO_CALL, parts)
        return signature.function(*values, **named)

    async def expect_allowed(self, session: Session, action: Action, uri: str) -> None:
        """
        Check an action with the guard of the realm.

        Raises:
            RPCError: ``not_authorized``.
        """
        guard = self.realm.guard
        if guard is not None and not await maybe_await(guard(session, action, uri)):
            raise RPCError(errors.NOT_AUTHORIZED, "not authorized")

    def error_for(self, failure: BaseException, what: str, *, gone: bool) -> RPCError:
        """
        Return the error to send to the peer for a failure; log an unexpected failure.

        Args:
            failure: The exception that was raised.
            what: Name of what has failed, for the log.
            gone: Whether the peer is gone; failures caused by that are not logged.
        """
        if isinstance(failure, RPCError):
            return failure
        for kind in type(failure).__mro__:
            if kind in self.realm.errors:
                return RPCError(self.realm.errors[kind])
        if isinstance(failure, NotRegistered):  # not logged: any client can cause it at will
            return RPCError(errors.NO_SUCH_PROCEDURE, _NOT_REGISTERED)
        if not (gone and _is_disconnect(failure)):
            log.error("a call failed: %s", loggable_name(what), exc_info=failure)
        return RPCError(errors.RUNTIME_ERROR)


class Host:
    """
    The state of one application.

    Attributes:
        limits: The limits of each connection.
        on_start: Signal for calls that start.
        on_success: Signal for calls that succeed.
        on_fail: Signal for calls that fail.
        on_event: Signal for events from wsrpc clients.
        sessions: The sessions that have passed authentication.
        topics: The subscriptions, by topic.
        realms: The configured realms, by URI.
        default_realm: The realm for all other URIs, if there is one.
        default_args: Default arguments of the functions of all realms.
        state_handlers: State handlers for the sessions of all realms.
    """

    def __init__(self, owner: object, limits: CallLimits, default_realm: Realm | None) -> None:
        self.limits = limits
        self.on_start: Signal[CallDetails] = Signal(owner)
        self.on_success: Signal[CallDetails] = Signal(owner)
        self.on_fail: Signal[CallDetails] = Signal(owner)
        self.on_event: Signal[EventDetails] = Signal(owner)
        self.sessions: set[Session] = set()
        self.topics = Topics()
        self.realms: dict[str, Realm] = {}
        self.default_realm = default_realm
        self.default_args: dict[str, Any] = {}
        self.state_handlers: list[Signature] = []
        self._scopes: dict[Realm, Scope] = {}

    def realm(self, uri: str) -> Realm:
        """
        Return the realm for sessions that ask for *uri*.

        Raises:
            RPCError: ``no_such_realm``.
        """
        realm = self.realms.get(uri, self.default_realm)
        if realm is None:
            raise RPCError(errors.NO_SUCH_REALM, "no such realm")
        return realm

    def scope(self, realm: Realm) -> Scope:
        """
        Return the scope of a realm, made again once default arguments have changed.

        Raises:
            TypeError: If a parameter of a function has no source, or a type no peer can send.
        """
        scope = self._scopes.get(realm)
        if scope is None or scope.version != realm.version:
            scope = Scope(realm, self.default_args)
            scope.check(self.state_handlers_of(realm))
            self._scopes[realm] = scope
        return scope

    def state_handlers_of(self, realm: Realm) -> list[Signature]:
        """
        Return the session state handlers for a realm, the outermost first.
        """
        return [*self.state_handlers, *realm.state_handlers]

    def set_default_arg(self, name: str, value: Any) -> None:
        """
        Set a default argument for all realms.
        """
        self.default_args[name] = value
        self._scopes.clear()


def encode_error(encode: Callable[[RPCError], bytes], error: RPCError) -> bytes:
    """
    Encode an error; one that can't be encoded is replaced by a runtime error.
    """
    try:
        return encode(error)
    except Exception:
        log.exception("an error can't be encoded: %s", error.uri)
        return encode(RPCError(errors.RUNTIME_ERROR))


def loggable_name(name: str) -> str:
    """
    Return a name from a peer in a form that is safe to log: shortened, and on one line.
    """
    short = name if len(name) <= _MAX_LOGGED_NAME else f"{name[:_MAX_LOGGED_NAME]}…"
    return short if short.isprintable() else ascii(short)


def _is_disconnect(failure: BaseException) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return all(_is_disconnect(one) for one in failure.exceptions)
    return isinstance(failure, _DISCONNECTS)
