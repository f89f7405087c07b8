"""
``Session``: one peer from HELLO to GOODBYE in WAMP, for the whole connection in wsrpc.
"""

from __future__ import annotations

import contextvars
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from ..connections.connection import Connection
from .errors import AUTHENTICATION_FAILED, SessionGone

__all__ = ["RPCRequest", "Session", "current_session"]

_CURRENT: contextvars.ContextVar[Session | None] = contextvars.ContextVar(
    "aiohttp_session_ws.rpc.session"
)


def current_session() -> Session:
    """
    Return the session whose call, topic or state handler is running.

    For code that handlers call indirectly, such as logging and database code.

    Raises:
        LookupError: If there is no current session, as outside of a call.
    """
    session = _CURRENT.get()
    if session is None:
        raise LookupError(
            "there is no current RPC session: current_session() works inside of calls, topics and"
            " session state handlers"
        )
    return session


def set_current_session(session: Session | None) -> None:
    """
    Make *session* the current one, for this task and those that it starts.
    """
    _CURRENT.set(session)


def new_id() -> int:
    """
    Return a random id of WAMP's global scope, 1..2^53.
    """
    return secrets.randbelow(2**53) + 1


class Peer(Protocol):
    """
    The methods of a conversation that a session uses.
    """

    connection: Connection

    async def call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float | None
    ) -> Any:
        """
        Call a procedure of the client.
        """

    async def send_event(
        self, topic: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bool:
        """
        Send an event to the client, if it has subscribed.
        """

    async def emit(self, data: Any) -> None:
        """
        Send an event without a topic.
        """

    async def leave(self, uri: str, message: str) -> None:
        """
        End the session from this side.
        """


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Session:
    """
    One peer. Items hold data of the application, for as long as the session lasts::

        session["name"] = "Ann"

    Attributes:
        id: The session id.
        realm: The realm that was asked for; empty in wsrpc, which has none.
        identity: The identity from the realm's authentication; ``None`` if anonymous.
        auth_id: The identity that the peer claims (``authid``).
        auth_methods: The authentication methods that the peer offers.
        auth_method: The method that was used.
        auth_role: The role of the peer, as from its :class:`CRASecret`.
        auth_provider: The name of the authentication provider.
        auth_extra: Further details that the peer sent with HELLO (``authextra``).
        request: The request that was upgraded.
        closed: Whether the session is over.
        verdict: The decision of an authentication handler: whether the peer may join, its
            identity or the error URI, and a message.
    """

    _peer: Peer
    id: int
    realm: str
    request: web.Request
    identity: Any = None
    auth_id: str | None = None
    auth_methods: Sequence[str] = ()
    auth_method: str | None = None
    auth_role: str | None = None
    auth_provider: str | None = None
    auth_extra: Mapping[str, Any] | None = None
    closed: bool = False
    verdict: tuple[bool, Any, str] | None = None
    _data: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.realm!r}{' closed' if self.closed else ''}>"

    @property
    def connection(self) -> Connection:
        """
        The registry's entry for the socket.
        """
        return self._peer.connection

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        del self._data[key]

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def get(self, key: str, default: Any = None) -> Any:
        """
        Return the item stored under *key*, or *default*.
        """
        return self._data.get(key, default)

    async def call(
        self, name: str, /, *args: Any, timeout: float | None = 30.0, **kwargs: Any
    ) -> Any:
        """
        Call a procedure of the client and return its result.

        In WAMP the client must have registered it, in this session, and is notified of a timeout
        or a cancellation by INTERRUPT; wsrpc has no such message.

        Args:
            name: The name of the procedure.
            *args: Its positional arguments.
            timeout: Seconds to wait; ``None`` waits as long as the session lasts.
            **kwargs: Its named arguments.

        Returns:
            The result: ``None``, the one argument of a YIELD, a list of several, a dict of
            named ones, or an :class:`RPCResult` of both.

        Raises:
            RemoteError: If the client answers with an error.
            TimeoutError: If it doesn't answer in time.
            SessionGone: At once, when the session ends.
            NotRegistered: If the client has not registered the procedure.
            TypeError: In wsrpc, for positional and named arguments together.
        """
        self._expect_open()
        return await self._peer.call(name, args, kwargs, timeout)

    async def send_event(
        self, topic: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> bool:
        """
        Send an event to this session alone; wait until the peer has room for it.

        Args:
            topic: The full name of the topic.
            args: Positional arguments of the event. A bare string is one argument.
            kwargs: Named arguments of the event.

        Returns:
            Whether the client has subscribed; false too if it misses the event because too many
            wait for its SUBSCRIBED.

        Raises:
            TypeError: In wsrpc, which has no topics: use :meth:`emit`.
            SessionGone: If the session is over.
        """
        self._expect_open()
        return await self._peer.send_event(topic, args, kwargs)

    async def emit(self, data: Any) -> None:
        """
        Send a wsrpc event, any object.

        Raises:
            TypeError: In WAMP, whose events have a topic: use :meth:`send_event`.
            SessionGone: If the session is over.
        """
        self._expect_open()
        await self._peer.emit(data)

    async def close(self, uri: str = "wamp.close.normal", message: str = "") -> None:
        """
        End the session: in WAMP by GOODBYE, in wsrpc by closing the socket.

        Its calls are cancelled, except the one that calls this.

        Args:
            uri: The reason, as a URI.
            message: A text for the developer of the client.
        """
        if not self.closed:
            await self._peer.leave(uri, message)

    async def mark_authenticated(self, identity: Any) -> None:
        """
        Accept the peer as *identity*; for the handler of ``set_authentication_handler``.

        Raises:
            RuntimeError: If the peer has been accepted or refused already.
        """
        self._decide(True, identity, "")

    async def abort(self, uri: str = AUTHENTICATION_FAILED, *, message: str = "") -> None:
        """
        Refuse the peer; for the handler of ``set_authentication_handler``.

        Raises:
            RuntimeError: If the peer has been accepted or refused already.
        """
        self._decide(False, uri, message)

    def _expect_open(self) -> None:
        """
        Raise if the session is over: its connection may serve the next session already.
        """
        if self.closed:
            raise SessionGone("the session is over")

    def _decide(self, joins: bool, value: Any, message: str) -> None:
        if self.verdict is not None:
            raise RuntimeError(
                "the session has been accepted or refused already: to end a session that has"
                " joined, await session.close()"
            )
        self.verdict = joins, value, message


@dataclass(frozen=True, slots=True)
class RPCRequest:
    """
    A call as received, for the handler of ``Realm.set_rpc_handler``.

    Attributes:
        uri: The name that was called.
        args: Positional arguments.
        kwargs: Named arguments.
        session: The session of the caller.
    """

    uri: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    session: Session = field(repr=False)
