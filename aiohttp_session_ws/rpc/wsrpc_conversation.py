"""
The wsrpc protocol of one connection, with one session that lasts as long as the connection.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from .._logging import log
from ..close_codes import GOING_AWAY, NORMAL, POLICY_VIOLATION
from ..exceptions import SessionEnded
from ..handlers.websocket import WebSocket
from ..registry.registry import SessionWSRegistry
from . import wsrpc
from .call import Call, EventDetails
from .conversation import Conversation
from .errors import TIMEOUT, ProtocolViolation, RPCError, SessionGone
from .host import Host
from .lifecycle import Step
from .session import Session, new_id

__all__ = ["WsrpcConversation"]

_PING: Final = 2  # the number of all our pings: at most one is unanswered


class WsrpcConversation(Conversation):
    """
    One wsrpc connection.

    Args:
        host: The application.
        registry: The registry of the socket.
        ws: The socket, open.
    """

    __slots__ = ("_events", "_timer")

    numbers = (_PING + 2, 2)

    def __init__(self, host: Host, registry: SessionWSRegistry, ws: WebSocket) -> None:
        super().__init__(host, registry, ws, binary=False)
        self._timer: asyncio.TimerHandle | None = None
        self._events: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """
        Serve the session until the socket is closed.
        """
        try:
            await self._join()
            self._ping()
            while True:
                await self._yield_to_loop()
                await self._on_frame(await self._ws.receive())
                if self._sender.queued:
                    await self._sender.drain()
        except RPCError as exc:
            await self._ws.close(POLICY_VIOLATION, exc.uri[:120])
        except (SessionEnded, SessionGone):
            pass  # the socket is closed
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._end_session()

    async def _join(self) -> None:
        realm = self._host.realm("")
        session = Session(self, new_id(), "", self._ws.request)
        try:
            async with asyncio.timeout(self._host.limits.join):
                await self._begin_session(session, realm, wsrpc)
        except TimeoutError:
            raise RPCError(TIMEOUT) from None

    async def _on_frame(self, frame: str | bytes) -> None:
        session = self._session
        if session is None or session.closed:
            return  # the frame came before the socket was closed
        try:
            message = wsrpc.decode(frame)
        except ProtocolViolation as exc:
            log.debug("a frame that isn't valid in wsrpc was ignored: %s", exc)
            return
        if isinstance(message, wsrpc.Request):
            await self._on_request(message, len(frame))
        elif isinstance(message, wsrpc.Reply):
            self._on_reply(message)
        elif self._host.on_event:
            self._on_event(EventDetails(session, message.data))

    def _on_event(self, details: EventDetails) -> None:
        """
        Pass an event to its receivers, in a task; drop it if there are too many such tasks.
        """
        if len(self._events) >= self._host.limits.calls:
            log.debug("an event was dropped: too many are being processed")
            return
        task = asyncio.create_task(self._host.on_event.send(details), name="event")
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def _on_request(self, message: wsrpc.Request, size: int) -> None:
        if message.method == "ping":
            self._sender.post(wsrpc.result(message.id, message.kwargs))
        elif message.id in self._calls:
            log.debug("a call was ignored: its number is that of an unanswered call")
        else:
            call = Call(message.id, message.method, message.args, message.kwargs, size)
            await self._calls.submit(call)

    def _on_reply(self, message: wsrpc.Reply) -> None:
        if message.id == _PING:
            self._set_timer(self._host.limits.ping, self._ping)
        else:
            self._pending_requests.resolve(
                message.id, message.result, wsrpc.remote_error(message.error)
            )

    # Keep-alive

    def _ping(self) -> None:
        """
        Send a ping; the next one is sent after its answer.
        """
        loop = asyncio.get_running_loop()
        ping = wsrpc.request(_PING, "ping", {"seq": loop.time()})
        # The time for the answer starts once the ping is sent; the sender limits the time before.
        self._sender.post(ping, self._expect_pong)

    def _expect_pong(self) -> None:
        if self._session is not None:
            self._set_timer(self._host.limits.silence, self._close_silent_peer)

    def _close_silent_peer(self) -> None:
        self._sender.close(GOING_AWAY.replace(None, "no answer to a ping"))

    def _set_timer(self, delay: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay, action, context=contextvars.Context())

    # Calling the client

    async def call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float | None
    ) -> Any:
        """
        Call a procedure of the client.
        """
        if args and kwargs:
            raise TypeError("wsrpc takes arguments by position or by name, not both")
        self._expect_session()
        params = list(args) if args else kwargs
        return await self._pending_requests.request(
            lambda number: self._sender.send(wsrpc.request(number, name, params)),
            lambda number: None,
            timeout,
        )

    async def send_event(
        self, topic: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bool:
        """
        Raise :exc:`TypeError`: wsrpc has no topics.
        """
        raise TypeError("there are no topics in wsrpc: await session.emit(data)")

    async def emit(self, data: Any) -> None:
        """
        Send an object as an event.
        """
        self._expect_session()
        await self._sender.send(wsrpc.encode(data))

    async def leave(self, uri: str, message: str) -> None:
        """
        Close the socket.
        """
        if self._session is not None:
            self._interrupt_all(self._session)
            reason = (message or uri).encode()[:123].decode(errors="ignore")
            self._sender.close(NORMAL.replace(None, reason))

    def _dialect_end_steps(self) -> Iterator[Step]:
        if self._events:
            for task in self._events:
                task.cancel()
            yield partial(asyncio.wait, set(self._events))
