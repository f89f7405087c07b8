"""
A page is told by a close code that its user must log in.
"""

from __future__ import annotations

import logging

import pytest
from aiohttp import ClientSession, web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import SESSION_ENDED, Close, HandshakeRefused
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, user_of

LOG_IN = Close(4401, "log in")


async def says(request: web.Request) -> bool | Close:
    """Return a close code unless the user is logged in."""
    return await user_of(request) is not None or LOG_IN


async def raises(request: web.Request) -> bool:
    """Raise a refusal unless the user is logged in."""
    if await user_of(request) is None:
        raise HandshakeRefused(SESSION_ENDED)
    return True


@pytest.mark.parametrize("authorize", [says, raises])
class TestAuthorize:
    @pytest.mark.parametrize("out", ["/out/helper", "/out/pattern", "/out/invalidate"])
    async def test_after_a_log_out(
        self, serve: Serve, storage: AbstractStorage, authorize: object, out: str
    ) -> None:
        """A page that reconnects after a log-out is refused with 4401."""
        site = await serve(storage, authorize=authorize)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get(out)

        assert await socket.code() in (DEAD, AGAIN)
        assert await site.knock(browser.cookie) == DEAD

    async def test_a_visitor(
        self, serve: Serve, storage: AbstractStorage, authorize: object
    ) -> None:
        """A visitor is refused with 4401, and accepted after a log-in."""
        site = await serve(storage, authorize=authorize)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        assert await site.knock(browser.cookie) == DEAD

        await browser.get("/login/renew")
        assert (await browser.open()).user == "ann"

    async def test_without_the_middleware(
        self, serve: Serve, storage: AbstractStorage, authorize: object
    ) -> None:
        """Without the middleware, which sends close codes, a refusal is a 403."""
        site = await serve(storage, site={"middleware": False}, authorize=authorize)

        assert await site.knock("") == 403

    async def test_it_is_no_error(
        self, serve: Serve, authorize: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A refusal logs no warning."""
        site = await serve(authorize=authorize)
        await site.knock("")

        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


class TestSignals:
    async def test_on_auth_fail(self, serve: Serve) -> None:
        """``on_auth_fail`` is called when ``authorize`` returns a close code."""
        site = await serve(authorize=says)
        failed: list[object] = []
        succeeded: list[object] = []

        @site.registry.on_auth_fail
        async def fail(details: object) -> None:
            failed.append(details)

        @site.registry.on_auth_success
        async def success(details: object) -> None:
            succeeded.append(details)

        await site.knock("")
        browser = await site.logged_in()
        await browser.open()

        assert (len(failed), len(succeeded)) == (1, 1)

    @pytest.mark.parametrize("refusal", [HandshakeRefused(LOG_IN), web.HTTPForbidden()])
    async def test_on_auth_fail_by_an_exception(self, serve: Serve, refusal: Exception) -> None:
        """``on_auth_fail`` is called when ``authorize`` raises a refusal."""

        async def authorize(request: web.Request) -> bool:
            raise refusal

        site = await serve(authorize=authorize)
        failed: list[object] = []

        @site.registry.on_auth_fail
        async def fail(details: object) -> None:
            failed.append(details)

        told = await site.knock("")

        assert told == (4401 if isinstance(refusal, HandshakeRefused) else 403)
        assert len(failed) == 1

    @pytest.mark.parametrize("answer", [True, False, None, "yes", 0, LOG_IN])
    async def test_any_answer(self, serve: Serve, answer: object) -> None:
        """A true value that isn't a ``Close`` authorizes; a plain function is accepted."""
        site = await serve(authorize=lambda request: answer)
        told = await site.knock("")

        assert told == (4401 if answer is LOG_IN else None if answer else 403)

    async def test_the_reason(self, serve: Serve) -> None:
        """The client receives the code and the reason."""
        site = await serve(authorize=says)
        async with ClientSession() as client:
            message = await (await client.ws_connect(site.url.joinpath("ws"))).receive()

        assert (message.data, message.extra) == (4401, "log in")
