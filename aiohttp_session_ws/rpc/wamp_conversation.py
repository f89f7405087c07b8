"""
The conversation with a client that speaks WAMP.

It goes from HELLO to GOODBYE, and may begin again on the same connection. Reading never stops
for a call that runs: each has its own task, and what must be done in order has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ..close_codes import NORMAL, PROTOCOL_ERROR, Close
from ..exceptions import SessionEnded
from ..handlers.websocket import WebSocket
from ..registry.registry import SessionWSRegistry
from . import ground, wamp
from .calls import Call
from .conversation import Conversation, Step
from .errors import (
    AUTHENTICATION_FAILED,
    GOODBYE_AND_OUT,
    KILLED,
    NO_SUCH_REGISTRATION,
    NOT_AUTHORIZED,
    PROCEDURE_ALREADY_EXISTS,
    PROTOCOL_VIOLATION,
    SYSTEM_SHUTDOWN,
    UNAVAILABLE,
    NotRegistered,
    ProtocolViolation,
    RemoteError,
    RPCError,
    RPCErrorResult,
    RPCProgressReport,
    RPCResult,
    SessionGone,
)
from .host import Host
from .ids import new_id
from .session import Session
from .subscriptions import Subscriptions

__all__ = ["WampConversation"]

_QUIET: Final = frozenset({1000, 1002})  # closes that have nothing to do with the session
_ROLES: Final = {
    "broker": {},
    "dealer": {
        "features": {
            "progressive_call_results": True,
            "call_canceling": True,
            "call_timeout": True,
        }
    },
}
Payload = tuple[Sequence[Any], Mapping[str, Any] | None]


class WampDialect:
    """
    What a value becomes in WAMP: ``None`` is no argument, a list or tuple are arguments, a
    mapping is arguments by name, and everything else is one argument.

    Args:
        codec: How frames are encoded.
        whole: Whether everything is one argument, so that a client can tell a list of one from
            what is in it. A client asks for it in its HELLO, by ``_whole_values``.
    """

    __slots__ = ("_codec", "_payload")

    def __init__(self, codec: wamp.Codec, *, whole: bool = False) -> None:
        self._codec = codec
        self._payload = whole_payload if whole else payload

    def result(self, number: int, value: Any) -> bytes:
        """
        Encode a result.
        """
        return self._codec.encode(wamp.result(number, *self._payload(value)))

    def progress(self, number: int, value: Any) -> bytes:
        """
        Encode a part of a result.
        """
        return self._codec.encode(wamp.result(number, *self._payload(value), progress=True))

    def error(self, number: int, error: RPCError) -> bytes:
        """
        Encode an error.
        """
        return self._codec.encode(wamp.error(48, number, error.uri, error.args, error.kwargs))


def payload(value: Any) -> Payload:
    """
    Return the arguments that a value is in WAMP.
    """
    kind = type(value)
    if kind is int or kind is str:
        return (value,), None
    if value is None:
        return (), None
    if isinstance(value, RPCResult | RPCProgressReport | RPCErrorResult):
        return tuple(value.args), value.kwargs
    if isinstance(value, list | tuple):
        return value, None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return (), value
    return (value,), None


def whole_payload(value: Any) -> Payload:
    """
    Return the arguments that a value is for a client that wants it as it is.
    """
    if isinstance(value, RPCResult | RPCProgressReport):
        return payload(value)
    return (value,), None


class WampConversation(Conversation):
    """
    One connection that speaks WAMP.

    Args:
        host: The application.
        registry: Whose socket it is.
        ws: The socket, open.
        codec: How its frames are encoded.
    """

    __slots__ = ("_closing", "_codec", "_messages", "_registrations", "_subscriptions")

    def __init__(
        self, host: Host, registry: SessionWSRegistry, ws: WebSocket, codec: wamp.Codec
    ) -> None:
        super().__init__(host, registry, ws, binary=codec.binary, numbers=(1, 1))
        self._codec = codec
        self._closing = False  # by an ABORT or a GOODBYE of ours
        self._messages: Iterator[tuple[wamp.Message, int]] = iter(())
        self._registrations: dict[str, int] | None = None
        self._subscriptions: Subscriptions | None = None
        self.connection.last_words = self._last_words

    async def run(self) -> None:
        """
        Talk until the socket is closed.
        """
        try:
            goodbye = True
            while goodbye:
                await self._join()
                goodbye = await self._listen()
                await self._leave()
                if goodbye:
                    await self._send(wamp.goodbye(GOODBYE_AND_OUT))
            await self._ws.close(NORMAL)
        except ProtocolViolation as exc:
            await self._abort(PROTOCOL_VIOLATION, str(exc), PROTOCOL_ERROR)
        except RPCError as exc:
            await self._abort(exc.uri, str(exc.args[0]) if exc.args else "", NORMAL)
        except (SessionEnded, SessionGone):
            pass  # and the socket is closed
        finally:
            await self._leave()

    # Beginning

    async def _join(self) -> None:
        """
        Go from HELLO to WELCOME.
        """
        try:
            async with asyncio.timeout(self._host.limits.join):
                message, _ = await self._next()
                if not isinstance(message, wamp.Hello):
                    raise ProtocolViolation("the first message is HELLO")
                session = await self._greet(message)
        except TimeoutError:
            raise RPCError(
                AUTHENTICATION_FAILED, "HELLO or authentication took too long"
            ) from None
        details: dict[str, Any] = {
            "realm": session.realm,
            "authid": session.auth_id,
            "authmethod": session.auth_method,
            "authrole": session.auth_role,
            "authprovider": session.auth_provider,
        }
        known = {name: value for name, value in details.items() if value is not None}
        await self._send(wamp.welcome(session.id, {"roles": _ROLES} | known))

    async def _greet(self, hello: wamp.Hello) -> Session:
        since = ground.now(self._registry)
        session = Session(self, new_id(), hello.realm, self._ws.request)
        session.auth_id = hello.details.authid
        session.auth_methods = tuple(hello.details.authmethods or ())
        session.auth_extra = hello.details.authextra
        realm = self._host.realm(hello.realm)
        dialect = WampDialect(self._codec, whole=hello.details.whole_values is True)
        await self._begin(session, realm, dialect, self._challenge, since)
        return session

    async def _challenge(self, method: str, extra: Mapping[str, Any]) -> str:
        await self._send(wamp.challenge(method, extra))
        message, _ = await self._next()
        if isinstance(message, wamp.Abort):
            raise SessionGone("the client has changed its mind")
        if not isinstance(message, wamp.Authenticate):
            raise ProtocolViolation("the answer to CHALLENGE is AUTHENTICATE")
        return message.signature

    # Listening

    async def _next(self) -> tuple[wamp.Message, int]:
        """
        Return the next message, and its size.
        """
        while True:
            for message in self._messages:
                return message
            self._messages = iter(self._codec.decode(await self._ws.receive()))

    async def _listen(self) -> bool:
        """
        Take what the client says until it leaves; tell whether it may come again.
        """
        while True:
            try:
                message, size = await self._next()
            except ProtocolViolation:
                if self._closing:  # everything but the client's GOODBYE is ignored
                    continue
                raise
            if isinstance(message, wamp.Goodbye | wamp.Abort):
                return isinstance(message, wamp.Goodbye) and not self._closing
            if self._closing:
                continue
            if type(message) is wamp.Call:
                await self._on_call(message, size)
            else:
                handler = _HANDLERS.get(type(message))
                if handler is None:
                    raise ProtocolViolation("a message that makes no sense here")
                handler(self, message)
                if self._sender.queued:
                    await self._sender.room()

    async def _on_call(self, message: wamp.Call, size: int) -> None:
        assert self._calls is not None
        request, options = message.request, message.options
        self._expect_new(request)
        call = Call(
            request,
            message.procedure,
            message.args,
            message.kwargs,
            size,
            options.receive_progress is True,
        )
        await self._calls.take(call, None if not options.timeout else options.timeout / 1000)
        if self._sender.queued:
            await self._sender.room()

    def _expect_new(self, request: int) -> None:
        """
        Refuse the number of a request that isn't answered yet.
        """
        in_order = self._subscriptions is not None and request in self._subscriptions.requests
        if in_order or (self._calls is not None and request in self._calls):
            raise ProtocolViolation("the number of a request that isn't answered yet")

    def _on_cancel(self, message: wamp.Cancel) -> None:
        if self._calls is not None:
            self._calls.cancel(message.request, message.options.mode)

    def _on_subscribe(self, message: wamp.Subscribe) -> None:
        self._expect_new(message.request)
        self._in_order().subscribe(message)

    def _on_unsubscribe(self, message: wamp.Unsubscribe) -> None:
        self._expect_new(message.request)
        self._in_order().unsubscribe(message)

    def _on_register(self, message: wamp.Register) -> None:
        self._expect_new(message.request)
        self._in_order().put(64, message.request, self._register(message))

    def _on_unregister(self, message: wamp.Unregister) -> None:
        self._expect_new(message.request)
        self._in_order().put(66, message.request, self._unregister(message))

    def _on_publish(self, message: wamp.Publish) -> None:
        if message.options.acknowledge:
            why = ("clients publish nothing here: call a procedure",)
            self._post(wamp.error(16, message.request, NOT_AUTHORIZED, why))

    def _on_yield(self, message: wamp.Yield) -> None:
        if self._asking is not None and not message.options.progress:
            self._asking.answer(message.request, _value(message.args, message.kwargs))

    def _on_error(self, message: wamp.Error) -> None:
        if message.kind != 68:
            raise ProtocolViolation("an ERROR for what nobody has asked")
        if self._asking is not None:
            error = RemoteError(message.uri, message.args, message.kwargs)
            self._asking.answer(message.request, error=error)

    def _in_order(self) -> Subscriptions:
        if self._subscriptions is None:
            assert self._session is not None
            assert self._scope is not None
            self._subscriptions = Subscriptions(
                self._host.topics,
                self._registry,
                self.connection,
                self._session,
                self._scope,
                self._sender,
                self._codec,
            )
        return self._subscriptions

    # Calling the client

    async def _register(self, message: wamp.Register) -> bytes:
        session, scope, name = self._expect_session(), self._scope, message.procedure
        assert scope is not None
        await scope.expect_allowed(session, "register", name)
        if self._registrations is None:
            self._registrations = {}
        if name in self._registrations:
            raise RPCError(PROCEDURE_ALREADY_EXISTS, "registered already")
        if len(self._registrations) >= scope.limits.registrations:
            raise RPCError(UNAVAILABLE, "too many registrations")
        self._registrations[name] = number = new_id()
        return self._codec.encode(wamp.registered(message.request, number))

    async def _unregister(self, message: wamp.Unregister) -> bytes:
        for name, number in (self._registrations or {}).items():
            if number == message.registration:
                del (self._registrations or {})[name]
                return self._codec.encode(wamp.unregistered(message.request))
        raise RPCError(NO_SUCH_REGISTRATION, "no such registration")

    async def call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], timeout: float | None
    ) -> Any:
        """
        Call what the client has registered.
        """
        self._expect_session()
        registration = (self._registrations or {}).get(name)
        if registration is None:
            msg = f"the client has not registered {name!r}: it has to REGISTER what it is asked"
            raise NotRegistered(msg)

        async def send(request: int) -> None:
            await self._send(wamp.invocation(request, registration, args, kwargs))

        return await self._ask(send, self._interrupt, timeout)

    def _interrupt(self, request: int) -> None:
        if not (self._closing or self._ws.closed):
            self._post(wamp.interrupt(request))

    async def send_event(
        self, topic: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bool:
        """
        Send an event to the client, if it has subscribed.
        """
        self._expect_session()
        if self._subscriptions is None:
            return False
        return await self._subscriptions.send_event(topic, *payload(RPCResult(args, kwargs)))

    async def emit(self, data: Any) -> None:
        """
        Refuse: WAMP's events have a topic.
        """
        raise TypeError("events have a topic in WAMP: await session.send_event(topic, args)")

    # Ending

    async def leave(self, uri: str, message: str) -> None:
        """
        Say GOODBYE, and wait for the client's no longer than for anything else.
        """
        if self._session is None or self._closing:
            return
        self._session.closed = self._closing = True
        if self._calls is not None:
            self._calls.interrupt()
        if self._asking is not None:
            self._asking.stop()
        loop = asyncio.get_running_loop()
        loop.call_later(ground.timeouts(self._registry).close, self._sender.close, NORMAL)
        await self._send(wamp.goodbye(uri, message))

    def _endings(self, deadline: float) -> Iterator[Step]:
        subscriptions, self._subscriptions = self._subscriptions, None
        self._registrations = None
        steps = super()._endings(deadline)
        yield next(steps)  # the calls
        if subscriptions is not None:
            yield lambda: subscriptions.stop(deadline)
        yield from steps

    def _last_words(self, close: Close) -> str | bytes | None:
        if self._session is None or self._closing or close.code in _QUIET:
            return None
        self._closing = True
        uri = SYSTEM_SHUTDOWN if close.code == 1001 else KILLED
        data = self._codec.encode(wamp.goodbye(uri, close.reason))
        return data if self._codec.binary else data.decode()

    async def _abort(self, reason: str, message: str, close: Close) -> None:
        """
        End the connection, saying why.
        """
        self._closing = True
        try:
            await self._send(wamp.abort(reason, message))
        finally:
            await self._ws.close(close)

    async def _send(self, frame: list[Any]) -> None:
        await self._sender.send(self._codec.encode(frame))

    def _post(self, frame: list[Any]) -> None:
        self._sender.post(self._codec.encode(frame))


_Handler = Callable[[WampConversation, Any], None]
_HANDLERS: Final[Mapping[type, _Handler]] = {
    wamp.Cancel: WampConversation._on_cancel,
    wamp.Subscribe: WampConversation._on_subscribe,
    wamp.Unsubscribe: WampConversation._on_unsubscribe,
    wamp.Register: WampConversation._on_register,
    wamp.Unregister: WampConversation._on_unregister,
    wamp.Publish: WampConversation._on_publish,
    wamp.Yield: WampConversation._on_yield,
    wamp.Error: WampConversation._on_error,
}


def _value(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """
    Return what a client's answer is here.
    """
    if kwargs:
        return RPCResult(args, kwargs) if args else kwargs
    return args[0] if len(args) == 1 else args or None
