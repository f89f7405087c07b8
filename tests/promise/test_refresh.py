"""
A renewal that keeps its sockets open under the new id, and lets no session escape its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import (
    Close,
    Connection,
    Expiry,
    SessionWSRegistry,
    renew_session_ws,
    schedule_close_all_session_ws,
    session_ws,
)
from tests.promise.conftest import Serve
from tests.promise.feeds import Feed, ended, listen
from tests.promise.site import AGAIN, DEAD, OUT, Site, log_in, reached, user_of
from tests.support import Turnstile, until
from tests.support.inspect import connections
from tests.support.storages import storage_named


async def refresh(request: web.Request) -> web.Response:
    """Renew the id and keep the sockets; with a query, log in as well."""
    response = await log_in(request) if request.query else web.Response()
    await renew_session_ws(request, response, sockets="keep")
    return response


async def both(request: web.Request) -> web.Response:
    """Renew and keep the sockets, and also order them closed."""
    response = web.Response()
    await renew_session_ws(request, response, sockets="keep")
    await schedule_close_all_session_ws(request, response)
    return response


async def start(
    serve: Serve,
    storage: AbstractStorage | None = None,
    views: dict[str, Any] | None = None,
    **options: Any,
) -> Site:
    """Start a site with the views above."""
    views = {"/refresh": refresh, "/both": both, **(views or {})}
    return await serve(storage, views, **{"identify": user_of, **options})


async def id_of(browser: Any) -> str:
    """Return the id that a page reports."""
    return str((await browser.get()).data["id"])


class TestKeep:
    async def test_sockets_go_on(self, serve: Serve, storage: AbstractStorage) -> None:
        """Kept sockets are found only under the new id, and ``on_refresh`` is called."""
        site = await start(serve, storage)
        told: list[Connection] = []

        async def note(connection: Connection) -> None:
            told.append(connection)

        site.registry.on_refresh.append(note)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/refresh")
        new_id = await id_of(browser)

        assert new_id != socket.id
        assert await socket.lives()
        assert told == connections(site.registry)
        assert told[0].session_ws_id == new_id
        assert list(site.registry) == [new_id]
        assert (await site.registry.send_session(new_id, "news")).sockets == 1

    async def test_many_times(self, serve: Serve, storage: AbstractStorage) -> None:
        """Repeated renewals keep the sockets."""
        site = await start(serve, storage)
        browser = await site.logged_in()
        first = await browser.open()
        for _ in range(3):
            await browser.get("/refresh")
            second = await browser.open()
        assert {c.session_ws_id for c in connections(site.registry)} == {await id_of(browser)}

        assert await first.lives()
        assert await second.lives()

    async def test_two_at_once(self, serve: Serve, storage: AbstractStorage) -> None:
        """After two concurrent renewals the sockets are found under the later id."""
        site = await start(serve, storage)
        browser = await site.logged_in()
        first = await browser.open()
        async with site.held(browser, "/refresh", at="start"):
            await browser.get("/refresh")
            second = await browser.open()
        last = await id_of(browser)
        sent = await site.registry.send_session(last, "news")
        report = await site.registry.recheck("ann")

        assert (sent.sockets, report.sockets) == (2, 0)
        assert {c.session_ws_id for c in connections(site.registry)} == {last}
        assert await first.lives()
        assert await second.lives()

    async def test_streams(self, serve: Serve) -> None:
        """A stream stays open, and ends with the session."""
        feed = Feed()
        site = await start(serve, views={"/events": feed.events})
        browser = await site.logged_in()
        stream = await listen(browser)
        await browser.get("/refresh")
        assert feed.running == 1
        await browser.get("/out/helper")

        assert await ended(stream)

    async def test_a_lost_answer(self, serve: Serve, storage: AbstractStorage, clock: Any) -> None:
        """A browser that never received the new cookie keeps its session and its socket."""
        site = await start(serve, storage)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/refresh", lost=True)
        clock.advance(31)

        assert await socket.lives()
        assert await browser.user() == "ann"
        again = await browser.open()
        assert again.user == "ann"
        await browser.get("/out/helper")
        assert (await socket.code(), await again.code()) == (DEAD, DEAD)

    @pytest.mark.parametrize("kind", ["cookie", "server"])
    async def test_the_check(
        self, serve: Serve, kind: str, request: pytest.FixtureRequest
    ) -> None:
        """The periodic check, which may only have the older cookie, closes no kept socket."""
        stack = contextlib.AsyncExitStack()
        storage = None
        if kind == "server":
            context = storage_named("redis", lambda: request.getfixturevalue("redis_port"))
            storage = await stack.enter_async_context(context)
        checks = 0

        async def identify(request: web.Request) -> str | None:
            nonlocal checks
            checks += 1
            return await user_of(request)

        site = await start(serve, storage, identify=identify, expiry=Expiry(revalidate_every=1.0))
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/refresh")
        (connection,) = connections(site.registry)
        checks, due = 0, connection.check_at
        await until(lambda: connection.check_at > due)
        due = connection.check_at
        await until(lambda: connection.check_at > due)

        assert await socket.lives()
        await site.stack.aclose()
        await stack.aclose()

    @pytest.mark.parametrize("answer", [False, Close(DEAD, "no")])
    async def test_the_check_says_no(
        self, serve: Serve, cookies: AbstractStorage, answer: object
    ) -> None:
        """A kept socket that ``authorize`` now refuses is asked to reconnect."""
        refused: list[object] = []

        async def authorize(request: web.Request) -> object:
            return refused[0] if refused else True

        site = await start(serve, cookies, authorize=authorize)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/refresh")
        refused.append(answer)
        report = await site.registry.recheck("ann")

        assert report.sockets == 1
        assert await socket.code() == AGAIN

    async def test_rechecked_meanwhile(self, serve: Serve, storage: AbstractStorage) -> None:
        """A pending recheck is carried out though the socket was filed under a new id."""
        gate, banned = Turnstile(), False

        async def authorize(request: web.Request) -> bool:
            allowed = not banned
            await gate()
            return allowed

        site = await start(serve, storage, authorize=authorize)
        browser = await site.logged_in()
        socket = await browser.open()
        gate.shut = True
        before = asyncio.ensure_future(site.registry.recheck("ann"))
        await reached(gate)
        banned = True
        after = asyncio.ensure_future(site.registry.recheck("ann"))
        await browser.get("/refresh")
        gate.let()
        await asyncio.gather(before, after)

        assert await socket.code() == AGAIN

    @pytest.mark.parametrize("when", ["a check runs", "it is not saved yet"])
    async def test_checked_meanwhile(self, serve: Serve, redis_port: int, when: str) -> None:
        """A check that loads the session from before the renewal closes nothing."""
        gate = Turnstile()
        async with storage_named("redis", lambda: redis_port) as storage:
            save = storage.save_session

            async def authorize(request: web.Request) -> bool:
                await gate()
                return True

            async def save_slowly(*args: Any) -> None:
                await gate()
                await save(*args)

            options: dict[str, Any] = {}
            if when == "a check runs":
                options["authorize"] = authorize
            site = await start(serve, storage, **options)
            browser = await site.logged_in()
            socket = await browser.open()
            gate.shut = True
            if options:
                check = asyncio.ensure_future(site.registry.recheck("ann"))
                await reached(gate)
                await browser.get("/refresh")
                gate.let()
                report = await check
            else:
                storage.save_session = save_slowly  # type: ignore[assignment,method-assign]
                refreshing = asyncio.ensure_future(browser.get("/refresh"))
                await reached(gate)
                report = await site.registry.recheck("ann")
                gate.let()
                await refreshing

            assert report.sockets == 0
            assert await socket.lives()
            await site.stack.aclose()


class TestNothingEscapes:
    @pytest.mark.parametrize("path", [*OUT, "/everywhere", "/out/del"])
    async def test_a_log_out(self, serve: Serve, storage: AbstractStorage, path: str) -> None:
        """A log-out closes every kept socket and ends every copy of every cookie."""
        site = await start(serve, storage)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/refresh")
        newer = browser.cookie
        second = await browser.open()
        await browser.get(path)

        code = AGAIN if path == "/out/pattern" else DEAD
        assert (await socket.code(), await second.code()) == (code, code)
        assert await site.presented(stale) in site.out(code)
        assert await site.presented(newer) in site.out(code)

    @pytest.mark.parametrize("which", ["old", "new"])
    async def test_by_an_id(self, serve: Serve, which: str) -> None:
        """An order by the old or the new id ends the session."""
        site = await start(serve)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/refresh")
        report = await site.registry.end_session(
            socket.id if which == "old" else await id_of(browser)
        )

        assert report.sockets == 1
        assert await socket.code() == DEAD
        assert await site.presented(stale) in site.out()
        assert await site.presented(browser.cookie) in site.out()

    async def test_by_its_own_socket(self, serve: Serve) -> None:
        """A close order by a socket's handler applies to the session's current id."""

        async def commands(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.send_json({"user": "", "id": ""})
                async for _ in ws:
                    await schedule_close_all_session_ws(request, web.Response())
            return ws

        site = await start(serve, views={"/commands": commands})
        browser = await site.logged_in()
        commander, socket = await browser.open("/commands"), await browser.open()
        await browser.get("/refresh")
        await commander.ws.send_str("close them")

        assert (await socket.code(), await commander.code()) == (AGAIN, AGAIN)

    async def test_what_was_registered_by_hand(self, serve: Serve) -> None:
        """An object registered by hand is kept, and closed with the session."""

        class Thing:
            closed: int | None = None

            async def close(self, *, code: int, message: bytes) -> None:
                self.closed = code

        site = await start(serve)
        browser = await site.browser()
        await browser.get("/login")
        thing, kept, first_id = Thing(), Thing(), await id_of(browser)
        site.registry.register(first_id, thing)
        site.registry.register(first_id, kept)
        await browser.get("/refresh")
        assert not thing.closed
        site.registry.unregister(first_id, kept)
        await browser.get("/out/helper")
        await until(lambda: not connections(site.registry))

        assert [thing.closed, kept.closed] == [DEAD, None]

    async def test_what_was_registered_by_hand_meanwhile(self, serve: Serve) -> None:
        """An object registered by hand follows the later of two concurrent renewals."""

        class Thing:
            closed: int | None = None

            async def close(self, *, code: int, message: bytes) -> None:
                self.closed = code

        site = await start(serve)
        browser, thing = await site.logged_in(), Thing()
        site.registry.register(await id_of(browser), thing)
        async with site.held(browser, "/refresh", at="start"):
            await browser.get("/refresh")
        await site.registry.close_all_session(await id_of(browser))

        assert thing.closed == AGAIN

    @pytest.mark.parametrize("query", ["?user=bob"])
    async def test_somebody_else(self, serve: Serve, query: str) -> None:
        """A change of user closes the sockets."""
        site = await start(serve)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/refresh" + query)

        assert await socket.code() == AGAIN
        assert "ann" not in await site.presented(stale)

    async def test_a_visitor_who_logs_in(self, serve: Serve) -> None:
        """A visitor's log-in closes the sockets."""
        site = await start(serve)
        browser = await site.browser()
        await browser.get()
        socket = await browser.open()
        await browser.get("/refresh?user=ann")

        assert await socket.code() == AGAIN

    async def test_an_order_to_close(self, serve: Serve) -> None:
        """A close order by the same request is carried out."""
        site = await start(serve)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/both")

        assert await socket.code() == AGAIN

    async def test_a_stale_request(self, serve: Serve, cookies: AbstractStorage) -> None:
        """A renewal with an older cookie doesn't move the sockets."""
        site = await start(serve, cookies)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/renew")
        assert await socket.code() == AGAIN
        newer = await browser.open()
        await site.replay(stale, "/refresh")

        assert await newer.lives()
        assert newer.id == await id_of(browser)

    async def test_a_request_that_is_overtaken(self, serve: Serve) -> None:
        """An end during the request closes the sockets."""
        site = await start(serve)
        browser = await site.logged_in()
        socket = await browser.open()
        async with site.held(browser, "/refresh"):
            await site.registry.end_session(socket.id)

        assert await socket.code() == DEAD
        assert await browser.user() is None
        assert not connections(site.registry)


class TestHooks:
    async def test_unregister(self, serve: Serve) -> None:
        """``unregister`` is called with the id that ``register`` was called with."""
        calls: list[tuple[str, object]] = []

        class Noting(SessionWSRegistry):
            def register(self, session_ws_id: Any, ws: Any, **options: Any) -> None:
                calls.append(("register", session_ws_id))

            def unregister(self, session_ws_id: Any, ws: Any) -> None:
                calls.append(("unregister", session_ws_id))

        site = await start(serve, registry=Noting(identify=user_of))
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/refresh")
        await browser.get("/refresh")
        await socket.ws.close()
        await until(lambda: len(calls) == 2)

        assert calls == [("register", socket.id), ("unregister", socket.id)]

    async def test_a_receiver_that_fails(self, serve: Serve) -> None:
        """A failing receiver of ``on_refresh`` closes no socket."""

        async def fail(connection: Connection) -> None:
            raise RuntimeError("no")

        site = await start(serve)
        site.registry.on_refresh.append(fail)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/refresh")

        assert await socket.lives()

    async def test_a_mistake(self, serve: Serve) -> None:
        """A value other than ``"close"`` and ``"keep"`` raises an error and renews nothing."""
        errors: list[Exception] = []

        async def wrong(request: web.Request) -> web.Response:
            response = web.Response()
            try:
                await renew_session_ws(request, response, sockets="stay")  # type: ignore[arg-type]
            except ValueError as exc:
                errors.append(exc)
            return response

        site = await start(serve, views={"/wrong": wrong})
        browser = await site.logged_in()
        before = browser.cookie
        await browser.get("/wrong")

        assert "'close' or 'keep'" in str(errors[0])
        assert browser.cookie == before
