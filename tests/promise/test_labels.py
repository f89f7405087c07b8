"""
Sessions can be ended by labels: a device, an identity provider's session.
"""

from __future__ import annotations

from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import Expiry, NotSetUp, SessionWSRegistry, renew_session_ws
from aiohttp_session_ws.exceptions import InvalidIdentity
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, Browser, Site, user_of
from tests.support import PATIENCE
from tests.support.inspect import connections, records


async def labels_of(request: web.Request) -> dict[str, str | None]:
    """Return the device and the provider's session that the session holds."""
    session = await aiohttp_session.get_session(request)
    return {"device": session.get("device"), "sid": session.get("sid")}


async def start(
    serve: Serve, storage: AbstractStorage | None = None, **options: Any
) -> tuple[Site, Browser]:
    """Start a site, and log in on a phone."""
    options = {"identify": user_of, "labels": labels_of, **options}
    site = await serve(storage, **options)
    return site, await on_device(site, "phone")


async def on_device(site: Site, device: str) -> Browser:
    """Log in on a device."""
    browser = await site.browser()
    await browser.get(f"/write?device={device}")
    await browser.get("/login/renew")
    return browser


class TestEnd:
    async def test_sockets_and_cookies(self, serve: Serve, storage: AbstractStorage) -> None:
        """All sessions of a label end, and no others."""
        site, phone = await start(serve, storage)
        laptop = await on_device(site, "laptop")
        stale, socket, other = phone.cookie, await phone.open(), await laptop.open()
        report = await site.registry.end_label("device", "phone", by="the owner")

        assert report.sockets == 1
        assert await socket.code() == DEAD
        assert await other.lives()
        assert await site.presented(stale) in site.out()
        assert await laptop.user() == "ann"

    async def test_without_a_socket(self, serve: Serve, storage: AbstractStorage) -> None:
        """A session without a socket ends with its label; a later one lives."""
        site, phone = await start(serve, storage)
        stale = phone.cookie
        await site.registry.end_label("device", "phone")

        assert await site.presented(stale) in site.out()
        again = await on_device(site, "phone")
        assert await again.user() == "ann"
        assert (await again.open()).user == "ann"

    async def test_a_renewed_session(self, serve: Serve) -> None:
        """A renewed session ends with its label, and so does a copy from before."""
        site, phone = await start(serve)
        stale = phone.cookie
        await phone.get("/renew")
        await site.registry.end_label("device", "phone")

        assert await phone.user() is None
        assert await site.presented(stale) in site.out()

    async def test_a_label_that_came_later(self, serve: Serve) -> None:
        """A session ends with a label that it got after its log-in."""
        site = await serve(None, identify=user_of, labels=labels_of)
        browser = await site.logged_in()
        await browser.get()
        await (await browser.open()).ws.close()  # its labels are known now
        await browser.get("/write?device=phone")
        await site.registry.end_label("device", "phone")

        assert await browser.user() is None

    @pytest.mark.parametrize("identify", [user_of, None])
    @pytest.mark.parametrize("keep", [False, True])
    async def test_a_label_that_came_while_open(
        self, serve: Serve, storage: AbstractStorage, identify: Any, keep: bool
    ) -> None:
        """A new label closes sockets opened before; its end also ends older cookies."""

        async def relabel(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request)).update(request.query)
            response = web.Response()
            if keep:
                await renew_session_ws(request, response, sockets="keep")
            return response

        views = {"/relabel": relabel}
        site = await serve(storage, views, identify=identify, labels=labels_of)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/relabel?device=phone")
        assert await socket.code() == AGAIN
        again = await browser.open()
        await site.registry.end_label("device", "phone")

        assert await again.code() == DEAD
        assert await browser.user() is None
        assert await site.knock(stale) in (*site.shut(), AGAIN)
        assert not connections(site.registry)

    @pytest.mark.parametrize("identify", [user_of, None])
    async def test_a_label_that_is_left_behind(self, serve: Serve, identify: Any) -> None:
        """A session ends with a label that a concurrent request was about to replace."""
        site, phone = await start(serve, identify=identify)
        async with site.held(phone, "/write?device=laptop"):
            await site.registry.end_label("device", "phone")

        assert await site.presented(phone.cookie) == (None, DEAD)

    async def test_without_identify(self, serve: Serve, storage: AbstractStorage) -> None:
        """Labels work without ``identify``."""
        site, phone = await start(serve, storage, identify=None)
        stale, socket = phone.cookie, await phone.open()
        await site.registry.end_label("device", "phone")

        assert await socket.code() == DEAD
        assert await site.seen(stale) is None
        assert await site.knock(stale) in site.shut()

    async def test_without_identify_and_socket(self, serve: Serve) -> None:
        """A session that never had a socket ends with its label without ``identify``, too."""
        site, phone = await start(serve, identify=None)
        await phone.get()
        await site.registry.end_label("device", "phone")

        assert await phone.user() is None

    @pytest.mark.parametrize("options", [{}, {"labels": labels_of}])
    async def test_log_out_by_id(
        self, serve: Serve, storage: AbstractStorage, options: dict[str, Any]
    ) -> None:
        """Without ``identify``, deleting the id ends the session, with or without labels."""
        site = await serve(storage, **options)
        browser = await on_device(site, "phone")
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/delete_id")

        assert await socket.code() == AGAIN
        assert await site.presented(stale) in site.out(AGAIN)


class TestOthers:
    async def test_close(self, serve: Serve) -> None:
        """An order to reconnect by label ends no session."""
        site, phone = await start(serve)
        socket = await phone.open()
        report = await site.registry.close_all_label("device", "phone")

        assert report.sockets == 1
        assert await socket.code() == AGAIN
        assert (await phone.open()).user == "ann"

    async def test_push_and_look(self, serve: Serve) -> None:
        """Connections are listed and receive pushes by label."""
        site, phone = await start(serve)
        socket, other = await phone.open(), await (await on_device(site, "laptop")).open()
        delivery = await site.registry.send_label("device", "phone", "news")

        assert (delivery.sockets, delivery.complete) == (1, True)
        assert await socket.ws.receive_str(timeout=PATIENCE) == "news"
        found = await site.registry.connections(label=("device", "phone"))
        assert [info.session_ws_id for info in found] == [socket.id]
        assert await other.lives()

    async def test_the_check(self, serve: Serve) -> None:
        """The periodic check compares labels, as it compares the identity."""
        labels: dict[str, str | None] = {"device": "phone", "sid": None}
        _, phone = await start(
            serve, labels=lambda _: dict(labels), expiry=Expiry(revalidate_every=1.0)
        )
        socket = await phone.open()
        labels["device"] = "laptop"

        assert await socket.code() == AGAIN


class TestMistakes:
    async def test_not_set_up(self, serve: Serve) -> None:
        """Ending a label without the option ``labels`` raises an error."""
        site = await serve(None, identify=user_of)

        with pytest.raises(NotSetUp, match="labels="):
            await site.registry.end_label("device", "phone")

    @pytest.mark.parametrize("value", [None, []])
    async def test_a_value(self, serve: Serve, value: Any) -> None:
        """A label's value must be hashable and not ``None``."""
        site, _ = await start(serve)

        with pytest.raises(InvalidIdentity):
            await site.registry.end_label("device", value)

    @pytest.mark.parametrize("found", ["phone", {1: "phone"}, dict.fromkeys("123456789", 1)])
    async def test_what_labels_returns(self, serve: Serve, found: Any) -> None:
        """An invalid return value of ``labels`` refuses the handshake."""
        site = await serve(None, identify=user_of, labels=lambda _: found)
        browser = await site.logged_in()

        assert await site.knock(browser.cookie) == 503
        assert not connections(site.registry)

    async def test_what_can_fail(self, serve: Serve) -> None:
        """A log-in whose ``labels`` fails gets 503 and saves nothing."""

        async def fail(request: web.Request) -> dict[str, str]:
            raise RuntimeError("the database is away")

        site = await serve(None, identify=user_of, labels=fail)
        browser = await site.browser()
        await browser.get()
        answer = await browser.get("/login")

        assert (answer.status, answer.saved) == (503, False)

    async def test_no_callable(self) -> None:
        """A ``labels`` that isn't callable raises an error."""
        with pytest.raises(TypeError, match="labels"):
            SessionWSRegistry(labels="device")  # type: ignore[arg-type]

    async def test_no_record_for_nothing(self, serve: Serve) -> None:
        """A visitor without labels makes no record."""
        site, _ = await start(serve)
        before = records(site.registry)
        await (await site.browser()).get()

        assert records(site.registry) == before
