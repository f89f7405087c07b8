"""
``Realm``: who may join, and what they may call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias, TypeVar

from .authentication import Authentication, Authenticator, TicketAuthenticator
from .routes import Routes
from .session import Session
from .signature import Signature
from .table import Served, two_halves

__all__ = ["Realm"]

Action: TypeAlias = Literal["call", "subscribe", "register"]
Guard: TypeAlias = Callable[[Session, Action, str], bool | Awaitable[bool]]
F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A", bound=Authenticator)
T = TypeVar("T", bound=TicketAuthenticator)


class Realm:
    """
    What sessions of one kind have in common.

    Without any authenticator everybody joins, as nobody.

    Args:
        uri: The name that clients ask for.

    Attributes:
        uri: That name.
        errors: The URI of each exception that callers are told of; it holds for subclasses
            too. The exception's text stays here.
        guard: Called with the session, one of ``"call"``, ``"subscribe"`` and ``"register"``,
            and the name, before arguments are read; sync or async. What is false is answered
            ``wamp.error.not_authorized``.
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
        Serve what *routes* declare, now and later.

        Raises:
            ValueError: If something else has one of their names.
        """
        routes.serve(self.served)

    add_routes = add_rpc_routes

    def set_default_arg(self, name: str, value: Any) -> None:
        """
        Give every function that takes *name* this argument; no peer can give it then.
        """
        self.default_args[name] = value
        self.version += 1

    def add_session_state_handler(self, handler: F) -> F:
        """
        Run an async generator function with every session: its first half once the session
        is authenticated, its second half however the session ends. May be a decorator.

        The first half can't wait for an answer of the client: nothing more is read before the
        client has joined.

        Raises:
            TypeError: If it is no such function.
        """
        self.state_handlers.append(two_halves(handler))
        return handler

    def add_transport_authenticator(self, authenticator: A) -> A:
        """
        Ask a function, sync or async, that is given the session and returns an identity, or
        ``None`` or ``False`` to have the next one asked. :func:`session_identity` is one.
        """
        self.authentication.transport.append(authenticator)
        return authenticator

    def set_ticket_authenticator(self, authenticator: T) -> T:
        """
        Let a function, sync or async, check tickets: it is given the session and the ticket,
        and returns an identity, or ``None`` or ``False`` to refuse.

        Raises:
            ValueError: If there is an authentication handler.
        """
        self._expect_none(self.authentication.handler)
        self.authentication.ticket = authenticator
        return authenticator

    def set_cra_handlers(self, secret: Authenticator, identity: Authenticator) -> None:
        """
        Let peers prove that they know a secret.

        Args:
            secret: Given the session, returns its :class:`CRASecret`, or ``None`` for an
                unknown peer, which is challenged like any other. Sync or async.
            identity: Given the session once that is proven, returns its identity.

        Raises:
            ValueError: If there is an authentication handler.
        """
        self._expect_none(self.authentication.handler)
        self.authentication.cra = secret, identity

    def set_authentication_handler(self, handler: F) -> F:
        """
        Let a function, sync or async, do all of it: it is given the session, and calls its
        ``mark_authenticated()`` or ``abort()``. A peer is refused if it does neither.

        Raises:
            ValueError: If there is a ticket authenticator, or CRA.
        """
        self._expect_none(self.authentication.ticket, self.authentication.cra)
        self.authentication.handler = handler
        return handler

    def set_rpc_handler(self, handler: F) -> F:
        """
        Let a function take all calls in place of the routes: it is given the
        :class:`RPCRequest`, and is a coroutine or an async generator function.
        """
        self.rpc_handler = handler
        return handler

    def _expect_none(self, *others: object) -> None:
        if any(other is not None for other in others):
            msg = (
                f"{self!r} has an authentication handler beside ticket or CRA: the handler does"
                " it all, so set only one of them"
            )
            raise ValueError(msg)
