"""
A streamed response ends with its session, as a websocket does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from aiohttp_sse import EventSourceResponse

from aiohttp_session_ws import Expiry, Limits, NotSetUp, SessionWSRegistry, session_stream
from tests.promise.conftest import Serve
from tests.promise.feeds import EVENTS, Feed, Reader, ended, listen, status_of
from tests.promise.site import AGAIN, DEAD, OUT, user_of
from tests.support import PATIENCE, QUICK, AiohttpClient, Stopwatch, TlsPeer, make_app, until
from tests.support.inspect import connections, inspect
from tests.support.slow_peers import narrow

BOUND = QUICK.close + QUICK.handler_grace + 1.0  # seconds


@pytest.fixture
def feed() -> Feed:
    """Streaming views."""
    return Feed()


@pytest.fixture(params=[True, False], ids=["cancelled", "not cancelled"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Whether the server cancels the handler when the client disconnects."""
    return {"handler_cancellation": request.param}


def views(feed: Feed) -> dict[str, Any]:
    return {"/events": feed.events, "/flood": feed.flood}


class TestOrders:
    @pytest.mark.parametrize("path", [*OUT, "/everywhere"])
    async def test_a_log_out(
        self, serve: Serve, storage: AbstractStorage, feed: Feed, path: str
    ) -> None:
        """Any log-out cuts off the stream and cancels its handler."""
        site = await serve(storage, views(feed), identify=user_of)
        browser = await site.logged_in()
        stale, stream = browser.cookie, await listen(browser)
        await browser.get(path)

        assert await ended(stream)
        await feed.gone(site.registry)
        assert feed.cancelled == 1
        refused = 409 if path == "/out/pattern" else 204
        allowed = (refused, 200) if isinstance(storage, RedisStorage) else (refused,)
        assert await status_of(site, stale, **EVENTS) in allowed
        assert await site.seen(stale) is None

    async def test_orders_of_an_operator(self, serve: Serve, feed: Feed) -> None:
        """An order by id counts streams, and waits for their handlers."""
        site = await serve(None, views(feed))
        browser = await site.logged_in()
        stream, socket = await listen(browser), await browser.open()
        report = await site.registry.end_session(socket.id)

        assert (report.sockets, report.aborted, report.cancelled) == (2, 0, 1)
        assert await ended(stream)
        await feed.gone(site.registry)

    @pytest.mark.parametrize("path", ["/renew", "/close"])
    async def test_an_order_to_reconnect(self, serve: Serve, feed: Feed, path: str) -> None:
        """An order to reconnect cuts off the stream, and the next one opens."""
        site = await serve(None, views(feed))
        browser = await site.logged_in()
        stream = await listen(browser)
        await browser.get(path)

        assert await ended(stream)
        again = await listen(browser)
        again.close()

    async def test_before_it_is_prepared(self, serve: Serve) -> None:
        """An order before the response is prepared cancels the handler."""
        arrived = asyncio.Event()

        async def slow(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                arrived.set()
                await asyncio.Event().wait()
            return response

        site = await serve(None, {"/slow": slow})
        browser = await site.logged_in()
        _, writer = await site.send("/slow", browser.cookie)
        async with asyncio.timeout(PATIENCE):
            await arrived.wait()
        report = await site.registry.close_all()

        assert (report.sockets, report.cancelled) == (1, 1)
        writer.close()

    async def test_by_its_own_handler(self, serve: Serve) -> None:
        """A handler that ends its own session is neither waited for nor cancelled."""
        done = asyncio.Event()

        async def leave(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response) as connection:
                await response.prepare(request)
                await response.write(b"data: hello\n\n")
                report = await site.registry.end_session(connection.session_ws_id)
                assert (report.sockets, report.cancelled) == (1, 0)
                done.set()
            return response

        site = await serve(None, {"/events": leave})
        browser = await site.logged_in()
        stream = await listen(browser)

        assert await ended(stream)
        assert done.is_set()
        assert await browser.user() is None

    async def test_the_check(self, serve: Serve, feed: Feed) -> None:
        """The periodic check ends a stream whose identity has changed."""
        users: dict[str, str | None] = {"now": "ann"}
        site = await serve(
            None,
            views(feed),
            identify=lambda _: users["now"],
            expiry=Expiry(revalidate_every=1.0),
        )
        stream = await listen(await site.logged_in())
        users["now"] = None

        assert await ended(stream)
        await feed.gone(site.registry)

    @pytest.mark.parametrize("cookie", [False, True], ids=["", "with a cookie of its own"])
    async def test_the_check_of_a_post(self, serve: Serve, cookie: bool) -> None:
        """The periodic check calls ``authorize`` with the body of a POST."""
        bodies = []

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            if cookie:
                response.set_cookie("theme", "dark")
            async with session_stream(request, response):
                await response.prepare(request)
                await response.write(b"data: hello\n\n")
                await asyncio.Event().wait()
            return response

        async def authorize(request: web.Request) -> bool:
            bodies.append(await request.json())
            return len(bodies) < 3

        site = await serve(
            None, {"/answer": answer}, authorize=authorize, expiry=Expiry(revalidate_every=1.0)
        )
        browser = await site.logged_in()
        url = site.url.with_path("/answer")
        stream = await browser.session.post(url, json={"question": 1})
        assert await stream.content.readline() == b"data: hello\n"

        assert await ended(stream)
        assert bodies == [{"question": 1}] * 3

    async def test_the_check_of_two_posts(self, serve: Serve) -> None:
        """A recheck decides for each POST by its own body."""
        rooms = ["one", "two"]

        async def visit(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                await response.prepare(request)
                await response.write(b"data: hello\n\n")
                await asyncio.Event().wait()
            return response

        async def authorize(request: web.Request) -> bool:
            return await request.json() in rooms

        site = await serve(None, {"/visit": visit}, authorize=authorize, identify=user_of)
        browser = await site.logged_in()
        url = site.url.with_path("/visit")
        one, two = [await browser.session.post(url, json=room) for room in tuple(rooms)]
        for stream in (one, two):
            assert await stream.content.readline() == b"data: hello\n"
        rooms.remove("one")
        report = await site.registry.recheck("ann")

        assert report.sockets == 1
        assert await ended(one)
        assert not two.content.exception()
        two.close()

    async def test_the_shutdown(self, serve: Serve, feed: Feed) -> None:
        """The shutdown cancels the handler."""
        site = await serve(None, views(feed))
        stream = await listen(await site.logged_in())
        await site.stack.aclose()
        stream.close()

        assert (feed.running, feed.cancelled) == (0, 1)

    async def test_a_limit(self, serve: Serve, feed: Feed) -> None:
        """A new stream above the limit cuts off the oldest."""
        site = await serve(None, views(feed), limits=Limits(per_session=1))
        browser = await site.logged_in()
        first = await listen(browser)
        second = await listen(browser)

        assert await ended(first)
        assert len(connections(site.registry)) == 1
        second.close()


class TestRudeClients:
    async def test_one_that_stops_reading(
        self, serve: Serve, feed: Feed, how: dict[str, Any]
    ) -> None:
        """A stream whose client stops reading is aborted at the deadline."""
        site = await serve(None, views(feed), site=how)
        browser = await site.logged_in()
        peer = await Reader.get(site, "/flood", browser.cookie)
        await until(lambda: connections(site.registry))
        (connection,) = connections(site.registry)
        narrow(connection)
        transport = connection.transport
        assert transport is not None
        await until(lambda: transport.get_write_buffer_size() > 50_000)
        watch = Stopwatch()
        report = await site.registry.end_session(connection.session_ws_id)

        assert (report.sockets, report.aborted, report.cancelled) == (1, 1, 1)
        assert watch.stop() < BOUND
        await feed.gone(site.registry)
        peer.close()

    @pytest.mark.parametrize("path", ["/events", "/flood"])
    async def test_one_that_vanishes(
        self, serve: Serve, feed: Feed, how: dict[str, Any], path: str
    ) -> None:
        """The handler of a client that vanishes ends, also without handler_cancellation."""
        site = await serve(None, views(feed), site=how)
        browser = await site.logged_in()
        peer = await Reader.get(site, path, browser.cookie)
        await until(lambda: feed.running)
        found = connections(site.registry)
        attended = list(inspect(site.registry).connections.checked_each_tick)
        peer.vanish()

        assert attended == found  # checked at each tick, however many others there are
        await feed.gone(site.registry)

    async def test_one_that_keeps_its_half_open(
        self, serve: Serve, feed: Feed, how: dict[str, Any]
    ) -> None:
        """A stream whose client never closes the connection ends in bounded time."""
        site = await serve(None, views(feed), site=how)
        browser = await site.logged_in()
        peer = await Reader.get(site, "/events", browser.cookie)
        await until(lambda: feed.running)
        watch = Stopwatch()
        report = await site.registry.close_all()

        assert report.sockets == 1
        assert watch.stop() < BOUND
        await feed.gone(site.registry)
        peer.close()

    @pytest.mark.parametrize("path", ["/events", "/flood"])
    async def test_over_tls(
        self, aiohttp_client: AiohttpClient, tls: ssl.SSLContext, feed: Feed, path: str
    ) -> None:
        """A stream whose client never answers TLS's close_notify ends in bounded time."""
        registry = SessionWSRegistry(timeouts=QUICK)
        app = make_app(registry)
        app.router.add_get("/events", feed.events)
        app.router.add_get("/flood", feed.flood)
        client = await aiohttp_client(app, tls=tls)
        peer = await TlsPeer.connect(client.make_url(path))
        await until(lambda: feed.running)
        watch = Stopwatch()
        report = await registry.close_all()

        assert report.sockets == 1
        assert watch.stop() < BOUND
        await feed.gone(registry)
        peer.close()

    async def test_a_handler_that_does_not_leave(self, serve: Serve) -> None:
        """An order doesn't wait for a handler that ignores cancellation."""
        stop, cancelled = asyncio.Event(), 0

        async def stubborn(request: web.Request) -> web.StreamResponse:
            nonlocal cancelled
            response = web.StreamResponse()
            async with session_stream(request, response):
                await response.prepare(request)
                while not stop.is_set():
                    try:
                        await stop.wait()
                    except asyncio.CancelledError:
                        cancelled += 1
            return response

        site = await serve(None, {"/stubborn": stubborn})
        browser = await site.logged_in()
        peer = await Reader.get(site, "/stubborn", browser.cookie)
        await peer.read_head()
        watch = Stopwatch()
        report = await site.registry.close_all()
        took = watch.stop()
        await until(lambda: cancelled)
        stop.set()
        peer.close()

        assert (report.sockets, report.cancelled, cancelled) == (1, 1, 1)
        assert took < BOUND


class TestEndedResponses:
    async def test_keep_alive(self, serve: Serve) -> None:
        """A later order doesn't cut off a finished stream, nor its connection."""

        async def short(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                await response.prepare(request)
                await response.write(b"all there is")
                await response.write_eof()
            return response

        site = await serve(None, {"/short": short})
        browser = await site.logged_in()
        peer = await Reader.get(site, "/short", browser.cookie)
        body = b""
        while b"0\r\n\r\n" not in body:
            body += await peer.receive()
        report = await site.registry.close_all()
        await peer.send(f"GET /page HTTP/1.1\r\nHost: {site.url.authority}\r\n\r\n".encode())

        assert b"all there is" in body
        assert report.sockets == 0
        assert (await peer.receive()).startswith(b"HTTP/1.1 200")
        peer.close()

    async def test_an_order_after_its_end(self, serve: Serve) -> None:
        """An order cancels a handler that outlives its response; the client has all of it."""
        wrote = asyncio.Event()

        async def lingering(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                await response.prepare(request)
                await response.write(b"all there is")
                await response.write_eof()
                wrote.set()
                await asyncio.Event().wait()
            return response

        site = await serve(None, {"/lingering": lingering})
        browser = await site.logged_in()
        task = asyncio.ensure_future(browser.get("/lingering"))
        async with asyncio.timeout(PATIENCE):
            await wrote.wait()
        report = await site.registry.close_all()

        assert report.cancelled == 1
        assert (await task).body == "all there is"

    async def test_a_long_poll(self, serve: Serve) -> None:
        """A plain response can be a stream; its session is saved as usual."""

        async def poll(request: web.Request) -> web.StreamResponse:
            response = web.Response(text="news")
            async with session_stream(request, response):
                pass
            return response

        site = await serve(None, {"/poll": poll})
        browser = await site.browser()
        answer = await browser.get("/poll")

        assert answer == (200, "news", True)
        assert browser.cookie


class TestSettled:
    """A handler's changes to its session are settled although it streams."""

    @pytest.mark.parametrize("sent", [False, True])
    @pytest.mark.parametrize("who", ["", "bob"])
    async def test_a_log_out(self, serve: Serve, sent: bool, who: str) -> None:
        """A log-out or a change of user after the stream is settled."""

        async def poll(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse() if sent else web.Response(text="news")
            async with session_stream(request, response):
                if sent:
                    await response.prepare(request)
            (await aiohttp_session.get_session(request))["user"] = who or None
            return response

        site = await serve(None, {"/poll": poll}, identify=user_of)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/poll")

        # A response that was sent before carries no session: no client may reconnect.
        code = AGAIN if who and not sent else DEAD
        assert await socket.code() == code
        assert await site.presented(stale) in site.out(code)

    async def test_a_write(self, serve: Serve) -> None:
        """A write by a user who is logged in closes no socket, and is saved."""

        async def poll(request: web.Request) -> web.StreamResponse:
            response = web.Response(text="news")
            async with session_stream(request, response):
                (await aiohttp_session.get_session(request))["read"] = 1
            return response

        site = await serve(None, {"/poll": poll}, identify=user_of)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/poll")

        assert await socket.lives()
        assert (await browser.get()).data["read"] == 1


class TestLongPolls:
    async def test_a_newcomer_who_waits(self, serve: Serve) -> None:
        """The periodic check uses the cookie that the pending response will set."""
        news, gone = asyncio.Event(), False

        async def poll(request: web.Request) -> web.StreamResponse:
            nonlocal gone
            response = web.Response(text="news")
            try:
                async with session_stream(request, response):
                    await news.wait()
            except asyncio.CancelledError:
                gone = True
                raise
            return response

        storage = EncryptedCookieStorage(b"k" * 32, max_age=3600)
        site = await serve(storage, {"/poll": poll}, expiry=Expiry(revalidate_every=1.0))
        browser = await site.browser()
        answer = asyncio.ensure_future(browser.get("/poll"))
        await until(lambda: connections(site.registry))
        (connection,) = connections(site.registry)
        for _ in range(2):
            due = connection.check_at
            await until(lambda due=due: gone or connection.check_at > due)  # type: ignore[misc]
        news.set()

        assert not gone
        assert (await answer).body == "news"


class TestIds:
    async def test_one_is_given(self, serve: Serve, feed: Feed, storage: AbstractStorage) -> None:
        """A session without an id gets one, which the response saves."""
        site = await serve(storage, views(feed))
        browser = await site.browser()
        stream = await listen(browser)
        socket = await browser.open()

        assert "AIOHTTP_SESSION" in stream.cookies
        assert [c.session_ws_id for c in connections(site.registry)] == [socket.id] * 2
        await browser.get("/out/helper")
        assert await ended(stream)

    async def test_another_response_cookie_stays(self, serve: Serve, feed: Feed) -> None:
        """A session that has an id is not saved again."""
        site = await serve(None, views(feed))
        browser = await site.logged_in()
        stream = await listen(browser)

        assert stream.cookies == SimpleCookie()
        stream.close()


class TestLooking:
    async def test_no_pushes(self, serve: Serve, feed: Feed) -> None:
        """A stream is listed and counted, and skipped by pushes."""
        site = await serve(None, views(feed), identify=user_of)
        browser = await site.logged_in()
        stream, socket = await listen(browser), await browser.open()
        registry = site.registry
        delivery = await registry.send_identity("ann", "news")

        assert (delivery.sockets, delivery.complete) == (1, True)
        assert (await registry.broadcast("more")).sockets == 1
        found = await registry.connections(identity="ann")
        assert sorted(info.path or "" for info in found) == ["/events", "/ws"]
        assert await registry.count() == 2
        assert registry[socket.id] == {c.ws for c in connections(registry) if not c.is_stream}
        stream.close()


class TestMistakes:
    async def test_a_body_that_comes_later(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A body streamed after the block, where no order ends it, is logged as a warning."""

        async def pieces() -> AsyncIterator[bytes]:
            yield b"news"

        async def late(request: web.Request) -> web.StreamResponse:
            response = web.Response(body=pieces())
            async with session_stream(request, response):
                return response

        site = await serve(None, {"/late": late})
        browser = await site.browser()
        assert (await browser.get("/late")).body == "news"

        assert "streamed after its session_stream() block" in caplog.text

    async def test_entered_too_late(self, serve: Serve) -> None:
        """A block entered after the response has begun raises an error that says so."""
        errors: list[Exception] = []

        async def late(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                async with session_stream(request, response):
                    pass
            except NotSetUp as exc:
                errors.append(exc)
            return response

        site = await serve(None, {"/late": late})
        await (await site.logged_in()).get("/late")

        assert "before response.prepare()" in str(errors[0])

    async def test_entered_twice(self, serve: Serve, feed: Feed) -> None:
        """A nested block is refused; the stream still ends with its session."""
        errors: list[Exception] = []

        async def twice(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                try:
                    async with session_stream(request, response):
                        pass
                except NotSetUp as exc:
                    errors.append(exc)
                await response.prepare(request)
                await response.write(b"data: hello\n\n")
                await asyncio.Event().wait()
            return response

        site = await serve(None, {"/twice": twice})
        browser = await site.logged_in()
        stream = await listen(browser, "/twice")
        await browser.get("/out/helper")

        assert await ended(stream)
        await feed.gone(site.registry)
        assert "tied to its session already" in str(errors[0])


class TestAiohttpSSE:
    async def test_as_it_is(self, serve: Serve) -> None:
        """An ``EventSourceResponse`` ends with its session like any other response."""
        finished = asyncio.Event()

        async def events(request: web.Request) -> web.StreamResponse:
            response = EventSourceResponse()
            async with session_stream(request, response):
                await response.prepare(request)
                try:
                    async with response:
                        await response.send("hello")
                        await response.wait()
                finally:
                    finished.set()
            return response

        site = await serve(None, {"/events": events})
        browser = await site.logged_in()
        stream = await browser.session.get(site.url.with_path("/events"))
        assert await stream.content.readline() == b"data: hello\r\n"
        await browser.get("/out/helper")

        assert await ended(stream)
        async with asyncio.timeout(PATIENCE):
            await finished.wait()
        await until(lambda: not connections(site.registry))
