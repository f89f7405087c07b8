"""Authenticated identities and published events, on one node and on two."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import NotSetUp, SessionWSRegistry, rpc
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from tests.support import until

from .conftest import Serve
from .support import QUICK, Server, WampPeer, who


def club() -> tuple[rpc.Application, rpc.Realm]:
    """Return an application with a realm that requires tickets and has a topic."""
    calls, realm = rpc.Application(), rpc.Realm("club")
    routes = rpc.Routes()

    @routes.topic("news")
    async def news() -> AsyncIterator[None]:
        yield

    realm.add_rpc_routes(routes)
    realm.set_ticket_authenticator(lambda session, ticket: ticket or None)
    calls.add_realm(realm)
    return calls, realm


async def join(server: Server, ticket: str = "ann") -> Any:
    """Return a client that has joined with a ticket."""
    peer = server.wamp().joining("club", authmethods=["ticket"])
    await peer.__aenter__()
    assert (await peer.ask([5, ticket, {}]))[0] == 2
    return peer


class TestProven:
    async def test_log_out_everywhere(self, serve: Serve) -> None:
        """``end_identity()`` ends RPC sessions whose identity was proven by a ticket."""
        calls, _ = club()
        server = await serve(calls)
        ann, bob = await join(server), await join(server, "bob")

        ending = asyncio.create_task(server.registry.end_identity("ann"))
        assert (await ann.hear())[2] == "wamp.close.killed"
        assert await ann.closed() == 4401
        report = await ending
        assert report.sockets == 1
        await until(lambda: len(calls.sessions) == 1)
        await server.registry.end_identity("bob")
        await bob.hear()
        again = await join(server)  # joined after the order: not closed
        for peer in (ann, bob, again):
            await peer.__aexit__(None, None, None)

    async def test_while_the_challenge_is_out(self, serve: Serve) -> None:
        """An ``end_identity()`` between CHALLENGE and AUTHENTICATE closes the joining client."""
        calls, _ = club()
        server = await serve(calls)
        async with server.wamp().joining("club", authmethods=["ticket"]) as peer:
            await server.registry.end_identity("ann")
            await peer.say([5, "ann", {}])
            assert await peer.closed() == 4401
        assert not calls.sessions

    async def test_after_goodbye(self, serve: Serve) -> None:
        """After GOODBYE the connection no longer has the identity proven before."""
        calls, _ = club()
        server = await serve(calls)
        peer = await join(server)
        assert (await peer.ask([6, {}, "x"]))[0] == 6
        assert (await server.registry.end_identity("ann")).sockets == 0
        assert (await peer.ask([1, "club", {"authmethods": ["ticket"]}]))[0] == 4
        assert (await peer.ask([5, "bob", {}]))[0] == 2
        assert (await server.registry.end_identity("bob")).sockets == 1
        await peer.__aexit__(None, None, None)

    async def test_transport(self, serve: Serve) -> None:
        """``end_identity()`` finds an authenticator's identity that isn't the HTTP session's."""
        calls = rpc.Application()
        calls.default.add_transport_authenticator(lambda session: "robot")
        server = await serve(calls)
        await server.client.get("/login?user=ann")
        async with server.wsrpc() as peer, server.wamp() as other:
            ending = asyncio.create_task(server.registry.end_identity("robot"))
            assert await peer.closed() == 4401
            assert (await other.hear())[0] == 6
            assert (await ending).sockets == 2

    async def test_without_identify(self, serve: Serve) -> None:
        """A client can join with a ticket even if the registry has no ``identify``."""
        calls, _ = club()
        server = await serve(calls, SessionWSRegistry(timeouts=QUICK))
        peer = await join(server)
        await peer.__aexit__(None, None, None)


class TestIds:
    async def test_nothing_is_saved(self, serve: Serve) -> None:
        """A client without cookies can join, and gets no cookie."""
        server = await serve(rpc.Application())
        async with server.wamp() as peer:
            assert not list(server.client.session.cookie_jar)
            assert peer.welcome[0] == 2
            assert (await server.registry.count()) == 1


class TestTwoApplications:
    async def test_apart(self, serve: Serve) -> None:
        """Two applications on one registry don't receive each other's events."""
        registry = SessionWSRegistry(identify=who, timeouts=QUICK)
        one, two = rpc.Application(), rpc.Application(name="two")
        for calls in (one, two):
            routes = rpc.Routes()

            @routes.topic("news")
            async def news() -> AsyncIterator[None]:
                yield

            calls.default.add_rpc_routes(routes)
        server = await serve(one, registry, routes=[web.get("/two", two.handler)])
        async with server.wamp() as peer:
            await peer.ask([32, 1, {}, "news"])
            two.attach(registry)
            assert (await two.publish("news")).sockets == 0
            assert (await one.publish("news")).sockets == 1


class TestTwoRegistries:
    async def test_once_each(self, serve: Serve) -> None:
        """An application served in two web applications sends each event once per subscriber."""
        calls, _ = club()
        peers = [await join(await serve(calls)) for _ in range(2)]
        for peer in peers:
            assert (await peer.ask([32, 1, {}, "news"]))[0] == 33
        for word in ("one", "two"):
            assert (await calls.publish("news", [word])).sockets == 2
        for peer in peers:
            assert [(await peer.hear())[4] for _ in range(2)] == [["one"], ["two"]]
            await peer.__aexit__(None, None, None)

    async def test_one_after_another(self, serve: Serve) -> None:
        """An application can be served again, with another registry."""
        calls, _ = club()
        stopped = await serve(calls)
        await stopped.client.close()
        with pytest.raises(NotSetUp):
            await calls.publish("news")
        peer = await join(await serve(calls))
        await peer.ask([32, 1, {}, "news"])
        assert (await calls.publish("news", ["hi"])).sockets == 1
        assert (await peer.hear())[4] == ["hi"]
        await peer.__aexit__(None, None, None)


def test_registry_that_is_let_go() -> None:
    """A registry is garbage collected whether or not its application still exists."""
    calls = rpc.Application()
    for _ in range(2):
        registry = SessionWSRegistry()
        calls.attach(registry)
        gone = weakref.ref(registry)
        del registry
        gc.collect()
        assert gone() is None
    registry = SessionWSRegistry()
    calls.attach(registry)
    gone = weakref.ref(registry)
    del registry, calls
    gc.collect()
    assert gone() is None


async def test_below_a_prefix(serve: Serve) -> None:
    """An application served at two URLs, one in a sub-application, publishes to both."""
    calls = rpc.Application()
    routes = rpc.Routes()

    @routes.topic("news")
    async def news() -> AsyncIterator[None]:
        yield

    calls.default.add_rpc_routes(routes)
    below = web.Application()
    below.router.add_get("/rpc", calls.handler)
    server = await serve(calls, below=below)
    inner = server.client.ws_connect("/below/rpc", protocols=["wamp.2.json"])
    async with server.wamp() as peer, WampPeer(inner, "wamp.2.json") as other:
        for one in (peer, other):
            await one.ask([32, 1, {}, "news"])
        assert (await calls.publish("news")).sockets == 2


@pytest.fixture
async def nodes(redis_server: Any, serve: Serve) -> list[Server]:
    """Serve the same application on two nodes of one Redis server."""
    servers = []
    for _ in range(2):
        calls, _realm = club()
        calls.default.add_rpc_routes(rpc.Routes())
        registry = RedisSessionWSRegistry(redis_server.url, identify=who, timeouts=QUICK)
        servers.append(await serve(calls, registry))
    for server in servers:
        async with server.wamp().stranger():
            pass
    return servers


class TestTwoNodes:
    async def test_publish(self, nodes: list[Server]) -> None:
        """An event reaches subscribers on all nodes, and only those of the given identity."""
        peers = [await join(server, "ann") for server in nodes]
        bob = await join(nodes[1], "bob")
        for peer in (*peers, bob):
            assert (await peer.ask([32, 1, {}, "news"]))[0] == 33
        delivery = await nodes[0].calls.publish("news", ["hi"], {"n": 1})
        assert delivery.sockets == 1
        for peer in (*peers, bob):
            assert (await peer.hear())[4:] == [["hi"], {"n": 1}]
        await nodes[0].calls.publish("news", ["ann"], identity="ann")
        await nodes[0].calls.publish("news", ["bob"], identity="bob")
        for peer in peers:
            assert (await peer.hear())[4] == ["ann"]
        assert (await bob.hear())[4] == ["bob"]
        for peer in (*peers, bob):
            await peer.__aexit__(None, None, None)

    async def test_log_out_everywhere(self, nodes: list[Server]) -> None:
        """``end_identity()`` ends authenticated RPC sessions on all nodes."""
        peers = [await join(server, "ann") for server in nodes]
        await nodes[0].registry.end_identity("ann", wait=5.0)
        for peer in peers:
            assert (await peer.hear())[2] == "wamp.close.killed"
            assert await peer.closed() == 4401
            await peer.__aexit__(None, None, None)
