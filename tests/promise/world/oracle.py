"""
Judge of a world: which user's data each page shows, and for whom each socket opens.

- Once a log-in has ended (:attr:`Login.ended`), no request with any copy of any cookie that ever
  carried its token gets a socket, or a page as that user; its sockets are closed.
- A browser whose log-in lives (:attr:`Login.doomed` is empty) gets its token on every page, its
  handshakes succeed, and its sockets stay open, or are asked to reconnect for a reason.
- A cookie replaced by a renewal is no longer served once a request came with the newer one.
- A node that can't reach Redis opens no socket.
- Nothing fails that wasn't meant to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .exchange import Exchange
from .ledger import SETTLED, Content, Ledger, Login

GRACE = 31.0  # Expiry.renewal_grace, plus one second
FAREWELL = 6.0  # seconds by which a socket of an ended session is closed: its Timeouts, rounded up
ON_ITS_WAY = 0.05  # seconds until Redis has an order: orders are sent in batches
MISSED = 62.0  # seconds after which a node has queried Redis for the session of a page
HANDSHAKE = 10.0  # Timeouts.handshake
RECOVERY = 40.0  # seconds after an outage by which a node has sent and received its backlog
MAY_FAIL = ("fail", "stream")  # a stream can't carry a session; a helper may raise an error


@dataclass(frozen=True)
class Violation:
    """Something that must never happen.

    Attributes:
        kind: The rule that was broken.
        what: A description of the event.
    """

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Browser:
    """A browser, and the log-in that it expects to have.

    Attributes:
        name: Its name.
        jar: Its session cookie.
        order: The number of the save that produced this cookie.
        expects: The token of the log-in in the last response it received.
        parents: For each of its cookies, the cookie of the request that received it.
    """

    name: str
    jar: str | None = None
    order: int = 0
    expects: str | None = None
    parents: dict[str | None, str | None] = field(default_factory=dict)

    def came_from(self, cookie: str | None) -> bool:
        """Return whether its current session derives from the one in *cookie*."""
        seen: set[str | None] = set()
        current = self.jar
        while current is not None and current not in seen:
            if current == cookie:
                return True
            seen.add(current)
            current = self.parents.get(current)
        return False


@dataclass(eq=False)
class Socket:
    """An open websocket.

    Attributes:
        exchange: Its handshake.
        opened_at: When it opened.
        login: The log-in of its session.
        proof: The identity that its client has proven, as a log-in of its own.
        proven_at: When that proof was complete.
        left: Whether its browser has closed it, or its server has stopped.
        judged: Whether its end has been judged.
    """

    exchange: Exchange
    opened_at: float
    login: Login | None
    proof: Login | None = None
    proven_at: float = -math.inf
    left: bool = False
    judged: bool = False

    @property
    def owners(self) -> list[Login]:
        """The log-ins whose end closes it."""
        return [login for login in (self.login, self.proof) if login is not None]


@dataclass
class Cut:
    """A time in which a node couldn't reach Redis.

    Attributes:
        node: The node.
        began: When it began.
        ended: When it was over.
    """

    node: int
    began: float
    ended: float = math.inf


@dataclass
class Oracle:
    """Checks every page and socket of a world against the ledger.

    Attributes:
        ledger: The record of all log-ins.
        nodes: The number of servers.
        sockets: All sockets that ever opened.
        violations: The violations found.
        reconciled: Whether all nodes have found the records that they had missed.
        served: The sessions that pages were served with, and when.
        drained: The servers being drained, and when each must have closed its sockets.
        cuts: When nodes couldn't reach Redis.
    """

    ledger: Ledger
    nodes: int = 1
    browsers: dict[str, Browser] = field(default_factory=dict)
    sockets: list[Socket] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    reconciled: bool = False
    served: list[tuple[float, Content]] = field(default_factory=list)
    drained: dict[int, float] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)

    def blame(self, kind: str, what: str) -> None:
        """Record a violation."""
        self.violations.append(Violation(kind, what))
        self.ledger.log(f"VIOLATION {kind}: {what}")

    # Pages and sockets

    def page(self, ex: Exchange, session: Mapping[str, Any]) -> None:
        """Check the session that the handler of *ex* was given."""
        ex.saw, ex.judged_at = dict(session), self.ledger.now()
        login = self.ledger.seen(ex)
        self.ledger.log(f"{ex}: sees {login.token if login else 'nobody'}")
        if login is not None:
            self._judge_page(ex, login)
        expected = self._living(ex)
        if expected is not None and login is not expected:
            self.blame("page of nobody", f"{ex} came for {expected.token}, which lives")

    def _judge_page(self, ex: Exchange, login: Login) -> None:
        if login.ended is not None and ex.loaded_at > self._known(login.ended) + self._slack():
            age = ex.loaded_at - login.ended
            self.blame(
                "page after the end",
                f"{ex} is {login.user} by {login.token}, over for {age:.3f} s ({login.ended_by})",
            )
        if self.ledger.on_server:
            return
        assert ex.saw is not None
        tags = ex.saw.get("tags", [])
        for since, other in self.served:
            newer = other.get("tok") == login.token and len(other["tags"]) > len(tags)
            extends = newer and other["tags"][: len(tags)] == tags
            if extends and not self.ledger.contested(login.token, other["tags"]):
                late = ex.loaded_at - self._known(since) - GRACE
                if late > (MISSED if self.nodes > 1 else 0):
                    self.blame("given up", f"{ex} is served {tags} after {other['tags']}")
                    break
        self.served.append((self.ledger.now(), {"tok": login.token, "tags": tags}))

    def open(self, ex: Exchange, session: Mapping[str, Any]) -> Socket:
        """Check the session for which a socket opens."""
        ex.saw, ex.judged_at = dict(session), self.ledger.now()
        login = self.ledger.seen(ex)
        socket = Socket(ex, self.ledger.now(), login)
        self.sockets.append(socket)
        self.ledger.log(f"{ex}: opens for {login.token if login else 'nobody'}")
        if any(cut.node == ex.plan.node and cut.began < ex.arrived for cut in self._cuts_now()):
            self.blame("unasked", f"{ex} opens where nobody can say what has ended")
        if login is not None and login.ended is not None and not self._asked_before(ex, login):
            age = self.ledger.now() - login.ended
            self.blame(
                "socket after the end",
                f"{ex} is {login.user} by {login.token}, over for {age:.3f} s ({login.ended_by})",
            )
        expected = self._living(ex)
        if expected is not None and login is not expected:
            self.blame("socket of nobody", f"{ex} came for {expected.token}, which lives")
        return socket

    def begin_proof(self, socket: Socket, user: str) -> Login:
        """Record that a client begins to prove an identity, as a log-in over its socket."""
        proof = self.ledger.add(user, None)
        self.ledger.log(f"{socket.exchange}: begins to prove that it is {user}, {proof.token}")
        return proof

    def prove(self, socket: Socket, proof: Login) -> None:
        """Check a proof that was accepted."""
        socket.proof, socket.proven_at = proof, self.ledger.now()
        self.ledger.log(f"{socket.exchange}: has proven {proof.token}")
        ended = proof.ended
        if ended is None or socket.exchange.client.closed is not None:
            return
        if self.nodes == 1 or self._known(ended) + 1.0 < socket.proven_at:
            self.blame("proof after the end", f"{socket.exchange} is {proof.user}")

    def refuse_proof(self, socket: Socket, proof: Login) -> None:
        """Check a proof that was refused."""
        socket.proof, socket.proven_at = proof, self.ledger.now()
        self.ledger.log(f"{socket.exchange}: may not prove {proof.token}")
        login = socket.login
        if login is None or any(owner.doomed for owner in socket.owners):
            return  # it isn't certain that the session lives
        since = socket.exchange.arrived - GRACE
        if not self.ledger.told_to_reconnect(login, since) and not self._given_up(socket):
            self.blame("proof refused", f"{socket.exchange} is {proof.user}")

    def disprove(self, socket: Socket) -> None:
        """Record that a proof was withdrawn."""
        socket.proof = None
        self.ledger.log(f"{socket.exchange}: takes its proof back")

    # Servers

    def cut_off(self, node: int) -> None:
        """Record that a node can't reach Redis any more."""
        self.cuts.append(Cut(node, self.ledger.now()))

    def back(self, node: int) -> None:
        """Record that a node can reach Redis again."""
        for cut in self.cuts:
            if cut.node == node:
                cut.ended = min(cut.ended, self.ledger.now())

    def _cuts_now(self) -> list[Cut]:
        return [cut for cut in self.cuts if cut.ended == math.inf]

    def drain(self, node: int, window: float) -> None:
        """Record that a server closes all its sockets."""
        until = self.ledger.now() + window + FAREWELL
        self.drained[node] = min(until, self.drained.get(node, math.inf))

    # Outcomes

    def done(self, ex: Exchange) -> None:
        """Check the response of *ex*, with which the application is done."""
        ex.done, ex.done_at = True, self.ledger.now()
        self.ledger.done(ex)
        status = ex.client.status
        self.ledger.log(f"{ex}: {status}{f' {ex.client.closed}' if ex.client.closed else ''}")
        if ex.refused:
            self._judge_refusal(ex)
        elif status is not None and status >= 500 and not self._may_fail(ex):
            self.blame("error", f"{ex} was answered with {status}")

    def _judge_refusal(self, ex: Exchange) -> None:
        status, code = ex.client.status, ex.client.closed
        if status == 403 and ex.plan.action == "knock":
            return
        if status is None or ex.client.left:
            return  # its client has gone
        adopted = ex.plan.action == "adopt" and code == 4403  # its 101 has been sent
        if self._unavailable(ex) and (status in (409, 503) or code in (1001, 1012) or adopted):
            return
        if ex.plan.action == "stream":
            # The close code that a websocket would get.
            code = {401: 4401, 409: 4403, 200: 4403}.get(status)
        elif status != 101:
            code = None
        if code is None:
            self.blame("error", f"{ex} was refused with {status}")
            return
        login = self._living(ex)
        told = login is not None and self.ledger.told_to_reconnect(login, ex.arrived - GRACE)
        told = told or self.ledger.changed_meanwhile(ex)
        if login is not None and (code != 4403 or not told):
            self.blame("refused", f"{ex} got {code}, though {login.token} lives")

    def deliver(self, ex: Exchange, cookie: str | None, *, has_cookie: bool) -> None:
        """Deliver a response to its browser."""
        browser = self.browsers[ex.presenter]
        overtaken = has_cookie and ex.order < browser.order
        saw: str | None = (ex.saw or {}).get("tok")
        lost = has_cookie and ex.expects == browser.expects != saw  # excused or reported
        slow = ex.judged_at - ex.arrived >= SETTLED  # perhaps an empty session
        unheard = self.nodes > 1  # this node may have missed a change
        another = slow or unheard or self._began_anew(ex) or not browser.came_from(ex.cookie)
        uninvited = has_cookie and browser.jar != ex.cookie and another
        if has_cookie:
            browser.parents[cookie] = ex.cookie
            browser.jar, browser.order = cookie, ex.order
        if ex.plan.opens or not ex.client.status or ex.client.status >= 400:
            token: str | None = browser.expects
        elif (ex.left or {}).get("tok") == saw and not ex.replaced:
            token = browser.expects
        else:
            token = self._told(ex)
        if overtaken or ((uninvited or lost) and token == browser.expects):
            token = None  # two answers overtook each other; two first visits
        browser.expects = token
        self.ledger.log(f"{ex}: delivered{'' if has_cookie else ' without a cookie'}")

    def _told(self, ex: Exchange) -> str | None:
        """Return the token that a page has sent to its browser, if it was saved."""
        token: str | None = (ex.left or {}).get("tok")
        login = self.ledger.logins.get(token)
        if login is None or any(content.get("tok") == token for content in ex.saved):
            return token
        must = self.ledger.identify or ex.replaced
        if must and ex.plan.ending != "stream" and not login.doomed:
            self.blame("log-in not saved", f"{ex}, {login.token}")
        return None

    def check_sockets(self) -> None:
        """Check the sockets that are open, and those that were closed."""
        now = self.ledger.now()
        for socket in self.sockets:
            ex = socket.exchange
            if socket.judged:
                continue
            gone = not (ex.client.answered or ex.client.streams)
            if ex.client.closed is not None or gone:
                socket.judged = True
                if socket.login is not None:
                    self._judge_close(socket, socket.login)
                continue
            for login in socket.owners:
                if not self.reconciled and ex.plan.node != login.ended_on:
                    continue  # its node may have missed the message
                if login.ended is not None and now - self._told_at(socket, login) > FAREWELL:
                    socket.judged = True
                    self.blame("socket survives", f"of {ex}, {login.token} ({login.ended_by})")
            if now > self.drained.get(ex.plan.node, math.inf) and not socket.judged:
                socket.judged = True
                self.blame("not drained", f"the socket of {ex}")

    def _judge_close(self, socket: Socket, login: Login) -> None:
        ex, code = socket.exchange, socket.exchange.client.closed
        if socket.left or ex.client.left or any(owner.doomed for owner in socket.owners):
            return
        if ex.plan.node in self.drained and (code == 1012 or ex.plan.action == "stream"):
            return
        if self._given_up(socket):
            return
        opened = socket.opened_at if self._alone else math.inf
        told = any(  # by any owner: its client may have proven another identity
            self.ledger.told_to_reconnect(owner, ex.arrived - GRACE, opened=opened)
            for owner in {login, *socket.owners}
        )
        if not told or (code != 4403 and ex.plan.action != "stream"):
            self.blame("closed", f"the socket of {ex} with {code}, though {login.token} lives")

    # Queries

    def _living(self, ex: Exchange) -> Login | None:
        """Return the log-in that a browser must be served as, ``None`` if it isn't certain."""
        login = self.ledger.logins.get(ex.expects)
        if login is None or login.doomed or ex.loaded is None:
            return None
        if self.ledger.on_server:
            return login  # an older generation there comes from a race, and is repaired
        return None if self.ledger.given_up(ex.loaded, self.ledger.now()) else login

    @property
    def _alone(self) -> bool:
        """Return whether each session has an id of its own, on one server."""
        return self.nodes == 1 and self.ledger.derive is None

    def _given_up(self, socket: Socket) -> bool:
        """Return whether a request came with a newer cookie than the socket's handshake.

        Sockets that a renewal has kept stay open under the newer cookie.
        """
        login = socket.login
        if self._alone and login is not None and self.ledger.kept(login, socket.opened_at):
            return False
        return self.ledger.given_up(socket.exchange.saw or {})

    def _unavailable(self, ex: Exchange) -> bool:
        """Return whether a server may refuse a handshake for reasons of its own."""
        late = ex.done_at - ex.arrived >= HANDSHAKE
        away = any(
            cut.node == ex.plan.node
            and cut.began <= ex.done_at
            and ex.arrived <= cut.ended + RECOVERY
            for cut in self.cuts
        )
        return late or away or ex.plan.node in self.drained or ex.killed

    def _known(self, at: float) -> float:
        """Return the latest time at which all nodes know of an event at *at*."""
        for cut in sorted(self.cuts, key=lambda cut: cut.began):
            if cut.began <= at + self._slack() and at < cut.ended + RECOVERY:
                at = cut.ended + RECOVERY
        return at

    def _slack(self) -> float:
        return MISSED if self.nodes > 1 else 0.0  # a renewal on another node may be unknown here

    def _told_at(self, socket: Socket, login: Login) -> float:
        """Return when the sockets of an ended log-in get their close frame at the latest."""
        assert login.ended is not None
        ender = login.ended_by
        if isinstance(ender, Exchange):  # sockets wait for the response, and that for its handler
            at = ender.done_at if ender.done else math.inf
            return max(at, socket.opened_at, socket.proven_at)
        return max(login.ended, socket.opened_at, socket.proven_at)

    def _asked_before(self, ex: Exchange, login: Login) -> bool:
        """Return whether *ex* may have queried Redis before the end was recorded.

        A message, or the next heartbeat, closes its socket.
        """
        assert login.ended is not None
        if self.nodes == 1:
            return False
        elsewhere = ex.plan.node != login.ended_on
        late = self._known(login.ended) + ON_ITS_WAY if elsewhere else login.ended
        return ex.arrived < late

    def _may_fail(self, ex: Exchange) -> bool:
        """Return whether an error response is allowed."""
        # A websocket request has a deadline for loading its session, whichever view it addresses.
        late = ex.plan.upgrade and ex.done_at - ex.arrived >= HANDSHAKE
        return late or ex.plan.ending in MAY_FAIL

    def _began_anew(self, ex: Exchange) -> bool:
        """Return whether *ex* was given a session unrelated to its cookie."""
        if not ex.loaded or not ex.saved:
            return True
        had, has = self.ledger.id_of(ex.loaded), self.ledger.id_of(ex.saved[-1])
        return had is None or had != has
