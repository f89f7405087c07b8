"""
The audit trail of orders: the signal ``on_order``, and the line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from aiohttp_session_ws import SessionWSRegistry
from aiohttp_session_ws._logging import fingerprint
from aiohttp_session_ws.signals import OrderDetails
from tests.support import QUICK, AiohttpClient, Client, expect_close, make_app, until, user_of


@pytest.fixture
def told() -> list[OrderDetails]:
    """Return the details that ``on_order`` was sent with."""
    return []


@pytest.fixture
def registry(told: list[OrderDetails]) -> SessionWSRegistry:
    async def labels(request: object) -> dict[str, str]:
        return {"device": "phone"}

    registry = SessionWSRegistry(identify=user_of, labels=labels, timeouts=QUICK)

    @registry.on_order
    async def tell(details: OrderDetails) -> None:
        told.append(details)

    return registry


@pytest.fixture
async def client(aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> Client:
    return await aiohttp_client(make_app(registry))


class TestSignal:
    async def test_by_call(
        self, client: Client, registry: SessionWSRegistry, told: list[OrderDetails]
    ) -> None:
        """``on_order`` is sent with who gave an order, and how many sockets it closes here."""
        await client.get("/login")
        await until(lambda: told)
        told.clear()
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await registry.end_identity("ann", by="admin:7")
            assert await expect_close(ws) == 4401
        await until(lambda: told)

        assert told == [OrderDetails("end", "identity", "ann", "admin:7", 1, 0, "")]
        assert "ann" not in repr(told)
        assert told[0].fingerprint == fingerprint("ann")

    @pytest.mark.parametrize(
        ("order", "kind", "subject"),
        [
            (lambda r: r.end_session("x"), "end", ("id", "x")),
            (lambda r: r.end_label("device", "phone"), "end", ("label", ("device", "phone"))),
            (lambda r: r.close_all_session("x"), "close", ("id", "x")),
            (lambda r: r.close_all_identity("bob"), "close", ("identity", "bob")),
        ],
    )
    async def test_kinds(
        self,
        client: Client,
        registry: SessionWSRegistry,
        told: list[OrderDetails],
        order: Callable[[SessionWSRegistry], object],
        kind: str,
        subject: tuple[str, object],
    ) -> None:
        """``on_order`` is sent with the kind and the subject of each order."""
        await order(registry)  # type: ignore[misc]  # each is a coroutine
        await until(lambda: told)

        (details,) = told
        assert (details.kind, (details.subject_kind, details.subject)) == (kind, subject)
        assert (details.by, details.sockets, details.handshakes) == (None, 0, 0)

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/out/end_session_ws", "end"),
            ("/out/invalidate", "end"),
            ("/out/everywhere", "end"),
            ("/renew", "renew"),
            ("/close", "close"),
        ],
    )
    async def test_by_request(
        self, client: Client, told: list[OrderDetails], path: str, kind: str
    ) -> None:
        """``on_order`` is sent once for an order that a request gives for its own session."""
        await client.get("/login")
        await until(lambda: told)
        told.clear()
        await client.get(path)
        await client.get("/whoami")  # records that the newest generation was seen
        await until(lambda: told)

        assert [details.kind for details in told] == [kind]


class TestLog:
    async def test_line(
        self, client: Client, registry: SessionWSRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An order is logged in one line, with a fingerprint instead of the id."""
        caplog.set_level(logging.INFO, "aiohttp_session_ws")
        await registry.end_session("secret", by="admin:7")

        (line,) = [r.getMessage() for r in caplog.records if r.name == "aiohttp_session_ws"]
        assert line == (
            f"id {fingerprint('secret')} was ended by admin:7: 0 sockets and 0 handshakes here"
        )

    async def test_line_of_a_log_out(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A log-in, a renewal and a log-out are logged in a line each, other requests aren't."""
        caplog.set_level(logging.INFO, "aiohttp_session_ws")
        said: list[str] = []

        def heard() -> int:
            lines = [r.getMessage() for r in caplog.records if r.name == "aiohttp_session_ws"]
            said[:] = [" ".join(line.split(": ")[0].split()[2:]) for line in lines]
            return len(said)

        for path in ("/login", "/whoami", "/renew", "/whoami", "/whoami", "/out/end_session_ws"):
            await client.get(path)
        await until(lambda: heard() >= 3)  # the last is announced after its response

        assert said == ["was renewed", "was renewed", "was ended"]
