"""
Objects registered by hand are judged as handshakes are.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import (
    Limits,
    SessionWSRegistry,
    end_other_sessions_ws,
    get_session_ws_id,
    registry_from,
    session_ws,
)
from aiohttp_session_ws._lineage import Subject
from aiohttp_session_ws.exceptions import NotSetUp, SessionEnded
from aiohttp_session_ws.registry.order import Order
from aiohttp_session_ws.sessions.records import SubjectEnded
from tests.promise.conftest import Serve
from tests.promise.site import DEAD, OUT, reached, user_of
from tests.support import QUICK, until
from tests.support.inspect import inspect, quiet


class Stream:
    """An object with a ``close()``."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def close(self, **how: Any) -> None:
        """Record that it was closed."""
        self.closed.set()


async def out_of_others(request: web.Request) -> web.Response:
    """Log out everywhere else, which ends what is registered under the older id."""
    response = web.Response()
    assert await end_other_sessions_ws(request, response)
    return response


@pytest.fixture
async def registry(serve: Serve) -> SessionWSRegistry:
    """A running registry."""
    return (await serve(identify=user_of)).registry


class TestRegister:
    async def test_it_is_closed(self, registry: SessionWSRegistry) -> None:
        """An end of its id closes the object."""
        stream = Stream()
        registry.register("id", stream)
        await registry.end_session("id")

        assert stream.closed.is_set()

    async def test_under_an_ended_id(self, registry: SessionWSRegistry) -> None:
        """Registering under an ended id raises SessionEnded."""
        await registry.end_session("id")
        stream = Stream()

        with pytest.raises(SessionEnded):
            registry.register("id", stream)
        assert "id" not in registry

    async def test_in_a_request_whose_session_has_ended(self, serve: Serve) -> None:
        """Registering in a request whose session has ended raises SessionEnded."""
        refused: list[bool] = []

        async def stream(request: web.Request) -> web.Response:
            with pytest.raises(SessionEnded):
                registry_from(request).register(await get_session_ws_id(request), Stream())
            refused.append(True)
            return web.Response()

        site = await serve(views={"/stream": stream}, identify=user_of)
        browser = await site.browser()
        await browser.get("/page")
        site.gate.shut = True
        held = asyncio.ensure_future(site.replay(browser.cookie, "/stream?at=start"))
        await reached(site.gate)
        await browser.get("/out/helper")
        site.gate.let()
        await held

        assert refused

    async def test_under_an_id_of_a_lineage_that_has_ended(self, serve: Serve) -> None:
        """Registering under any id of an ended lineage raises SessionEnded."""
        site = await serve(identify=user_of)
        browser = await site.browser()
        await browser.get("/login")
        ids = [(await browser.get()).data["id"]]
        await browser.get("/renew")
        ids.append((await browser.get()).data["id"])
        await browser.get("/out/helper")

        for session_ws_id in ids:
            with pytest.raises(SessionEnded):
                site.registry.register(session_ws_id, Stream())

    @pytest.mark.parametrize("path", [*OUT, "/out/del", "/login?user=bob", "/others"])
    async def test_late(self, serve: Serve, path: str) -> None:
        """Registering under the id of an ended session raises SessionEnded, however it ended."""
        site = await serve(views={"/others": out_of_others}, identify=user_of)
        browser = await site.browser()
        await browser.get("/login")
        session_ws_id = (await browser.get()).data["id"]
        assert (await browser.get(path)).status < 400

        with pytest.raises(SessionEnded):
            site.registry.register(session_ws_id, Stream())

    async def test_an_end_that_is_older(self, serve: Serve) -> None:
        """A late order with an older end doesn't close an object registered since."""
        registry = (await serve(id_factory=lambda request: "team", timeouts=QUICK)).registry
        core, stream = inspect(registry), Stream()
        before = core.clock.end_time()
        await registry.end_session("other")
        registry.register("team", stream)
        await core.issue(Order((SubjectEnded(Subject("id", "team"), before, 60.0),)))

        assert not stream.closed.is_set()
        registry.unregister("team", stream)

    async def test_its_identity(self, registry: SessionWSRegistry) -> None:
        """An end of its identity closes an object; an end of another doesn't."""
        ann, bob = Stream(), Stream()
        registry.register("id-1", ann, identity="ann")
        registry.register("id-2", bob, identity="bob")
        await registry.end_identity("ann")

        assert (ann.closed.is_set(), bob.closed.is_set()) == (True, False)
        assert "id-2" in registry
        registry.unregister("id-2", bob)

    async def test_without_its_identity(self, registry: SessionWSRegistry) -> None:
        """An object without an identity is closed only by an end of its session."""
        stream = Stream()
        registry.register("id", stream)
        report = await registry.end_identity("ann")
        assert (report.sockets, stream.closed.is_set()) == (0, False)

        await registry.end_session("id")
        assert stream.closed.is_set()

    async def test_close_all_identity(self, registry: SessionWSRegistry) -> None:
        """A close order by identity finds the object."""
        stream = Stream()
        registry.register("id", stream, identity="ann")
        report = await registry.close_all_identity("ann")

        assert (report.sockets, stream.closed.is_set()) == (1, True)

    async def test_again(self, registry: SessionWSRegistry) -> None:
        """Registering again adds the identity."""
        stream = Stream()
        registry.register("id", stream)
        registry.register("id", stream, identity="ann")
        await registry.close_all_identity("bob")
        assert not stream.closed.is_set()
        report = await registry.end_identity("ann")

        assert (report.sockets, stream.closed.is_set()) == (1, True)

    async def test_again_and_late(self, registry: SessionWSRegistry) -> None:
        """Registering again with an ended identity raises SessionEnded."""
        stream = Stream()
        registry.register("id", stream)
        await registry.end_identity("ann")
        with pytest.raises(SessionEnded):
            registry.register("id", stream, identity="ann")
        registry.register("id", stream)
        registry.unregister("id", stream)

    async def test_a_socket_that_is_served(self, serve: Serve) -> None:
        """A handler can file its anonymous socket under an identity."""

        async def visit(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                id_ = await get_session_ws_id(request)
                registry_from(request).register(id_, ws, identity="ann")
                await ws.send_json({"user": await user_of(request), "id": ""})
                async for _ in ws:
                    pass
            return ws

        site = await serve(views={"/visit": visit}, identify=user_of)
        await site.registry.end_identity("ann")  # earlier than the session
        socket = await (await site.browser()).open("/visit")
        assert (await site.registry.send_identity("ann", "news")).sockets == 1
        assert (await socket.ws.receive()).data == "news"
        report = await site.registry.end_identity("ann")

        assert (report.sockets, await socket.code()) == (1, DEAD)
        await until(lambda: not inspect(site.registry).connections.identities)

    async def test_under_two_ids(self, registry: SessionWSRegistry) -> None:
        """An end of its identity closes an object that is still registered under one id."""
        stream = Stream()
        registry.register("id-1", stream, identity="ann")
        registry.register("id-2", stream, identity="ann")
        registry.unregister("id-2", stream)
        report = await registry.end_identity("ann")

        assert (report.sockets, stream.closed.is_set()) == (1, True)

    async def test_a_thing_in_two_rooms(self, serve: Serve) -> None:
        """A broadcast reaches an object registered under two ids once."""
        sent: list[bytes] = []

        class Thing:
            async def send_frame(self, data: bytes, opcode: int) -> None:
                sent.append(data)

            def close(self) -> None:
                pass

        site, thing = await serve(), Thing()
        for room in "ab":
            site.registry.register(room, thing)
        delivery = await site.registry.broadcast("for all")
        await until(lambda: sent)
        await quiet(site.registry)

        assert (delivery.sockets, sent) == (1, [b"for all"])

    async def test_a_socket_in_a_room(self, serve: Serve) -> None:
        """A websocket counts once for its identity, however many ids it is registered under."""

        async def visit(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                registry_from(request).register("room", ws, identity=await user_of(request))
                await ws.send_json({"user": await user_of(request), "id": ""})
                async for _ in ws:
                    pass
            return ws

        limits = Limits(per_identity=2, on_limit="refuse")
        site = await serve(views={"/visit": visit}, identify=user_of, limits=limits)
        registry, browser = site.registry, await site.logged_in()
        first = await browser.open("/visit")
        assert len(await registry.connections(identity="ann")) == 1
        second = await browser.open("/visit")
        assert (await registry.send_identity("ann", "news")).sockets == 2
        assert (await registry.broadcast("for all")).sockets == 2
        await registry.end_identity("ann")

        for socket in (first, second):
            assert (await socket.ws.receive()).data == "news"
            assert (await socket.ws.receive()).data == "for all"
            assert await socket.code() == DEAD

    async def test_a_socket_that_has_left_a_room(self, serve: Serve) -> None:
        """A socket unregistered from a second id still belongs to its identity."""

        async def visit(request: web.Request) -> web.WebSocketResponse:
            registry = registry_from(request)
            async with session_ws(request) as ws:
                registry.register("room", ws, identity=await user_of(request))
                registry.unregister("room", ws)
                await ws.send_json({"user": await user_of(request), "id": ""})
                async for _ in ws:
                    pass
            return ws

        site = await serve(views={"/visit": visit}, identify=user_of)
        socket = await (await site.logged_in()).open("/visit")
        report = await site.registry.end_identity("ann")

        assert (report.sockets, await socket.code()) == (1, DEAD)

    async def test_one_that_is_adopted_afterwards(self, serve: Serve) -> None:
        """A socket registered and then adopted counts once, and leaves nothing behind."""

        async def visit(request: web.Request) -> web.WebSocketResponse:
            registry, ws = registry_from(request), web.WebSocketResponse()
            await ws.prepare(request)
            registry.register(await get_session_ws_id(request), ws)
            async with registry.adopt(request, ws):
                await ws.send_json({"user": await user_of(request), "id": ""})
                async for _ in ws:
                    pass
            return ws

        site = await serve(views={"/visit": visit}, limits=Limits(total=2))
        browser = await site.logged_in()
        for _ in range(3):
            socket = await browser.open("/visit")
            assert await site.registry.count() == 1
            await socket.ws.close()
            await until(lambda: not len(site.registry))

    async def test_by_a_later_session(self, serve: Serve) -> None:
        """A session from after a log-out everywhere can register, and is ended by the next one."""
        streams: list[Stream] = []

        async def stream(request: web.Request) -> web.Response:
            streams.append(Stream())
            id_, who = await get_session_ws_id(request), await user_of(request)
            registry_from(request).register(id_, streams[-1], identity=who)
            return web.Response()

        site = await serve(views={"/stream": stream}, identify=user_of)
        await site.registry.end_identity("ann")
        browser = await site.logged_in()
        answer = await browser.get("/stream")
        assert (answer.status, streams[0].closed.is_set()) == (200, False)

        await browser.get("/everywhere")
        await streams[0].closed.wait()

    async def test_an_identity_without_identify(self, serve: Serve) -> None:
        """Registering with an identity needs ``identify``; the error names it."""
        registry = (await serve(timeouts=QUICK)).registry

        with pytest.raises(NotSetUp, match="identify"):
            registry.register("id", Stream(), identity="ann")
