"""
The programs for operators: metrics, a health check, an audit log, and a user's devices.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import SimpleCookieStorage
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry, generate_latest

from aiohttp_session_ws import SessionWSRegistry, session_ws_middleware
from aiohttp_session_ws._logging import fingerprint
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    converse,
    cookie_of,
    expect_close,
    log_in,
    make_app,
    until,
    user_of,
)
from tests.support.nodes import becomes, registry_of
from tests.support.people import seen_as
from tests.support.processes import ROOT
from tests.support.redis_servers import RedisServer

from .documents import DEVICES, blocks, run

HEALTH, AUDIT = blocks("docs/operating.rst", python=True)
LINE, COMMANDS = blocks("docs/operating.rst", python=False)
PROMETHEUS, TELEMETRY, *_ = blocks("docs/works-with.rst", python=True)


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


async def close_one(client: Client, registry: SessionWSRegistry) -> None:
    """Open a socket, close one by an order, and have a handshake refused."""
    await client.get("/login")
    async with client.ws_connect("/ws") as ws:
        await registry.end_identity("ann")
        assert await expect_close(ws) == 4401
    async with client.ws_connect("/ws") as ws:
        assert await expect_close(ws) == 4401
    await until(lambda: registry.stats().closes)
    client.session.cookie_jar.clear()
    await client.ws_connect("/ws")
    await until(lambda: registry.stats().open)


class TestFigures:
    async def test_prometheus(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A scrape in another thread returns the statistics."""
        await close_one(await aiohttp_client(make_app(registry)), registry)
        collectors = CollectorRegistry()
        collectors.register(run(PROMETHEUS)["SocketCollector"](registry))
        text = (await asyncio.to_thread(generate_latest, collectors)).decode()

        lines = {line for line in text.splitlines() if not line.startswith("#")}
        assert {
            "ws_open 1.0",
            'ws_closes_total{by="order",code="4401"} 1.0',
            'ws_refusals_total{why="ended"} 1.0',
            "ws_outage_seconds_total 0.0",
        } <= lines

    async def test_telemetry(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An export of OpenTelemetry contains the statistics."""
        await close_one(await aiohttp_client(make_app(registry)), registry)
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        run(TELEMETRY)["instrument"](registry, provider.get_meter("test"))
        data = reader.get_metrics_data()
        provider.shutdown()

        assert data is not None
        (scope,) = data.resource_metrics[0].scope_metrics
        found = {
            (metric.name, *dict(point.attributes or {}).values()): point.value
            for metric in scope.metrics
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint)
        }
        assert found == {
            ("ws.open",): 1,
            ("ws.closes", "order", 4401): 1,
            ("ws.refusals", "ended"): 1,
        }


class TestHealth:
    def site(self) -> web.Application:
        """Return an application that has middlewares, but no registry."""
        session = aiohttp_session.session_middleware(SimpleCookieStorage())
        site = web.Application(middlewares=[session, session_ws_middleware])
        site.router.add_get("/login", log_in)
        site.router.add_get("/ws", converse)
        return site

    async def test_well(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """The health check returns 200 without making a session, and the site's sockets work."""
        client = await aiohttp_client(run(HEALTH)["with_health"](self.site(), registry))
        async with client.get("/health") as response:
            body, cookies = await response.json(), response.cookies
        assert (response.status, body["state"], cookies) == (200, "connected", {})

        await client.get("/site/login")
        async with client.ws_connect("/site/ws") as ws:
            await registry.end_identity("ann")
            assert await expect_close(ws) == 4401

    async def test_degraded(
        self, aiohttp_client: AiohttpClient, redis_server: RedisServer
    ) -> None:
        """The health check returns 503 without Redis."""
        registry = RedisSessionWSRegistry(redis_server.url)
        client = await aiohttp_client(run(HEALTH)["with_health"](self.site(), registry))
        redis_server.kill()
        await becomes(client, "degraded")
        async with client.get("/health") as response:
            assert (response.status, (await response.json())["state"]) == (503, "degraded")
        assert registry_of(client) is registry


class TestAudit:
    async def test_line(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The audit log contains who ended something, and a fingerprint of the subject."""
        caplog.set_level(logging.INFO)
        registry = run(AUDIT)["registry"]
        await aiohttp_client(make_app(registry))
        await registry.end_session("x", by="admin:7")
        await until(lambda: [r for r in caplog.records if r.name == "audit"])
        lines = [r.getMessage() for r in caplog.records if r.name == "audit"]

        assert lines == [f"admin:7: end id {fingerprint('x')}"]

    async def test_log(self, redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
        """The log line looks as the document shows it."""
        caplog.set_level(logging.INFO, "aiohttp_session_ws")
        async with RedisSessionWSRegistry(redis_server.url, node="web-1") as registry:
            await registry.end_identity("ann", by="admin:7")
        (line,) = [r.getMessage() for r in caplog.records if "ended" in r.getMessage()]

        assert line == LINE.replace("7c2d0fa51b0e", fingerprint("ann")).replace("2 s", "0 s")


class TestCommands:
    def test_commands(self) -> None:
        """The command line accepts the document's commands, which fail with 3 without Redis."""
        lines = COMMANDS.splitlines()
        environ = os.environ | {"AIOHTTP_SESSION_WS_REDIS": "redis://127.0.0.1:1"}
        codes = [
            subprocess.run(
                [sys.executable, *line.split()[1:]], cwd=ROOT, env=environ, capture_output=True
            ).returncode
            for line in lines[1:]
        ]

        assert codes == [3, 3, 3, 3, 3]


class TestDevices:
    async def test_own(self, aiohttp_client: AiohttpClient) -> None:
        """Users can list and log out their own devices only."""
        names = run(DEVICES)
        app = make_app(names["registry"])
        app.router.add_get("/devices", names["devices"])
        app.router.add_post("/devices", names["log_out_device"])
        client = await aiohttp_client(app)
        browsers = []
        for user in ("ann", "ann", "bob"):
            client.session.cookie_jar.clear()
            await client.get("/login", params={"user": user})
            browsers.append({"Cookie": cookie_of(client), "User-Agent": f"{user}'s"})
        client.session.cookie_jar.clear()
        phone, laptop, bobs = [await client.ws_connect("/ws", headers=b) for b in browsers]
        (phone_id, _) = await phone.receive_json(timeout=PATIENCE)
        handle = names["registry"].handle(phone_id)

        async with client.get("/devices", headers=browsers[1]) as response:
            devices = await response.json()
        assert list(devices.values()) == ["ann's", "ann's"]
        statuses = [
            (await client.post("/devices", data={"device": handle}, headers=browsers[n])).status
            for n in (2, 1)
        ]
        assert statuses == [404, 200]
        assert await expect_close(phone) == 4401
        for ws in (laptop, bobs):
            assert not ws.closed
            await ws.close()

    async def test_gone_meanwhile(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A device whose socket closes right after it was listed is logged out as well."""
        names = run(DEVICES)
        registry = names["registry"]
        app = make_app(registry)
        app.router.add_post("/devices", names["log_out_device"])
        client = await aiohttp_client(app)
        await client.get("/login", params={"user": "ann"})
        cookie, phone = cookie_of(client), await client.ws_connect("/ws")
        (phone_id, _) = await phone.receive_json(timeout=PATIENCE)
        look = registry.connections

        async def look_and_close(**of: Any) -> Any:
            found = await look(**of)
            await phone.close()
            await until(lambda: not len(registry))
            return found

        monkeypatch.setattr(registry, "connections", look_and_close)
        data = {"device": registry.handle(phone_id)}
        assert (await client.post("/devices", data=data)).status == 200

        assert await seen_as(client, cookie) is None

    async def test_nobody(self, aiohttp_client: AiohttpClient) -> None:
        """An anonymous visitor gets a 401."""
        names = run(DEVICES)
        app = make_app(names["registry"])
        app.router.add_get("/devices", names["devices"])
        client = await aiohttp_client(app)

        assert (await client.get("/devices")).status == 401
