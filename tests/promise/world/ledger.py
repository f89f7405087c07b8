"""
The log-ins of a world: which have certainly ended, and which may have.

Every log-in writes a token into the session (``tok``), and every renewal appends a number to a
list (``tags``). The ledger is notified of what the application's pages do, what storages load and
save, and what administrators order, and keeps two facts of each log-in:

- ``ended``: the time at which it certainly ended;
- ``doomed``: the reasons for which its browser may lose it, those that docs/guide.rst lists under
  "A living browser loses its session in these ways, and in no other".

It uses nothing of the implementation: no lineages, generations or records. The module is long
because every exception that the model makes is judged here and nowhere else.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aiohttp_session_ws.redis.clock import DRIFT

from .exchange import Exchange

Content: TypeAlias = MutableMapping[str, Any]  # what a session holds

UNTOLD = 60.0  # seconds after which a server has noticed that Redis' clock was set
GRACE = 30.0  # Expiry.renewal_grace
SETTLED = 10.0  # seconds after an end in which changes to the empty session aren't saved


@dataclass(eq=False)
class Login:
    """One log-in.

    Attributes:
        token: The token it wrote into the session.
        user: The user who logged in.
        at: When the handler wrote it.
        by: The request that logged in, ``None`` if it was before the world began.
        ids: The ids of the sessions in which it was ever saved.
        device: The device of the log-in.
        ended: When it had certainly ended.
        ended_by: The request, or the administrator's order, that ended it.
        ended_on: The node on which it was ended; the others may have missed it.
        doomed: Reasons for which its browser may lose it.
        shaken: When its sockets were last asked to reconnect.
    """

    token: str
    user: str
    at: float
    by: Exchange | None
    ids: set[Hashable] = field(default_factory=set)
    device: str | None = None
    ended: float | None = None
    ended_by: Exchange | str = ""
    ended_on: int = 0
    doomed: set[str] = field(default_factory=set)
    shaken: float = -math.inf

    @property
    def arrived(self) -> float:
        """When the request that logged in arrived."""
        return self.at if self.by is None else self.by.arrived


class Ledger:
    """The log-ins of a world.

    Args:
        identify: Whether the registry has ``identify``.
        labels: Whether the registry has ``labels``: the device of each log-in.
        on_server: Whether the storage keeps sessions on the server.
        asks_for_time: Whether servers measure the time of Redis, every few seconds.
        id_of: Reads the id from a session's content.
        derive: Derives the id of a user's sessions, where they share one.
        log: Writes a line into the world's trace.

    Attributes:
        logins: All log-ins, by token.
        exchanges: All requests.
        ids: All ids that any log-in was saved with, the oldest first.
    """

    def __init__(
        self,
        *,
        identify: bool,
        labels: bool,
        on_server: bool,
        asks_for_time: bool,
        id_of: Callable[[Content], Hashable],
        derive: Callable[[str], Hashable] | None,
        log: Callable[[str], None],
    ) -> None:
        self.identify = identify
        self.labels = labels
        self.on_server = on_server
        self.asks_for_time = asks_for_time
        self.id_of = id_of
        self.derive = derive
        self.log = log
        self.logins: dict[Any, Login] = {}
        self.exchanges: list[Exchange] = []
        self.ids: dict[Hashable, None] = {}
        self._moments = 0
        self._began = self.now()
        self._saves = 0
        self._orders: dict[Exchange, tuple[str | None, float]] = {}  # about identities
        self._cut: set[Exchange] = set()  # requests that deleted an id without identify
        self._elsewhere: set[Exchange] = set()  # requests that logged out elsewhere
        self._dooming: set[Exchange] = set()  # requests that may have ended their session
        self._shaking: set[Exchange] = set()
        self._keeps: dict[Exchange, tuple[list[Login], float]] = {}  # renewals that keep sockets
        self._identity_ends: list[tuple[Hashable, float]] = []
        self._leaps: list[tuple[float, float]] = []
        self._label_ends: list[tuple[str, float]] = []
        self._id_ends: list[tuple[Hashable, float]] = []
        self._renewals: list[tuple[str | None, list[int]]] = []
        self._presented: list[Content] = []
        self._saved: list[Content] = []
        self._root: dict[Hashable, Hashable] = {}  # joins the ids that one session had

    def now(self) -> float:
        """Return the time; each call returns a later one."""
        self._moments += 1
        return asyncio.get_running_loop().time() + self._moments * 1e-9

    # Actions of pages; called by the handlers in actions.py

    def log_in(self, ex: Exchange, session: Content) -> None:
        """Write a log-in into *session*; keep the token if it is the same user's already."""
        user = ex.plan.user
        if session.get("tok") in self.logins and session.get("user") == user:
            session["user"] = user
            return
        if (before := self.seen(ex)) is not None:
            before.doomed.add(f"{ex} logged in in its place")
        login = self.add(user, ex)
        session["user"], session["tok"], session["tags"] = user, login.token, []
        if self.labels:
            session["device"] = login.device = ex.plan.device
            if any(d == login.device and t >= ex.arrived for d, t in self._label_ends):
                login.doomed.add(f"{login.device} was ended while it logged in")
        self._shake(ex)
        if not self.identify and self._ended_lately(ex):
            login.doomed.add("the session that it is in was ended before")
        self.log(f"{ex}: {user} logs in, {login.token}")

    def renewed(self, ex: Exchange, session: Content, *, keep: bool = False) -> None:
        """Record that *ex* has renewed its session; with *keep*, its sockets stay open."""
        session["tags"] = [*session.get("tags", ()), ex.number]
        self._renewals.append((session.get("tok"), session["tags"]))
        if keep:
            self._keeps[ex] = self._shaken_by(ex), self.now()
        else:
            self._shake(ex)

    def replaced(self, ex: Exchange) -> None:
        """Record that *ex* has replaced or emptied its session."""
        ex.replaced = True
        self._doom(ex, f"{ex} replaced its session")

    def user_left(self, ex: Exchange) -> None:
        """Record that *ex* has deleted the user from its session."""
        self._doom(ex, f"{ex} took the user out")

    def id_deleted(self, ex: Exchange, session: Content) -> None:
        """Record that *ex* has deleted its id: without ``identify`` an end, if it is saved."""
        before = self.seen(ex)
        if not self.identify:
            self._doom(ex, f"{ex} deleted its id")
        if self.identify or before is None:
            self.renewed(ex, session)
        else:
            self._cut.add(ex)
            session["tok"], session["tags"] = self._child(before, ex).token, []

    def log_out(self, ex: Exchange) -> None:
        """Record that *ex* ends the session it arrived with, even if it was given another."""
        ex.replaced = True
        self._doom(ex, f"{ex} logged out")
        self.end(self.logins.get(ex.token), ex, ex.plan.node)

    def close_sockets(self, ex: Exchange) -> None:
        """Record that *ex* asks the sockets of its session to reconnect."""
        self._shake(ex)

    def order_identity(self, ex: Exchange, user: str | None) -> None:
        """Record that *ex* is about to end the sessions of *user*."""
        self._orders[ex] = user, self.now()
        for login in self.of(user):
            if login.by is not ex:
                login.doomed.add(f"{ex} ordered the end of {user}")
        self._shake(ex)

    def order_refused(self, ex: Exchange) -> None:
        """Record that the order of *ex* ended nothing."""
        user, _ = self._orders.pop(ex)
        self.log(f"{ex}: refused to log out elsewhere")
        for login in self.of(user):
            login.doomed.discard(f"{ex} ordered the end of {user}")
            if login.by is ex:
                login.doomed.add("its order was refused")

    def ended_everywhere(self, ex: Exchange) -> None:
        """Record that *ex* has ended the sessions of a user."""
        user, at = self._orders.pop(ex, (None, 0.0))
        if user is not None:
            self._end_identity(user, at, ex, ex.plan.node, ex)

    def ended_elsewhere(self, ex: Exchange, session: Content) -> None:
        """Record that *ex* has ended all sessions of its user but the one that it now begins."""
        user, at = self._orders.pop(ex)
        before = self.seen(ex)
        assert user is not None, f"{ex} was told that it logged out nobody elsewhere"
        self._elsewhere.add(ex)
        current = self.logins.get(session.get("tok"))
        if current is None or current.by is not ex:
            child = self.add(user, ex) if before is None else self._child(before, ex)
            session["tok"], session["tags"] = child.token, []
            if before is not None and before.ended is not None:
                self.end(child, f"{before.token} was over before", ex.plan.node)
        self.log(f"{ex}: logged out elsewhere, goes on as {session['tok']}")
        self._end_identity(user, at, ex, ex.plan.node, ex)

    def done(self, ex: Exchange) -> None:
        """Record that the application is done with *ex*, and what *ex* has ended."""
        if ex in self._shaking:
            self._shake(ex)
        if ex in self._keeps:
            self._keeps[ex] = self._keeps[ex][0], self.now()
        before, left = self.seen(ex), ex.left
        if before is not None and left is not None:
            gone = self.identify and left.get("user") != before.user
            if ex.replaced or gone or (ex in self._cut and ex.saved):
                self.end(before, ex, ex.plan.node)
        if ex.plan.action == "log_out_everywhere":
            self.ended_everywhere(ex)  # also if its client didn't wait for it
        self._judge_races(ex)

    # Orders of administrators; called by the world

    def end_id(self, session_ws_id: Hashable, node: int) -> None:
        """Record that an administrator ends all sessions with an id."""
        now, name = self.now(), f"end_session({session_ws_id})"
        self._id_ends.append((session_ws_id, now))
        for login in self.logins.values():
            # Of several sessions that share an id, those that had another id before are found
            # by the shared one only if they still carry it.
            shared = self.derive is not None and login.ids != {session_ws_id}
            if session_ws_id in login.ids and login.at < now and not shared:
                self.end(login, name, node)
            if session_ws_id in self.ids_of(login) or self._goes_on_from(login, session_ws_id):
                login.doomed.add(name)
                login.shaken = now

    def end_identity(self, user: str, node: int) -> None:
        """Record that an administrator ends all sessions of a user."""
        for login in self.of(user):
            login.doomed.add(f"end_identity({user})")
        self._end_identity(user, self.now(), f"end_identity({user})", node, None)

    def end_label(self, device: str, node: int) -> None:
        """Record that an administrator ends all sessions that were begun with a device."""
        now, name = self.now(), f"end_label({device})"
        self._label_ends.append((device, now))
        for login in self.logins.values():
            if login.device == device:
                login.doomed.add(name)
                if login.at < now:
                    self.end(login, name, node)

    def set_clock(self, seconds: float) -> None:
        """Record that the wall clock of all servers is set."""
        self._leaps.append((self.now(), max(seconds, 0.0)))

    def told_to_close(self, subject: Hashable) -> None:
        """Record that an administrator asks the sockets of an id or a user to reconnect."""
        for login in self.logins.values():
            if subject == login.user or subject in self.ids_of(login):
                login.shaken = self.now()

    # Loads and saves; called by the application's storage

    def load(self, ex: Exchange, content: Content) -> None:
        """Record the session that the storage first loaded for *ex*."""
        ex.loaded, ex.loaded_at = dict(content), self.now()
        self._presented.append(ex.loaded)

    def save(self, ex: Exchange, content: Content) -> None:
        """Record the session that *ex* is about to save."""
        self._saves += 1
        ex.order = self._saves
        ex.saved.append(dict(content))
        self._saved.append(ex.saved[-1])
        session_ws_id = self.id_of(content)
        if ex.loaded and not ex.replaced:
            self._root[self.root(session_ws_id)] = self.root(self.id_of(ex.loaded))
        if login := self.logins.get(content.get("tok")):
            login.ids.add(session_ws_id)
            self.ids.setdefault(session_ws_id)
            if any(i == session_ws_id and t >= login.arrived for i, t in self._id_ends):
                login.doomed.add("its id was ended while it logged in")
        self._judge_races(ex)

    # Queries

    def of(self, user: str | None) -> list[Login]:
        """Return the log-ins of a user."""
        return [login for login in self.logins.values() if login.user == user]

    def seen(self, ex: Exchange) -> Login | None:
        """Return the log-in that the handler of *ex* found in its session."""
        saw = ex.saw or {}
        return self.logins.get(saw.get("tok")) if saw.get("user") else None

    def ids_of(self, login: Login) -> set[Hashable]:
        """Return the ids under which a log-in may be found."""
        found = {*login.ids}
        if self.derive is not None:
            found.add(self.derive(login.user))
        if self.identify:
            return found
        if login.by and login.by.loaded:
            found.add(self.id_of(login.by.loaded))
        roots = {self.root(session_ws_id) for session_ws_id in found}
        known = {*self._root, *self._root.values(), *found} - {None}
        return {session_ws_id for session_ws_id in known if self.root(session_ws_id) in roots}

    def _goes_on_from(self, login: Login, session_ws_id: Hashable) -> bool:
        """Return whether a log-out elsewhere replaced a session with this id by this log-in."""
        if login.by is None or login.by not in self._elsewhere:
            return False
        contents = [content for content in (login.by.loaded, login.by.saw) if content]
        root = self.root(session_ws_id)  # an older id of the session also ends it
        return any(self.root(self.id_of(content)) == root for content in contents)

    def contested(self, token: str, tags: list[int]) -> bool:
        """Return whether a log-in has divergent renewals: perhaps no client received this one."""
        paths = [path for of, path in self._renewals if of == token]
        return any(path != tags[: len(path)] and tags != path[: len(tags)] for path in paths)

    def told_to_reconnect(self, login: Login, since: float, *, opened: float = math.inf) -> bool:
        """Return whether sockets of a log-in were, or now may be, asked to reconnect.

        Args:
            login: The log-in.
            since: The earliest time that counts.
            opened: When the socket in question opened: a renewal that keeps sockets keeps those
                that are open, not the handshakes under way.
        """
        for ex, (of, at) in self._keeps.items():
            if at >= since and opened >= ex.arrived and login in of:
                return True
        under_way = [ex for ex in self._shaking if not ex.done]
        return login.shaken >= since or any(login in self._shaken_by(ex) for ex in under_way)

    def changed_meanwhile(self, ex: Exchange) -> bool:
        """Return whether a session from before the installation was saved after *ex* loaded it.

        A handshake that gives it an id would overwrite that save, and has to be retried.
        """
        if not (self.on_server and ex.loaded) or ex.loaded in self._saved:
            return False
        return any(other.saved for other in self._overlapping(ex))

    def kept(self, login: Login, opened: float) -> bool:
        """Return whether a renewal kept sockets of a log-in that had opened by then."""
        for ex, (of, _) in self._keeps.items():
            saved = any(content.get("tok") == login.token for content in ex.saved)
            if saved and login in of and opened < ex.arrived:
                return True
        return False

    def root(self, session_ws_id: Hashable) -> Hashable:
        """Return the representative of all ids that a session has had."""
        while (above := self._root.get(session_ws_id, session_ws_id)) != session_ws_id:
            session_ws_id = above
        return session_ws_id

    def given_up(self, content: Content, at: float = math.inf) -> bool:
        """Return whether a request has come with a newer renewal of the same session.

        Args:
            content: The session's content.
            at: The time of the check: within the grace a page is still served.
        """
        mine = list(content.get("tags", ()))

        def newer(known: list[Content]) -> Iterator[list[int]]:
            for other in known:
                theirs = list(other.get("tags", ()))
                if theirs != mine[: len(theirs)] and self._same_session(content, other):
                    yield theirs

        if any(len(theirs) > len(mine) + 1 for theirs in newer(self._saved)):
            return True  # renewed twice since: given up at once
        mine_too = [path for token, path in self._renewals if token == content.get("tok")]
        if any(path[: len(mine)] == mine and len(path) > len(mine) + 1 for path in mine_too):
            return True  # even if no client received the second one
        made = (self.exchanges[theirs[-1] - 1].arrived for theirs in newer(self._presented))
        return any(at - arrived + self._leapt(arrived, at) >= GRACE for arrived in made)

    def _leapt(self, since: float, until: float) -> float:
        """Return how far the wall clock was set forward meanwhile: a grace ends sooner."""
        return sum(seconds for at, seconds in self._leaps if since <= at <= until)

    def _may_follow(self, at: float, arrived: float) -> bool:
        """Return whether a clock that was set forward lately may date an event after a request.

        Args:
            at: When the event happened.
            arrived: When the request arrived, at a server whose clock may not have been set yet.
        """
        return self.asks_for_time and self._leapt(at - UNTOLD, arrived) > arrived - at

    # Facts

    def add(self, user: str, ex: Exchange | None) -> Login:
        """Add a log-in."""
        login = Login(f"T{len(self.logins) + 1}", user, self.now(), ex)
        self.logins[login.token] = login
        if ex and any(u == user and t >= ex.arrived for u, t in self._identity_ends):
            login.doomed.add(f"{user} was logged out everywhere while it logged in")
        if any(by is not ex and who == user for by, (who, _) in self._orders.items()):
            login.doomed.add(f"{user} is being logged out everywhere")
        ends = [at for whom, at in self._identity_ends if whom == user]
        if ex and any(self._may_follow(at, ex.arrived) for at in ends):
            login.doomed.add(f"{user} was logged out by a clock that was set before this one")
        if ex and self.asks_for_time and any(ex.arrived - at < self._drifted() for at in ends):
            login.doomed.add(
                f"{user} was logged out by a node that was cut off, at about that time"
            )
        return login

    def _drifted(self) -> float:
        """Return the possible clock error of a node that was cut off since the beginning.

        Events on two nodes within that time have no order.
        """
        return 2 * DRIFT * (self.now() - self._began) if self.asks_for_time else 0.0

    def _child(self, login: Login, ex: Exchange) -> Login:
        """Add the log-in that continues another."""
        child = self.add(login.user, ex)
        child.device = login.device
        return child

    def end(self, login: Login | None, by: Exchange | str, node: int) -> None:
        """Record that a log-in has ended."""
        if login is not None and login.ended is None:
            login.ended, login.ended_by, login.ended_on = self.now(), by, node
            login.doomed.add(str(by))
            self.log(f"{login.token} of {login.user} is over: {by}")

    def _end_identity(
        self, user: str, at: float, by: Exchange | str, node: int, but: Exchange | None
    ) -> None:
        self._identity_ends.append((user, self.now()))  # the order may have taken some time
        for login in self.of(user):
            if login.by is None or login.by is not but:
                login.doomed.add(str(by))
                if login.at < at - self._drifted():
                    self.end(login, by, node)

    def _doom(self, ex: Exchange, why: str) -> None:
        """Record that any log-in in the session of *ex* may have ended."""
        self._dooming.add(ex)
        tokens = {ex.token, (ex.saw or {}).get("tok")}
        for login in self.logins.values():
            if login.token in tokens:
                login.doomed.add(why)
        if not self.identify and ex.loaded:
            session_ws_id = self.id_of(ex.loaded)
            self._id_ends.append((session_ws_id, self.now()))
            for login in self.logins.values():
                # A session from before the installation may have no id yet.
                cookie = None if session_ws_id is not None or login.by is None else login.by.cookie
                same = cookie is not None and cookie == ex.cookie
                if login.by is not ex and (same or session_ws_id in self.ids_of(login)):
                    login.doomed.add(why)
        self._shake(ex)

    def _shake(self, ex: Exchange) -> None:
        """Record that sockets of the session of *ex*, and under its id, must reconnect."""
        self._shaking.add(ex)
        for login in self._shaken_by(ex):
            login.shaken = self.now()

    def _shaken_by(self, ex: Exchange) -> list[Login]:
        """Return the log-ins whose sockets must reconnect because of *ex*."""
        contents = [content for content in (ex.loaded, ex.saw, ex.left, *ex.saved) if content]
        tokens = {content.get("tok") for content in contents}
        ids = {self.id_of(content) for content in contents}
        logins = self.logins.values()
        return [login for login in logins if login.token in tokens or ids & self.ids_of(login)]

    def _ended_lately(self, ex: Exchange) -> bool:
        """Return whether the session that *ex* arrived with has been ended."""
        if not ex.loaded:
            return False
        root = self.root(self.id_of(ex.loaded))
        ends = [self.root(i) for i, t in self._id_ends if t > ex.arrived - SETTLED]
        return root in ends

    def _same_session(self, one: Content, other: Content) -> bool:
        if self.identify or not one.get("tok"):
            return one.get("tok") == other.get("tok")
        return self.root(self.id_of(one)) == self.root(self.id_of(other))

    def _overlapping(self, ex: Exchange) -> Iterator[Exchange]:
        """Return the requests with the same session that overlap with *ex*."""
        mine = self.id_of(ex.loaded) if ex.loaded else None
        for other in self.exchanges:
            if other is ex or other.loaded is None or (other.done and other.done_at < ex.arrived):
                continue
            theirs = self.id_of(other.loaded)
            same_login = ex.token is not None and ex.token == other.token
            same_id = theirs is not None and self.root(mine) == self.root(theirs)
            if same_login or other.cookie == ex.cookie or same_id:
                yield other

    def _judge_races(self, ex: Exchange) -> None:
        """Record the log-ins that may be lost to an overlapping request."""
        for other in self._overlapping(ex):
            self._judge_elsewhere(ex, other)
            self._judge_elsewhere(other, ex)
            if self.on_server:
                self._lose(ex, other)
                self._lose(other, ex)
            elif not self.identify or ex.plan.node != other.plan.node:
                self._lose(ex, other, renewed=ex.plan.node != other.plan.node)
                self._lose(other, ex, renewed=ex.plan.node != other.plan.node)

    def _judge_elsewhere(self, ex: Exchange, other: Exchange) -> None:
        """Record that a log-out elsewhere begins nothing if another request ends its session."""
        mine = [login for login in self.logins.values() if login.by is ex]
        logged_in = any(login.by is other for login in self.logins.values())
        if ex in self._elsewhere and (other in self._dooming or logged_in):
            for login in mine:
                login.doomed.add(f"{other} ended the session that it goes on from")

    def _lose(self, winner: Exchange, loser: Exchange, *, renewed: bool = False) -> None:
        """Record that the session begun by *loser* may be overwritten by the save of *winner*."""
        why = f"{winner} saved over it"
        if not winner.saved:
            return
        begun = [login for login in self.logins.values() if login.by is loser]
        if self.on_server and (begun or loser.replaced or winner.replaced):
            begun += filter(None, [self.seen(loser), self.seen(winner)])
        elif not renewed:
            begun = [] if loser.replaced or "renew" in loser.plan.action else begun
        elif (before := self.seen(loser)) is not None and loser in self._shaking:
            begun.append(before)
        for login in begun:
            login.doomed.add(why)
