"""
Labels on two nodes.
"""

from __future__ import annotations

import pytest

from aiohttp_session_ws.redis.inbound import Inbound
from tests.cluster.conftest import Sites
from tests.promise.site import AGAIN, DEAD, Site
from tests.promise.test_everywhere_else import VIEWS
from tests.promise.test_labels import labels_of, on_device
from tests.support import PATIENCE, until
from tests.support.inspect import inspect
from tests.support.nodes import StartNode, acquaint, registry_of, script
from tests.support.redis_servers import RedisServer

PHONE = ("device", "phone")


async def start(sites: Sites) -> tuple[Site, Site]:
    """Start two nodes whose sessions have labels."""
    return await sites(labels=labels_of)


class TestEnd:
    async def test_everywhere(self, sites: Sites) -> None:
        """An end by label closes sockets on both nodes; all copies of the cookie are refused."""
        a, b = await start(sites)
        phone = await on_device(a, "phone")
        here, there = await phone.open(), await (await b.browser(phone.cookie)).open()
        stale = phone.cookie
        report = await a.registry.end_label(*PHONE, wait=PATIENCE)

        assert (report.sockets, report.complete) == (2, True)
        assert (await here.code(), await there.code()) == (DEAD, DEAD)
        assert await a.presented(stale) == await b.presented(stale) == (None, DEAD)

    async def test_a_session_without_a_socket(self, sites: Sites) -> None:
        """An end by label also ends a session that has no socket on any node."""
        a, b = await start(sites)
        stale = (await on_device(a, "phone")).cookie
        assert await b.seen(stale) == "ann"
        await a.registry.end_label(*PHONE, wait=PATIENCE)

        assert await b.presented(stale) == (None, DEAD)

    async def test_a_label_that_came_later(self, sites: Sites) -> None:
        """A node that knew the session without the label checks it again."""
        a, b = await start(sites)
        browser = await a.logged_in()
        assert await b.knock(browser.cookie) == "ann"
        await b.registry.end_label("device", "laptop")  # now ``labels`` is called on arrival
        assert await b.seen(browser.cookie) == "ann"
        await browser.get("/write?device=phone")
        assert await b.seen(browser.cookie) == "ann"
        await a.registry.end_label(*PHONE, wait=PATIENCE)

        assert await b.seen(browser.cookie) is None

    async def test_a_label_that_came_while_open(self, sites: Sites) -> None:
        """A socket whose session gets a label reconnects, and is then found by the label."""
        a, b = await start(sites)
        browser = await a.logged_in()
        there = await (await b.browser(browser.cookie)).open()
        await browser.get("/write?device=phone")
        assert await there.code() == AGAIN
        again = await (await b.browser(browser.cookie)).open()
        report = await a.registry.end_label(*PHONE, wait=PATIENCE)

        assert report.sockets == 1
        assert await again.code() == DEAD

    async def test_a_label_that_is_left_behind(
        self, sites: Sites, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A change of label doesn't save a session from a missed end of its former label."""
        monkeypatch.setattr(Inbound, "receive", lambda *_: None)
        a, b = await start(sites)
        phone = await on_device(b, "phone")
        async with b.held(phone, "/write?device=laptop"):
            await a.registry.end_label(*PHONE)
            assert not await inspect(a.registry).cluster.outbox.drain(PATIENCE)  # type: ignore[attr-defined]

        assert await a.presented(phone.cookie) == await b.presented(phone.cookie) == (None, DEAD)

    async def test_a_log_out_elsewhere(
        self, sites: Sites, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A session whose end by label its node missed can't end others, and stays ended."""
        monkeypatch.setattr(Inbound, "receive", lambda *_: None)
        a, b = await sites(VIEWS, labels=labels_of)
        phone = await on_device(b, "phone")
        assert await b.seen(phone.cookie) == "ann"
        await a.registry.end_label(*PHONE)
        assert not await inspect(a.registry).cluster.outbox.drain(PATIENCE)  # type: ignore[attr-defined]
        assert (await phone.get("/elsewhere")).body == "False"

        assert await a.presented(phone.cookie) == (None, DEAD)


class TestOthers:
    async def test_close_push_and_look(self, sites: Sites) -> None:
        """Pushes, queries and close orders by label reach both nodes."""
        a, b = await start(sites)
        phone = await on_device(a, "phone")
        there = await (await b.browser(phone.cookie)).open()
        delivery = await a.registry.send_label(*PHONE, "news", wait=PATIENCE)

        assert (delivery.sockets, delivery.complete) == (1, True)
        assert await there.ws.receive_str(timeout=PATIENCE) == "news"
        found = await a.registry.connections(label=PHONE)
        assert (len(found), found.complete) == (1, True)
        report = await a.registry.close_all_label(*PHONE, wait=PATIENCE)
        assert (report.sockets, report.complete) == (1, True)
        assert await there.code() == AGAIN

    async def test_a_node_without_labels(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A node without ``labels`` makes results by label incomplete, but not by identity."""
        a = await start_node(redis_server.url, "a", labels=labels_of)
        b = await start_node(redis_server.url, "b")
        await acquaint(a, b)
        registry = registry_of(a)

        assert not (await registry.connections(label=PHONE)).complete
        assert not (await registry.end_label(*PHONE, wait=PATIENCE)).complete
        assert not (await registry.send_label(*PHONE, "news", wait=PATIENCE)).complete
        assert (await registry.connections(identity="ann")).complete
        assert (await registry.end_identity("ann", wait=PATIENCE)).complete

    async def test_a_script(self, sites: Sites, redis_server: RedisServer) -> None:
        """A script without ``labels`` can end sessions by label."""
        a, b = await start(sites)
        phone = await on_device(a, "phone")
        there = await (await b.browser(phone.cookie)).open()
        async with script(redis_server.url) as job:
            report = await job.end_label(*PHONE, wait=PATIENCE)

        assert (report.sockets, report.complete) == (1, True)
        assert await there.code() == DEAD
        await until(lambda: not len(b.registry))
        assert await a.presented(phone.cookie) == (None, DEAD)
