"""Example programs of wsrpc-aiohttp and serverwamp, ported with the same structure."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextvars import ContextVar
from time import time
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import rpc, session_ws_middleware, setup
from tests.support import until

from .conftest import Serve
from .support import WampPeer, WsrpcPeer

log = logging.getLogger("seed")


async def test_signals_program(aiohttp_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """wsrpc-aiohttp, "Signals": signals log the durations of three concurrent calls."""
    call_started_at: ContextVar[float] = ContextVar("call_started_at")
    caplog.set_level(logging.DEBUG, "seed")
    routes = rpc.Routes()

    @routes.route_class("test")
    class TestRoute:
        @rpc.expose
        async def slow_proc(self) -> bool:
            await asyncio.sleep(random.randint(1, 10) / 1000)
            return True

    # Signal handlers
    async def on_call_start(details: rpc.CallDetails) -> None:
        ts = time()
        log.debug("Method %s called at %f", details.method, ts)
        call_started_at.set(ts)

    async def on_call_end(details: rpc.CallDetails) -> None:
        ts = time() - call_started_at.get()
        log.info("Method %s processed for %f", details.method, ts)

    # Connecting handlers to signals
    calls = rpc.Application()
    calls.on_call_start.append(on_call_start)
    calls.on_call_success.append(on_call_end)

    app = web.Application(
        middlewares=[
            aiohttp_session.session_middleware(SimpleCookieStorage()),
            session_ws_middleware,
        ]
    )
    setup(app)
    app.router.add_route("*", "/ws/", calls.handler)  # Websocket route
    app.router.add_static("/js/", rpc.STATIC_DIR)  # The browser's side
    calls.default.add_rpc_routes(routes)

    client = await aiohttp_client(app)
    async with client.get("/js/session-ws.js") as response:
        assert response.status == 200
    async with WsrpcPeer(client.ws_connect("/ws/")) as peer:
        for number in (3, 5, 7):
            await peer.say({"id": number, "method": "test.slow_proc"})
        answers = [await peer.hear() for _ in range(3)]
    assert sorted(a["id"] for a in answers) == [3, 5, 7]
    assert all(a["result"] is True for a in answers)
    assert sum("processed for" in r.getMessage() for r in caplog.records) == 3


async def test_realms(serve: Serve) -> None:
    """serverwamp, "Breaking an Application into Realms": each realm serves its own routes."""
    registration_api, account_api, admin_api = rpc.Routes(), rpc.Routes(), rpc.Routes()
    for routes, name in ((registration_api, "join"), (account_api, "pay"), (admin_api, "ban")):

        @routes.route(name)
        async def procedure() -> str:
            return "done"

    async def customer_cookie_auth(session: rpc.Session) -> Any:
        return session.request.cookies.get("customer")

    async def admin_token_auth(session: rpc.Session, ticket: str) -> Any:
        return "root" if ticket == "token" else None

    guests_realm = rpc.Realm("guests")
    guests_realm.add_rpc_routes(registration_api)

    customers_realm = rpc.Realm("customers")
    customers_realm.add_transport_authenticator(customer_cookie_auth)
    customers_realm.add_rpc_routes(account_api)

    admins_realm = rpc.Realm("admins")
    admins_realm.set_ticket_authenticator(admin_token_auth)
    admins_realm.add_rpc_routes(admin_api)

    app = rpc.Application(allow_default_realm=False)
    app.add_realm(guests_realm)
    app.add_realm(customers_realm)
    app.add_realm(admins_realm)

    server = await serve(app)
    async with server.wamp().joining("guests") as peer:
        assert await peer.call("join") == [50, 1, {}, ["done"]]
        assert (await peer.call("pay"))[4] == "wamp.error.no_such_procedure"
    cookie = {"Cookie": "customer=7"}
    async with server.wamp(headers=cookie).joining("customers") as peer:
        assert await peer.call("pay") == [50, 1, {}, ["done"]]
    async with server.wamp().joining("admins", authmethods=["ticket"]) as peer:
        assert (await peer.ask([5, "token", {}]))[0] == 2
        assert await peer.call("ban") == [50, 1, {}, ["done"]]
    async with server.wamp().stranger() as peer:
        assert (await peer.ask([1, "nowhere", {}]))[2] == "wamp.error.no_such_realm"


async def test_session_open_and_close(serve: Serve) -> None:
    """serverwamp, "Session Open and Close" and "Session Data": both work as documented."""
    app, rpc_api = rpc.Application(), rpc.Routes()

    async def count_session(
        session: rpc.Session, app_metrics: dict[str, int]
    ) -> AsyncIterator[None]:
        # `session` is auto-populated with the current session
        # `app_metrics` is a custom application-wide default argument.

        # This part is called when the session is authenticated…
        app_metrics["activeSessions"] += 1

        yield

        # This part is called when the session is closed…
        app_metrics["activeSessions"] -= 1

    metrics = {"activeSessions": 0}
    app.add_session_state_handler(count_session)
    app.set_default_arg("app_metrics", metrics)

    @rpc_api.route("set_my_name")
    async def set_my_name(name, session):  # type: ignore[no-untyped-def]  # as in the document
        # `session` is auto-populated with the current session
        session["name"] = name

    @rpc_api.route("get_my_name")
    async def get_my_name(session: rpc.Session, app_metrics: dict[str, int]) -> Any:
        return [session["name"], app_metrics["activeSessions"]]

    app.default.add_rpc_routes(rpc_api)
    server = await serve(app)
    async with server.wamp() as peer, server.wamp():
        assert await peer.call("set_my_name", "Ann") == [50, 1, {}]
        assert await peer.call("get_my_name") == [50, 1, {}, ["Ann", 2]]
        assert (await peer.call("set_my_name", "Ann", session=5))[5] == [
            "session: not for a caller to give"
        ]
    await until(lambda: metrics["activeSessions"] == 0)


async def test_anyio(serve: Serve) -> None:
    """serverwamp, "Asynchronous Function Support": handlers written with AnyIO work."""
    anyio = pytest.importorskip("anyio")
    routes = rpc.Routes()

    @routes.route()
    async def both() -> list[int]:
        found: list[int] = []

        async def find(n: int) -> None:
            await anyio.sleep(0)
            found.append(n)

        async with anyio.create_task_group() as group:
            group.start_soon(find, 1)
            group.start_soon(find, 2)
        return sorted(found)

    @routes.route()
    async def slow() -> str:
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()
        return "moved on"

    @routes.route()
    async def wait() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)

    server = await serve(routes)
    async with server.wamp() as peer:
        assert await peer.call("both") == [50, 1, {}, [1, 2]]
        assert await peer.call("slow") == [50, 1, {}, ["moved on"]]
        await peer.say([48, 1, {}, "wait"])
        assert (await peer.ask([49, 1, {"mode": "kill"}]))[4] == "wamp.error.canceled"


async def _add_stuff(peer: WampPeer, *args: Any) -> list[list[Any]]:
    """Call ``add_stuff``; return all messages received for the call."""
    await peer.say([48, 1, {"receive_progress": True}, "add_stuff", list(args)])
    heard = [await peer.hear()]
    while heard[-1][0] == 50 and heard[-1][2].get("progress"):
        heard.append(await peer.hear())
    return heard


async def test_rpc_handler(serve: Serve) -> None:
    """serverwamp, "RPC Calls": a custom RPC handler returns results and errors."""

    async def rpc_handler(rpc_request: rpc.RPCRequest) -> Any:
        if rpc_request.uri == "add_stuff":
            if not all(isinstance(arg, (int, float)) for arg in rpc_request.args):
                return rpc.RPCErrorResult(args=("Numbers only!",))
            total = sum(rpc_request.args)
            return rpc.RPCResult(args=(total,))
        return rpc.RPCErrorResult("myapp.custom_error")

    my_realm = rpc.Realm("my")
    my_realm.set_rpc_handler(rpc_handler)
    app = rpc.Application()
    app.add_realm(my_realm)
    server = await serve(app)
    async with server.wamp().joining("my") as peer:
        assert await _add_stuff(peer, 1, 2) == [[50, 1, {}, [3]]]
        ((*_, uri, args),) = await _add_stuff(peer, "x")
        assert (uri, args) == ("wamp.error.runtime_error", ["Numbers only!"])
        assert (await peer.call("other"))[4] == "myapp.custom_error"


async def test_progressive_rpc_handler(serve: Serve) -> None:
    """serverwamp, "RPC Calls": a custom RPC handler yields progressive results."""
    seen: list[str] = []

    async def rpc_handler(rpc_request: rpc.RPCRequest) -> Any:
        if rpc_request.uri != "add_stuff":
            yield rpc.RPCErrorResult("myapp.custom_error")
            seen.append("went on")  # as in the document, without a return here

        total: float = 0
        for num in rpc_request.args:
            if not isinstance(num, (float, int)):
                yield rpc.RPCErrorResult(args=("Numbers only!",))
                return
            total += num
            yield rpc.RPCProgressReport(args=(f"Added {num}"))  # a str, as in the document

        yield rpc.RPCResult(args=(total,))

    my_realm = rpc.Realm("my")
    my_realm.set_rpc_handler(rpc_handler)
    app = rpc.Application()
    app.add_realm(my_realm)
    server = await serve(app)
    async with server.wamp().joining("my") as peer:
        assert await _add_stuff(peer, 1, 2) == [
            [50, 1, {"progress": True}, ["Added 1"]],
            [50, 1, {"progress": True}, ["Added 2"]],
            [50, 1, {}, [3]],
        ]
        *_, (*_, args) = await _add_stuff(peer, 1, "x")
        assert args == ["Numbers only!"]
        assert (await peer.call("other"))[4] == "myapp.custom_error"
    assert seen == []


async def test_custom_authentication(serve: Serve, complaints: Any) -> None:
    """serverwamp, "Authentication": a custom handler accepts one client and refuses another."""
    my_realm = rpc.Realm("my")

    @my_realm.set_authentication_handler
    async def authenticate(session: rpc.Session) -> None:
        if session.auth_id == "ann":
            await session.mark_authenticated({"anything": True})
        else:
            await session.abort("wamp.error.authentication_failed", message="Not you.")

    app = rpc.Application()
    app.add_realm(my_realm)
    server = await serve(app)
    async with server.wamp().joining("my", authid="ann"):
        (session,) = app.sessions
        assert session.identity == {"anything": True}
    assert len(complaints()) == 1  # a dict isn't a valid identity: no log-out can find it
    async with server.wamp().stranger() as peer:
        assert await peer.ask([1, "my", {}]) == [
            3, {"message": "Not you."}, "wamp.error.authentication_failed",
        ]  # fmt: skip
