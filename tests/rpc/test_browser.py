"""The browser client ``session-ws.js``, in a real browser."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page

from aiohttp_session_ws import rpc
from tests.support import until

from .conftest import Serve
from .support import Server

Complaints = Callable[[], list[str]]

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
    """The application that the page connects to."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.subscribed = 0
        self.counted = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = rpc.Application()
        routes = rpc.Routes("shop.")

        @routes.route()
        async def add(a: int, b: int = 1) -> int:
            return a + b

        @routes.route()
        async def echo(value: Any = None) -> Any:
            return value

        @routes.route()
        async def bump() -> None:
            self.counted += 1

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
            self.counted += 1
            self.subscribed += 1
            await self.gate.wait()
            yield
            self.subscribed -= 1

        self.calls.default.add_rpc_routes(routes)


def record(failures: list[Any]) -> Any:
    """Return a signal receiver that appends the errors of calls to a list."""

    async def receive(details: rpc.CallDetails) -> None:
        failures.append(details.error)

    return receive


def keep(secret: rpc.CRASecret, session: rpc.Session) -> rpc.CRASecret:
    """Return the same secret for each user."""
    return secret


@pytest.fixture
def world() -> World:
    """Return the application that the page connects to."""
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
    """Open the page with a logged-in session; fail on an uncaught error in the page."""
    page = await browser.new_page()
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    await page.goto(str(server.client.make_url("/login")))
    await page.goto(str(server.client.make_url("/")))
    yield page
    await page.close()
    assert errors == []


def test_size() -> None:
    """The script is smaller than 10 KB and imports nothing."""
    text = SCRIPT.read_text()

    assert len(text.encode()) < 10_000
    assert "import " not in text


class TestCalls:
    async def test_values(self, page: Page) -> None:
        """Arguments are sent by position or by name, and values and errors return unchanged."""
        await page.evaluate(START, {})
        seen = await page.evaluate("""async () => {
            const values = [null, 5, "x", [5], [], [1, 2], {}, { a: [1] }, [[1]]];
            const echoed = [];
            for (const value of values) echoed.push(await client.call("shop.echo", [value]));
            const bytes = await client.call("shop.echo", [new Uint8Array([0, 1, 255])]);
            const many = await client.call("shop.echo", [new Uint8Array(300000).fill(7)]);
            return {
                sum: await client.call("shop.add", [2, 3]),
                named: await client.call("shop.add", { a: 4 }),
                many: many.every((byte) => byte === 7) && many.length,
                echoed, values, bytes: bytes instanceof Uint8Array && [...bytes],
                failed: await client.call("shop.fail").catch(
                    (e) => [e instanceof CallError, e.uri, e.args, e.kwargs]),
            };
        }""")

        assert seen["sum"] == 5
        assert seen["named"] == 5
        assert seen["echoed"] == seen["values"]
        assert seen["bytes"] == [0, 1, 255]
        assert seen["many"] == 300_000
        assert seen["failed"] == [True, "shop.sold_out", ["tea"], {"left": 0}]

    async def test_before_joined(self, page: Page) -> None:
        """A call made before the client has joined is sent once it has joined."""
        assert await page.evaluate("""async () => {
            const { connect } = await import("/static/session-ws.js");
            const client = connect("/rpc");
            return await client.call("shop.add", [1, 1]);
        }""") == 2  # fmt: skip

    async def test_cancel(self, page: Page, world: World) -> None:
        """A call is cancelled by its ``AbortSignal`` and ended by its timeout."""
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

    async def test_signal_is_let_go(self, page: Page) -> None:
        """A call that has ended leaves no listener on its ``AbortSignal``."""
        await page.evaluate(START, {})
        assert await page.evaluate("""async () => {
            let listening = 0;
            const { signal } = new AbortController();
            for (const [name, step] of [["addEventListener", 1], ["removeEventListener", -1]]) {
                signal[name] = (...args) => {
                    listening += step;
                    EventTarget.prototype[name].apply(signal, args);
                };
            }
            await client.call("shop.add", [1, 1], { signal });
            await client.call("shop.fail", [], { signal }).catch(() => {});
            return listening;
        }""") == 0  # fmt: skip

    async def test_unfit(self, page: Page, server: Server, world: World) -> None:
        """A call that can't be encoded is rejected; calls queued with it are sent exactly once."""
        seen = await page.evaluate("""async () => {
            const { connect } = await import("/static/session-ws.js");
            window.client = connect("/rpc");
            const calls = [[], [1n], []].map((args) =>
                client.call("shop." + (args.length ? "echo" : "bump"), args));
            return (await Promise.allSettled(calls)).map(({ status }) => status);
        }""")
        assert seen == ["fulfilled", "rejected", "fulfilled"]
        await server.registry.close_all(close=4403)
        await page.evaluate("""() => new Promise((resolve) => {
            client.addEventListener("state", ({ detail: { state } }) =>
                state === "joined" && resolve());
        })""")
        assert await page.evaluate("client.call('shop.add', [1, 1])") == 2
        assert world.counted == 2

    async def test_stream(self, page: Page, world: World) -> None:
        """A stream is iterated with ``for await``, and leaving the loop cancels the call."""
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

    async def test_stream_is_aborted(self, page: Page) -> None:
        """An aborted stream throws the signal's reason, even if it is ``null``."""
        await page.evaluate(START, {})
        assert await page.evaluate("""async () => {
            const aborting = new AbortController();
            try {
                const parts = client.stream("shop.count", [1e9], { signal: aborting.signal });
                for await (const part of parts) aborting.abort(null);
            } catch (reason) { return [reason]; }
        }""") == [None]  # fmt: skip


class TestTopics:
    async def test_events(self, page: Page, world: World) -> None:
        """Two listeners of a topic share one subscription, which ends with the last listener."""
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

    async def test_register(self, page: Page, complaints: Complaints) -> None:
        """The server can call a procedure that the page has registered."""
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
        assert complaints() == ["a call failed: shop.confirm"]

    async def test_register_fails(self, page: Page, world: World, complaints: Complaints) -> None:
        """The server gets an error if a result can't be encoded or a rejection has no reason."""
        failures: list[Any] = []
        world.calls.on_call_fail.append(record(failures))
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            await client.register("allow", (how) => {
                if (how === "unfit") return 1n;
                if (how === "nothing") return Promise.reject();
                throw new CallError("page.no", ["a"], { b: 1 });
            });
            for (const how of ["unfit", "nothing", "own"]) {
                await client.call("shop.confirm", [how], { timeout: 5000 }).catch(() => {});
            }
        }""")

        assert [error.uri for error in failures[:2]] == ["wamp.error.runtime_error"] * 2
        assert failures[1].args == ("undefined",)
        assert (failures[2].uri, failures[2].args, failures[2].kwargs) == (
            "page.no", ("a",), {"b": 1},
        )  # fmt: skip
        assert complaints() == 3 * ["a call failed: shop.confirm"]

    async def test_listener_fails(self, page: Page, world: World) -> None:
        """An exception in one listener is reported, and other listeners still get the event."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.seen = [];
            addEventListener("unhandledrejection", (event) => {
                event.preventDefault();
                seen.push(event.reason.message);
            });
            await client.subscribe("shop.news.x", () => { throw new Error("mine"); });
            await client.subscribe("shop.news.x", (text) => seen.push(text));
        }""")
        await world.calls.publish("shop.news.x", ["a"])
        await page.wait_for_function("seen.length === 2")

        assert await page.evaluate("seen") == ["a", "mine"]

    async def test_left_meanwhile(self, page: Page, world: World) -> None:
        """A listener that leaves while its SUBSCRIBE is in flight ends up unsubscribed."""
        await page.evaluate("""async () => {
            const { connect } = await import("/static/session-ws.js");
            window.client = connect("/rpc");
            const leave = await client.subscribe("shop.news.x", () => {});
            client.addEventListener("state", ({ detail: { state } }) =>
                state === "joined" && leave());
        }""")
        await until(lambda: world.counted == 1 and world.subscribed == 0)

    async def test_one_comes_as_another_leaves(self, page: Page, world: World) -> None:
        """A listener added while the last listener of the topic leaves receives events."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.seen = [];
            const leave = await client.subscribe("shop.news.x", () => {});
            await client.register("shop.news.x", () => {});
            const coming = client.subscribe("shop.news.x", (text) => seen.push(text));
            window.leave = (await Promise.all([coming, leave()]))[0];
        }""")
        assert (await world.calls.publish("shop.news.x", ["a"])).sockets == 1
        await page.wait_for_function("seen.length === 1")
        await page.evaluate("leave()")
        assert world.subscribed == 0


class TestReconnecting:
    async def test_kept(self, page: Page, server: Server, world: World) -> None:
        """After 4403 the client reconnects, resubscribes and reregisters; it repeats no calls."""
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

    async def test_kept_once(self, page: Page, server: Server) -> None:
        """A procedure registered in the "joined" event is registered once."""
        await page.evaluate("""async () => {
            const { connect } = await import("/static/session-ws.js");
            window.client = connect("/rpc");
            await new Promise((resolve) => {
                client.addEventListener("state", ({ detail: { state } }) =>
                    state === "joined" && resolve(client.register("allow", () => "yes")));
            });
        }""")
        assert await page.evaluate("client.call('shop.confirm', ['?'])") == "yes"

    async def test_closed_again(self, page: Page, server: Server, world: World) -> None:
        """A connection lost while the client resubscribes raises no error in the page."""
        await page.evaluate(START, {})
        await page.evaluate("client.subscribe('shop.news.x', () => {}).then(() => {})")
        world.gate.clear()
        await server.registry.close_all(close=4403)
        await until(lambda: world.counted == 2)
        await server.registry.close_all(close=4403)
        world.gate.set()
        await until(lambda: world.counted == 3)
        await page.wait_for_function("client.state === 'joined'")

    async def test_late_answer(self, page: Page, server: Server) -> None:
        """A late answer to a call of a lost connection doesn't answer a call of the next one."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.asked = [];
            await client.register("allow", () => new Promise((resolve) => asked.push(resolve)));
            client.call("shop.confirm", ["one?"]).catch(() => {});
            await until(() => asked.length === 1);
        }""")
        await server.registry.close_all(close=4403)
        await page.wait_for_function("states.at(-1).state === 'joined' && states.length > 3")
        assert await page.evaluate("""async () => {
            const call = client.call("shop.confirm", ["two?"]);
            await until(() => asked.length === 2);
            asked.forEach((resolve, i) => resolve(i));
            return await call;
        }""") == 1  # fmt: skip

    async def test_late_failure(self, page: Page, server: Server, world: World) -> None:
        """A late proof or signature for a lost connection doesn't affect the next connection."""
        club = rpc.Realm("club")
        club.set_ticket_authenticator(lambda session, ticket: ticket == "sesame")
        world.calls.add_realm(club)
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            const proofs = window.proofs = [], signs = window.signs = [];
            const later = (list) => () =>
                new Promise((resolve, reject) => list.push({ resolve, reject }));
            window.failing = connect("/rpc", { authenticate: later(proofs) });
            const authenticate = () => ({ ticket: "x", sign: later(signs) });
            window.signing = connect("/rpc", { realm: "club", authenticate });
            failing.addEventListener("state", ({ detail: { state } }) =>
                state === "waiting" && proofs[0].reject(new Error("offline")));
            await until(() => proofs.length && signs.length);
        }""")
        await server.registry.close_all(close=4403)
        assert await page.evaluate("""async () => {
            await until(() => proofs.length === 2 && signs.length === 2);
            proofs[1].resolve({});
            signs[0].resolve("open");
            signs[1].resolve("sesame");
            const joined = (one) => until(() => ["joined", "closed"].includes(one.state));
            await Promise.all([joined(failing), joined(signing)]);
            return [failing.state, signing.state];
        }""") == ["joined", "joined"]  # fmt: skip

    async def test_no_address(self, page: Page, server: Server) -> None:
        """An exception in the address function is reported, and the function is called again."""
        await page.evaluate(START, {})
        await page.evaluate("""async () => {
            window.asked = 0;
            window.reported = [];
            const later = window.setTimeout;
            window.setTimeout = (action, ms) => later(action, ms / 100);
            addEventListener("error", (event) => {
                event.preventDefault();
                reported.push(event.error.message);
            });
            window.socket = new SessionSocket(() => {
                if (++asked === 2) throw new Error("no token");
                return "/rpc";
            });
            await until(() => socket.state === "open");
        }""")
        await server.registry.close_all(close=4403)
        await page.wait_for_function("asked === 3 && socket.state === 'open'")
        assert await page.evaluate("reported") == ["no token"]

    async def test_close_refused(self, page: Page) -> None:
        """A close code that the browser refuses throws, and the socket stays open."""
        await page.evaluate(START, {})
        assert await page.evaluate("""async () => {
            const socket = new SessionSocket("/rpc");
            await until(() => socket.state === "open");
            let error;
            try { socket.close(1001); } catch ({ name }) { error = name; }
            socket.send("{}");
            socket.close(4000);
            return [error, socket.state];
        }""") == ["InvalidAccessError", "closed"]  # fmt: skip

    async def test_log_out(self, page: Page, server: Server) -> None:
        """After 4401 the client rejects pending calls, and reconnects only on ``connect()``."""
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
        """The reconnect delay depends on the close code and on the number of failures."""
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
        """A client that is refused gets the reason and doesn't reconnect."""
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

    async def test_error_of_the_server(
        self, page: Page, world: World, complaints: Complaints
    ) -> None:
        """A client whose join failed by an error of the server tries again."""
        failures = [
            "a session state handler failed",
            "authentication failed with an unexpected error",
        ]
        left = list(failures)

        @world.calls.default.add_transport_authenticator
        def authenticate(session: rpc.Session) -> str:
            if len(left) == 2:
                left.pop()
                raise OSError("the database is away")
            return "somebody"

        @world.calls.add_session_state_handler
        async def look_up() -> AsyncIterator[None]:
            if left:
                left.pop()
                raise OSError("the database is away")
            yield

        await page.evaluate("""async () => {
            const { connect } = await import("/static/session-ws.js");
            window.client = connect("/rpc");
        }""")
        assert await page.evaluate("client.call('shop.add', [1, 2])") == 3
        assert complaints() == failures[::-1]

    async def test_one_hello(self, page: Page, server: Server) -> None:
        """A late proof for a lost connection sends no second HELLO on the next connection."""
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
        """A page can authenticate by WAMP-CRA, with or without a salt."""
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
        """``SessionSocket`` works alone, as a reconnecting socket for plain messages."""
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
