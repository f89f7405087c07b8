"""
``Application``: realms, the handler that serves them, and publishing to all who have subscribed.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from aiohttp import web

from .._logging import log
from .._tasks import maybe_await
from ..handlers.views import converse
from ..handlers.websocket import WebSocket
from ..registry.registry import SessionWSRegistry
from ..registry.relay import LARGEST
from ..registry.settings import expect_callable, expect_options, option
from ..results import Delivery
from ..typing import WebSocketOptions
from ..web.setup import registry_from
from . import ground
from .errors import RPCResult, SessionGone
from .host import Host
from .limits import CallLimits
from .realm import Realm
from .schema import schema_of
from .session import Session
from .table import two_halves
from .topics import as_key, chooser
from .wamp import CODECS
from .wamp_conversation import WampConversation
from .wsrpc_conversation import WsrpcConversation

__all__ = ["Application"]

F = TypeVar("F", bound=Callable[..., Any])
DialectName: TypeAlias = Literal["wamp", "wsrpc"]

_ANYBODY: Final = object()
_DIALECTS: Final = frozenset({"wamp", "wsrpc"})
_decode: Final = msgspec.msgpack.Decoder(
    tuple[str, list[Any], dict[str, Any] | None, list[Any], int | None]
).decode


class Application:
    """
    Serves calls over session sockets::

        calls = rpc.Application()
        calls.default.add_rpc_routes(shop)
        app.router.add_get("/rpc", calls.handler)

    It may stand at several addresses, and several may use one registry.

    Args:
        allow_default_realm: Whether sessions may ask for a realm that isn't configured.
        dialects: What is spoken: ``"wamp"``, ``"wsrpc"``, or both.
        limits: Those of each connection.
        authorize: Called with the request before the upgrade, sync or async; what is false
            is answered 403.
        options: Passed on to :class:`aiohttp.web.WebSocketResponse`.
        name: Tells processes apart which application an event is for, where several with the
            same topics use one registry. By default it is made of the names of all topics:
            processes that have others, as while a new version is rolled out, don't hear each
            other's events then.

    Attributes:
        on_call_start: Signal; the handler of a call runs next.
        on_call_success: Signal; it has succeeded, and is answered next.
        on_call_fail: Signal; it has failed, was cancelled, or was refused before it started.
        on_event: Signal; a client that speaks wsrpc has sent an event.

    Raises:
        TypeError: If an option is of a wrong type, or aiohttp has none of its name.
        ValueError: If *dialects* are others.
    """

    is_session_ws_endpoint: Final = True  # setup() attaches those at the start

    def __init__(
        self,
        *,
        allow_default_realm: bool = True,
        dialects: Collection[DialectName] = ("wamp", "wsrpc"),
        limits: CallLimits | None = None,
        authorize: Callable[[web.Request], Any] | None = None,
        options: WebSocketOptions | None = None,
        name: str = "",
    ) -> None:
        if isinstance(dialects, str) or not dialects or not _DIALECTS.issuperset(dialects):
            raise ValueError("Application(dialects=) is a set of 'wamp' and 'wsrpc'")
        default = Realm("") if allow_default_realm else None
        self._host = Host(self, option(limits, CallLimits, "limits"), default)
        self._dialects = frozenset(dialects)
        self._authorize = expect_callable(authorize, "authorize")
        largest = self._host.limits.message + 1  # aiohttp refuses one that is as large
        self._options = WebSocketOptions(compress=False, max_msg_size=largest)
        self._options |= options or WebSocketOptions()
        expect_options(self._options)
        self._name = name
        self._warned = False
        # With what our events are relayed by. An application may outlive many, as in tests.
        self._registries: list[tuple[weakref.ref[SessionWSRegistry], str]] = []
        self.on_call_start = self._host.on_start
        self.on_call_success = self._host.on_success
        self.on_call_fail = self._host.on_fail
        self.on_event = self._host.on_event

    @property
    def default(self) -> Realm:
        """
        The realm of all sessions whose own isn't configured, and of those that speak wsrpc.

        Raises:
            RuntimeError: If there is none.
        """
        if self._host.default_realm is None:
            raise RuntimeError("there is no default realm: Application(allow_default_realm=False)")
        return self._host.default_realm

    @property
    def sessions(self) -> frozenset[Session]:
        """
        The sessions of this process, as they are now.
        """
        return frozenset(self._host.sessions)

    def add_realm(self, realm: Realm) -> None:
        """
        Serve a realm.

        Raises:
            TypeError: If it is none.
            ValueError: If there is one of its URI.
        """
        if not isinstance(realm, Realm):
            raise TypeError(f"add_realm() takes a Realm, not {realm!r}")
        if self._host.realms.setdefault(realm.uri, realm) is not realm:
            raise ValueError(f"there are two realms {realm.uri!r}: add routes to the one you have")

    def set_default_arg(self, name: str, value: Any) -> None:
        """
        Give every function of all realms that takes *name* this argument; no peer can give it
        then. A realm's own comes first.
        """
        self._host.set_default_arg(name, value)

    def add_session_state_handler(self, handler: F) -> F:
        """
        Same as :meth:`Realm.add_session_state_handler`, for the sessions of all realms, and
        around the realm's own.
        """
        self._host.state_handlers.append(two_halves(handler))
        return handler

    async def handler(self, request: web.Request) -> web.StreamResponse:
        """
        Serve a connection; for ``add_get()``, or ``add_route("*", …)``.

        Raises:
            NotSetUp: If :func:`~aiohttp_session_ws.setup` was not called.
            aiohttp.web.HTTPForbidden: If ``authorize`` says so.
            aiohttp.web.HTTPBadRequest: If the request is no handshake, or none of the
                dialects that it offers is spoken here.
        """
        self.attach(registry_from(request))
        return await converse(request, self._talk, self._options, text=False)

    def attach(self, registry: SessionWSRegistry) -> None:
        """
        Hear through *registry* what other processes publish, and publish to them.

        That is done when a web application starts whose route is :meth:`handler`. Where
        something else wraps it, its first connection does it: a process that may publish
        before calls this.

        Raises:
            TypeError: If a function takes an argument that nobody gives, or of a type that no
                peer can send; it names the function and the remedy.
        """
        known = self._known_registries()
        if all(registry is not one for one, _ in known):
            for realm in self._realms():
                self._host.scope(realm)
            name = self._relay_name()
            known.append((registry, name))
            self._registries = [(weakref.ref(one), own) for one, own in known]
            ground.on_relay(registry, name, partial(self._on_relayed, registry))

    async def publish(
        self,
        topic: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        identity: Any = _ANYBODY,
        session: Session | int | None = None,
    ) -> Delivery:
        """
        Send an event to all who have subscribed to a topic, in all processes.

        It never waits for a slow peer: events go through the queue of each connection, whose
        :class:`~aiohttp_session_ws.PushQueue` says what becomes of one that doesn't keep up.

        Args:
            topic: Its name in full.
            args: What it says. A bare text is one argument.
            kwargs: What it says, by name.
            identity: Only for the sessions of this identity.
            session: Only for this session, or the one with this id.

        Returns:
            How many took it, and whether none missed it.

        Raises:
            ValueError: If it is too large for a message between processes (64 KiB). Nothing
                is sent in that case.
        """
        args = tuple(RPCResult(args).args)
        number = session.id if isinstance(session, Session) else session
        whose = [] if identity is _ANYBODY else [identity]
        message = msgspec.msgpack.encode([topic, args, kwargs, whose, number])
        if len(message) > LARGEST:
            raise ValueError(
                f"{len(message)} bytes can't be relayed to other processes, {LARGEST} at most:"
                " publish where to fetch it"
            )
        registries = self._known_registries()
        if not registries:
            if not self._warned:
                self._warned = True
                log.warning("published before any connection: call attach(registry) at the start")
            return Delivery(nodes=0, complete=False)
        wanted = chooser(whose, number)
        sockets, nodes, complete = 0, 1, True
        # Those that have stopped are of an application that ran before this one.
        running = [one for one in registries if ground.is_running(one[0])]
        for registry, name in running or registries:
            own = self._host.topics.publish(registry, topic, args, kwargs, wanted)
            others = await registry.relay(name, message)
            sockets += own.sockets + others.sockets
            nodes += others.nodes
            complete = complete and own.complete and others.complete
        return Delivery(sockets, nodes, complete)

    def schema(self) -> dict[str, Any]:
        """
        Return what may be called and subscribed to, with its types as JSON Schema.
        """
        return schema_of({r.uri: r for r in self._realms()}, self._host.default_args)

    def _known_registries(self) -> list[tuple[SessionWSRegistry, str]]:
        found = ((one(), name) for one, name in self._registries)
        return [(registry, name) for registry, name in found if registry is not None]

    def _realms(self) -> list[Realm]:
        default = self._host.default_realm
        return [*self._host.realms.values(), *([] if default is None else [default])]

    def _relay_name(self) -> str:
        """
        The same for this application in all processes, and for no other.
        """
        if self._name:
            return f"rpc:{self._name}"
        topics = sorted(topic.name for r in self._realms() for topic in r.served.topics)
        return f"rpc:{hashlib.sha256(' '.join(topics).encode()).hexdigest()[:16]}"

    async def _on_relayed(self, registry: SessionWSRegistry, data: bytes) -> None:
        topic, args, kwargs, whose, number = _decode(data)
        wanted = chooser([as_key(identity) for identity in whose], number)
        self._host.topics.publish(registry, topic, args, kwargs, wanted)

    async def _talk(self, ws: WebSocket) -> None:
        """
        Serve a socket in the dialect that its client wants.
        """
        registry = registry_from(ws.request)
        offered = ws.subprotocols
        protocol = next((name for name in offered if name in CODECS), None)
        dialect = "wsrpc" if not offered else "wamp"
        if dialect not in self._dialects or (offered and protocol is None):
            raise web.HTTPBadRequest(text="none of the offered subprotocols is spoken here")
        if dialect == "wsrpc" and self._host.default_realm is None:
            raise web.HTTPBadRequest(text="a subprotocol of WAMP's is required")
        if self._authorize is not None and not await maybe_await(self._authorize(ws.request)):
            raise web.HTTPForbidden(text="not authorized")
        await ws.connect(protocol, save=False)
        with contextlib.suppress(SessionGone):  # the client has hung up already
            if protocol is None:
                await WsrpcConversation(self._host, registry, ws).run()
            else:
                await WampConversation(self._host, registry, ws, CODECS[protocol]).run()
