"""
Browsers as a page makes them behave: several sockets, on several nodes, that come back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWSTimeout,
    WSMsgType,
    WSServerHandshakeError,
)

from .node_process import NodeProcess

COOKIE: Final = "AIOHTTP_SESSION"
PATIENCE: Final = ClientTimeout(total=15.0)  # with a page
HELLO: Final = 15.0  # seconds until a socket that opened has said whose it is
BYE: Final = ClientWSTimeout(ws_close=2.0)
CUT: Final = 1006  # what a browser's script sees if no close frame came
ENDED, RECONNECT, REFUSED = 4401, 4403, 403
STRANGER: Final = 4000  # a socket opened, but in another session than the cookie's
NOBODY: Final = 4001  # it opened in an empty session: the storage has forgotten the old one


Failure = (ClientError, TimeoutError, OSError)


class Visit:
    """
    What happened to a socket or to an attempt to open one, as the page saw it.

    Attributes:
        tab: Whose socket.
        code: The close code, or the HTTP status of a handshake that was refused.
        opened: Whether a socket was open before.
        living: Whether nobody had tried to end the session then.
        died: Whether the node, as it was when the socket opened, was dead then.
    """

    def __init__(self, tab: Tab, code: int, *, opened: bool, died: bool, stale: bool) -> None:
        self.tab = tab
        self.code = code
        self.opened = opened
        # A renewal closes all sockets, and who comes with the cookie of before is told so again.
        renewed = stale or (code == RECONNECT and tab.browser.renewed)
        self.living = not tab.browser.ending and not renewed
        self.died = died

    def __str__(self) -> str:
        return f"{self.tab}: {self.code}"


class Browser:
    """
    One session: its cookie, and its tabs, which use that cookie to the bitter end.

    Attributes:
        user: Who has logged in.
        id: The session ws id.
        cookie: What the log-in gave; nobody takes it away, as if it had been stolen.
        stale: Cookies that a renewal has replaced.
        ids: All session ws ids that it has had, and which process has given it when.
        lineage: The token of its lineage, once a socket has told it.
        renewed: Whether a renewal was asked for.
        ending: Whether somebody has begun to end the session.
        ended: Whether somebody was told that it is ended.
    """

    def __str__(self) -> str:
        return f"{self.user} ({self.id[:8]})"

    def __init__(self, client: ClientSession, user: str) -> None:
        self.client = client
        self.user = user
        self.id = ""
        self.cookie = ""
        self.stale: list[str] = []
        self.ids: dict[str, tuple[int, float]] = {}
        self.lineage = ""
        self.renewed = False
        self.ending = False
        self.ended = False
        self.tabs: list[Tab] = []

    async def get(self, node: NodeProcess, path: str) -> tuple[dict[str, Any] | None, str]:
        """Fetch a page; return its JSON if any, and the cookie that came with it."""
        headers = {"Cookie": self.cookie} if self.cookie else {}
        url = node.url + path
        async with self.client.get(url, headers=headers, timeout=PATIENCE) as response:
            response.raise_for_status()
            cookie = response.cookies.get(COOKIE)
            told = await response.json(content_type=None)
            return told, "" if cookie is None else f"{COOKIE}={cookie.coded_value}"

    async def log_in(self, nodes: Sequence[NodeProcess], random: Random) -> None:
        """Log in, on whichever node answers."""
        while not self.id:
            node = random.choice(nodes)
            pid = node.pid
            with contextlib.suppress(*Failure):
                told, self.cookie = await self.get(node, f"/login?user={self.user}")
                assert told is not None
                self._take_id(told["id"], pid)
                return
            await asyncio.sleep(random.uniform(0.05, 0.2))

    async def renew(self, node: NodeProcess) -> None:
        """Have the session renewed, unless the node goes before it has answered."""
        self.renewed = True
        pid = node.pid
        with contextlib.suppress(*Failure):
            told, cookie = await self.get(node, "/renew")
            if told is None or not cookie or told["user"] != self.user:
                return
            if self.ending:  # the session was ended in the midst of it, and this is to be so too
                self.stale.append(cookie)
                self.ids.setdefault(told["id"], (pid, asyncio.get_running_loop().time()))
            else:
                self.stale.append(self.cookie)
                self.cookie = cookie
                self._take_id(told["id"], pid)

    def _take_id(self, session_ws_id: str, pid: int) -> None:
        self.id = session_ws_id
        self.ids[session_ws_id] = pid, asyncio.get_running_loop().time()

    def open_tabs(self, nodes: Sequence[NodeProcess], random: Random, visits: list[Visit]) -> None:
        """Open a tab on each node."""
        self.tabs = [Tab(self, node, random, visits) for node in nodes]

    def close_tabs(self) -> list[asyncio.Task[None]]:
        """Have all tabs closed by their user; return what is to be awaited."""
        for tab in self.tabs:
            tab.task.cancel()
        return [tab.task for tab in self.tabs]

    @property
    def all_open(self) -> bool:
        """Whether every tab has its socket."""
        return all(tab.socket is not None for tab in self.tabs)


class Tab:
    """
    A page with a socket to one node: it comes back until it is told that the session is over.

    Attributes:
        socket: The id of the socket that is open, ``None`` if none is.
        opened_at: When the last one was opened, by the event loop's clock.
        closed_at: When the last one was closed.
        task: Its life; with ``once`` it neither stays nor comes back.
    """

    def __init__(
        self,
        browser: Browser,
        node: NodeProcess,
        random: Random,
        visits: list[Visit],
        *,
        once: bool = False,
    ) -> None:
        self.browser = browser
        self.node = node
        self.socket: str | None = None
        self.opened_at = 0.0
        self.closed_at = 0.0
        self._cookie = ""  # that the present attempt has come with
        self._visits = visits
        self._random = random
        self.task = asyncio.create_task(self._try() if once else self._live(), name=str(self))

    def __str__(self) -> str:
        return f"{self.browser} on {self.node.name}"

    async def _try(self) -> None:
        """Try it once; hang up if it is not refused."""
        await self._connect(stay=False)

    async def _live(self) -> None:
        failures = 0
        while True:
            code, opened = await self._connect()
            if code in (ENDED, REFUSED) and self._cookie == self.browser.cookie:
                return
            failures = 0 if opened else failures + 1
            if code == RECONNECT and failures == 0:
                await asyncio.sleep(self._random.random())
            else:
                # Quicker than a page would be, to be there in the middle of every trouble.
                most = min(2.0, 0.05 * 2**failures)
                await asyncio.sleep(most * self._random.uniform(0.5, 1.0))

    async def _connect(self, *, stay: bool = True) -> tuple[int, bool]:
        """Live through one connection; return how it ended, and whether it was one."""
        pid = self.node.pid
        code, opened = CUT, False
        self._cookie = self.browser.cookie
        try:
            async with asyncio.timeout(HELLO):
                ws = await self.browser.client.ws_connect(
                    self.node.url + "/ws", headers={"Cookie": self._cookie}, timeout=BYE
                )
            async with ws:
                message = await ws.receive(timeout=HELLO)
                if message.type is WSMsgType.TEXT and message.json()["user"] is None:
                    code = NOBODY
                elif message.type is WSMsgType.TEXT:
                    opened = True
                    self.opened_at = asyncio.get_running_loop().time()
                    self.socket = message.json()["socket"]
                    told = message.json()
                    # A renewal that was saved, but not answered yet, has given it a new id.
                    if told["id"] in self.browser.ids:
                        self.browser.lineage = told["lineage"]
                    elif told["lineage"] != self.browser.lineage:
                        code = STRANGER
                    if stay and code != STRANGER:
                        message = await ws.receive()
                if message.type is WSMsgType.CLOSE:
                    code = int(message.data)
        except WSServerHandshakeError as exc:
            code = exc.status
        except Failure:
            pass
        if opened:
            self.socket = None
            self.closed_at = asyncio.get_running_loop().time()
        died = not self.node.running or self.node.pid != pid
        stale = self._cookie != self.browser.cookie
        self._visits.append(Visit(self, code, opened=opened, died=died, stale=stale))
        return code, opened
