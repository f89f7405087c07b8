"""One call in each dialect and encoding, from HELLO to the end."""

from __future__ import annotations

import pytest

from aiohttp_session_ws import rpc

from .conftest import Serve

PROTOCOLS = ["wamp.2.json", "wamp.2.msgpack", "wamp.2.json.batched", "wamp.2.msgpack.batched"]


def adding() -> rpc.Routes:
    routes = rpc.Routes("calc.")

    @routes.route()
    async def add(a: int, b: int = 1) -> int:
        return a + b

    return routes


class TestCall:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    async def test_wamp(self, serve: Serve, protocol: str) -> None:
        """A WAMP call is answered, in each encoding."""
        server = await serve(adding())
        async with server.wamp(protocol) as peer:
            answer = await peer.call("calc.add", 2, 3)

        assert answer == [50, 1, {}, [5]]

    async def test_wsrpc(self, serve: Serve) -> None:
        """A wsrpc call of the same procedure is answered, with arguments by position or name."""
        server = await serve(adding())
        async with server.wsrpc() as peer:
            assert await peer.ask("calc.add", [2, 3]) == {"id": 3, "result": 5}
            assert await peer.ask("calc.add", {"a": 2}) == {"id": 3, "result": 3}
