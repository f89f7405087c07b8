"""Realms: joining, authentication, guards, state handlers, RPC handlers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError, web

from aiohttp_session_ws import rpc
from tests.support import until

from .conftest import Serve
from .support import Server, WampPeer

Complaints = Callable[[], list[str]]


def whoami() -> rpc.Routes:
    routes = rpc.Routes()

    @routes.route()
    async def who(session: rpc.Session) -> list[Any]:
        return [session.identity, session.auth_id, session.auth_method, session.auth_role]

    return routes


def application(**options: Any) -> tuple[rpc.Application, rpc.Realm]:
    """Return an application with one realm, ``club``."""
    calls, club = rpc.Application(**options), rpc.Realm("club")
    club.add_rpc_routes(whoami())
    calls.add_realm(club)
    return calls, club


async def refused(server: Server, realm: str = "club", **details: Any) -> list[Any]:
    """Send HELLO, and expect ABORT and close 1000; return the ABORT."""
    async with server.wamp().stranger() as peer:
        answer = await peer.ask([1, realm, details])
        assert answer[0] == 3, answer
        assert await peer.closed() == 1000
        return answer


def sign(key: bytes, challenge: list[Any]) -> list[Any]:
    """Return the AUTHENTICATE message for a wampcra challenge."""
    digest = hmac.digest(key, challenge[2]["challenge"].encode(), "sha256")
    return [5, base64.b64encode(digest).decode(), {}]


class TestJoining:
    async def test_welcome(self, serve: Serve) -> None:
        """Without an authenticator any client joins; WELCOME omits unknown details."""
        calls, _ = application()
        server = await serve(calls)
        async with server.wamp().joining("club") as peer:
            kind, number, details = peer.welcome
            assert kind == 2
            assert 1 <= number <= 2**53
            assert details["realm"] == "club"
            assert details["authmethod"] == "anonymous"
            assert "authid" not in details
            assert None not in details.values()
            assert set(details["roles"]) == {"broker", "dealer"}
            assert details["roles"]["dealer"]["features"] == {
                "progressive_call_results": True, "call_canceling": True, "call_timeout": True,
            }  # fmt: skip
            assert await peer.call("who") == [50, 1, {}, [None, None, "anonymous", None]]

    async def test_nulls(self, serve: Serve) -> None:
        """HELLO is accepted with ``authid`` and ``authmethods`` null."""
        calls, _ = application()
        server = await serve(calls)
        async with server.wamp().joining("club", authid=None, authmethods=None) as peer:
            assert peer.welcome[0] == 2

    async def test_no_such_realm(self, serve: Serve) -> None:
        """Without a default realm, HELLO for an unknown realm is refused."""
        calls, _ = application(allow_default_realm=False)
        server = await serve(calls)
        assert (await refused(server, "other"))[2] == "wamp.error.no_such_realm"
        with pytest.raises(RuntimeError, match="no default realm"):
            _ = calls.default

    async def test_default_realm(self, serve: Serve) -> None:
        """With a default realm, HELLO for an unknown realm joins the default realm."""
        calls, _ = application()
        calls.default.add_rpc_routes(whoami())
        server = await serve(calls)
        async with server.wamp().joining("other") as peer:
            assert peer.welcome[2]["realm"] == "other"
            assert (await peer.call("who"))[0] == 50

    async def test_again(self, serve: Serve) -> None:
        """After GOODBYE a client can join again on its connection, with empty session data."""
        routes = rpc.Routes()

        @routes.route()
        async def visit(session: rpc.Session) -> list[Any]:
            seen = "name" in session
            session["name"] = "Ann"
            return [seen, session.get("name")]

        server = await serve(routes)
        async with server.wamp() as peer:
            assert (await peer.call("visit"))[3] == [False, "Ann"]
            assert (await peer.call("visit"))[3] == [True, "Ann"]
            assert (await peer.ask([6, {}, "x"]))[0] == 6
            assert not server.calls.sessions
            welcome = await peer.ask([1, "realm", {}])
            assert welcome[0] == 2
            assert welcome[1] != peer.welcome[1]
            assert (await peer.call("visit"))[3] == [False, "Ann"]

    async def test_what_is_meant_for_the_one_before(self, serve: Serve) -> None:
        """Uses of an ended session don't reach the next session of its connection."""
        calls, seen = rpc.Application(), list[rpc.Session | None]()

        @calls.default.set_ticket_authenticator
        def check(session: rpc.Session, ticket: str) -> str:
            try:
                seen.append(rpc.current_session())
            except LookupError:
                seen.append(None)
            return ticket

        routes = rpc.Routes()

        @routes.topic("news")
        async def news() -> AsyncIterator[None]:
            yield

        calls.default.add_rpc_routes(routes)
        server = await serve(calls)
        async with server.wamp().stranger() as peer:
            for name in ("ann", "bob"):
                await peer.ask([1, "realm", {"authmethods": ["ticket"]}])
                assert (await peer.ask([5, name, {}]))[0] == 2
                await peer.ask([32, 1, {}, "news"])
                await peer.ask([64, 2, {}, "confirm"])
                if name == "ann":
                    (ann,) = server.calls.sessions
                    await peer.ask([6, {}, "wamp.close.normal"])
            with pytest.raises(rpc.SessionGone):
                await ann.send_event("news", ["for Ann"])
            with pytest.raises(rpc.SessionGone):
                await ann.call("confirm", "for Ann")
            await ann.close()
            assert (await peer.call("nothing"))[0] == 8
            (bob,) = server.calls.sessions
            assert (bob.identity, bob.closed) == ("bob", False)
        assert seen == [None, None]

    @pytest.mark.parametrize(
        "message",
        [[48, 1, {}, "who"], [6, {}, "x"], [5, "x", {}], [1, "club"], [1, "club", {"authid": 5}]],
    )
    async def test_first_message(self, serve: Serve, message: list[Any]) -> None:
        """A first message that isn't a valid HELLO is a protocol violation."""
        server = await serve(application()[0])
        async with server.wamp().stranger() as peer:
            answer = await peer.ask(message)
            assert (answer[0], answer[2]) == (3, "wamp.error.protocol_violation")
            assert await peer.closed() == 1002

    async def test_second_hello(self, serve: Serve) -> None:
        """A second HELLO is a protocol violation."""
        server = await serve(application()[0])
        async with server.wamp().joining("club") as peer:
            assert (await peer.ask([1, "club", {}]))[2] == "wamp.error.protocol_violation"
            assert await peer.closed() == 1002

    async def test_too_late(self, serve: Serve) -> None:
        """A client that doesn't send HELLO in time is refused."""
        calls, _ = application(limits=rpc.CallLimits(join=0.05))
        server = await serve(calls)
        async with server.wamp().stranger() as peer:
            assert (await peer.hear())[2] == "wamp.error.timeout"
            assert await peer.closed() == 1000

    async def test_too_late_with_the_signature(self, serve: Serve) -> None:
        """A client that doesn't answer CHALLENGE in time is refused."""
        calls, club = application(limits=rpc.CallLimits(join=0.05))
        club.set_ticket_authenticator(lambda session, ticket: ticket)
        server = await serve(calls)
        async with server.wamp().joining("club", authmethods=["ticket"]) as peer:
            assert peer.welcome[0] == 4
            assert (await peer.hear())[2] == "wamp.error.timeout"

    async def test_abort_by_the_client(self, serve: Serve) -> None:
        """A client that answers CHALLENGE with ABORT is closed with 1000."""
        calls, club = application()
        club.set_ticket_authenticator(lambda session, ticket: ticket)
        server = await serve(calls)
        async with server.wamp().joining("club", authmethods=["ticket"]) as peer:
            await peer.say([3, {}, "wamp.error.whatever"])
            assert await peer.closed() == 1000


class TestDialects:
    @pytest.mark.parametrize(
        ("dialects", "offer"),
        [
            ({"wamp", "wsrpc"}, ["graphql-ws"]),
            ({"wsrpc"}, ["wamp.2.json"]),
            ({"wamp"}, []),
        ],
    )
    async def test_refused(self, serve: Serve, dialects: Any, offer: list[str]) -> None:
        """A handshake is answered 400 if no subprotocol or dialect of it is enabled."""
        server = await serve(rpc.Application(dialects=dialects))
        with pytest.raises(WSServerHandshakeError) as refused:
            await server.client.ws_connect("/rpc", protocols=offer)
        assert refused.value.status == 400

    async def test_first_offer(self, serve: Serve) -> None:
        """The first of the client's subprotocols that the server supports is chosen."""
        server = await serve(rpc.Application())
        protocols = ["x", "wamp.2.msgpack", "wamp.2.json"]
        async with server.client.ws_connect("/rpc", protocols=protocols) as ws:
            assert ws.protocol == "wamp.2.msgpack"

    async def test_plain_get(self, serve: Serve) -> None:
        """A request that isn't a handshake fires ``on_fail`` only, without ``authorize``."""
        asked: list[Any] = []
        calls = rpc.Application(authorize=asked.append)
        server = await serve(calls)
        failed: list[Any] = []
        for name in ("handshake", "auth_success", "auth_fail", "fail", "open"):

            async def receive(details: Any, name: str = name) -> None:
                failed.append(name)

            getattr(server.registry, f"on_{name}").append(receive)
        async with server.client.get("/rpc") as response:
            assert response.status == 400
        assert failed == ["fail"]
        assert asked == []

    @pytest.mark.parametrize("answer", [False, None])
    async def test_authorize(self, serve: Serve, answer: Any) -> None:
        """A handshake is answered 403 if ``authorize`` returns a false value."""

        async def authorize(request: Any) -> Any:
            return answer

        server = await serve(rpc.Application(authorize=authorize))
        with pytest.raises(WSServerHandshakeError) as refused:
            await server.client.ws_connect("/rpc")
        assert refused.value.status == 403


class TestAuthentication:
    async def test_transport(self, serve: Serve) -> None:
        """A client joins by the first transport authenticator that returns an identity."""
        calls, club = application()

        async def nobody(session: rpc.Session) -> None:
            return None

        club.add_transport_authenticator(nobody)
        club.add_transport_authenticator(rpc.session_identity)
        server = await serve(calls)
        answer = await refused(server)
        assert answer[1:] == [
            {"message": "Authentication failed."}, "wamp.error.authentication_failed",
        ]  # fmt: skip
        await server.client.get("/login?user=ann")
        async with server.wamp().joining("club") as peer:
            assert (await peer.call("who"))[3][0] == "ann"

    async def test_ticket(self, serve: Serve) -> None:
        """A valid ticket sets identity and method; a wrong ticket or another method is refused."""
        calls, club = application()

        async def check(session: rpc.Session, ticket: str) -> str | None:
            return session.auth_id if ticket == "sesame" else None

        club.set_ticket_authenticator(check)
        server = await serve(calls)
        joining = server.wamp().joining("club", authid="ali", authmethods=["ticket"])
        async with joining as peer:
            assert peer.welcome == [4, "ticket", {}]
            welcome = await peer.ask([5, "sesame", {}])
            assert welcome[2]["authid"] == "ali"
            assert welcome[2]["authmethod"] == "ticket"
            assert (await peer.call("who"))[3] == ["ali", "ali", "ticket", None]
        joining = server.wamp().joining("club", authmethods=["ticket"])
        async with joining as peer:
            assert (await peer.ask([5, "open", {}]))[2] == "wamp.error.authentication_failed"
        assert (await refused(server, authmethods=["wampcra"]))[0] == 3

    @pytest.mark.parametrize("nobody", [None, False])
    async def test_nobody(self, serve: Serve, nobody: Any) -> None:
        """A client is refused if each authenticator returns ``None`` or ``False``."""
        calls, club = application()
        club.add_transport_authenticator(lambda session: nobody)
        club.set_ticket_authenticator(lambda session, ticket: nobody)
        server = await serve(calls)
        async with server.wamp().joining("club", authmethods=["ticket"]) as peer:
            assert (await peer.ask([5, "open", {}]))[2] == "wamp.error.authentication_failed"

    @pytest.mark.parametrize("salted", [False, True])
    async def test_cra(self, serve: Serve, salted: bool) -> None:
        """A WAMP-CRA signature is verified, salted or not; unknown users are challenged alike."""
        calls, club = application()
        key = b"secret"
        if salted:
            derived = hashlib.pbkdf2_hmac("sha256", key, b"salt", 1000, 32)
            key = base64.b64encode(derived)

        def secret(session: rpc.Session) -> rpc.CRASecret | None:
            if session.auth_id != "ali":
                return None
            return rpc.CRASecret(key, "thief", "cave", salt="salt" if salted else None)

        club.set_cra_handlers(secret, lambda session: f"user:{session.auth_id}")
        server = await serve(calls)

        def joining(who: str) -> WampPeer:
            methods = ["ticket", "wampcra"]
            return server.wamp().joining("club", authid=who, authmethods=methods)

        async with joining("ali") as peer:
            _, method, extra = peer.welcome
            assert method == "wampcra"
            text = json.loads(extra["challenge"])
            assert text["authid"] == "ali"
            assert text["authrole"] == "thief"
            assert text["authprovider"] == "cave"
            assert text["authmethod"] == "wampcra"
            assert set(text) >= {"nonce", "timestamp", "session"}
            assert set(extra) == ({"challenge", "salt", "iterations", "keylen"} if salted
                                  else {"challenge"})  # fmt: skip
            welcome = await peer.ask(sign(key, peer.welcome))
            assert welcome[2]["authrole"] == "thief"
            assert (await peer.call("who"))[3] == ["user:ali", "ali", "wampcra", "thief"]
        async with joining("ali") as peer, joining("nobody") as stranger:
            # An unknown user gets a challenge of the same form.
            assert set(stranger.welcome[2]) == set(peer.welcome[2])
            known, unknown = (json.loads(p.welcome[2]["challenge"]) for p in (peer, stranger))
            assert known.keys() == unknown.keys()
            assert known["authrole"] == unknown["authrole"]
            for one in (peer, stranger):
                answer = await one.ask(sign(b"wrong", one.welcome))
                assert answer[2] == "wamp.error.authentication_failed"

    async def test_handler(self, serve: Serve) -> None:
        """An authentication handler accepts or aborts; a client is refused if it does neither."""
        calls, club = application()

        @club.set_authentication_handler
        async def check(session: rpc.Session) -> None:
            if session.auth_id == "ali":
                await session.mark_authenticated({"name": "ali"})
                with pytest.raises(RuntimeError, match="accepted or refused already"):
                    await session.abort()
            elif session.auth_id == "thief":
                await session.abort("club.error.thief", message="go away")

        server = await serve(calls)
        assert (await refused(server, authid="thief"))[1:] == [
            {"message": "go away"}, "club.error.thief",
        ]  # fmt: skip
        assert (await refused(server))[2] == "wamp.error.authentication_failed"

    @pytest.mark.parametrize("error", [ValueError("secret"), asyncio.CancelledError("secret")])
    async def test_error(self, serve: Serve, complaints: Complaints, error: BaseException) -> None:
        """A failing authenticator aborts with ``runtime_error``, and doesn't reveal its error."""
        calls, club = application()

        @club.add_transport_authenticator
        def fail(session: rpc.Session) -> None:
            raise error

        server = await serve(calls)
        assert (await refused(server))[1:] == [{}, "wamp.error.runtime_error"]
        assert complaints() == ["authentication failed with an unexpected error"]

    @pytest.mark.parametrize("why", ["runtime_error", "timeout"])
    async def test_wsrpc_fails(self, serve: Serve, complaints: Complaints, why: str) -> None:
        """A failing or slow authenticator is reported in the close frame in wsrpc."""
        calls = rpc.Application(limits=rpc.CallLimits(join=0.05 if why == "timeout" else 10.0))

        @calls.default.add_transport_authenticator
        async def fail(session: rpc.Session) -> None:
            if why == "timeout":
                await asyncio.Event().wait()
            raise ValueError("secret")

        server = await serve(calls)
        async with server.client.ws_connect("/rpc") as ws:
            message = await ws.receive()
            assert (message.data, message.extra) == (1008, f"wamp.error.{why}")
        expected = [] if why == "timeout" else ["authentication failed with an unexpected error"]
        assert complaints() == expected

    async def test_wsrpc(self, serve: Serve) -> None:
        """A wsrpc client joins the default realm, whose authenticators can refuse it."""
        calls = rpc.Application()
        calls.default.add_rpc_routes(whoami())
        calls.default.add_transport_authenticator(rpc.session_identity)
        server = await serve(calls)
        async with server.client.ws_connect("/rpc") as ws:
            message = await ws.receive()
            assert (message.data, message.extra) == (1008, "wamp.error.authentication_failed")
        await server.client.get("/login?user=ann")
        async with server.wsrpc() as peer:
            assert (await peer.ask("who"))["result"][0] == "ann"


class TestGuard:
    async def test_each_action(self, serve: Serve) -> None:
        """The guard is called for each kind of request, before arguments are bound."""
        calls, club = application()
        routes, asked = rpc.Routes(), []

        @routes.topic("t")
        async def topic() -> AsyncIterator[None]:
            yield

        club.add_rpc_routes(routes)

        async def guard(session: rpc.Session, action: str, uri: str) -> bool:
            asked.append((action, uri))
            return session.auth_id == "ali"

        club.guard = guard
        server = await serve(calls)
        async with server.wamp().joining("club") as peer:
            answers = [
                await peer.call("who", "one too many"),
                await peer.ask([32, 2, {}, "t"]),
                await peer.ask([64, 3, {}, "mine"]),
            ]
            assert [a[4] for a in answers] == ["wamp.error.not_authorized"] * 3
        async with server.wamp().joining("club", authid="ali") as peer:
            assert (await peer.call("who"))[0] == 50
            assert (await peer.ask([32, 2, {}, "t"]))[0] == 33
            assert (await peer.ask([64, 3, {}, "mine"]))[0] == 65
        assert asked[:3] == [("call", "who"), ("subscribe", "t"), ("register", "mine")]


class TestStateHandlers:
    async def test_nested(self, serve: Serve) -> None:
        """The application's state handlers wrap the realm's; second halves run in reverse."""
        calls, club = application()
        seen: list[str] = []
        calls.set_default_arg("seen", seen)
        club.set_default_arg("name", "club's")

        def handler(prefix: str) -> Any:
            async def handle(
                session: rpc.Session, seen: list[str], name: str
            ) -> AsyncIterator[None]:
                assert session.identity is None
                assert rpc.current_session() is session
                seen.append(f"{prefix} in")
                yield
                seen.append(f"{prefix} out")

            return handle

        club.add_session_state_handler(handler("realm"))
        calls.set_default_arg("name", "all")
        calls.add_session_state_handler(handler("app"))
        server = await serve(calls)
        async with server.wamp().joining("club"):
            assert seen == ["app in", "realm in"]
        await until(lambda: len(seen) == 4)
        assert seen[2:] == ["realm out", "app out"]

    async def test_refuses(self, serve: Serve) -> None:
        """A state handler can refuse a session; handlers entered before it are exited."""
        calls, club = application()
        left: list[str] = []

        @calls.add_session_state_handler
        async def outer() -> AsyncIterator[None]:
            yield
            left.append("outer")

        @club.add_session_state_handler
        async def inner() -> AsyncIterator[None]:
            if True in (True,):
                raise rpc.RPCError("club.error.full", "full")
            yield

        server = await serve(calls)
        assert (await refused(server))[1:] == [{"message": "full"}, "club.error.full"]
        await until(lambda: left)

    @pytest.mark.parametrize("error", [ValueError("secret"), asyncio.CancelledError("secret")])
    async def test_fails(self, serve: Serve, complaints: Complaints, error: BaseException) -> None:
        """A failing state handler is logged; the peer gets ``runtime_error`` without details."""
        calls, club = application()

        @club.add_session_state_handler
        async def broken() -> AsyncIterator[None]:
            if True in (True,):
                raise error
            yield

        server = await serve(calls)
        assert (await refused(server))[1:] == [{}, "wamp.error.runtime_error"]
        assert complaints() == ["a session state handler failed"]

    async def test_missing_argument(self) -> None:
        """A state handler's argument without a source is an error at startup, with its remedy."""
        calls, club = application()

        @club.add_session_state_handler
        async def handle(db: str) -> AsyncIterator[None]:
            yield

        expected = r"has a required parameter 'db' without a source: inject it by"
        with pytest.raises(TypeError, match=expected):
            await web.AppRunner(Server(calls).app).setup()

    async def test_unfit_argument(self) -> None:
        """An argument that no peer can pass is an error at startup, in a sub-application too."""
        calls, club = application()
        routes = rpc.Routes()

        @routes.route()
        async def find(app: web.Application) -> None: ...

        club.add_rpc_routes(routes)
        inner = web.Application()
        inner.router.add_get("/rpc", calls.handler)
        outer = Server(rpc.Application()).app
        outer.add_subapp("/inner", inner)
        with pytest.raises(TypeError, match=r"find\(\) takes 'app' of a type that no peer can"):
            await web.AppRunner(outer).setup()

    async def test_argument_of_a_cleanup_context(self) -> None:
        """A cleanup context can set a default argument that didn't exist before startup."""
        calls, club = application()

        @club.add_session_state_handler
        async def handle(db: str) -> AsyncIterator[None]:
            yield

        async def connect(app: web.Application) -> AsyncIterator[None]:
            calls.set_default_arg("db", "connected")
            yield

        app = Server(calls).app
        app.cleanup_ctx.append(connect)
        runner = web.AppRunner(app)
        await runner.setup()
        await runner.cleanup()


class TestHandler:
    async def test_takes_all_calls(self, serve: Serve) -> None:
        """An RPC handler handles all calls instead of the routes."""
        calls, club = application()

        @club.set_rpc_handler
        async def handle(request: rpc.RPCRequest) -> Any:
            if request.uri == "who":
                return rpc.RPCResult(args=(sum(request.args), request.session.realm))
            return rpc.RPCErrorResult(args=("no",))

        server = await serve(calls)
        async with server.wamp().joining("club") as peer:
            assert await peer.call("who", 1, 2) == [50, 1, {}, [3, "club"]]
            assert await peer.call("x") == [8, 48, 1, {}, "wamp.error.runtime_error", ["no"]]

    async def test_generator(self, serve: Serve) -> None:
        """An RPC handler can be an async generator."""
        calls, club = application()

        @club.set_rpc_handler
        async def handle(request: rpc.RPCRequest) -> AsyncIterator[Any]:
            yield rpc.RPCProgressReport("half")
            yield rpc.RPCResult(args=(1,))

        server = await serve(calls)
        async with server.wamp().joining("club") as peer:
            await peer.say([48, 1, {"receive_progress": True}, "x"])
            assert await peer.hear() == [50, 1, {"progress": True}, ["half"]]
            assert await peer.hear() == [50, 1, {}, [1]]


async def test_not_set_up(aiohttp_client: Any, complaints: Complaints) -> None:
    """An RPC handler in a web application without ``setup()`` raises ``NotSetUp``."""
    from aiohttp import web

    from aiohttp_session_ws import NotSetUp

    app = web.Application()
    calls = rpc.Application()

    async def handler(request: web.Request) -> web.StreamResponse:
        with pytest.raises(NotSetUp, match="setup"):
            await calls.handler(request)
        return web.Response()

    app.router.add_get("/", handler)
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert response.status == 200
