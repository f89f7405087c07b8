"""
What a request saves is judged once, when its handler is done.
"""

from __future__ import annotations

import asyncio

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session import AbstractStorage, Session
from aiohttp_session.redis_storage import RedisStorage

from aiohttp_session_ws import SessionEnded, new_session_ws_id, renew_session_ws
from tests.promise.conftest import Serve
from tests.promise.site import (
    AGAIN,
    DEAD,
    Site,
    cookie_from_before,
    log_in,
    reached,
    renew,
    user_of,
    write,
)
from tests.support import GatedStorage, Turnstile, until
from tests.support.clock import Wall

ENDS = ("session", "identity", "id")


async def end(site: Site, how: str, cookie: str, id_: str) -> None:
    """End a session of ann's while one of its requests is handled."""
    if how == "session":
        await site.replay(cookie, "/out/helper")
    elif how == "identity":
        await site.registry.end_identity("ann")
    else:
        await site.registry.end_session(id_)


async def stream(request: web.Request) -> web.StreamResponse:
    """Invalidate the session in a streamed response, too late for a cookie."""
    response = web.StreamResponse()
    await response.prepare(request)
    (await aiohttp_session.get_session(request)).invalidate()
    await response.write(b"bye")
    return response


async def redirect(request: web.Request) -> web.Response:
    """Write into the session, and redirect."""
    await write(request)
    raise web.HTTPFound("/page")


async def refuse(request: web.Request) -> web.Response:
    """Write into the session, and refuse."""
    await write(request)
    raise web.HTTPForbidden


VIEWS = {"/stream": stream, "/redirect": redirect, "/refuse": refuse}


class TestEndedMeanwhile:
    @pytest.mark.parametrize("how", ENDS)
    @pytest.mark.parametrize("at", ["start", "end"])
    @pytest.mark.parametrize(
        "path", ["/write?cart=1", "/renew", "/new_id", "/delete_id", "/login/renew"]
    )
    async def test_nothing_is_brought_back(
        self, serve: Serve, storage: AbstractStorage, how: str, at: str, path: str
    ) -> None:
        """A session that ends during a request isn't revived by the request's save."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        cookie, id_ = browser.cookie, (await browser.get()).data["id"]
        async with site.held(browser, path, at=at):
            await end(site, how, cookie, id_)

        assert "ann" not in await site.presented(browser.cookie)
        assert "ann" not in await site.presented(cookie)

    @pytest.mark.parametrize("how", ENDS)
    async def test_what_it_ends_is_ended(
        self, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """A log-out that is overtaken by another end still ends the session."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        cookie, id_ = browser.cookie, (await browser.get()).data["id"]
        async with site.held(browser, "/out/invalidate"):
            await end(site, how, cookie, id_)

        assert "ann" not in await site.presented(cookie)

    @pytest.mark.parametrize("how", ["/login?user=bob", "/login/new?user=bob"])
    async def test_a_log_in_of_another(
        self, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """Another user's log-in in a session that ends meanwhile begins one that is saved."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        async with site.held(browser, how):
            await site.registry.end_identity("ann")

        assert await site.presented(browser.cookie) == ("bob", "bob")

    async def test_what_arrival_has_given(self, serve: Serve, cookies: AbstractStorage) -> None:
        """A session from before the installation isn't saved after it has ended."""
        site = await serve(cookies, identify=user_of)
        browser = await site.browser(await cookie_from_before(cookies, user="ann"))
        cookie = browser.cookie
        async with site.held(browser, "/page"):
            await site.registry.end_identity("ann")

        assert browser.cookie == cookie


class TestRightAfterAnEnd:
    async def test_what_is_put_into_the_empty_session(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage
    ) -> None:
        """Writes into the empty session aren't saved for ten seconds after the end."""
        site = await serve(cookies)
        browser = await site.logged_in()
        late = await site.browser(browser.cookie)
        await browser.get("/out/pattern")
        assert not (await late.get("/write?cart=1")).saved

        clock.advance(11)
        assert (await late.get("/write?cart=1")).saved
        assert (await late.get()).data["cart"] == "1"

    @pytest.mark.parametrize("renewal", [renew_session_ws, new_session_ws_id])
    async def test_a_renewal(
        self, serve: Serve, storage: AbstractStorage, renewal: object
    ) -> None:
        """A renewal in the empty session after an end raises no error."""
        failed: list[SessionEnded] = []

        async def view(request: web.Request) -> web.Response:
            response = web.Response()
            try:
                if renewal is new_session_ws_id:
                    await new_session_ws_id(request)
                else:
                    await renew_session_ws(request, response)
            except SessionEnded as exc:
                failed.append(exc)
            return response

        site = await serve(storage, {"/view": view})
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get("/out/new_session")
        answer = await site.replay(stale, "/view")

        assert (answer.status, failed) == (200, [])


class TestAnswers:
    @pytest.mark.parametrize("path", ["/redirect?cart=1", "/refuse?cart=1", "/write?cart=1"])
    async def test_are_saved(self, serve: Serve, storage: AbstractStorage, path: str) -> None:
        """A redirect and an error response save the view's changes."""
        site = await serve(storage, VIEWS)
        browser = await site.logged_in()
        await browser.get(path)

        assert (await browser.get()).data["cart"] == "1"
        assert (await browser.open()).user == "ann"

    async def test_an_ended_session_of_others(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A view that fails because another session has ended saves nothing."""

        async def follow(request: web.Request) -> web.Response:
            await log_in(request)
            site.registry.register("of another", web.WebSocketResponse())
            return web.Response()

        site = await serve(storage, {"/follow": follow}, identify=user_of)
        await site.registry.end_session("of another")
        browser = await site.browser()
        await browser.get("/write?lang=de")
        socket = await browser.open()
        answer = await browser.get("/follow")

        assert (answer.status, answer.saved) == (403, False)
        assert await site.presented(browser.cookie) == (None, None)
        assert await socket.lives()

    async def test_a_stream(self, serve: Serve, storage: AbstractStorage) -> None:
        """A log-out in a streamed response is settled when its handler is done."""
        site = await serve(storage, VIEWS)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/stream")

        assert await socket.code() == DEAD
        assert "ann" not in await site.presented(stale)

    @pytest.mark.parametrize("path", ["/nowhere", "/refuse"])
    async def test_a_newcomer_who_gets_an_error(
        self, serve: Serve, storage: AbstractStorage, path: str
    ) -> None:
        """A newcomer who gets an error gets no cookie."""
        site = await serve(storage, VIEWS)
        answer = await (await site.browser()).get(path)

        assert (answer.status, answer.saved) in ((404, False), (403, False))

    async def test_a_visitor(self, serve: Serve, storage: AbstractStorage) -> None:
        """A visitor whose page was served has the same id on every page."""
        site = await serve(storage)
        browser = await site.browser()
        ids = [(await browser.get()).data["id"] for _ in range(2)]
        socket = await browser.open()

        assert ids == [socket.id] * 2

    @pytest.mark.parametrize("path", ["/out/invalidate", "/out/new_session"])
    async def test_what_is_left_empty(
        self, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """An empty session's cookie is deleted or holds nothing."""
        site = await serve(cookies)
        browser = await site.logged_in()
        answer = await browser.get(path)

        assert answer.saved
        assert browser.cookie in ("", 'AIOHTTP_SESSION="{}"')


class TestHandshakes:
    async def test_a_visitors_is_saved(self, serve: Serve, storage: AbstractStorage) -> None:
        """A handshake that gives an id saves it: page and socket have the same."""
        site = await serve(storage)
        browser = await site.browser()
        socket = await browser.open()

        assert (await browser.get()).data["id"] == socket.id

    async def test_nothing_else_is(self, serve: Serve, storage: AbstractStorage) -> None:
        """A handshake of a session that has an id sets no cookie."""
        site = await serve(storage)
        browser = await site.logged_in()
        before = browser.cookie
        await browser.open()

        assert browser.cookie == before

    async def test_it_changed_meanwhile(self, serve: Serve, storage: AbstractStorage) -> None:
        """A handshake that gives an id to a server-side session changed meanwhile gets 4403."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return True

        site = await serve(storage, authorize=authorize)
        cookie = await cookie_from_before(storage, user="ann")
        asked.shut = True
        knocking = asyncio.ensure_future(site.knock(cookie))
        await reached(asked)
        await (await site.browser(cookie)).get("/write?cart=1")
        asked.let()

        assert await knocking == (AGAIN if isinstance(storage, RedisStorage) else "ann")


class SlowSave(AbstractStorage):
    """A storage that can be paused before it saves."""

    def __init__(self, inner: AbstractStorage) -> None:
        super().__init__(max_age=inner.max_age)
        self.inner = inner
        self.saving = Turnstile()

    async def load_session(self, request: web.Request) -> Session:
        """Load without a pause."""
        return await self.inner.load_session(request)

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: Session
    ) -> None:
        """Wait, then save."""
        await self.saving()
        await self.inner.save_session(request, response, session)


async def renew_and_write(request: web.Request) -> web.Response:
    """Write into the session, and renew it."""
    (await aiohttp_session.get_session(request))["step"] = "2"
    return await renew(request)


class TestOnTheServer:
    """A replaced generation in a server-side storage can only come from a race."""

    @pytest.mark.parametrize("storage", ["redis"], indirect=True)
    @pytest.mark.parametrize("path", ["/renew", "/new_id", "/login/renew"])
    async def test_a_page_between_record_and_save(
        self, clock: Wall, serve: Serve, storage: AbstractStorage, path: str
    ) -> None:
        """A page between a renewal's record and its save is served, and the session survives."""
        slow = SlowSave(storage)
        site = await serve(slow, identify=user_of)
        browser = await site.logged_in()
        slow.saving.shut = True
        renewing = asyncio.ensure_future(browser.get(path))
        await reached(slow.saving)
        slow.saving.shut = False
        assert await browser.user() == "ann"
        await browser.get("/write?cart=1")
        slow.saving.let()
        await renewing

        assert await site.presented(browser.cookie) == ("ann", "ann")
        clock.advance(31)
        assert await site.presented(browser.cookie) == ("ann", "ann")
        await browser.get("/out/helper")
        assert "ann" not in await site.presented(browser.cookie)

    @pytest.mark.parametrize("storage", ["redis"], indirect=True)
    async def test_an_older_copy_saved_by_somebody_else(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """An older copy saved by another program logs no user out."""
        site = await serve(storage)
        browser = await site.logged_in()
        request = make_mocked_request("GET", "/", headers={"Cookie": browser.cookie})
        older = await storage.load_session(request)
        await browser.get("/renew")
        await browser.get("/page")
        await storage.save_session(request, web.Response(), older)

        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("storage", ["redis"], indirect=True)
    async def test_a_handshake_repairs_it_in_memory_only(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A handshake between a renewal's record and its save doesn't undo that save."""
        slow = SlowSave(storage)
        site = await serve(slow, {"/step": renew_and_write}, identify=user_of)
        browser = await site.logged_in()
        stale = browser.cookie
        slow.saving.shut = True
        renewing = asyncio.ensure_future(browser.get("/step"))
        await reached(slow.saving)
        (held,) = slow.saving.waiting
        knocking = asyncio.ensure_future(site.knock(stale))
        await until(lambda: knocking.done() or len(slow.saving.waiting) > 1)
        held.set_result(None)
        await renewing
        slow.saving.let()

        assert await knocking == "ann"
        assert (await browser.get()).data["step"] == "2"


class TestLoadedLate:
    async def test_a_log_out_while_it_is_loaded(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A session that ends while it is loaded is judged as ended."""
        gated = GatedStorage(storage)
        site = await serve(gated)
        browser = await site.logged_in()
        stale, id_ = browser.cookie, (await browser.get()).data["id"]
        gated.loading.shut = True
        page = asyncio.ensure_future(site.replay(stale))
        await reached(gated.loading)
        handshake = asyncio.ensure_future(site.knock(stale))
        await site.registry.end_session(id_)
        gated.loading.let()

        assert (await page).data.get("user") is None
        assert await handshake == DEAD
