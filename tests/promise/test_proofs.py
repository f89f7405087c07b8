"""
An identity that a client proves over its socket, in addition to its session's.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from aiohttp_session_ws import (
    Connection,
    Expiry,
    Limits,
    NotSetUp,
    SessionEnded,
    SessionWSRegistry,
    WebSocket,
    websocket_handler,
)
from aiohttp_session_ws.exceptions import InvalidIdentity
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, Site, Socket, reached, user_of
from tests.support import PATIENCE, Turnstile, until
from tests.support.inspect import connections, inspect


class Tickets:
    """
    An endpoint whose clients prove identities.

    Attributes:
        gate: Where a client waits between its challenge and its proof.
        errors: The exceptions that ``prove()`` raised.
    """

    def __init__(self) -> None:
        self.gate = Turnstile()
        self.errors: list[Exception] = []

    @property
    def views(self) -> dict[str, Any]:
        """Return the views by path."""
        return {"/prove": websocket_handler(self.serve)}

    async def serve(self, ws: WebSocket) -> None:
        """Accept each message as a proven identity; ``""`` withdraws it."""
        await ws.connect()
        registry: SessionWSRegistry = ws.request.app["aiohttp_session_ws_registry"]
        await ws.send_json({"user": ws.identity, "id": ws.session_ws_id})
        async for name in ws:
            since = registry.now()
            await self.gate()
            try:
                if name:
                    await registry.prove(ws.connection, name, since=since)
                else:
                    registry.disprove(ws.connection)
            except Exception as exc:
                self.errors.append(exc)
                raise
            await ws.send("proven")


@pytest.fixture
def tickets() -> Tickets:
    """An endpoint whose clients prove identities."""
    return Tickets()


async def proven(site: Site, name: str) -> Socket:
    """Open a visitor's socket, and prove an identity over it."""
    socket = await (await site.browser()).open("/prove")
    return await say(socket, name)


async def say(socket: Socket, name: str) -> Socket:
    """Prove an identity over a socket."""
    await socket.ws.send_str(name)
    assert await socket.ws.receive_str(timeout=PATIENCE) == "proven"
    return socket


class TestProve:
    async def test_it_is_found(self, serve: Serve, tickets: Tickets) -> None:
        """Pushes, listings and orders for a proven identity find its socket."""
        site = await serve(None, tickets.views, identify=user_of)
        socket, registry = await proven(site, "bob"), site.registry

        assert (await registry.send_identity("bob", "news")).sockets == 1
        assert await socket.ws.receive_str(timeout=PATIENCE) == "news"
        assert len(await registry.connections(identity="bob")) == 1
        assert (await registry.end_identity("bob")).sockets == 1
        assert await socket.code() == DEAD

    async def test_beside_the_session(self, serve: Serve, tickets: Tickets) -> None:
        """A socket is listed once under both identities; an order by the proven one closes it."""
        site = await serve(None, tickets.views, identify=user_of)
        browser = await site.logged_in()
        first, second = await browser.open("/prove"), await browser.open("/prove")
        for socket in (first, second):
            await say(socket, "bob")
        (one, other) = connections(site.registry)
        assert one.identity == other.identity == "ann"
        for who in ("ann", "bob"):
            assert len(await site.registry.connections(identity=who)) == 2
        report = await site.registry.close_all_identity("bob")

        assert report.sockets == 2
        assert await first.code() == await second.code() == AGAIN
        assert await browser.user() == "ann"

    async def test_its_own_identity(self, serve: Serve, tickets: Tickets) -> None:
        """Proving the session's own identity, or withdrawing that, changes nothing."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await (await site.logged_in()).open("/prove")
        await say(socket, "ann")
        assert len(await site.registry.connections(identity="ann")) == 1
        await say(socket, "")

        assert len(await site.registry.connections(identity="ann")) == 1
        assert (await site.registry.end_identity("ann")).sockets == 1

    async def test_another_replaces_it(self, serve: Serve, tickets: Tickets) -> None:
        """A second proven identity replaces the first."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await proven(site, "bob")
        await say(socket, "carol")

        assert (await site.registry.end_identity("bob")).sockets == 0
        assert (await site.registry.end_identity("carol")).sockets == 1
        assert await socket.code() == DEAD

    async def test_taken_back(self, serve: Serve, tickets: Tickets) -> None:
        """A withdrawn identity no longer finds the socket."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await say(await proven(site, "bob"), "")

        assert not await site.registry.connections(identity="bob")
        assert (await site.registry.end_identity("bob")).sockets == 0
        await say(socket, "")
        assert not inspect(site.registry).connections.identities.size

    async def test_nothing_is_left(self, serve: Serve, tickets: Tickets) -> None:
        """A closed socket is filed under no identity."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await proven(site, "bob")
        await socket.ws.close()
        await until(lambda: not connections(site.registry))

        assert not inspect(site.registry).connections.identities.size

    async def test_limits_count_it(self, serve: Serve, tickets: Tickets) -> None:
        """A proven identity counts towards that identity's limit."""
        limits = Limits(per_identity=1, on_limit="refuse")
        site = await serve(None, tickets.views, identify=user_of, limits=limits)
        socket = await proven(site, "ann")
        browser = await site.logged_in()

        assert await site.knock(browser.cookie) == 4429
        await socket.ws.close()

    async def test_the_check(self, serve: Serve, tickets: Tickets) -> None:
        """The periodic check compares only the session's identity."""
        checks = 0

        async def identify(request: web.Request) -> str | None:
            nonlocal checks
            checks += 1
            return await user_of(request)

        site = await serve(
            None, tickets.views, identify=identify, expiry=Expiry(revalidate_every=1.0)
        )
        socket = await proven(site, "bob")
        checks = 0
        await until(lambda: checks >= 2)

        assert (await site.registry.end_identity("bob")).sockets == 1
        assert await socket.code() == DEAD


class TestEnds:
    async def test_an_end_before(self, serve: Serve, tickets: Tickets) -> None:
        """A proof that began after the identity's end is accepted."""
        site = await serve(None, tickets.views, identify=user_of)
        await site.registry.end_identity("bob")
        socket = await proven(site, "bob")

        await say(socket, "bob")
        assert not tickets.errors

    async def test_an_end_meanwhile(self, serve: Serve, tickets: Tickets) -> None:
        """An end during a proof closes the socket with 4401; ``prove()`` raises SessionEnded."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await (await site.browser()).open("/prove")
        tickets.gate.shut = True
        await socket.ws.send_str("bob")
        async with asyncio.timeout(PATIENCE):
            await tickets.gate.arrived.wait()
        assert (await site.registry.end_identity("bob")).sockets == 0
        tickets.gate.let()

        assert await socket.code() == DEAD
        assert [type(exc) for exc in tickets.errors] == [SessionEnded]
        await until(lambda: not connections(site.registry))

    async def test_a_renewal_meanwhile(self, serve: Serve, tickets: Tickets) -> None:
        """A proof during a renewal of the session closes the socket with 4403."""
        answers = Turnstile()
        answers.shut = True

        @web.middleware
        async def outer(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if request.path == "/renew":
                await answers()
            return response

        site = await serve(None, tickets.views, site={"outer": outer}, identify=user_of)
        browser = await site.logged_in()
        socket = await browser.open("/prove")
        renewal = asyncio.ensure_future(browser.get("/renew"))
        await reached(answers)
        await socket.ws.send_str("bob")

        assert await socket.code() == AGAIN
        assert [type(exc) for exc in tickets.errors] == [SessionEnded]
        answers.let()
        await renewal

    async def test_an_end_of_another(self, serve: Serve, tickets: Tickets) -> None:
        """An end of another identity doesn't affect the proof."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await proven(site, "bob")
        await site.registry.end_identity("ann")

        await say(socket, "bob")

    async def test_a_socket_that_is_gone(self, serve: Serve, tickets: Tickets) -> None:
        """A proof for a closed socket files nothing."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await (await site.browser()).open("/prove")
        (connection,) = connections(site.registry)
        await socket.ws.close()
        await until(lambda: not connections(site.registry))
        await site.registry.prove(connection, "bob", since=site.registry.now())

        assert not inspect(site.registry).connections.identities.size


class TestMistakes:
    @pytest.mark.parametrize("identity", [None, ["bob"]])
    async def test_no_identity(self, serve: Serve, tickets: Tickets, identity: Any) -> None:
        """An invalid identity raises an error."""
        site = await serve(None, tickets.views, identify=user_of)
        socket = await (await site.browser()).open("/prove")
        connection: Connection = connections(site.registry)[0]

        with pytest.raises(InvalidIdentity):
            await site.registry.prove(connection, identity, since=site.registry.now())
        await socket.ws.close()

    async def test_without_identify(self, serve: Serve, tickets: Tickets) -> None:
        """Proving without the option ``identify`` raises an error that names it."""
        site = await serve(None, tickets.views)
        socket = await (await site.browser()).open("/prove")
        (connection,) = connections(site.registry)

        with pytest.raises(NotSetUp, match="identify="):
            await site.registry.prove(connection, "bob", since=site.registry.now())
        await socket.ws.close()
