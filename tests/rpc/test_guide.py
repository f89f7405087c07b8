"""The programs of docs/calls.rst, run."""

from __future__ import annotations

import base64
import hmac
from pathlib import Path
from typing import Any

import docutils.core
import docutils.nodes
from aiohttp import web
from playwright.async_api import Browser

from tests.support import until

from .support import WampPeer

GUIDE = Path(__file__).parent.parent.parent / "docs" / "calls.rst"


def blocks(language: str) -> list[str]:
    """Return the code blocks of the guide; fail on any warning of docutils."""
    settings = {"report_level": 2, "halt_level": 2, "syntax_highlight": "none"}
    document = docutils.core.publish_doctree(GUIDE.read_text(), settings_overrides=settings)
    nodes = document.findall(docutils.nodes.literal_block)
    return [node.astext() for node in nodes if language in node["classes"]]


async def test_all(aiohttp_client: Any, capsys: Any) -> None:
    """All Python blocks of the guide form one program, which behaves as the guide says."""
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks("python"):
        exec(compile(block, "calls.rst", "exec"), names)
    client = await aiohttp_client(names["make_app"]())
    async with client.get("/js/session-ws.js") as response:
        assert response.status == 200

    def peer() -> WampPeer:
        return WampPeer(client.ws_connect("/rpc", protocols=["wamp.2.json"]), "wamp.2.json")

    async with peer() as one, peer() as two:
        assert await one.call("shop.add", "2", 3) == [50, 1, {}, [5]]
        await one.say([48, 2, {"receive_progress": True}, "shop.countdown", [2]])
        assert [(await one.hear())[3:] for _ in range(3)] == [[[2]], [[1]], []]
        assert (await two.ask([32, 1, {}, "shop.stock.tea"]))[0] == 33
        assert (await one.ask([64, 3, {}, "confirm"]))[0] == 65
        question = await one.call("shop.order.tea", number=4, count=2)
        assert question[4] == ["Buy 2 tea?"]
        assert await one.ask([70, question[1], {}, [True]]) == [50, 4, {}, ["done"]]
        assert (await two.hear())[4] == [-2]
        assert await one.call("shop.cart.put", "tea", number=5) == [50, 5, {}, [1]]
        assert len(names["calls"].sessions) == 2
    async with peer().joining("admins", authmethods=["ticket"]) as admin:
        assert (await admin.ask([5, "sesame", {}]))[0] == 2
        assert (await admin.call("other"))[4] == "wamp.error.not_authorized"
    async with peer().joining("staff", authmethods=["wampcra"], authid="ann") as staff:
        text = staff.welcome[2]["challenge"]
        signature = base64.b64encode(hmac.digest(b"correct horse", text.encode(), "sha256"))
        assert (await staff.ask([5, signature.decode(), {}]))[2]["authrole"] == "staff"
        assert await staff.call("shop.slowly", "x") == [50, 1, {}, ["x"]]
    async with peer().joining("office") as office:
        assert await office.call("what") == [50, 1, {}, ["what, somebody here"]]
    assert "shop.add took" in capsys.readouterr().out


async def test_page(aiohttp_client: Any, browser: Browser) -> None:
    """The page of the guide behaves in a browser as the guide says."""
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(blocks("python")[0], "calls.rst", "exec"), names)
    (script,) = blocks("javascript")
    text = f'<!doctype html><title>…</title><script type="module">{script}</script>'

    async def page_of(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html")

    app = names["make_app"]()
    app.router.add_get("/", page_of)
    client = await aiohttp_client(app)
    page = await browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: dialog.accept())
    await page.goto(str(client.make_url("/")))
    await until(lambda: any(text.startswith("-2") for text in said))

    assert [text for text in said if text.isdigit()] == ["5", "3", "2", "1"]
