"""
What the sessions of one realm may call, in one application: the look-up of a name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .._logging import log
from .._tasks import maybe_await
from ..exceptions import WebSocketDisconnect
from . import errors
from .binding import Binder
from .call import Call
from .errors import NotRegistered, RPCError, SessionGone
from .realm import Action, Realm
from .session import Session
from .signature import Signature
from .table import Procedure, Topic

__all__ = ["Scope"]

_GONE: Final = (SessionGone, WebSocketDisconnect, ConnectionError, asyncio.CancelledError)
_NAMED: Final = 200  # characters of a name that are logged
_MASKED: Final = "Method masked"
_UNREGISTERED: Final = "the client that is asked has not registered what it is asked"
_NOTHING: Final = Call(0, "", (), {}, 0)
_NO_PARTS: Final[Mapping[str, str]] = {}


class Scope:
    """
    What is served in one realm of an application, with the default arguments of a moment.

    Args:
        realm: Whose tables, guard and errors.
        defaults: The default arguments of the application.
    """

    def __init__(self, realm: Realm, defaults: Mapping[str, Any]) -> None:
        self.realm = realm
        self._defaults = {**defaults, **realm.default_args}
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

    def find(self, name: str) -> tuple[Procedure, Mapping[str, str]]:
        """
        Return the procedure that a name means, and what the parts of its pattern are.

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
        Return the topic that a name means, and what the parts of its pattern are.

        Raises:
            RPCError: ``invalid_uri``.
        """
        found = self.realm.served.topics.find(name)
        if found is None:
            raise RPCError(errors.INVALID_URI, "no such topic")
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
        self, signature: Signature, session: Session, parts: Mapping[str, str] = _NO_PARTS
    ) -> Any:
        """
        Call a function that no peer gives arguments, but by the parts of a name.
        """
        values, named = self.binder(signature).bind(session, _NOTHING, parts)
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
        if isinstance(failure, NotRegistered):  # any client can do that, as often as it likes
            return RPCError(errors.NO_SUCH_PROCEDURE, _UNREGISTERED)
        if not (gone and _is_gone(failure)):
            log.error("a call failed: %s", in_a_line(what), exc_info=failure)
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


def in_a_line(name: str) -> str:
    """
    Return what a peer has named as it may stand in a log: short, and no line of its own.
    """
    short = name if len(name) <= _NAMED else f"{name[:_NAMED]}…"
    return short if short.isprintable() else ascii(short)


def _is_gone(failure: BaseException) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return all(_is_gone(one) for one in failure.exceptions)
    return isinstance(failure, _GONE)
