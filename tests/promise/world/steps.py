"""
The kinds of worlds, and the steps that can happen in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .exchange import Plan


@dataclass(frozen=True)
class Config:
    """The kind of a world.

    Attributes:
        storage: ``"simple"``, ``"encrypted"``, ``"nacl"``; ``"memory"`` or ``"redis"``, which
            keep sessions on the server.
        identify: Whether the registry has ``identify``.
        ids: ``"unique"``; ``"derived"`` from the user by ``id_factory``.
        cluster: ``"memory"`` or ``"redis"`` for two nodes that share their records there.
        legacy: Whether the browsers have sessions from before the installation: ``"bare"``
            without an id, ``"1.1.1"`` with one.
        labels: Whether the registry has ``labels``: the device of each log-in.
        journal: Whether the one server keeps its records on disk, and may be restarted.
        cancels: Whether aiohttp cancels the handler when the client disconnects.
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
        """The number of servers."""
        return 2 if self.cluster else 1

    @property
    def on_server(self) -> bool:
        """Whether the storage keeps sessions on the server."""
        return self.storage in ("memory", "redis")


@dataclass(frozen=True)
class Visit:
    """A browser sends a request with its current cookie."""

    browser: str
    plan: Plan


@dataclass(frozen=True)
class Theft:
    """The thief sends a request with the *which*-th copied cookie."""

    which: int
    plan: Plan


@dataclass(frozen=True)
class GoOn:
    """The *which*-th held request resumes."""

    which: int


@dataclass(frozen=True)
class Vanish:
    """The client of the *which*-th pending request disconnects."""

    which: int


@dataclass(frozen=True)
class Leave:
    """The page of the *which*-th open socket or stream closes it."""

    which: int


@dataclass(frozen=True)
class Say:
    """The client of the *which*-th open socket that accepts proofs proves its identity.

    Attributes:
        which: The index of the socket.
        user: The identity; ``""`` withdraws the proof.
    """

    which: int
    user: str


@dataclass(frozen=True)
class Drain:
    """A server closes its sockets over a window of time, and refuses new ones."""

    node: int
    window: float


@dataclass(frozen=True)
class Restart:
    """The server that has a journal stops, or is killed, and is restarted."""

    kill: bool


@dataclass(frozen=True)
class Outage:
    """A server loses its connection to Redis.

    Attributes:
        node: The server.
        silent: Whether sent data is lost without an error, rather than the connections cut.
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
    """The wall clock of all servers is set."""

    seconds: float


@dataclass(frozen=True)
class Order:
    """An administrator gives an order.

    Attributes:
        what: A method of the registry: end_session, end_identity, end_label, close_all_session,
            close_all_identity.
        which: The index of the session id, among all ids that any log-in was saved with.
        user: The user concerned.
        device: The device concerned.
        node: The server that is called.
        subject: The session id, if it is known.
    """

    what: str
    which: int = 0
    user: str = "ann"
    device: str = "phone"
    node: int = 0
    subject: str | None = None


@dataclass(frozen=True)
class Deliver:
    """The *which*-th message between nodes arrives; the others are late or lost."""

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
