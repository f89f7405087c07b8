"""
Overridden methods of a registry are called wherever 1.1.1 called them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import (
    SessionWSRegistry,
    delete_session_ws_id,
    ensure_session_ws_id,
    get_session_ws_id,
    new_session_ws_id,
    schedule_close_all_session_ws,
    session_ws,
)
from tests.promise.conftest import Serve
from tests.promise.feeds import Feed, listen
from tests.promise.site import AGAIN, out_by_pattern
from tests.promise.test_adopted_sockets import Foreign
from tests.support import QUICK, RawPeer, until
from tests.support.inspect import connections


class Node(SessionWSRegistry):
    """A cluster node as the documentation of 1.1.1 describes it."""

    def __init__(self, broker: list[Node], calls: list[str]) -> None:
        super().__init__(timeouts=QUICK)
        self.broker = broker
        self.calls = calls
        broker.append(self)

    # The signature of 1.1.1.
    async def register(self, session_ws_id: Hashable, ws: Any) -> None:  # type: ignore[override]
        """Record the call."""
        self.calls.append("register")
        super().register(session_ws_id, ws)

    async def unregister(self, session_ws_id: Hashable, ws: Any) -> None:
        """Record the call."""
        self.calls.append("unregister")
        super().unregister(session_ws_id, ws)

    async def close_all_session(self, session_ws_id: Hashable, **how: Any) -> Any:
        """Publish the order to all nodes."""
        self.calls.append("close_all_session")
        for node in self.broker:
            report = await SessionWSRegistry.close_all_session(node, session_ws_id, **how)
        return report

    async def close_all(self, **how: Any) -> Any:
        """Record the call."""
        self.calls.append("close_all")
        return await super().close_all(**how)

    async def ensure_id(self, request: web.Request) -> Any:
        """Record the call."""
        self.calls.append("ensure_id")
        return await super().ensure_id(request)


class TestCluster:
    @pytest.mark.parametrize("path", ["/close", "/out/pattern"])
    async def test_a_log_out_on_the_other_node(
        self, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """An override that publishes closes the sockets on other nodes."""
        broker: list[Node] = []
        calls: list[str] = []
        a = await serve(cookies, registry=Node(broker, calls))
        b = await serve(cookies, registry=Node(broker, calls))
        on_a = await a.logged_in("/login")
        on_b = await b.browser(on_a.cookie)
        sockets = [await on_a.open(), await on_b.open()]
        await on_a.get(path)

        assert [await socket.code() for socket in sockets] == [AGAIN, AGAIN]
        assert "close_all_session" in calls

    async def test_it_waits_for_no_client(self, serve: Serve) -> None:
        """The override is called before the client has answered the close frame."""
        there: list[int] = []

        class Publishing(SessionWSRegistry):
            async def close_all_session(self, session_ws_id: Hashable, **how: Any) -> Any:
                there.append(len(connections(self)))

        site = await serve(registry=Publishing(timeouts=QUICK))
        browser = await site.logged_in("/login")
        mute = await RawPeer.open(site.url.with_path("/ws"), browser.cookie)
        await until(lambda: connections(site.registry))
        await browser.get("/close")
        await until(lambda: there)
        mute.close()

        assert there == [1]

    async def test_the_others(self, serve: Serve) -> None:
        """Opening, closing, the middleware and the shutdown call their overrides."""
        calls: list[str] = []
        site = await serve(registry=Node([], calls))
        browser = await site.logged_in("/login")
        assert "ensure_id" in calls

        socket = await browser.open()
        assert "register" in calls
        await site.stack.aclose()
        assert "close_all" in calls
        assert "unregister" in calls
        await socket.ws.close()


class TestRegister:
    @pytest.mark.parametrize("how", ["an order", "its end"])
    async def test_what_is_no_socket_of_ours(self, serve: Serve, how: str) -> None:
        """Streams and adopted sockets call neither ``register`` nor ``unregister``."""
        calls: list[str] = []
        feed, foreign = Feed(), Foreign()
        views = {**foreign.views(), "/events": feed.events}
        site = await serve(None, views, registry=Node([], calls))
        browser = await site.logged_in("/login")
        events, adopted = await listen(browser), await browser.open("/gql")
        if how == "an order":
            await site.registry.close_all()
        else:
            events.close()
            await adopted.ws.close()
        await feed.gone(site.registry)

        assert not {"register", "unregister"} & {*calls}


class TestCloseAll:
    async def test_this_process_only(self, serve: Serve) -> None:
        """``close_all`` closes with its code and doesn't call ``close_all_session``."""
        calls: list[str] = []
        site = await serve(registry=Node([], calls))
        sockets = [await (await site.logged_in("/login")).open() for _ in range(2)]
        report = await site.registry.close_all(close=4000)

        assert [await socket.code() for socket in sockets] == [4000, 4000]
        assert report.sockets == 2
        assert "close_all_session" not in calls


class Telling(SessionWSRegistry):
    """A registry whose methods return values where 1.1.1 returned none."""

    async def new_id(self, request: web.Request) -> Any:
        """Return a value."""
        await super().new_id(request)
        return "new"

    async def delete_id(self, request: web.Request) -> Any:
        """Return a value."""
        await super().delete_id(request)
        return "deleted"

    async def ensure_id(self, request: web.Request) -> Any:
        """Give an id only to a user who is logged in; return a value."""
        if (await aiohttp_session.get_session(request)).get("user"):
            await super().ensure_id(request)
        return "ensured"

    def schedule_close_all_session(
        self, request: web.Request, response: web.StreamResponse
    ) -> Any:
        """Return a value, without being a coroutine function."""
        return "scheduled"


class Skipping(SessionWSRegistry):
    """A registry that gives no id to visitors."""

    async def ensure_id(self, request: web.Request) -> Any:
        """Give an id only to a user who is logged in."""
        if (await aiohttp_session.get_session(request)).get("user"):
            await super().ensure_id(request)


class TestHelpers:
    async def test_return_what_the_method_returns(self, serve: Serve) -> None:
        """A helper returns what the method returns, sync or async."""

        async def ask(request: web.Request) -> web.Response:
            told: list[Any] = [
                await new_session_ws_id(request),
                await delete_session_ws_id(request),
                await ensure_session_ws_id(request),
                await schedule_close_all_session_ws(request, web.Response()),
            ]
            return web.json_response(told)

        site = await serve(views={"/ask": ask}, registry=Telling())
        answer = await (await site.browser()).get("/ask")

        assert answer.data == ["new", "deleted", "ensured", "scheduled"]

    async def test_ensure_id_that_skips_visitors(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A visitor whom ``ensure_id`` skips gets no id and no cookie."""
        site = await serve(storage, registry=Telling())
        browser = await site.browser()
        visit = await browser.get("/page")
        await browser.get("/login")

        assert (visit.data["id"], visit.saved) == (None, False)
        assert (await browser.get("/page")).data["id"] is not None

    @pytest.mark.parametrize("middleware", [True, False])
    @pytest.mark.parametrize("lang", [False, True])
    async def test_a_socket_of_a_visitor_whom_ensure_id_skips(
        self, serve: Serve, storage: AbstractStorage, middleware: bool, lang: bool
    ) -> None:
        """A handshake gives a skipped visitor an id and saves it, as in 1.1.1."""
        registry = Skipping(timeouts=QUICK)
        site = await serve(storage, registry=registry, site={"middleware": middleware})
        browser = await site.browser()
        if lang:
            await browser.get("/write?lang=de")
        socket = await browser.open()
        kept = await browser.get("/page")
        await browser.get("/close")

        assert socket.id is not None
        assert (kept.data["id"], await socket.code()) == (socket.id, AGAIN)

    async def test_an_id_that_nobody_gives(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Handshakes without an id are refused, and one log line names ``get_id()``."""

        class Derived(SessionWSRegistry):
            async def get_id(self, request: web.Request) -> Hashable | None:
                return None

        site = await serve(registry=Derived(timeouts=QUICK))
        assert [await site.knock(""), await site.knock("")] == [403, 403]

        told = [text for text in caplog.messages if "get_id()" in text]
        assert len(told) == 1

    async def test_the_id_before_the_handshake(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """``get_session_ws_id()`` returns a new visitor's id before the socket opens."""
        said: list[Hashable | None] = []

        async def before(request: web.Request) -> web.WebSocketResponse:
            said.append(await get_session_ws_id(request))
            async with session_ws(request) as ws:
                said.append(await get_session_ws_id(request))
                await ws.send_json({"user": None, "id": said[-1]})
                await ws.receive()
            return ws

        site = await serve(storage, {"/before": before})
        browser = await site.browser()
        socket = await browser.open("/before")
        await socket.ws.close()

        assert said[0] == said[1] == socket.id == (await browser.get()).data["id"]

    async def test_the_pattern_of_1_1_1(self, serve: Serve, storage: AbstractStorage) -> None:
        """A subclass without overrides logs out by the pattern of 1.1.1."""

        class Mine(SessionWSRegistry):
            pass

        site = await serve(storage, {"/bye": out_by_pattern}, registry=Mine(timeouts=QUICK))
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        answer = await browser.get("/bye")

        assert (answer.status, await socket.code()) == (302, AGAIN)
        assert "ann" not in await site.presented(stale)
