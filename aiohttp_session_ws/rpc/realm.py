"""
``Realm``: the authentication of its sessions, and the routes that are served to them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias, TypeVar

from .authentication import Authentication, Authenticator, TicketAuthenticator
from .routes import Routes
from .session import Session
from .signature import Signature
from .table import Served, state_handler_signature

__all__ = ["Realm"]

Action: TypeAlias = Literal["call", "subscribe", "register"]
Guard: TypeAlias = Callable[[Session, Action, str], bool | Awaitable[bool]]
F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A", bound=Authenticator)
T = TypeVar("T", bound=TicketAuthenticator)


class Realm:
    """
    Authentication, routes and handlers for the sessions that join under one URI.

    Without any authenticator, every client may join, anonymously.

    Args:
        uri: The name that clients ask for.

    Attributes:
        uri: That name.
        errors: Maps exception classes to the error URI that is sent to the caller; also applies
            to subclasses. The exception's text is not sent.
        guard: Called with the session, one of ``"call"``, ``"subscribe"`` and ``"register"``,
            and the name, before arguments are converted; sync or async. A false result is
            answered with ``wamp.error.not_authorized``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.errors: dict[type[BaseException], str] = {}
        self.guard: Guard | None = None
        self.authentication = Authentication()
        self.served = Served()
        self.state_handlers: list[Signature] = []
        self.default_args: dict[str, Any] = {}
        self.rpc_handler: Callable[..., Any] | None = None
        #: How often the default arguments have changed.
        self.version = 0

    def __repr__(self) -> str:
        return f"<Realm {self.uri!r}>"

    def add_rpc_routes(self, routes: Routes) -> None:
        """
        Serve all entries of *routes*, including those added later.

        Raises:
            ValueError: If one of their names is taken.
        """
        routes.serve(self.served)

    add_routes = add_rpc_routes

    def set_default_arg(self, name: str, value: Any) -> None:
        """
        Inject *value* into every function that has a parameter *name*; peers can't pass it then.
        """
        self.default_args[name] = value
        self.version += 1

    def add_session_state_handler(self, handler: F) -> F:
        """
        Run an async generator function for every session: the half before its ``yield`` once
        the session is authenticated, the half after it when the session ends, however it ends.
        Usable as a decorator.

        The first half can't wait for an answer from the client: nothing is read until the client
        has joined.

        Raises:
            TypeError: If *handler* is not an async generator function.
        """
        self.state_handlers.append(state_handler_signature(handler))
        return handler

    def add_transport_authenticator(self, authenticator: A) -> A:
        """
        Add an authenticator, sync or async: it is called with the session and returns an
        identity, or ``None`` or ``False`` to try the next one. :func:`session_identity` is one.
        """
        self.authentication.transport.append(authenticator)
        return authenticator

    def set_ticket_authenticator(self, authenticator: T) -> T:
        """
        Set the function, sync or async, that checks tickets: it is called with the session and
        the ticket, and returns an identity, or ``None`` or ``False`` to refuse.

        Raises:
            ValueError: If there is an authentication handler.
        """
        self._expect_none(self.authentication.handler)
        self.authentication.ticket = authenticator
        return authenticator

    def set_cra_handlers(self, secret: Authenticator, identity: Authenticator) -> None:
        """
        Enable WAMP-CRA (challenge-response authentication): peers prove that they know a secret.

        Args:
            secret: Called with the session; returns its :class:`CRASecret`, or ``None`` for an
                unknown peer, which is challenged like any other. Sync or async.
            identity: Called with the session after the proof; returns its identity. Sync or async.

        Raises:
            ValueError: If there is an authentication handler.
        """
        self._expect_none(self.authentication.handler)
        self.authentication.cra = secret, identity

    def set_authentication_handler(self, handler: F) -> F:
        """
        Set a function, sync or async, that does the whole authentication: it is called with the
        session, and calls its ``mark_authenticated()`` or ``abort()``. Without either call, the
        peer is refused.

        Raises:
            ValueError: If there is a ticket authenticator, or CRA.
        """
        self._expect_none(self.authentication.ticket, self.authentication.cra)
        self.authentication.handler = handler
        return handler

    def set_rpc_handler(self, handler: F) -> F:
        """
        Set a coroutine function or an async generator function that handles all calls in place
        of the routes; it is called with the :class:`RPCRequest`.
        """
        self.rpc_handler = handler
        return handler

    def _expect_none(self, *others: object) -> None:
        if any(other is not None for other in others):
            msg = (
                f"{self!r}: an authentication handler can't be combined with a ticket"
                " authenticator or CRA; set only one of them"
            )
            raise ValueError(msg)
