"""
With a server-side storage, where a cookie is only a key, each new lineage gets a new key.
"""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, get_session, new_session
from redis.asyncio import Redis

from aiohttp_session_ws import DEFAULT_SESSION_KEY, end_other_sessions_ws, end_session_ws
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, OUT, log_in, user_of
from tests.support.storages import storage_named

LINEAGE = f"{DEFAULT_SESSION_KEY}_lineage"


@pytest.mark.parametrize("how", ["/login", "/login/renew", "/login/new", "/login/refill"])
class TestLogIn:
    async def test_a_visitor_cookie(
        self, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """A copy of a visitor's cookie is not logged in by the visitor's log-in."""
        site = await serve(storage, identify=user_of)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        stale = browser.cookie
        await browser.get(how)

        assert await site.presented(stale) in site.out(AGAIN)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("out", [*OUT, "/out/del"])
    async def test_after_a_log_out(
        self, serve: Serve, storage: AbstractStorage, how: str, out: str
    ) -> None:
        """A cookie from before a log-out stays anonymous when its browser logs in again."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in(how)
        stale = browser.cookie
        await browser.get(out)
        await browser.get(how)

        assert await browser.user() == "ann"
        assert await site.seen(stale) is None
        assert await site.knock(stale) != "ann"


async def test_another_user(serve: Serve, storage: AbstractStorage) -> None:
    """A copy of ann's cookie isn't bob's when bob logs in with her browser."""
    site = await serve(storage, identify=user_of)
    browser = await site.logged_in()
    stale = browser.cookie
    await browser.get("/login?user=bob")

    assert await site.presented(stale) in site.out(AGAIN)
    assert await site.presented(browser.cookie) == ("bob", "bob")
    assert (await browser.get()).data["lang"] == "de"


async def elsewhere(request: web.Request) -> web.Response:
    """Log out everywhere else."""
    response = web.Response()
    await end_other_sessions_ws(request, response)
    return response


async def log_in_after_end(request: web.Request) -> web.Response:
    """End the session, and log in to the next one."""
    response = await log_in(request)
    await end_session_ws(request, response)
    await log_in(request)
    return response


BEGINS = ["/login?user=bob", "/login/new", "/login/refill", "/out/del", "/elsewhere", "/login/end"]


@pytest.mark.parametrize("how", BEGINS)
async def test_another_tab(serve: Serve, storage: AbstractStorage, how: str) -> None:
    """
    A tab that sends the old cookie while the response is on its way is given no cookie that would
    replace the new one; its socket is refused with a code.
    """
    views = {"/elsewhere": elsewhere, "/login/end": log_in_after_end}
    site = await serve(storage, views, identify=user_of)
    browser = await site.logged_in()
    tab = await site.browser(browser.cookie)
    await browser.get(how)

    asked = [await tab.get(), await tab.get("/write?x=1"), await tab.get("/renew")]
    assert [answer.saved for answer in asked] == [False, False, False]
    assert await site.knock(tab.cookie) == (DEAD if how == "/out/del" else AGAIN)


@pytest.mark.parametrize("how", ["/login?user=bob", "/login/refill", "/out/del"])
async def test_nothing_is_left(serve: Serve, redis_port: int, how: str) -> None:
    """
    Under the key of an ended session the storage keeps only its lineage: records don't last for
    ever.
    """
    async with (
        storage_named("redis", lambda: redis_port) as storage,
        Redis(port=redis_port) as redis,
    ):
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        key = browser.cookie.replace("=", "_", 1)
        before = json.loads(await redis.get(key) or "")["session"]
        await browser.get(how)
        after = json.loads(await redis.get(key) or "")["session"]

        assert browser.cookie.replace("=", "_", 1) != key
        assert before["lang"] == "de"
        assert after == {LINEAGE: before[LINEAGE]}
        await site.stack.aclose()


async def test_its_time(serve: Serve, redis_port: int) -> None:
    """The session's max_age, set by the handler, applies under the new key."""

    async def log_in_for_a_minute(request: web.Request) -> web.Response:
        (await get_session(request)).max_age = 60
        return await log_in(request)

    async with (
        storage_named("redis", lambda: redis_port) as storage,
        Redis(port=redis_port) as redis,
    ):
        site = await serve(storage, {"/login/minute": log_in_for_a_minute}, identify=user_of)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        await browser.get("/login/minute")

        assert 0 < await redis.ttl(browser.cookie.replace("=", "_", 1)) <= 60
        await site.stack.aclose()


async def test_a_key_of_the_application(serve: Serve, redis_port: int) -> None:
    """A key that the application has given to a new session is kept."""

    async def log_in_by_key(request: web.Request) -> web.Response:
        (await new_session(request)).set_new_identity("mine")
        return await log_in(request)

    async with storage_named("redis", lambda: redis_port) as storage:
        site = await serve(storage, {"/login/key": log_in_by_key}, identify=user_of)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        await browser.get("/login/key")

        assert browser.cookie.endswith("=mine")
        assert await site.presented(browser.cookie) == ("ann", "ann")
        await site.stack.aclose()
