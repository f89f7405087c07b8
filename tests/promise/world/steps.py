"""
What kinds of worlds there are, and what can happen in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .exchange import Plan


@dataclass(frozen=True)
class Config:
    """What kind of world it is.

    Attributes:
        storage: ``"simple"``, ``"encrypted"``, ``"nacl"``; ``"memory"`` or ``"redis"``, which
            keep sessions on the server.
        identify: Whether the registry knows users.
        ids: ``"unique"``; ``"derived"`` from the user by ``id_factory``.
        cluster: ``"memory"`` or ``"redis"`` for two nodes, by what they know of each other.
        legacy: Whether the browsers have sessions of before the installation: ``"bare"``
            without an id, ``"1.1.1"`` with one.
        labels: Whether the registry knows with what a user has logged in.
        journal: Whether the one server keeps its records on disk, and may be started again.
        cancels: Whether aiohttp cancels the handler of a client that is gone.
    """

    storage: str = "simple"
    identify: bool = True
    ids: str = "unique"
    cluster: str = ""
    legacy: str = ""
    labels: bool = False
    journal: bool = False
    cancels: bool = False

    @property
    def nodes(self) -> int:
        """How many servers there are."""
        return 2 if self.cluster else 1

    @property
    def on_server(self) -> bool:
        """Whether the storage keeps sessions on the server."""
        return self.storage in ("memory", "redis")


@dataclass(frozen=True)
class Visit:
    """A browser sends a request with the cookie that it has now."""

    browser: str
    plan: Plan


@dataclass(frozen=True)
class Theft:
    """The thief sends a request with the copy of a cookie, the *which*-th that was made."""

    which: int
    plan: Plan


@dataclass(frozen=True)
class GoOn:
    """The *which*-th of the requests that are held up goes on."""

    which: int


@dataclass(frozen=True)
class Vanish:
    """The client of the *which*-th of the requests that are under way is gone."""

    which: int


@dataclass(frozen=True)
class Leave:
    """The *which*-th of the open sockets and streams is closed by its page."""

    which: int


@dataclass(frozen=True)
class Say:
    """The client of the *which*-th open socket that takes proofs says who it is.

    Attributes:
        which: Of which socket.
        user: Who; ``""`` takes the proof back.
    """

    which: int
    user: str


@dataclass(frozen=True)
class Drain:
    """A server closes its sockets over a window of time, and opens no more."""

    node: int
    window: float


@dataclass(frozen=True)
class Restart:
    """The server that has a journal stops, or is killed, and is started again."""

    kill: bool


@dataclass(frozen=True)
class Outage:
    """A server can't reach Redis any more.

    Attributes:
        node: Which.
        silent: Whether its connections are dead, and not closed.
    """

    node: int
    silent: bool


@dataclass(frozen=True)
class Back:
    """A server can reach Redis again."""

    node: int


@dataclass(frozen=True)
class Wait:
    """Time passes."""

    seconds: float


@dataclass(frozen=True)
class SetClock:
    """Somebody sets the wall clock of all servers."""

    seconds: float


@dataclass(frozen=True)
class Order:
    """An administrator gives an order.

    Attributes:
        what: A method of the registry: end_session, end_identity, end_label, close_all_session,
            close_all_identity.
        which: About the which-th of the ids that any log-in was saved with.
        user: About which user.
        device: About what the users have logged in with.
        node: On which server.
        subject: About which id, if it is known.
    """

    what: str
    which: int = 0
    user: str = "ann"
    device: str = "phone"
    node: int = 0
    subject: str | None = None


@dataclass(frozen=True)
class Deliver:
    """The *which*-th of the messages between nodes arrives; the others are late or lost."""

    which: int


Step: TypeAlias = (
    Visit
    | Theft
    | GoOn
    | Vanish
    | Leave
    | Say
    | Wait
    | SetClock
    | Order
    | Deliver
    | Drain
    | Restart
    | Outage
    | Back
)
