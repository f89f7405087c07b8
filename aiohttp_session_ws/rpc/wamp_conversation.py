"""
The WAMP state machine of one connection.

A session lasts from HELLO to GOODBYE; another one may follow on the same connection. Running
calls don't block reading: each has its own task, and requests done in order share one.

The module has over 300 lines, because it holds everything that depends on the state of the
connection (joining, joined, GOODBYE sent).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ..close_codes import NORMAL, PROTOCOL_ERROR, Close
from ..exceptions import SessionEnded
from ..handlers.websocket import WebSocket
from ..registry.registry import SessionWSRegistry
from . import errors, registry_access, wamp_messages as wamp
from .call import Call
from .conversation import Conversation
from .errors import ProtocolViolation, RemoteError, RPCError, RPCResult, SessionGone
from .host import Host
from .lifecycle import Step
from .sequential import SequentialRequests
from .session import Session, new_id
from .wamp import Codec, WampDialect, payload, value_of

__all__ = ["WampConversation"]

_FEATURES: Final = ("progressive_call_results", "call_canceling", "call_timeout")
_ROLES: Final = {"broker": {}, "dealer": {"features": dict.fromkeys(_FEATURES, True)}}
_WITHOUT_GOODBYE: Final = frozenset({1000, 1002})  # close codes that are sent without a GOODBYE


class WampConversation(Conversation):
    """
    One WAMP connection.

    Args:
        host: The application.
        registry: The registry of the socket.
        ws: The socket, open.
        codec: Encodes and decodes its frames.
    """

    __slots__ = (
        "_codec", "_goodbye_sent", "_messages", "_refusal", "_sequential", "_welcomed",
    )  # fmt: skip

    def __init__(
        self, host: Host, registry: SessionWSRegistry, ws: WebSocket, codec: Codec
    ) -> None:
        super().__init__(host, registry, ws, binary=codec.binary)
        self._codec = codec
        self._goodbye_sent = False  # whether we have sent ABORT or GOODBYE
        self._welcomed = False  # whether WELCOME has been sent
        self._refusal: RPCError | None = None  # set by a close before WELCOME
        self._messages: Iterator[tuple[wamp.Message, int]] = iter(())  # rest of a batch
        self._sequential: SequentialRequests | None = None
        self.connection.last_words = self._last_words

    async def run(self) -> None:
        """
        Serve sessions until the socket is closed.
        """
        try:
            goodbye = True
            while goodbye:
                await self._join()
                goodbye = await self._process_messages()
                await self._end_session()
                self._welcomed = False
                if goodbye:
                    await self._send(wamp.goodbye(errors.GOODBYE_AND_OUT))
            await self._ws.close(NORMAL)
        except ProtocolViolation as exc:
            await self._abort(errors.PROTOCOL_VIOLATION, str(exc), PROTOCOL_ERROR)
        except RPCError as exc:
            await self._abort(exc.uri, str(exc.args[0]) if exc.args else "", NORMAL)
        except (SessionEnded, SessionGone):
            pass  # the socket is closed
        finally:
            await self._end_session()

    async def _join(self) -> None:
        """
        Receive HELLO, authenticate the session, and send WELCOME.
        """
        try:
            async with asyncio.timeout(self._host.limits.join):
                message, _ = await self._next_message()
                if not isinstance(message, wamp.Hello):
                    raise ProtocolViolation("the first message is HELLO")
                session = await self._begin_from_hello(message)
        except TimeoutError:
            why = "HELLO or authentication took too long"
            raise RPCError(errors.TIMEOUT, why) from None
        if self._refusal is not None:
            raise self._refusal
        self._welcomed = True
        await self._send(wamp.welcome(session.id, _welcome_details(session)))

    async def _begin_from_hello(self, hello: wamp.Hello) -> Session:
        session = Session(self, new_id(), hello.realm, self._ws.request)
        session.auth_id = hello.details.authid
        session.auth_methods = tuple(hello.details.authmethods or ())
        session.auth_extra = hello.details.authextra
        dialect = WampDialect(self._codec, whole=hello.details.whole_values is True)
        realm = self._host.realm(hello.realm)
        await self._begin_session(session, realm, dialect)
        return session

    async def _challenge(self, method: str, extra: Mapping[str, Any]) -> str:
        await self._send(wamp.challenge(method, extra))
        message, _ = await self._next_message()
        if isinstance(message, wamp.Abort):
            raise SessionGone("the client has aborted its authentication")
        if not isinstance(message, wamp.Authenticate):
            raise ProtocolViolation("the answer to CHALLENGE is AUTHENTICATE")
        return message.signature

    async def _next_message(self) -> tuple[wamp.Message, int]:
        """
        Return the next message, and its size.
        """
        while True:
            for message in self._messages:
                if registry_access.count_message(self.connection):
                    return message
                self._messages = iter(())  # the socket was closed: receive() raises
            frame = await self._ws.receive()
            if not self._codec.batched:
                return self._codec.decode_one(frame), len(frame)
            self._messages = self._codec.decode(frame)
            return next(self._messages)  # there is one, and it was counted with its frame

    async def _process_messages(self) -> bool:
        """
        Process messages until the client leaves; return whether it may join again.
        """
        while True:
            await self._yield_to_loop()
            try:
                message, size = await self._next_message()
            except ProtocolViolation:
                if self._goodbye_sent:  # only GOODBYE and ABORT count now
                    continue
                raise
            match message:
                case wamp.Goodbye():
                    return not self._goodbye_sent
                case wamp.Abort():
                    return False
                case _ if self._goodbye_sent:
                    continue
                case wamp.Call():
                    call, timeout = self._new_call(message, size), message.options.timeout
                    await self._calls.submit(call, timeout and timeout / 1000)
                case wamp.Subscribe() | wamp.Unsubscribe() | wamp.Register() | wamp.Unregister():
                    self._expect_new(message.request)
                    self._sequential_requests().submit(message, size)
                case wamp.Cancel():
                    self._calls.cancel(message.request, message.options.get("mode"))
                case wamp.Publish():
                    self._on_publish(message)
                case wamp.Yield():
                    self._on_yield(message)
                case wamp.Error():
                    self._on_error(message)
                case _:
                    raise ProtocolViolation("a message that makes no sense here")
            if self._sender.queued:
                await self._sender.drain()

    def _new_call(self, message: wamp.Call, size: int) -> Call:
        request, progress = message.request, message.options.receive_progress is True
        self._expect_new(request)
        return Call(request, message.procedure, message.args, message.kwargs, size, progress)

    def _expect_new(self, request: int) -> None:
        """
        Raise if a request has the number of one that isn't answered yet.
        """
        sequential = self._sequential is not None and request in self._sequential.requests
        if sequential or request in self._calls:
            raise ProtocolViolation("the number of a request that isn't answered yet")

    def _sequential_requests(self) -> SequentialRequests:
        """
        Return the queue of requests in order, made at first use: most sessions need none.
        """
        if self._sequential is None:
            self._sequential = SequentialRequests(
                self._expect_session(), self._calls.performer.scope, self._sender, self._codec,
                self._host.topics, self._registry,
            )  # fmt: skip
        return self._sequential

    def _on_publish(self, message: wamp.Publish) -> None:
        if message.options.acknowledge:
            why = "clients publish nothing here: call a procedure"
            self._post(wamp.refused(message, RPCError(errors.NOT_AUTHORIZED, why)))

    def _on_yield(self, message: wamp.Yield) -> None:
        if not message.options.progress:
            self._pending_requests.resolve(message.request, value_of(message.args, message.kwargs))

    def _on_error(self, message: wamp.Error) -> None:
        if message.kind != 68:
            raise ProtocolViolation("an ERROR for what nobody has asked")
        error = RemoteError(message.uri, message.args, message.kwargs)
        self._pending_requests.resolve(message.request, error=error)

    async def call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float | None
    ) -> Any:
        """
        Call a procedure that the client has registered.
        """
        self._expect_session()
        registration = self._sequential_requests().registration(name)
        return await self._pending_requests.request(
            lambda request: self._send(wamp.invocation(request, registration, args, kwargs)),
            self._interrupt,
            timeout,
        )

    def _interrupt(self, request: int) -> None:
        if not self._goodbye_sent:
            self._post(wamp.interrupt(request))

    async def send_event(
        self, topic: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bool:
        """
        Send an event to the client, if it has subscribed.
        """
        self._expect_session()
        if self._sequential is None:
            return False
        return await self._sequential.send_event(topic, *payload(RPCResult(args, kwargs)))

    async def emit(self, data: Any) -> None:
        """
        Raise :exc:`TypeError`: in WAMP, events have a topic.
        """
        raise TypeError("events have a topic in WAMP: await session.send_event(topic, args)")

    async def leave(self, uri: str, message: str) -> None:
        """
        Send GOODBYE; close the socket if the client's isn't received within ``Timeouts.close``.
        """
        if self._session is None or self._goodbye_sent:
            return
        if not self._welcomed:
            self._refusal = RPCError(uri, message)
            return
        self._goodbye_sent = True
        self._interrupt_all(self._session)
        loop = asyncio.get_running_loop()
        timeouts = registry_access.timeouts(self._registry)
        loop.call_later(timeouts.close, self._sender.close, NORMAL)
        await self._send(wamp.goodbye(uri, message))

    def _dialect_end_steps(self) -> Iterator[Step]:
        sequential, self._sequential = self._sequential, None
        if sequential is not None:
            yield from sequential.end_steps()

    def _last_words(self, close: Close) -> str | bytes | None:
        joined = self._session is not None and self._welcomed
        if not joined or self._goodbye_sent or close.code in _WITHOUT_GOODBYE:
            return None
        self._goodbye_sent = True
        uri = errors.SYSTEM_SHUTDOWN if close.code == 1001 else errors.KILLED
        data = self._codec.encode(wamp.goodbye(uri, close.reason))
        return data if self._codec.binary else data.decode()

    async def _abort(self, reason: str, message: str, close: Close) -> None:
        """
        Send ABORT with a reason, and close the socket.
        """
        self._goodbye_sent = True
        with contextlib.suppress(SessionGone):
            await self._send(wamp.abort(reason, message))
        await self._ws.close(close)

    async def _send(self, frame: wamp.Frame) -> None:
        await self._sender.send(self._codec.encode(frame))

    def _post(self, frame: wamp.Frame) -> None:
        self._sender.post(self._codec.encode(frame))


def _welcome_details(session: Session) -> dict[str, Any]:
    """
    Return the details of WELCOME, without those that are unknown.
    """
    details: dict[str, Any] = {
        "roles": _ROLES,
        "realm": session.realm,
        "authid": session.auth_id,
        "authmethod": session.auth_method,
        "authrole": session.auth_role,
        "authprovider": session.auth_provider,
    }
    return {name: value for name, value in details.items() if value is not None}
