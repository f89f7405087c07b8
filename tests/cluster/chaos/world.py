"""
Log-outs during random faults: at the end no socket of an ended session may be open.

It runs a real Redis, nodes that are processes, each with a proxy before its Redis, and browsers
that reconnect. Log-outs come at a steady rate, while ``hand.py`` injects the faults that
``faults.py`` has planned. ``test_chaos.py`` runs it for half a minute; for longer:
``CHAOS_SECONDS=600 CHAOS_RATE=30 pytest -s tests/cluster/chaos``, with ``CHAOS_SEED=…`` to repeat
a schedule. ``CHAOS_DENSE=1`` kills nodes every few seconds, and loses data while the nodes
recover from the last loss; ``CHAOS_EVICTION=1`` makes Redis evict records, too, and
``CHAOS_JOURNAL=1`` gives each node a journal.

Orders that can't be known any more are counted apart, by the rules of ``knowledge.py``. It has
more than 300 lines: the users, and all checks at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from aiohttp import ClientSession, DummyCookieJar, TCPConnector

from tests.cluster.chaos.faults import Fault
from tests.cluster.chaos.hand import Hand
from tests.cluster.chaos.knowledge import HAND
from tests.cluster.chaos.orders import Order, Recorder
from tests.support.browsers import CUT, RECONNECT, STRANGER, Browser, Failure, Tab, Visit
from tests.support.node_process import NodeProcess
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer

RATE: Final = float(os.environ.get("CHAOS_RATE", "4"))  # log-outs per second
#: At any time; every third has two browsers. Their reconnects during an outage are most of
#: what a run costs.
USERS: Final = int(os.environ.get("CHAOS_USERS", "0")) or max(25, int(1.5 * RATE))
JOURNALS: Final = bool(os.environ.get("CHAOS_JOURNAL"))  # whether each node has one
RENEWALS: Final = 0.4  # for each log-out
CLOSES: Final = 0.1  # for each log-out: close orders without an end
WAITS: Final = 0.3  # of the log-outs by id that wait for a report
WAIT: Final = 2.0  # seconds
MEANWHILE: Final = 0.5  # of the log-outs by id during which the session is renewed
SETTLE: Final = 60.0  # seconds at most until all has settled at the end
AT_ONCE: Final = 20  # stale cookies
IN_FLIGHT: Final = 100  # log-outs at a time at most: fewer are given on a busy machine
#: Attempts with stale cookies, each on a node; a random sample if there are more.
TRIED: Final = int(os.environ.get("CHAOS_TRIED", "20000"))
SHOWN: Final = 40  # of each kind of failure
LAG: Final = 2.0  # seconds until this process has processed what a client received
LOOKS: Final = 40  # in that time


@dataclass
class Report:
    """
    The results of a run. :meth:`failures` lists all that must be empty.
    """

    log_outs: int = 0
    figures: dict[str, object] = field(default_factory=dict)
    survivors: list[str] = field(default_factory=list)  # sockets of ended sessions
    revived: list[str] = field(default_factory=list)  # stale cookies that were accepted
    wrong: list[str] = field(default_factory=list)  # living sessions that were ended
    unasked: list[str] = field(default_factory=list)  # sessions told to reconnect for no reason
    absent: list[str] = field(default_factory=list)  # living sessions that did not reconnect
    degraded: list[str] = field(default_factory=list)  # nodes without their Redis in the end
    unrecorded: list[str] = field(default_factory=list)  # no record in Redis in the end
    untrue: list[str] = field(default_factory=list)  # complete though a socket was open
    apart: list[str] = field(default_factory=list)  # sockets left by an order that can't be known
    apart_revived: list[str] = field(default_factory=list)  # stale cookies after such an order

    def failures(self) -> dict[str, list[str]]:
        """Return the non-empty lists of failures, by name."""
        names = ["survivors", "revived", "wrong", "unasked", "absent", "degraded"]
        names += ["unrecorded", "untrue"]
        return {name: found for name in names if (found := getattr(self, name))}

    def __str__(self) -> str:
        lines = [f"{name:>42}: {figure}" for name, figure in self.figures.items()]
        apart = {"open, counted apart": self.apart, "revived, counted apart": self.apart_revived}
        for name, found in (self.failures() | apart).items():
            lines.append(f"{name:>42}: {len(found)}")
            lines += [f"{'':>42}  {one}" for one in found[:SHOWN]]
        return "\n".join(lines)


class Chaos:
    """
    All participants of a run, and the checks of it.

    Args:
        nodes: The nodes that have the sockets.
        redis: Their Redis; ``None`` if they have none.
        proxies: The connection of each node to it.
        random: Decides which user logs out when, where and how.
        say: Called with each line of the log.
        prefix: The prefix of the records in Redis.
    """

    def __init__(
        self,
        nodes: Sequence[NodeProcess],
        redis: RedisServer | None,
        proxies: Sequence[Proxy],
        random: Random,
        say: Callable[[str], object],
        prefix: str = "aiohttp_session_ws",
    ) -> None:
        self.nodes = nodes
        self.random = random
        self.say = say
        self.hand = None if redis is None else Hand(redis, nodes, proxies, say, journals=JOURNALS)
        self.recorder = None if redis is None else Recorder(redis, prefix)
        self.users: list[list[Browser]] = []  # the browsers of each
        self.ended: list[Browser] = []
        self.orders: list[Order] = []
        self.visits: list[Visit] = []
        self.untrue: list[str] = []
        self.complete = 0  # complete reports
        self.replayed = ""  # how many cookies were tried
        self.requests = 0  # log-outs that were retried, since a node had died
        self.start = 0.0  # by the event loop's clock, when the faults began
        self.lasted = 0.0  # seconds that the log-outs and the faults took
        self.slowest = 0.0  # seconds until a log-out was answered
        self.in_flight = 0  # log-outs that weren't answered yet
        self._forgotten: dict[Order, float] = {}  # when an order was lost everywhere
        self._client: ClientSession | None = None
        self._number = 0

    # Actions

    async def run(self, seconds: float, faults: Sequence[Fault] = ()) -> Report:
        """Run log-outs and faults for some time, wait until all is settled, and check it."""
        connector, jar = TCPConnector(limit=0), DummyCookieJar()
        async with contextlib.AsyncExitStack() as stack:
            self._client = ClientSession(connector=connector, cookie_jar=jar)
            await stack.enter_async_context(self._client)
            stack.push_async_callback(self._leave)
            if self.recorder is not None:
                await stack.enter_async_context(self.recorder.watching(self.orders))
            await asyncio.gather(*[self.arrive() for _ in range(USERS)])
            await self.until(lambda: self._all_open())
            self.start = asyncio.get_running_loop().time()
            if self.hand is not None:
                self.hand.begin()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._log_outs(seconds))
                if self.hand is not None:
                    both.create_task(self.hand.carry_out(faults))
            self.lasted = asyncio.get_running_loop().time() - self.start
            return await self._look()

    async def arrive(self) -> list[Browser]:
        """Log a user in, some in two browsers, and open tabs."""
        assert self._client is not None
        self._number += 1
        count = 2 if self._number % 3 == 0 else 1
        browsers = [Browser(self._client, f"user{self._number}") for _ in range(count)]
        for browser in browsers:
            await browser.log_in(self.nodes, self.random)
            browser.open_tabs(self.nodes, self.random, self.visits)
        self.users.append(browsers)
        return browsers

    async def _log_outs(self, seconds: float) -> None:
        """Log users out at a steady rate, and replace each by a new one."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        async with asyncio.TaskGroup() as requests:
            while (now := loop.time()) < end:
                if self.users and self.in_flight < IN_FLIGHT:
                    user = self.users.pop(self.random.randrange(len(self.users)))
                    requests.create_task(self.replace(user))
                if self.users and self.random.random() < RENEWALS:
                    browser = self.random.choice(self.random.choice(self.users))
                    requests.create_task(browser.renew(self.random.choice(self.nodes)))
                if self.users and self.random.random() < CLOSES:
                    browser = self.random.choice(self.random.choice(self.users))
                    requests.create_task(self.close(browser))
                await asyncio.sleep(max(0.0, now + 1 / RATE - loop.time()))

    async def replace(self, user: list[Browser]) -> None:
        """Log a user out, and log a new one in."""
        self.in_flight += 1
        try:
            await asyncio.gather(self.log_out(user), self.arrive())
        finally:
            self.in_flight -= 1

    async def close(self, browser: Browser) -> None:
        """Close the sockets of a session, without ending it."""
        browser.renewed = True  # or at least told to reconnect
        with contextlib.suppress(*Failure):
            await browser.get(self.random.choice(self.nodes), f"/close?id={browser.id}")

    async def log_out(self, browsers: list[Browser]) -> None:
        """End all sessions of a user, in one of three ways."""
        way = self.random.choice(["/logout", "/logout-everywhere", "/end"])
        if way == "/logout-everywhere":
            await self.end(way, browsers[0], browsers)
            return
        for browser in browsers:
            waits = f"&wait={WAIT}" if self.random.random() < WAITS else ""
            browser.ending = True  # renewals no longer change its id
            path = f"/end?id={browser.id}{waits}" if way == "/end" else way
            ending = self.end(path, browser, [browser])
            if way == "/end" and self.random.random() < MEANWHILE:
                await asyncio.gather(ending, browser.renew(self.random.choice(self.nodes)))
            else:
                await ending

    async def end(self, path: str, whose: Browser, all_: list[Browser]) -> None:
        """Retry an order until a node answers: only then can the user rely on it."""
        loop = asyncio.get_running_loop()
        for browser in all_:
            browser.ending = True
        while True:
            node = self.random.choice(self.nodes)
            pid, start = node.pid, loop.time()
            with contextlib.suppress(*Failure):
                report, _ = await whose.get(node, path)
                break
            self.requests += 1
            if path == "/logout-everywhere":
                # It may be half done: the cookie may no longer identify the user.
                path = f"/end-identity?user={whose.user}"
            await asyncio.sleep(self.random.uniform(0.05, 0.2))
        self.slowest = max(self.slowest, loop.time() - start)
        subject = None
        if "identity" in path or "everywhere" in path:
            subject = f"identity:{json.dumps(whose.user)}"
        elif "/end" in path:
            subject = f"id:{json.dumps(whose.id)}"
        order = Order(path, node, pid, all_, loop.time(), subject, report)
        self.orders.append(order)
        for browser in all_:
            browser.ended = True
        self.ended += all_
        if report is not None and report.get("complete") and "wait" in path:
            await self._check(order, start)

    async def _check(self, order: Order, asked: float) -> None:
        """Check that all sockets are closed, as a complete report says."""
        self.complete += 1
        tabs = [tab for browser in order.browsers for tab in browser.tabs]
        open_ = [(tab, tab.socket) for tab in tabs if tab.socket and tab.opened_at < asked]
        left: list[str] = []
        for _ in range(LOOKS):  # not once: this process may stall for longer than that
            left = [str(tab) for tab, socket in open_ if tab.socket == socket]
            if not left:
                return
            await asyncio.sleep(LAG / LOOKS)
        self.untrue.append(f"{self._tell(order)}: {', '.join(left)}")

    async def _leave(self) -> None:
        browsers = [*self.ended, *self._living()]
        tasks = [task for browser in browsers for task in browser.close_tabs()]
        await asyncio.gather(*tasks, return_exceptions=True)

    # Checks

    async def _look(self) -> Report:
        """Wait until all is settled, or for too long; try stale cookies; report."""
        loop = asyncio.get_running_loop()
        start, report = loop.time(), Report(len(self.orders), untrue=self.untrue)
        await self.until(self._connected)
        self._forget()
        await self.until(self._settled)
        settled = loop.time() - start
        self.say(f"settled after {settled:.2f} s")
        await self._replay(report)
        for order, places in (await self._survivors()).items():
            found = report.apart if self._excused(order) else report.survivors
            found.append(f"{self._tell(order)}: {', '.join(places)}")
        report.degraded = await self._degraded()
        report.absent = [str(b) for b in self._living() if not b.all_open]
        if self.recorder is not None:
            missing = await self.recorder.missing(self._due())
            report.unrecorded = [self._tell(order) for order in missing]
            for pid in {order.pid for order in missing}:
                self.say(self.hand.logs.get(pid, "") if self.hand is not None else "")
        self._judge(report)
        self._count(report, settled)
        return report

    def _judge(self, report: Report) -> None:
        """Sort the wrong close codes of living sessions into the report."""
        harmless = {CUT, 1001, 503}
        for visit in self.visits:
            if visit.code == STRANGER or (visit.living and visit.code not in harmless):
                (report.unasked if visit.code == RECONNECT else report.wrong).append(str(visit))

    def _count(self, report: Report, settled: float) -> None:
        closes = Counter(visit.code for visit in self.visits if visit.opened)
        cut = [v for v in self.visits if v.opened and v.code == CUT and v.living and not v.died]
        report.figures = {
            "log-outs": report.log_outs,
            "log-outs per second": f"{report.log_outs / self.lasted:.1f}",
            "sessions ended": len(self.ended),
            "log-outs asked for again": self.requests,
            "sessions renewed": sum(b.renewed for b in [*self.ended, *self._living()]),
            "slowest answer to a log-out (s)": f"{self.slowest:.2f}",
            "this process stood still (s)": f"{0 if self.hand is None else self.hand.stalled:.1f}",
            "faults": 0 if self.hand is None else sum(self.hand.done.values()),
            **({} if self.hand is None else self.hand.done),
            "reports that were complete": self.complete,
            "cookies tried in the end, on a node": self.replayed,
            "sockets opened": sum(visit.opened for visit in self.visits),
            "closed, by code": dict(sorted(closes.items())),
            "cut, of living sessions on living nodes": len(cut),
            "refused while Redis was away (503)": sum(v.code == 503 for v in self.visits),
            "log-out to last socket closed (s)": f"{self._longest():.2f}",
            "settled after (s)": f"{settled:.2f}",
            "orders that nobody can know any more": sum(map(self._excused, self.orders)),
        }

    def _longest(self) -> float:
        """Return the longest time from a log-out to the close of its last socket."""
        orders = [order for order in self.orders if not self._excused(order)]
        return max(
            (t.closed_at - o.at for o in orders for b in o.browsers for t in b.tabs), default=0.0
        )

    def _living(self) -> list[Browser]:
        return [browser for user in self.users for browser in user]

    def _tell(self, order: Order) -> str:
        """Describe an order, with times relative to the schedule."""
        told = f"{order.at - self.start:.2f} s {order}"
        if self.hand is None or self.hand.died(order.pid) == math.inf:
            return told
        return f"{told}, node died at {self.hand.died(order.pid) - self.start:.2f} s"

    def _forget(self) -> None:
        """Compute which orders can't be known any more, and since when."""
        if self.hand is None or self.recorder is None:
            return
        timeline = self.hand.timeline
        timeline.orders = [order.at for order in self.orders]
        timeline.close()
        for order in self.orders:
            evicted = self.recorder.evicted(order, self.hand.evicted)
            self._forgotten[order] = timeline.forgotten(order.pid, order.at, order.stored, evicted)

    def _excused(self, order: Order) -> bool:
        """Return whether no living node and no Redis can know an order, which is counted apart."""
        return self._forgotten.get(order, math.inf) < math.inf

    def _excused_stale(self, order: Order, browser: Browser) -> bool:
        """
        Return whether an order by id can't reach the cookies of its lineage's other ids.

        A note says that two ids are of one lineage. If all that knew it were gone when the order
        came, the order ends its one id only.
        """
        if self.hand is None or self.recorder is None or not order.by_id:
            return False
        evicted = self.recorder.evicted(order, self.hand.evicted)
        forgotten = [
            self.hand.timeline.forgotten(*given, None, evicted) for given in browser.ids.values()
        ]
        return min(forgotten) < order.at + HAND

    def _all_open(self) -> bool:
        return all(browser.all_open for browser in self._living())

    async def _degraded(self) -> list[str]:
        states = [await node.state() for node in self.nodes]
        return [state["node"] for state in states if state["state"] != "connected"]

    async def _connected(self) -> bool:
        return not await self._degraded()

    async def _settled(self) -> bool:
        """Return whether living sessions have all sockets, ended ones none but excused ones."""
        left = [order for order in await self._survivors() if not self._excused(order)]
        return self._all_open() and not left and await self._written_again()

    async def _written_again(self) -> bool:
        """Return whether Redis has all evicted records again: a new node may need them."""
        if self.hand is None or self.recorder is None or not self.hand.evicted:
            return True
        return not await self.recorder.missing(self._due())

    def _due(self) -> list[Order]:
        """Return the orders that must still be known."""
        return [order for order in self.orders if not self._excused(order)]

    async def _survivors(self) -> dict[Order, list[str]]:
        """Return the orders that left a socket, and where, as seen by clients and nodes."""
        states = [(node, await node.state()) for node in self.nodes]
        here = [(node, {*state["served"].values(), *state["open"]}) for node, state in states]
        found: dict[Order, list[str]] = {}
        for order in self.orders:
            ids = {id_ for browser in order.browsers for id_ in browser.ids}
            tabs = [tab for browser in order.browsers for tab in browser.tabs]
            places = [f"{tab} has it open" for tab in tabs if tab.socket is not None]
            for node, listed in here:
                places += [f"{node.name} lists {id_[:8]}" for id_ in ids & listed]
            if places:
                found[order] = places
        return found

    async def _replay(self, report: Report) -> None:
        """Try the cookies of ended sessions on every node; report those that are accepted."""
        places = asyncio.Semaphore(AT_ONCE)

        async def attempt(order: Order, of: Browser, cookie: str, node: NodeProcess) -> None:
            browser = Browser(of.client, of.user)
            browser.cookie, browser.id, browser.ids = cookie, of.id, of.ids
            browser.ending = True
            stale = cookie != of.cookie
            async with places:
                # The socket first: unlike a page, its handshake must not be accepted just
                # because Redis has not answered the node in time.
                seen: list[Visit] = []
                tab = Tab(browser, node, self.random, seen, once=True)
                await tab.task
                told, _ = await browser.get(node, "/whoami")
                good = [f"{tab}: a socket" for visit in seen if visit.opened]
                good += [f"{tab}: a page"] if told and told["user"] else []
                if good:
                    excused = self._excused(order) or (stale and self._excused_stale(order, of))
                    found = report.apart_revived if excused else report.revived
                    how = " by a stale cookie" if stale else ""
                    found.append(f"{self._tell(order)}: {', '.join(good)}{how}")

        attempts = [
            (order, browser, cookie, node)
            for order in self.orders
            for browser in order.browsers
            for cookie in (browser.cookie, *browser.stale)
            for node in self.nodes
        ]
        tried = self.random.sample(attempts, min(TRIED, len(attempts)))
        self.replayed = f"{len(tried)} of {len(attempts)}"
        await asyncio.gather(*[attempt(*one) for one in tried])

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait until a condition holds, for as long as the cluster may take to settle."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                while True:
                    holds = condition()
                    if holds if isinstance(holds, bool) else await holds:
                        return
                    await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def running(
    redis: RedisServer | None, options: Iterable[Sequence[str]], clocks: Sequence[float] = ()
) -> AsyncIterator[tuple[list[NodeProcess], list[Proxy]]]:
    """
    Run a node for each set of options.

    Args:
        redis: Their Redis, which each reaches by a proxy of its own.
        options: Further command-line options of each node.
        clocks: Errors of the nodes' wall clocks, in seconds.
    """
    async with contextlib.AsyncExitStack() as stack:
        nodes, proxies = [], []
        for name, more, clock in zip("abcdefgh", options, [*clocks, *[0.0] * 8], strict=False):
            url: Any = None
            if redis is not None:
                proxy = await stack.enter_async_context(Proxy(redis.port))
                proxies.append(proxy)
                url = proxy.url()
            node = NodeProcess(name, *more, redis=url, connected=False, clock=clock)
            nodes.append(await stack.enter_async_context(node))
        yield nodes, proxies
