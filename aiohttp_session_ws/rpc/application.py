"""
``Application``: its realms, the request handler that serves them, and publishing to topics.
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
from . import registry_access
from .errors import RPCResult, SessionGone
from .host import Host
from .limits import CallLimits
from .realm import Realm
from .schema import schema_of
from .session import Session
from .table import state_handler_signature
from .topics import restore_identity, session_filter
from .wamp import CODECS
from .wamp_conversation import WampConversation
from .wsrpc_conversation import WsrpcConversation

__all__ = ["Application"]

F = TypeVar("F", bound=Callable[..., Any])
DialectName: TypeAlias = Literal["wamp", "wsrpc"]

_ANY_IDENTITY: Final = object()
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

    It may serve several routes, and several applications may share one registry.

    Args:
        allow_default_realm: Whether sessions may join a realm that isn't configured.
        dialects: The protocols to serve: ``"wamp"``, ``"wsrpc"``, or both.
        limits: The limits of each connection.
        authorize: Called with the request before the upgrade, sync or async; a false
            result is answered with 403.
        options: Passed on to :class:`aiohttp.web.WebSocketResponse`.
        name: Identifies the application in events relayed between processes; needed where
            several with the same topics share a registry. The default is derived from the names
            of all topics, so processes whose topics differ, as during a rolling update, don't
            receive each other's events.

    Attributes:
        on_call_start: Signal; sent before the handler of a call runs.
        on_call_success: Signal; sent when a call has succeeded, before it is answered.
        on_call_fail: Signal; sent when a call failed, was cancelled, or was refused unstarted.
        on_event: Signal; sent when a wsrpc client has sent an event.

    Raises:
        TypeError: If an option is of a wrong type, or aiohttp doesn't know one of *options*.
        ValueError: If *dialects* is empty or has other names.
    """

    is_session_ws_endpoint: Final = True  # setup() calls attach() at startup

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
            raise ValueError("Application(dialects=) must be a set of 'wamp' and 'wsrpc'")
        default = Realm("") if allow_default_realm else None
        self._host = Host(self, option(limits, CallLimits, "limits"), default)
        self._dialects = frozenset(dialects)
        self._authorize = expect_callable(authorize, "authorize")
        largest = self._host.limits.message + 1  # aiohttp rejects a message of exactly this size
        self._options = WebSocketOptions(compress=False, max_msg_size=largest)
        self._options |= options or WebSocketOptions()
        expect_options(self._options)
        self._name = name
        self._warned = False
        # With the relay name. Weak: an Application may outlive many registries, as in tests.
        self._registries: list[tuple[weakref.ref[SessionWSRegistry], str]] = []
        self.on_call_start = self._host.on_start
        self.on_call_success = self._host.on_success
        self.on_call_fail = self._host.on_fail
        self.on_event = self._host.on_event

    @property
    def default(self) -> Realm:
        """
        The realm of wsrpc sessions, and of sessions that ask for one that isn't configured.

        Raises:
            RuntimeError: If the application has no default realm.
        """
        if self._host.default_realm is None:
            raise RuntimeError("there is no default realm: Application(allow_default_realm=False)")
        return self._host.default_realm

    @property
    def sessions(self) -> frozenset[Session]:
        """
        A snapshot of the sessions of this process.
        """
        return frozenset(self._host.sessions)

    def add_realm(self, realm: Realm) -> None:
        """
        Serve a realm.

        Raises:
            TypeError: If *realm* is not a :class:`Realm`.
            ValueError: If another realm has its URI.
        """
        if not isinstance(realm, Realm):
            raise TypeError(f"add_realm() takes a Realm, not {realm!r}")
        if self._host.realms.setdefault(realm.uri, realm) is not realm:
            raise ValueError(f"realm {realm.uri!r} exists already: add the routes to that Realm")

    def set_default_arg(self, name: str, value: Any) -> None:
        """
        Inject *value* into every function, of any realm, that has a parameter *name*; peers
        can't pass it then. A realm's own default argument takes precedence.
        """
        self._host.set_default_arg(name, value)

    def add_session_state_handler(self, handler: F) -> F:
        """
        Same as :meth:`Realm.add_session_state_handler`, for the sessions of all realms. It
        runs around the realm's own handlers.
        """
        self._host.state_handlers.append(state_handler_signature(handler))
        return handler

    async def handler(self, request: web.Request) -> web.StreamResponse:
        """
        Serve a connection; pass it to ``add_get()`` or ``add_route("*", …)``.

        Raises:
            NotSetUp: If :func:`~aiohttp_session_ws.setup` was not called.
            aiohttp.web.HTTPForbidden: If ``authorize`` returns a false value.
            aiohttp.web.HTTPBadRequest: If the request is no handshake, or asks for no
                dialect that is supported.
        """
        self.attach(registry_from(request))
        return await converse(request, self._serve_socket, self._options, text=False)

    def attach(self, registry: SessionWSRegistry) -> None:
        """
        Receive through *registry* what other processes publish, and publish to them.

        Called at the start of a web application that has :meth:`handler` as a route. If the
        handler is wrapped, its first connection calls this: a process that may publish earlier
        has to call it itself.

        Raises:
            TypeError: If a parameter of a function has no source, or a type that no peer can
                send; the message names the function and the remedy.
        """
        known = self._known_registries()
        if all(registry is not one for one, _ in known):
            for realm in self._realms():
                self._host.scope(realm)
            name = self._relay_name()
            known.append((registry, name))
            self._registries = [(weakref.ref(one), own) for one, own in known]
            registry_access.on_relay(registry, name, partial(self._on_relayed, registry))

    async def publish(
        self,
        topic: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        identity: Any = _ANY_IDENTITY,
        session: Session | int | None = None,
    ) -> Delivery:
        """
        Send an event to all subscribers of a topic, in all processes.

        Slow peers don't delay it: events go through the push queue of each connection, limited
        by :class:`~aiohttp_session_ws.PushQueue`, which also says when a slow peer is closed.

        Args:
            topic: The full name of the topic.
            args: Positional arguments of the event. A bare string is one argument.
            kwargs: Named arguments of the event.
            identity: Send it only to the sessions of this identity.
            session: Send it only to this session, or to the one with this id.

        Returns:
            How many sockets took it, and whether none missed it.

        Raises:
            ValueError: If it is too large for a message between processes (64 KiB). Nothing
                is sent in that case.
        """
        args = tuple(RPCResult(args).args)
        number = session.id if isinstance(session, Session) else session
        identities = [] if identity is _ANY_IDENTITY else [identity]
        message = msgspec.msgpack.encode([topic, args, kwargs, identities, number])
        if len(message) > LARGEST:
            raise ValueError(
                f"{len(message)} bytes can't be relayed to other processes, at most {LARGEST}:"
                " publish a reference to the data"
            )
        registries = self._known_registries()
        if not registries:
            if not self._warned:
                self._warned = True
                log.warning("an event was not published: call attach(registry) at startup first")
            return Delivery(nodes=0, complete=False)
        wanted = session_filter(identities, number)
        sockets, nodes, complete = 0, 1, True
        # A registry that has stopped belongs to a web application that ran before this one.
        running = [one for one in registries if registry_access.is_running(one[0])]
        for registry, name in running or registries:
            own = self._host.topics.publish(registry, topic, args, kwargs, wanted)
            others = await registry.relay(name, message)
            sockets += own.sockets + others.sockets
            nodes += others.nodes
            complete = complete and own.complete and others.complete
        return Delivery(sockets, nodes, complete)

    def schema(self) -> dict[str, Any]:
        """
        Return the procedures and topics that are served, with their types as JSON Schema.
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
        Return the name that events are relayed by: from *name*, or a digest of all topics.
        """
        if self._name:
            return f"rpc:{self._name}"
        topics = sorted(topic.name for r in self._realms() for topic in r.served.topics)
        return f"rpc:{hashlib.sha256(' '.join(topics).encode()).hexdigest()[:16]}"

    async def _on_relayed(self, registry: SessionWSRegistry, data: bytes) -> None:
        topic, args, kwargs, identities, number = _decode(data)
        wanted = session_filter([restore_identity(identity) for identity in identities], number)
        self._host.topics.publish(registry, topic, args, kwargs, wanted)

    async def _serve_socket(self, ws: WebSocket) -> None:
        """
        Serve a socket in the dialect that its client asks for.
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
