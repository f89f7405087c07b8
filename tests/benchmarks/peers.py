"""
The measured servers: how each is started, and how clients connect to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from .environments import PROGRAMS, Interpreter, environment, library
from .processes import CLIENT, SERVER, Child, RedisServer

PLAIN: Final = "/ws?sid={sid}"
ENGINE_IO: Final = "/socket.io/?EIO=4&transport=websocket&session={sid}"


@dataclass(frozen=True, slots=True)
class Peer:
    """
    A measured server: of the package, a floor or an alternative.

    Attributes:
        name: Its name in ``--peers`` and in the JSON.
        title: Its name in the table.
        interpreter: Returns the interpreter of its server; called when that is needed.
        arguments: The server's command line: a program and its options.
        parts: The measurements that it takes part in.
    """

    name: str
    title: str
    interpreter: Callable[[], Interpreter]
    arguments: tuple[str, ...]
    parts: frozenset[str]

    @property
    def clustered(self) -> bool:
        """
        Whether it uses Redis in measurements of a single server too.
        """
        return self.name.endswith("-redis")

    @property
    def speaks_engine_io(self) -> bool:
        """
        Whether its clients use Engine.IO.
        """
        return self.name.startswith(("sio", "socketio"))

    def start(self, redis: RedisServer | None = None, *options: str, pinned: bool = True) -> Child:
        """
        Start a server.
        """
        interpreter = self.interpreter()
        program, *rest = self.arguments
        command = [*interpreter.command]
        command += [program] if program.endswith(".js") else ["-m", program]
        if redis is not None:
            rest += ["--redis", str(redis.port)]
        child = Child([*command, *rest, *options], dict(interpreter.variables), PROGRAMS)
        if pinned:
            child.pin(SERVER)
        return child

    def connect(self, client: Client, server: Child, sids: list[str], group: str) -> Opened:
        """
        Open a websocket for each of the sessions.
        """
        answer = client.ask(
            "connect",
            port=server.port,
            sids=sids,
            group=group,
            path=ENGINE_IO if self.speaks_engine_io else PLAIN,
            dialect="eio" if self.speaks_engine_io else "ws",
            concurrency=32,
        )
        return Opened(answer["opened"], answer["seconds"], answer["median"] / 1e3)

    def visit(self, client: Client, server: Child, sids: list[str]) -> None:
        """
        Begin sessions by loading a page, on servers that begin sessions so.
        """
        if self.arguments[0] in ("programs.app", "programs.naive_app"):
            client.ask("visit", port=server.port, sids=sids)


@dataclass(frozen=True, slots=True)
class Opened:
    """
    The result of many handshakes.

    Attributes:
        count: How many were accepted.
        seconds: Seconds that all took together.
        median: Median of the time that one took, in microseconds.
    """

    count: int
    seconds: float
    median: float


class Client(Child):
    """
    The process of all clients.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        super().__init__([sys.executable, "-m", "programs.client"], {}, PROGRAMS)
        if pinned:
            self.pin(CLIENT)


_SIO, _JS = "python-socketio", "Socket.IO 4"
#: Name, title, environment, program, parts. Floors come first.
_PEERS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("raw", "raw sockets", "", "programs.raw", "life cluster scaling"),
    ("aiohttp", "aiohttp alone", "", "programs.app bare", "life idle echo scaling"),
    (
        "ours",
        "this package",
        "",
        "programs.app session",
        "life turns idle echo scaling in-process",
    ),
    ("ours-websocket", "its WebSocket", "", "programs.app websocket", "life idle echo"),
    ("ours-view", "its WebSocketView", "", "programs.app view", "echo"),
    ("ours-redis", "with Redis", "", "programs.app session", "life idle cluster"),
    ("ours-ends", "with Redis, ends", "", "programs.app session --order end_session", "cluster"),
    (
        *("predecessor", "aiohttp-session-ws 1.1.1", "predecessor", "programs.app session"),
        "life idle echo scaling in-process",
    ),
    ("naive", "1.1.1 and PUBLISH", "predecessor", "programs.naive_app", "cluster"),
    ("sio", _SIO, "python-socketio", "programs.socketio_app", "life idle"),
    ("sio-redis", f"{_SIO}, Redis", "python-socketio", "programs.socketio_app", "life cluster"),
    ("channels", "Channels", "channels", "programs.channels_app", "life idle"),
    ("channels-redis", "Channels, Redis", "channels", "programs.channels_app", "life cluster"),
    ("socketio", _JS, "socketio", "programs/socketio_app.js", "life idle"),
    ("socketio-redis", f"{_JS}, Redis", "socketio", "programs/socketio_app.js", "life cluster"),
    ("calls", "calls: a task each", "", "programs.calls floor", "calls"),
    ("calls-wamp", "this package, WAMP", "", "programs.calls ours", "calls joined published"),
    ("calls-wsrpc", "this package, wsrpc", "", "programs.calls ours", "calls joined"),
    ("serverwamp", "serverwamp 2.0.0", "serverwamp", "programs.calls serverwamp", "calls"),
    ("wsrpc", "wsrpc-aiohttp 4.1.1", "wsrpc", "programs.calls wsrpc", "calls"),
    ("starlette", "Starlette, uvicorn", "channels", "programs.starlette_app", "echo"),
)


def all_peers(before: Path | None) -> list[Peer]:
    """
    Return all peers, floors first.

    Args:
        before: The folder of another version of the package, to be measured too.
    """
    result = []
    for name, title, where, program, parts in _PEERS:
        interpreter = partial(environment, where) if where else library
        peer = Peer(name, title, interpreter, tuple(program.split()), frozenset(parts.split()))
        result.append(peer)
        if before is not None and name.startswith("ours"):
            old = replace(peer, name=name.replace("ours", "before"), title=f"{title}, before")
            result.append(replace(old, interpreter=partial(library, before)))
    return result
