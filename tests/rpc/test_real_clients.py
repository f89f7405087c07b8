"""Third-party clients: autobahn and wsrpc, each in Python and JavaScript."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiohttp_session_ws import rpc

from .conftest import Serve
from .support import PATIENCE, Server, expect_clients

HERE = pathlib.Path(__file__).parent


def calculator() -> rpc.Application:
    """Return an application with procedures of each kind and a topic."""
    routes = rpc.Routes("calc.")

    @routes.route()
    async def add(a: int, b: int) -> int:
        return a + b

    @routes.route()
    async def count(to: int) -> AsyncIterator[int]:
        for i in range(to):
            yield i

    @routes.route()
    async def confirm(question: str, *, session: rpc.Session) -> Any:
        return await session.call("allow", question)

    @routes.route()
    async def wait() -> None:
        await asyncio.Event().wait()

    @routes.topic("news")
    async def news() -> AsyncIterator[None]:
        yield

    calls = rpc.Application()

    @routes.route()
    async def tell(text: str) -> int:
        return (await calls.publish("calc.news", [text])).sockets

    calls.default.add_rpc_routes(routes)
    return calls


def with_ticket() -> rpc.Application:
    """Return the same application with a realm that requires a ticket."""
    calls = calculator()
    realm = rpc.Realm("realm")
    realm.served = calls.default.served
    realm.set_ticket_authenticator(
        lambda session, ticket: session.auth_id if ticket == "sesame" else None
    )
    calls.add_realm(realm)
    return calls


async def node(which: str, server: Server) -> Any:
    """Run a client under Node.js; return the results that it prints."""
    expect_clients(HERE / "node_modules")
    url = str(server.client.make_url("/rpc")).replace("http", "ws")
    process = await asyncio.create_subprocess_exec(
        "node", str(HERE / "clients.js"), which, url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"NODE_PATH": str(HERE / "node_modules")},
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return json.loads(out)


async def test_autobahn_js(serve: Serve) -> None:
    """AutobahnJS joins by a ticket, calls, gets progress and events, registers and cancels."""
    seen = await node("autobahn", await serve(with_ticket()))

    assert seen == {
        "sum": 5, "named": 5, "error": "wamp.error.invalid_argument", "progress": [0, 1, 2],
        "asked": "really!", "events": ["hi"], "cancelled": "wamp.error.canceled",
    }  # fmt: skip


async def test_wsrpc_js(serve: Serve) -> None:
    """@wsrpc/client calls, answers calls, and gets errors."""
    seen = await node("wsrpc", await serve(calculator()))

    assert seen == {
        "sum": 5, "named": 5, "error": "TypeError", "unknown": "NotImplementedError",
        "asked": "really!", "events": [],
    }  # fmt: skip


async def test_wsrpc_python(serve: Serve) -> None:
    """wsrpc_aiohttp calls, answers calls, and gets errors."""
    wsrpc = pytest.importorskip("wsrpc_aiohttp")
    server = await serve(calculator())
    client = wsrpc.WSRPCClient(server.client.make_url("/rpc"))

    async def allow(socket: Any, *args: Any) -> str:
        return f"{args[0]}!"

    client.add_route("allow", allow)
    async with client:
        proxy = client.proxy
        assert await proxy.calc.add(a=1, b=2) == 3
        assert await client.call("calc.add", a="5", b=2) == 7
        assert await client.call("calc.confirm", question="really") == "really!"
        with pytest.raises(Exception, match="missing"):
            await client.call("calc.add", a=1)
        with pytest.raises(Exception, match="no such procedure"):
            await client.call("nothing")


@pytest.mark.parametrize("serializer", ["JsonSerializer", "MsgPackSerializer"])
@pytest.mark.parametrize("batched", [False, True])
async def test_autobahn_python(serve: Serve, serializer: str, batched: bool) -> None:
    """autobahn-python joins by a ticket, calls, gets progress and events, and registers."""
    pytest.importorskip("autobahn")
    wamp: Any = importlib.import_module("autobahn.asyncio.wamp")
    websocket: Any = importlib.import_module("autobahn.asyncio.websocket")
    serializers: Any = importlib.import_module("autobahn.wamp.serializer")
    exceptions: Any = importlib.import_module("autobahn.wamp.exception")
    types: Any = importlib.import_module("autobahn.wamp.types")

    if batched and serializer == "JsonSerializer":
        pytest.skip("its batches of JSON are not those of the specification")
    server = await serve(with_ticket())
    seen: dict[str, Any] = {"progress": []}
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Client(wamp.ApplicationSession):  # type: ignore[misc]  # autobahn is imported late
        def onConnect(self) -> None:
            self.join("realm", ["ticket"], "ali")

        def onChallenge(self, challenge: Any) -> str:
            return "sesame"

        async def onJoin(self, details: Any) -> None:
            try:
                await self.use(details)
            except Exception as exc:  # noqa: BLE001  # the test raises it
                over.set_exception(exc)
            self.leave()

        async def use(self, details: Any) -> None:
            seen["who"] = (details.authid, details.authmethod)
            seen["sum"] = await self.call("calc.add", 2, 3)
            seen["named"] = await self.call("calc.add", a=1, b=4)
            try:
                await self.call("calc.add", "x", 3)
            except exceptions.ApplicationError as exc:
                seen["error"] = exc.error
            await self.call(
                "calc.count", 3, options=types.CallOptions(on_progress=seen["progress"].append)
            )
            await self.call("calc.count", 3)  # without asking for progress
            await self.register(lambda question: f"{question}!", "allow")
            seen["asked"] = await self.call("calc.confirm", "really")
            event: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            subscription = await self.subscribe(event.set_result, "calc.news")
            seen["told"] = await self.call("calc.tell", "hi")
            seen["event"] = await event
            await subscription.unsubscribe()

        def onDisconnect(self) -> None:
            if not over.done():
                over.set_result(None)

    url = str(server.client.make_url("/rpc")).replace("http", "ws")
    factory = websocket.WampWebSocketClientFactory(
        lambda: Client(types.ComponentConfig("realm")),
        url=url,
        serializers=[getattr(serializers, serializer)(batched=batched)],
    )
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(factory, server.client.host, server.client.port)
    async with asyncio.timeout(PATIENCE):
        await over
    transport.close()

    assert seen == {
        "who": ("ali", "ticket"), "sum": 5, "named": 5, "error": "wamp.error.invalid_argument",
        "progress": [0, 1, 2], "asked": "really!", "told": 1, "event": "hi",
    }  # fmt: skip
