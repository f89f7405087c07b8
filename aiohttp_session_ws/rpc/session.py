"""
``Session``: one peer from its HELLO to its GOODBYE; in wsrpc, the connection.
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

    For code further down: log records, database code.

    Raises:
        LookupError: If there is none, as outside of a call.
    """
    session = _CURRENT.get()
    if session is None:
        raise LookupError("there is no session here")
    return session


def enter(session: Session | None) -> None:
    """
    Make *session* the current one, for this task and those that it starts.
    """
    _CURRENT.set(session)


def new_id() -> int:
    """
    Return a number of WAMP's global scope: a random one of 1..2^53.
    """
    return secrets.randbelow(2**53) + 1


class Peer(Protocol):
    """
    What a session needs of the conversation with its client.
    """

    connection: Connection

    async def call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float | None
    ) -> Any:
        """
        Call a procedure of the client's.
        """

    async def send_event(
        self, topic: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bool:
        """
        Send an event to the client, if it has subscribed.
        """

    async def emit(self, data: Any) -> None:
        """
        Send something that is no answer.
        """

    async def leave(self, uri: str, message: str) -> None:
        """
        End the session from this side.
        """


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Session:
    """
    One peer. Item access is for data of the application, gone with the session::

        session["name"] = "Ann"

    Attributes:
        id: Its number.
        realm: The realm that was asked for; empty in wsrpc, which has none.
        identity: Who the peer is, as the realm's authentication says; ``None`` for nobody.
        auth_id: Who the peer says it is.
        auth_methods: How it can prove that.
        auth_method: How it did.
        auth_role: What it may do, as the secret's owner says.
        auth_provider: Who says so.
        auth_extra: What else the peer says.
        request: The request that was upgraded.
        closed: Whether it is over.
        verdict: What an authentication handler has said: whether the peer may join, as whom
            or why not, and a message.
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
        The socket, as the registry knows it.
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
        Return what the application keeps under *key*.
        """
        return self._data.get(key, default)

    async def call(
        self, name: str, /, *args: Any, timeout: float | None = 30.0, **kwargs: Any
    ) -> Any:
        """
        Call a procedure of the client's and return its result.

        In WAMP the client must have registered it, in this session. A timeout or a
        cancellation is told to the client, in WAMP by INTERRUPT.

        Args:
            name: Of the procedure.
            *args: Its arguments.
            timeout: Seconds to wait; ``None`` waits as long as the session lasts.
            **kwargs: Its named arguments.

        Returns:
            The result: ``None``, the one argument of a YIELD, a list if it has several, or
            a dict if it has named ones only.

        Raises:
            RemoteError: If the client says that it failed.
            TimeoutError: If it didn't answer in time.
            SessionGone: At once, when the session ends.
            NotRegistered: If the client has registered no such procedure.
        """
        self._expect_open()
        return await self._peer.call(name, args, kwargs, timeout)

    async def send_event(
        self, topic: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> bool:
        """
        Send an event to this session alone; wait until the peer has room for it.

        Args:
            topic: Its name in full.
            args: What it says. A bare text is one argument.
            kwargs: What it says, by name.

        Returns:
            Whether the client has subscribed.

        Raises:
            TypeError: In wsrpc, which has no topics: take :meth:`emit`.
            SessionGone: If the session is over.
        """
        self._expect_open()
        return await self._peer.send_event(topic, args, kwargs)

    async def emit(self, data: Any) -> None:
        """
        Send an event of wsrpc's, any object.

        Raises:
            TypeError: In WAMP, whose events have a topic: take :meth:`send_event`.
            SessionGone: If the session is over.
        """
        self._expect_open()
        await self._peer.emit(data)

    async def close(self, uri: str = "wamp.close.normal", message: str = "") -> None:
        """
        End the session: in WAMP by GOODBYE, in wsrpc by closing the socket.

        What it is doing is cancelled, but for the call that asks for this.

        Args:
            uri: Why.
            message: For the developer at the other end.
        """
        if not self.closed:
            await self._peer.leave(uri, message)

    async def mark_authenticated(self, identity: Any) -> None:
        """
        Let the peer join, as *identity*; for the handler of ``set_authentication_handler``.

        Raises:
            RuntimeError: If it has been decided already.
        """
        self._decide(True, identity, "")

    async def abort(self, uri: str = AUTHENTICATION_FAILED, *, message: str = "") -> None:
        """
        Refuse the peer; for the handler of ``set_authentication_handler``.

        Raises:
            RuntimeError: If it has been decided already.
        """
        self._decide(False, uri, message)

    def _expect_open(self) -> None:
        """
        Refuse what is meant for a client that has left: its connection may have the next session.
        """
        if self.closed:
            raise SessionGone("the session is over")

    def _decide(self, joins: bool, value: Any, message: str) -> None:
        if self.verdict is not None:
            raise RuntimeError(
                "whether the session may join is decided once, by its authentication handler:"
                " to end a session that has joined, await session.close()"
            )
        self.verdict = joins, value, message


@dataclass(frozen=True, slots=True)
class RPCRequest:
    """
    A call as it came: what ``Realm.set_rpc_handler`` is for.

    Attributes:
        uri: The name that was called.
        args: Positional arguments.
        kwargs: Named arguments.
        session: Whose call.
    """

    uri: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    session: Session = field(repr=False)
