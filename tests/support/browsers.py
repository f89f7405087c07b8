"""
Simulated browsers: each keeps sockets open to several nodes, and reconnects.
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
PATIENCE: Final = ClientTimeout(total=15.0)  # for a page request
HELLO: Final = 15.0  # seconds for the handshake, and as many for the first message
BYE: Final = ClientWSTimeout(ws_close=2.0)
CUT: Final = 1006  # the code a browser reports if no close frame arrived
ENDED, RECONNECT, REFUSED = 4401, 4403, 403
STRANGER: Final = 4000  # the socket opened in a session other than the cookie's
NOBODY: Final = 4001  # the socket opened in an empty session: the storage has lost the old one


Failure = (ClientError, TimeoutError, OSError)


class Visit:
    """
    The outcome of a connection attempt, as the page observed it.

    Attributes:
        tab: The tab that connected.
        code: The close code, or the HTTP status of a refused handshake.
        opened: Whether the socket had opened.
        living: Whether the session was expected to live: no end of it had been requested, and
            no renewal explains the code.
        died: Whether the node process of the attempt had ended, possibly replaced by another.
    """

    def __init__(self, tab: Tab, code: int, *, opened: bool, died: bool, stale: bool) -> None:
        self.tab = tab
        self.code = code
        self.opened = opened
        # A renewal closes all sockets with RECONNECT, and refuses the previous cookie with it.
        renewed = stale or (code == RECONNECT and tab.browser.renewed)
        self.living = not tab.browser.ending and not renewed
        self.died = died

    def __str__(self) -> str:
        return f"{self.tab}: {self.code}"


class Browser:
    """
    One session: its cookie, and tabs that use this cookie until it is refused.

    Attributes:
        user: The user who has logged in.
        id: The session ws id.
        cookie: From the log-in or last renewal. A log-out doesn't remove it, as if it were stolen.
        stale: Cookies that a renewal has replaced, or issued while the session was being ended.
        ids: Every session ws id issued, with the pid of the issuing process and the time.
        lineage: The token of its lineage, once a socket has reported it.
        renewed: Whether a renewal was requested.
        ending: Whether an end of the session was requested.
        ended: Whether a response has confirmed the end of the session.
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
        """Fetch a page; return its JSON, if any, and the cookie that it sets, or ``""``."""
        headers = {"Cookie": self.cookie} if self.cookie else {}
        url = node.url + path
        async with self.client.get(url, headers=headers, timeout=PATIENCE) as response:
            response.raise_for_status()
            cookie = response.cookies.get(COOKIE)
            told = await response.json(content_type=None)
            return told, "" if cookie is None else f"{COOKIE}={cookie.coded_value}"

    async def log_in(self, nodes: Sequence[NodeProcess], random: Random) -> None:
        """Log in on a random node; retry until one responds."""
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
        """Renew the session, unless the node fails before it has responded."""
        self.renewed = True
        pid = node.pid
        with contextlib.suppress(*Failure):
            told, cookie = await self.get(node, "/renew")
            if told is None or not cookie or told["user"] != self.user:
                return
            if self.ending:  # the session ended meanwhile, so the new cookie must be refused
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
        """Close all tabs, as their user would; return the tasks to await."""
        for tab in self.tabs:
            tab.task.cancel()
        return [tab.task for tab in self.tabs]

    @property
    def all_open(self) -> bool:
        """Whether every tab has an open socket."""
        return all(tab.socket is not None for tab in self.tabs)


class Tab:
    """
    A page with a socket to one node; it reconnects until it is closed as ended or refused.

    Attributes:
        socket: The id of the open socket, ``None`` if there is none.
        opened_at: When the last socket opened, by the event loop's clock.
        closed_at: When the last socket closed.
        task: Connects and reconnects; with ``once`` it connects once and disconnects.
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
        self._cookie = ""  # of the current attempt
        self._visits = visits
        self._random = random
        self.task = asyncio.create_task(self._try() if once else self._live(), name=str(self))

    def __str__(self) -> str:
        return f"{self.browser} on {self.node.name}"

    async def _try(self) -> None:
        """Connect once; disconnect if the handshake is accepted."""
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
                # Shorter delays than a page's, so that handshakes coincide with every failure.
                most = min(2.0, 0.05 * 2**failures)
                await asyncio.sleep(most * self._random.uniform(0.5, 1.0))

    async def _connect(self, *, stay: bool = True) -> tuple[int, bool]:
        """Connect and wait for the end; return its code, and whether the socket had opened."""
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
                    # An id is unknown after a renewal that is saved but not answered.
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
