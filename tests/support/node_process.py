"""
Run nodes (``tests.support.node_app``) as separate processes: start, query and kill them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final, Self

from aiohttp import ClientSession, DummyCookieJar

from .processes import Process, free_port

#: Runs a node with a wrong wall clock, or with another package, from its first import on.
PROGRAM: Final = """
import runpy, sys, time
real, wrong = time.time, {clock!r}
time.time = lambda: real() + wrong
sys.path[:0] = {path!r}
runpy.run_module("tests.support.node_app", run_name="__main__")
"""


class NodeProcess(Process):
    """
    A node in a process of its own; its port stays the same after ``kill()`` and ``start()``.

    ``async with NodeProcess("a", redis=server.url) as node:`` starts it and kills it at the end.

    Args:
        name: The node's name.
        redis: The URL of its Redis; without one it is a single node.
        options: Further command line arguments: ``"--on-outage", "accept"``.
        connected: Whether :meth:`start` also waits for the connection to Redis.
        clock: By how many seconds its wall clock is ahead.
        path: A folder to import the package from, instead of this checkout.
    """

    def __init__(
        self,
        name: str,
        *options: str,
        redis: str | None = None,
        connected: bool = True,
        clock: float = 0.0,
        path: Path | None = None,
    ) -> None:
        self.port = free_port()
        self.connected = connected
        program = ["-m", "tests.support.node_app"]
        if clock or path is not None:
            paths = [] if path is None else [str(path)]
            program = ["-c", PROGRAM.format(clock=clock, path=paths)]
        command = [sys.executable, *program, "--name", name, "--port", str(self.port)]
        if redis is not None:
            command += ["--redis", redis]
        super().__init__(name, [*command, *options])

    @property
    def url(self) -> str:
        """The URL of the node."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> Self:
        """Start the node, and wait until it listens and, if ``connected``, has reached Redis."""
        self.launch()
        if self.connected:
            await self.said("connected")
        await self.said("listening")
        return self

    async def get(self, path: str, cookie: str | None = None) -> Any:
        """Request a page; return the JSON of the response, if any."""
        headers = {} if cookie is None else {"Cookie": cookie}
        async with (
            ClientSession(self.url, cookie_jar=DummyCookieJar(), raise_for_status=True) as client,
            client.get(path, headers=headers) as response,
        ):
            return await response.json(content_type=None)

    async def state(self) -> dict[str, Any]:
        """Return the node's own view: ``state``, ``served``, ``open``."""
        state: dict[str, Any] = await self.get("/state")
        return state

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            self.kill()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.kill()
