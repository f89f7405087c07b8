"""
Undocumented parts of aiohttp and aiohttp-session that the package relies on.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

import aiohttp_session_ws

PACKAGE = Path(aiohttp_session_ws.__file__).parent


def calls_of(method: str) -> list[tuple[str, ast.Call]]:
    """Return the place and the node of each call, in the package, of a method of that name."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
    ]


class TestAiohttp:
    @pytest.mark.parametrize("name", ["_send_heartbeat", "_reset_heartbeat"])
    def test_methods_of_a_websocket(self, name: str) -> None:
        """The private methods that our heartbeat overrides or calls take no arguments."""
        method = getattr(web.WebSocketResponse, name)

        assert [*inspect.signature(method).parameters] == ["self"]

    @pytest.mark.parametrize("name", ["_req", "_pong_response_cb"])
    def test_attributes_of_a_websocket(self, name: str) -> None:
        """The private attributes that our heartbeat reads exist."""
        assert hasattr(web.WebSocketResponse(), name)

    async def test_a_request_that_was_read(self) -> None:
        """A request whose body was read, as only ``_read_bytes`` shows, can't be cloned."""
        request = make_mocked_request("POST", "/")
        assert request._read_bytes is None
        request._read_bytes = b"body"

        with pytest.raises(RuntimeError, match="Cannot clone"):
            request.clone()

    def test_headers_of_aiohttp_4(self) -> None:
        """No call passes a default to ``getall()``: that of aiohttp 4's headers takes none."""
        wrong = [
            place for place, call in calls_of("getall") if len(call.args) + len(call.keywords) > 1
        ]

        assert wrong == []


class TestAiohttpSession:
    def test_whether_a_session_was_changed(self) -> None:
        """Setting a key sets the private ``_changed``: the session will be saved."""
        session = aiohttp_session.Session(None, data=None, new=True)
        assert session._changed is False

        session["key"] = "value"
        assert session._changed is True
