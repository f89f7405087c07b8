"""
What the conversations of one application share: its realms, sessions, topics and signals.
"""

from __future__ import annotations

from typing import Any

from ..signals import Signal
from .call import CallDetails, EventDetails
from .errors import NO_SUCH_REALM, RPCError
from .limits import CallLimits
from .realm import Realm
from .scope import Scope
from .session import Session
from .signature import Signature
from .topics import Topics

__all__ = ["Host"]


class Host:
    """
    The state of one application.

    Attributes:
        limits: Those of each connection.
        on_start: Who wants to know of calls that start.
        on_success: Of those that succeed.
        on_fail: Of those that don't.
        on_event: Of events of wsrpc's.
        sessions: Who has joined.
        topics: Who has subscribed to what.
        realms: By URI.
        default_realm: Takes everybody else, if there is one.
        default_args: For the functions of all realms.
        state_handlers: For the sessions of all realms.
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
        self._scopes: dict[Realm, tuple[Scope, int]] = {}

    def realm(self, uri: str) -> Realm:
        """
        Return the realm that takes those who ask for *uri*.

        Raises:
            RPCError: ``no_such_realm``.
        """
        realm = self.realms.get(uri, self.default_realm)
        if realm is None:
            raise RPCError(NO_SUCH_REALM, "no such realm")
        return realm

    def scope(self, realm: Realm) -> Scope:
        """
        Return what is served in a realm.

        Raises:
            TypeError: If a function takes what nobody gives.
        """
        scope, version = self._scopes.get(realm, (None, -1))
        if scope is None or version != realm.version:
            scope = Scope(realm, self.default_args)
            scope.check(self.state_handlers_of(realm))
            self._scopes[realm] = scope, realm.version
        return scope

    def state_handlers_of(self, realm: Realm) -> list[Signature]:
        """
        Return the session state handlers for a realm, from outside to inside.
        """
        return [*self.state_handlers, *realm.state_handlers]

    def set_default_arg(self, name: str, value: Any) -> None:
        """
        Take a default argument for all realms.
        """
        self.default_args[name] = value
        self._scopes.clear()
