"""
Fuzz the RPC protocols: ``python -m tests.fuzz --frames 1000000``.

Peers send malformed, truncated, oversized, wrongly typed and misplaced frames, in both dialects
and all encodings; they vanish, or read nothing. In all cases a connection must continue or close
with an expected code, no exception may be unhandled, no session, task or handler may be left,
memory must stay bounded, and no detail of an exception may reach a peer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from aiohttp import ClientError, ClientSession, TCPConnector, WSMsgType, web

from aiohttp_session_ws import SessionWSRegistry, Timeouts, rpc
from tests.rpc.support import Server, who
from tests.support.inspect import transport_of

LIMITS: Final = rpc.CallLimits(
    calls=8, waiting=8, waiting_bytes=65_536, outgoing=262_144, patience=0.3, message=65_536,
    subscriptions=8, registrations=8, join=2.0, ping=0.2, silence=0.5,
)  # fmt: skip
PROTOCOLS: Final = [
    "wamp.2.json", "wamp.2.msgpack", "wamp.2.json.batched", "wamp.2.msgpack.batched", None,
]  # fmt: skip
SECRET: Final = "hunter2"
#: Texts that no frame to a peer may contain.
TRACES: Final = (SECRET, "Traceback", "object at 0x", "Error(", 'File "', "<class")
CODES: Final = {1000, 1001, 1002, 1006, 1007, 1008, 1009, 1011, 1013}
MEMORY: Final = 400  # MiB that the process may grow by


class Fuzzed:
    """The application under test, with counters of its open contexts and running handlers."""

    def __init__(self) -> None:
        self.inside = 0  # contexts that were entered and not left
        self.handlers = 0  # running handlers
        routes = rpc.Routes("f.")

        @routes.route()
        async def add(a: int, b: int = 1) -> int:
            return a + b

        @routes.route()
        async def echo(*args: Any, **kwargs: Any) -> Any:
            return rpc.RPCResult(args, kwargs)

        @routes.route()
        async def fail() -> None:
            raise RuntimeError(SECRET)

        @routes.route()
        async def wait(seconds: float = 0.01) -> None:
            self.handlers += 1
            try:
                await asyncio.sleep(min(seconds, 0.05))
            finally:
                self.handlers -= 1

        @routes.route("big.{size}")
        async def big(size: int) -> str:
            return "x" * min(size, 300_000)

        @routes.route()
        async def stream(parts: int = 3) -> AsyncIterator[int]:
            self.handlers += 1
            try:
                for i in range(min(parts, 1000)):
                    yield i
            finally:
                self.handlers -= 1

        @routes.route()
        async def ask(session: rpc.Session) -> Any:
            return await session.call("mine", 1, timeout=0.05)

        @routes.topic("t.{n}")
        async def topic(n: int) -> AsyncIterator[None]:
            self.inside += 1
            yield
            self.inside -= 1

        self.calls = rpc.Application(limits=LIMITS)
        self.calls.default.add_rpc_routes(routes)
        for kind in (rpc.NotRegistered, rpc.RemoteError, rpc.SessionGone, TimeoutError):
            self.calls.default.errors[kind] = "f.error.client"
        self.calls.default.errors[RuntimeError] = "f.error.known"

        @self.calls.add_session_state_handler
        async def state() -> AsyncIterator[None]:
            self.inside += 1
            yield
            self.inside -= 1


class Frames:
    """A generator of random frames: invalid ones, among valid ones."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self._next = 0

    def honest(self, protocol: str | None) -> Any:
        """Return a valid message, as a well-behaved client would send it."""
        self._next += 1
        number, pick = self._next, self.random.random()
        name = self.random.choice(
            ["f.add", "f.wait", "f.stream", "f.ask", "f.fail", "f.big.200000"]
        )
        if protocol is None:
            return {"id": number, "method": name, "params": [1] if name == "f.add" else []}
        if pick < 0.6:
            options = {"receive_progress": True} if pick < 0.2 else {"timeout": 10}
            return [48, number, options, name, [1] if name == "f.add" else []]
        if pick < 0.75:
            return [49, max(1, number - 3), {"mode": self.random.choice(["kill", "skip", "x"])}]
        if pick < 0.9:
            return [32, number, {}, self.random.choice(["f.t.1", "f.t.2"])]
        return [64, number, {}, "mine"] if pick < 0.95 else [70, max(1, number % 20), {}, [1]]

    def value(self, depth: int = 0) -> Any:
        """Return a random value of any type."""
        pick = self.random.random()
        if depth < 3 and pick < 0.15:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if depth < 3 and pick < 0.3:
            return {self.word(): self.value(depth + 1) for _ in range(self.random.randrange(4))}
        return self.random.choice([
            None, True, False, 0, 1, -1, 2**53, 2**63, 2**80, 1.5, 1e308, "", "x", "\0", "\0AAE=",
            "\0!!", "\ud7ff", "x" * 100, self.random.randrange(100), self.word(),
        ])  # fmt: skip

    def word(self) -> str:
        """Return a random name, registered or not."""
        return self.random.choice([
            "f.add", "f.echo", "f.fail", "f.wait", "f.big.100", "f.big.200000", "f.big.x",
            "f.stream", "f.ask", "f.t.1", "f.t.2", "f.t.x", "f", "", "..", "__class__", "mine",
            "f.add.__globals__", "ping", "a", "b", "session", "method", "id", "result", "error",
        ])  # fmt: skip

    def number(self) -> Any:
        """Return the number of a request, valid or not."""
        return self.random.choice([*range(1, 30), 0, -1, 2**53, 2**53 + 1, "1", None, 1.5])

    def options(self) -> Any:
        """Return the options of a message, valid or not."""
        return self.random.choice([
            {}, {}, {}, {"receive_progress": True}, {"timeout": 5}, {"mode": "kill"}, {"mode": 5},
            {"mode": "skip"}, {"acknowledge": True}, {"match": "prefix"}, {"authid": None},
            {"authmethods": ["ticket"]}, self.value(),
        ])  # fmt: skip

    def wamp(self) -> Any:
        """Return a WAMP message, or an invalid variant of one."""
        pick = self.random.random()
        if pick < 0.05:
            return self.value()
        kind = self.random.choice(
            [48] * 10 + [49] * 4 + [32] * 3 + [34, 64, 64, 66, 70, 70, 8, 16, 6, 1, 3, 5, 2, 99]
        )
        shapes: dict[int, list[Any]] = {
            48: [self.number(), self.options(), self.word(), [self.value()], {}],
            49: [self.number(), self.options()],
            32: [self.number(), self.options(), self.word()],
            34: [self.number(), self.number()],
            64: [self.number(), self.options(), "mine"],
            66: [self.number(), self.number()],
            70: [self.number(), self.options(), [self.value()]],
            8: [68, self.number(), {}, "client.error", [self.value()]],
            16: [self.number(), self.options(), self.word(), []],
            6: [{}, "wamp.close.normal"],
            1: ["realm", self.options()],
        }
        message = [kind, *shapes.get(kind, [self.value(), self.value()])]
        if pick < 0.12:
            message = message[: self.random.randrange(len(message) + 1)]
        elif pick < 0.2:
            message[self.random.randrange(len(message))] = self.value()
        return message

    def wsrpc(self) -> Any:
        """Return a wsrpc message, or an invalid variant of one."""
        message: dict[str, Any] = {"id": self.number(), "method": self.word()}
        if self.random.random() < 0.8:
            message["params"] = self.value()
        if self.random.random() < 0.2:
            message = {"id": self.number(), self.random.choice(["result", "error"]): self.value()}
        if self.random.random() < 0.1:
            del message["id"]
        return self.value() if self.random.random() < 0.05 else message

    def frame(self, protocol: str | None, rude: float) -> str | bytes:
        """Return a frame of a dialect; *rude* is the probability that it may be invalid."""
        rudely = self.random.random() < rude
        try:
            frame = self._encode(protocol, rudely)
        except (OverflowError, UnicodeError, TypeError):
            return "x"
        if not rudely:
            return frame
        pick = self.random.random()
        if pick < 0.03:
            return frame[: self.random.randrange(len(frame) + 1)]
        if pick < 0.05:
            return self.random.randbytes(self.random.randrange(60))
        if pick < 0.055:
            return frame * 2
        if pick < 0.057:
            return "[" * 50_000
        if pick < 0.058:
            return '[48,1,{},"f.echo",["' + "x" * 70_000 + '"]]'
        return frame

    def _encode(self, protocol: str | None, rudely: bool) -> str | bytes:
        if protocol is None:
            return json.dumps(self.wsrpc() if rudely else self.honest(None))
        count = self.random.randrange(1, 5) if protocol.endswith("batched") else 1
        messages = [self.wamp() if rudely else self.honest(protocol) for _ in range(count)]
        if ".msgpack" in protocol:
            parts = [msgspec.msgpack.encode(message) for message in messages]
            if count == 1 and not protocol.endswith("batched"):
                return parts[0]
            return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        texts = [json.dumps(message) for message in messages]
        return "".join(t + "\x1e" for t in texts) if protocol.endswith("batched") else texts[0]


class Fire:
    """Peers that together send a given number of frames."""

    def __init__(self, url: str, frames: int, seed: int) -> None:
        self.url = url
        self.left = frames
        self.frames = Frames(random.Random(seed))
        self.codes: Counter[int | None] = Counter()
        self.connections = 0
        self.heard = 0

    async def peer(self, client: ClientSession) -> None:
        """Open one connection after another, until no frames are left."""
        source = self.frames.random
        while self.left > 0:
            protocol = source.choice(PROTOCOLS)
            protocols = [] if protocol is None else [protocol]
            try:
                async with asyncio.timeout(30):
                    ws = await client.ws_connect(self.url, protocols=protocols, max_msg_size=0)
            except (ClientError, OSError):
                continue
            self.connections += 1
            deaf = source.random() < 0.05
            reading = None if deaf else asyncio.create_task(self._read(ws))
            with contextlib.suppress(ConnectionError):
                await self._send(ws, protocol)
            await asyncio.sleep(source.choice([0, 0.02, 0.2]))
            if source.random() < 0.3:
                transport = transport_of(ws)
                if transport is not None:
                    transport.abort()
            with contextlib.suppress(ConnectionError):
                await ws.close()
            if reading is not None:
                await reading

    async def _send(self, ws: Any, protocol: str | None) -> None:
        source = self.frames.random
        if protocol is not None and source.random() < 0.95:
            hello: Any = [1, "realm", {}]
            text = json.dumps(hello) + ("\x1e" if protocol.endswith("batched") else "")
            data = msgspec.msgpack.encode(hello)
            if protocol.endswith("batched"):
                data = len(data).to_bytes(4, "big") + data
            await (ws.send_bytes(data) if ".msgpack" in protocol else ws.send_str(text))
        rude = source.choice([0.0, 0.0, 0.01, 0.1, 0.5, 1.0])
        for _ in range(source.randrange(1, 200)):
            if ws.closed or self.left <= 0:
                return
            self.left -= 1
            frame = self.frames.frame(protocol, rude)
            async with asyncio.timeout(30):
                await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))
            if source.random() < 0.1:
                await asyncio.sleep(source.choice([0, 0.001]))

    async def _read(self, ws: Any) -> None:
        while True:
            message = await ws.receive()
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self.heard += 1
                data = message.data
                text = data if isinstance(data, str) else data.decode("latin-1")
                assert not any(trace in text for trace in TRACES), text
            else:
                code = message.data if message.type is WSMsgType.CLOSE else ws.close_code
                self.codes[code] += 1
                assert code is None or code in CODES, message
                return


async def fuzz(frames: int, seed: int, peers: int = 20) -> Fire:
    """Send frames to an application, then check that nothing is left behind."""
    fuzzed = Fuzzed()
    # Long enough for a busy machine; a task that hangs is still found.
    timeouts = Timeouts(close=10.0, handler_grace=20.0)
    server = Server(fuzzed.calls, SessionWSRegistry(identify=who, timeouts=timeouts))
    runner = web.AppRunner(server.app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    before = asyncio.all_tasks()
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    fire = Fire(f"http://127.0.0.1:{runner.addresses[0][1]}/rpc", frames, seed)
    async with ClientSession(connector=TCPConnector(limit=0)) as client:
        async with asyncio.TaskGroup() as group:
            for _ in range(peers):
                group.create_task(fire.peer(client))
            publishing = group.create_task(_publish(fuzzed.calls, fire))
        await publishing
    async with asyncio.timeout(60):
        while fuzzed.calls.sessions or fuzzed.inside or fuzzed.handlers:
            await asyncio.sleep(0.01)
        while left := [t for t in asyncio.all_tasks() - before if "session_ws" in str(t)]:
            await asyncio.wait(left, timeout=1)
    assert not (await fuzzed.calls.publish("f.t.1")).sockets
    await runner.cleanup()
    gc.collect()
    assert not unhandled, unhandled[:3]
    return fire


async def _publish(calls: rpc.Application, fire: Fire) -> None:
    """Publish events meanwhile, which go to subscribed peers."""
    while fire.left > 0:
        if calls.sessions:
            await calls.publish("f.t.1", ["x" * 500])
        await asyncio.sleep(0.01)


class Complaints(logging.Handler):
    """Collects warnings and errors that are logged, but for the expected ones."""

    #: A peer that reads nothing misses what is published; asyncio's debug mode times callbacks.
    EXPECTED = ("are dropped: its peer reads too slowly", "Executing <")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Collect a record, unless it is expected."""
        text = self.format(record)
        if not any(words in text for words in self.EXPECTED):
            self.heard.append(text)


def run(frames: int, seed: int) -> Fire:
    """
    Run the fuzzer, and raise if it found a defect.
    """
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        fire = asyncio.run(fuzz(frames, seed))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    finally:
        logging.getLogger().removeHandler(complaints)
    assert not complaints.heard, "\n".join(complaints.heard[:3])
    assert grown < MEMORY, f"memory has grown by {grown:.0f} MiB"
    return fire


def main() -> int:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=None, help="of the random numbers")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    sys.stdout.write(f"seed {seed}\n")
    sys.stdout.flush()  # so that a redirected, killed run shows the seed too
    started = time.monotonic()
    fire = run(options.frames, seed)
    seconds = time.monotonic() - started
    sys.stdout.write(
        f"{options.frames} frames over {fire.connections} connections in {seconds:.0f} s,"
        f" {fire.heard} answers; ends by code: {dict(fire.codes)}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
