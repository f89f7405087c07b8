"""The browser's side, in a browser."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page

from aiohttp_session_ws import rpc
from tests.support import until

from .conftest import Serve
from .support import Server

SCRIPT = rpc.STATIC_DIR / "session-ws.js"
START = """
async (options) => {
  const module = await import("/static/session-ws.js");
  Object.assign(window, module);
  window.states = [];
  window.client = module.connect("/rpc", options);
  client.addEventListener("state", ({ detail }) => states.push(detail));
  window.until = async (condition) => {
    while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await until(() => client.state === "joined" || client.state === "closed");
  return client.state;
}
"""


class World:
    """What the page talks to."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.subscribed = 0
        self.calls = rpc.Application()
        routes = rpc.Routes("shop.")

        @routes.route()
        async def add(a: int, b: int = 1) -> int:
            return a + b

        @routes.route()
        async def echo(value: Any = None) -> Any:
            return value

        @routes.route()
        async def fail() -> None:
            raise rpc.RPCError("shop.sold_out", "tea", left=0)

        @routes.route()
        async def count(to: int) -> AsyncIterator[int]:
            try:
                for i in range(to):
                    yield i
                    await asyncio.sleep(0)
            except (asyncio.CancelledError, GeneratorExit):
                self.cancelled += 1
                raise

        @routes.route()
        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        @routes.route()
        async def confirm(question: str, *, session: rpc.Session) -> Any:
            return await session.call("allow", question)

        @routes.topic("news.{of}")
        async def news(of: str) -> AsyncIterator[None]:
            self.subscribed += 1
            yield
            self.subscribed -= 1

        self.calls.default.add_rpc_routes(routes)


def keep(secret: rpc.CRASecret, session: rpc.Session) -> rpc.CRASecret:
    """Return the secret of everybody."""
    return secret


@pytest.fixture
def world() -> World:
    """Return what the page talks to."""
    return World()


@pytest.fixture
async def server(serve: Serve, world: World) -> Server:
    """Serve a blank page, the script, and the calls."""

    async def blank(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>x</title>", content_type="text/html")

    return await serve(
        world.calls, routes=[web.get("/", blank), web.static("/static", rpc.STATIC_DIR)]
    )


@pytest.fixture
async def page(browser: Browser, server: Server) -> AsyncIterator[Page]:
    """Open the page."""
    page = await browser.new_page()
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    await page.goto(str(server.client.make_url("/login")))
    await page.goto(str(server.client.make_url("/")))
    yield page
    await page.close()
    assert errors == []


def test_size() -> None:
    """It is less than 10 KB, and needs nothing else."""
    text = SCRIPT.read_text()

    assert len(text.encode()) < 10_000
    assert "import " not in text


class TestCalls:
    async def test_values(self, page: Page) -> None:
        """Arguments by position and by name; values come back as they are."""
        await page.evaluate(START, {})
        seen = await page.evaluate("""async () => {
            const values = [null, 5, "x", [5], [], [1, 2], {}, { a: [1] }, [[1]]];
            const echoed = [];
            for (const value of values) echoed.push(await client.call("shop.echo", [value]));
            const bytes = await client.call("shop.echo", [new Uint8Array([0, 1, 255])]);
            return {
                sum: await client.call("shop.add", [2, 3]),
                named: await client.call("shop.add", { a: 4 }),
                echoed, values, bytes: bytes instanceof Uint8Array && [...bytes],
                failed: await client.call("shop.fail").catch(
                    (e) => [e instanceof CallError, e.uri, e.args, e.kwargs]),
            };
        }""")

        assert seen["sum"] == 5
        assert seen["named"] == 5
        assert seen["echoed"] == seen["values"]
        assert seen["bytes"] == [0, 1, 255]
        assert seen["failed"] == [True, "shop.sold_out", ["tea"], {"left": 0}]

    async def test_before_joined(self, page: Page) -> None:
        """A call that is made before the client has joined waits for that."""
        assert await page.evaluate("""async () => {
            const { connect } = await import("/static/session-ws.js");
            const client = connect("/rpc");
            return await client.call("shop.add", [1, 1]);
        }""") == 2  # fmt: skip

    async def test_cancel(self, page: Page, world: World) -> None:
        """An AbortSignal cancels, and a timeout ends, a call."""
        await page.evaluate(START, {})
        seen = await page.evaluate("""async () => {
            const controller = new AbortController();
            const call = client.call("shop.wait", [], { signal: controller.signal });
            controller.abort(new Error("enough"));
            return [
                await call.catch((e) => e.message),
                await client.call("shop.wait", [], { timeout: 20 }).catch((e) => e.uri),
                await client.call("shop.wait", [], { signal: AbortSignal.abort() })
                    .catch((e) => e.name),
            ];
        }""")
        await until(lambda: world.cancelled)

        assert seen == ["enough", "wamp.error.timeout", "AbortError"]

    async def test_stream(self, page: Page, world: World) -> None:
        """A stream is a loop, and leaving the loop cancels."""
        await page.evaluate(START, {})
        seen = await page.evaluate("""async () => {
            const seen = [[], [], []];
            for await (const part of client.stream("shop.count", [3])) seen[0].push(part);
            for await (const part of client.stream("shop.count", [1e9])) {
                seen[1].push(part);
                if (part === 2) break;
            }
            await client.call("shop.count", [2], { onProgress: (n) => seen[2].push(n) });
            return seen;
        }""")
        await until(lambda: world.cancelled)

        assert seen == [[0, 1, 2], [0, 1, 2], [0, 1]]


class TestTopics:
    async def test_events(self, page: Page, world: World) -> None:
        """Events come until one unsubscribes; two of one topic are one subscription."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.seen = [];
            window.one = await client.subscribe("shop.news.x", (...args) => seen.push(args));
            window.two = await client.subscribe("shop.news.x", () => seen.push("two"));
        }""")
        assert world.subscribed == 1
        await world.calls.publish("shop.news.x", ["a", 1], {"b": 2})
        await page.wait_for_function("seen.length === 2")
        await page.evaluate("one()")
        assert world.subscribed == 1
        await page.evaluate("two()")
        assert world.subscribed == 0
        assert await page.evaluate("seen") == [["a", 1, {"b": 2}], "two"]

    async def test_register(self, page: Page) -> None:
        """The server may call what the page has registered."""
        await page.evaluate(START, {})
        seen = await page.evaluate("""async () => {
            await client.register("allow", async (question) => {
                if (question === "no?") throw new CallError("page.error.no", ["because"]);
                return [question];
            });
            return [
                await client.call("shop.confirm", ["yes?"]),
                await client.call("shop.confirm", ["no?"]).catch((e) => e.uri),
            ];
        }""")

        assert seen == [["yes?"], "wamp.error.runtime_error"]


class TestReconnecting:
    async def test_kept(self, page: Page, server: Server, world: World) -> None:
        """After 4403 it reconnects, subscribes and registers again, and calls nothing twice."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.seen = [];
            let n = 0;
            await client.subscribe(() => `shop.news.${n++}`, (text) => seen.push(text));
            await client.register("allow", (question) => question + "!");
            client.call("shop.wait").catch((error) => { window.failed = error.uri; });
        }""")
        await server.registry.close_all(close=4403)
        await page.wait_for_function("states.some(({state}) => state === 'waiting')")
        assert await page.evaluate("failed") == "session_ws.error.gone"
        close = await page.evaluate("states.find(({state}) => state === 'waiting')")
        assert close["code"] == 4403
        assert 0 <= close["wait"] <= 1000
        await page.wait_for_function("client.state === 'joined'")
        assert await page.evaluate("client.call('shop.confirm', ['again'])") == "again!"
        assert (await world.calls.publish("shop.news.0", ["no"])).sockets == 0
        assert (await world.calls.publish("shop.news.1", ["yes"])).sockets == 1
        await page.wait_for_function("seen.length === 1")
        assert world.cancelled == 1

    async def test_log_out(self, page: Page, server: Server) -> None:
        """After 4401 it never comes back by itself, and rejects what waits."""
        await page.evaluate(START, {})
        await page.evaluate(
            "client.call('shop.wait').catch((e) => { window.failed = e.uri; })  && 0"
        )
        await page.evaluate("fetch('/logout')")
        await page.wait_for_function("client.state === 'closed'")
        assert await page.evaluate("failed") == "session_ws.error.gone"
        assert await page.evaluate("client.call('shop.add', [1]).catch((e) => e.uri)")
        close = await page.evaluate("states.at(-1)")
        assert (close["code"], close["wait"]) == (4401, None)
        await page.evaluate("client.connect()")
        await page.wait_for_function("client.state === 'joined'")

    async def test_rules(self, page: Page) -> None:
        """What a page does after each close code."""
        await page.evaluate(START, {})
        waits = await page.evaluate("""() => [
            [4401, 0], [4429, 0], [4403, 0], [4403, 1], [1006, 0], [1012, 20],
        ].map(([code, failures]) => reconnectAfter(code, failures))""")

        assert waits[:2] == [None, None]
        assert 0 <= waits[2] <= 1000
        assert 500 <= waits[3] <= 1000
        assert 250 <= waits[4] <= 500
        assert 15000 <= waits[5] <= 30000

    async def test_refused(self, page: Page, world: World) -> None:
        """Who may not join is told why, and doesn't come back."""
        realm = rpc.Realm("club")
        realm.set_ticket_authenticator(lambda session, ticket: ticket == "sesame" or None)
        world.calls.add_realm(realm)
        assert await page.evaluate(START, {"realm": "club"}) == "closed"
        failed = await page.evaluate("client.call('x').catch((e) => e.uri)")
        assert failed == "wamp.error.authentication_failed"
        joined = await page.evaluate("""async () => {
            const asked = [];
            const authenticate = async () => {
                asked.push(1);
                return { authid: "a", ticket: "sesame" };
            };
            const client = connect("/rpc", { realm: "club", authenticate });
            await until(() => client.state === "joined");
            return asked.length;
        }""")
        assert joined == 1

    async def test_one_hello(self, page: Page, server: Server) -> None:
        """A proof that is late, for a connection that has ended, says no HELLO on the next one."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.proofs = [];
            const authenticate = () => new Promise((resolve) => proofs.push(resolve));
            window.late = connect("/rpc", { authenticate });
            await until(() => proofs.length === 1);
        }""")
        await server.registry.close_all(close=4403)
        await page.wait_for_function("proofs.length === 2")
        joined = await page.evaluate("""async () => {
            for (const resolve of proofs) resolve({});
            return await late.call("shop.add", [1, 1]);
        }""")

        assert joined == 2
        assert await page.evaluate("late.state") == "joined"

    async def test_signs(self, page: Page, world: World) -> None:
        """A page may prove what it knows by a signature, with or without a salt."""
        for salt in (None, "pepper"):
            realm = rpc.Realm(f"club {salt}")
            secret = rpc.CRASecret("sesame", salt=salt)
            realm.set_cra_handlers(
                functools.partial(keep, secret), lambda session: session.auth_id
            )
            world.calls.add_realm(realm)
        seen = await page.evaluate("""async () => {
            const { connect } = await import("/static/session-ws.js");
            const bytes = (text) => new TextEncoder().encode(text);
            const base64 = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)));
            async function keyOf(password, { salt, iterations, keylen }) {
                if (!salt) return bytes(password);
                const key = await crypto.subtle.importKey(
                    "raw", bytes(password), "PBKDF2", false, ["deriveBits"]);
                const how = { name: "PBKDF2", hash: "SHA-256", salt: bytes(salt), iterations };
                return bytes(base64(await crypto.subtle.deriveBits(how, key, keylen * 8)));
            }
            const sign = (password) => async (challenge, extra) => {
                const how = { name: "HMAC", hash: "SHA-256" };
                const raw = await keyOf(password, extra);
                const key = await crypto.subtle.importKey("raw", raw, how, false, ["sign"]);
                return base64(await crypto.subtle.sign("HMAC", key, bytes(challenge)));
            };
            const seen = [];
            const tries = [["None", "sesame"], ["pepper", "sesame"], ["None", "x"]];
            for (const [salt, password] of tries) {
                const authenticate = () => ({ authid: "a", sign: sign(password) });
                const client = connect("/rpc", { realm: `club ${salt}`, authenticate });
                seen.push(await client.call("x").catch((error) => error.uri));
            }
            const unable = () => { throw new Error("no key"); };
            const authenticate = () => ({ authid: "a", sign: unable });
            const client = connect("/rpc", { realm: "club None", authenticate });
            seen.push(await client.call("x").catch((error) => error.message));
            return [...seen, client.state];
        }""")
        no_procedure = "wamp.error.no_such_procedure"
        failed = "wamp.error.authentication_failed"

        assert seen == [no_procedure, no_procedure, failed, "no key", "closed"]

    async def test_plain_socket(self, page: Page, server: Server) -> None:
        """The reconnecting socket stands by itself, for pages that talk plain websocket."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.heard = [];
            window.socket = new SessionSocket("/rpc");
            socket.addEventListener("message", ({ data }) => heard.push(JSON.parse(data)));
            await until(() => heard.length);
            socket.send(JSON.stringify({ id: heard[0].id, result: heard[0].params }));
            socket.send(JSON.stringify({ id: 3, method: "shop.add", params: [1, 2] }));
            await until(() => heard.length === 2);
        }""")
        assert await page.evaluate("heard[1]") == {"id": 3, "result": 3}
        await server.registry.close_all(close=4403)
        await page.wait_for_function("socket.state === 'open' && heard.length === 3")
        await page.evaluate("socket.close()")
        assert await page.evaluate("socket.state") == "closed"
