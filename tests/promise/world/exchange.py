"""
One simulated request, from its first byte to the delivery of its response.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from .wire import Client

#: The gates at which a request can be held, in the order in which it reaches them.
GATES = [
    "load",  # before the storage is queried
    "loaded",  # before the loaded session is returned
    "identify",
    "id_factory",
    "authorize",
    "prepare",  # before the response's head is sent
    "proving",  # before a proof of identity is completed
    "handler",  # before the handler's action
    "handled",  # before the handler returns
    "save",  # before the storage saves
    "saved",  # after the storage has saved
    "answer",  # before the response is sent
    "delivery",  # before the client receives it
]

#: The actions that request a websocket or a stream, with their paths.
ENDPOINTS = {
    "open": "/ws",
    "knock": "/ws",
    "stream": "/stream",
    "adopt": "/adopted",
    "prove": "/prove",
}

#: How a handler ends.
ENDINGS = ["return", "redirect", "forbid", "fail", "stream"]


@dataclass(frozen=True)
class Plan:
    """What a request does.

    Attributes:
        action: A name in ``ACTIONS``, or one in ``ENDPOINTS``: ``"open"`` for a websocket,
            ``"knock"`` for one that ``authorize`` refuses, ``"stream"``, ``"adopt"`` for a
            websocket that is opened by another library, ``"prove"`` for one over which its
            client may prove its identity.
        user: The user of a log-in.
        device: The device of a log-in.
        ending: How the handler ends, one of ``ENDINGS``.
        pauses: The gates at which the request is held, each once.
        lost: Whether the response never arrives.
        upgrade: Whether a page is requested with the ``Upgrade`` header of a websocket.
        node: The server that is addressed.
    """

    action: str
    user: str = "ann"
    device: str = "phone"
    ending: str = "return"
    pauses: tuple[str, ...] = ()
    lost: bool = False
    upgrade: bool = False
    node: int = 0

    @property
    def opens(self) -> bool:
        """Return whether this requests a lasting connection: a websocket or a stream."""
        return self.action in ENDPOINTS

    @property
    def path(self) -> str:
        """The path of the request."""
        return ENDPOINTS.get(self.action, "/page")

    @property
    def shakes_hands(self) -> bool:
        """Return whether the request has the headers of a websocket handshake."""
        return self.upgrade if self.action == "stream" or not self.opens else True

    def __str__(self) -> str:
        words = [self.action, "as " + self.user if "log_in" in self.action else ""]
        words += [f"then {self.ending}s" if self.ending != "return" else ""]
        words += ["with Upgrade" if self.upgrade else "", "response lost" if self.lost else ""]
        words += [f"on node {self.node}" if self.node else ""]
        words += [f"(held at {', '.join(self.pauses)})" if self.pauses else ""]
        return " ".join(word for word in words if word)


@dataclass(eq=False)
class Exchange:
    """One request and its outcome.

    Attributes:
        number: Its number in this world.
        presenter: The browser's name, or ``"thief"``.
        plan: What it is meant to do.
        cookie: The session cookie it was sent with.
        arrived: When it was sent, by the oracle's time.
        expects: The log-in that its browser expects to have.
        client: The client's end of the connection.
        loaded: The session's content as first loaded from the storage.
        loaded_at: When the storage loaded it.
        judged_at: When its session had been judged, and the handler began.
        saw: The session's content when the handler began; ``None`` if it never did.
        left: The session's content when the handler was done.
        replaced: Whether the handler replaced or emptied the session.
        saved: The session's content at each save.
        order: The number of its last save among all, to find which response overtook which.
        killed: Whether its server was killed meanwhile.
        done: Whether the application is done with it, all tasks it left behind included.
        over: Whether its response was delivered, or lost.
    """

    number: int
    presenter: str
    plan: Plan
    cookie: str | None
    arrived: float
    expects: str | None = None
    client: Client = field(init=False)
    loaded: dict[str, Any] | None = None
    loaded_at: float = 0.0
    judged_at: float = 0.0
    saw: dict[str, Any] | None = None
    left: dict[str, Any] | None = None
    replaced: bool = False
    saved: list[dict[str, Any]] = field(default_factory=list)
    order: int = 0
    left_server: bool = False
    killed: bool = False
    done: bool = False
    done_at: float = 0.0
    over: bool = False
    held: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    pauses: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.pauses = list(self.plan.pauses)

    def __str__(self) -> str:
        return f"{self.presenter}#{self.number} {self.plan.action}"

    @property
    def token(self) -> str | None:
        """The token of the log-in in the session that was loaded."""
        token: str | None = (self.loaded or {}).get("tok")
        return token

    @property
    def refused(self) -> bool:
        """Whether it was a handshake that was refused."""
        return self.plan.opens and self.client.hello is None

    async def pass_gate(self, gate: str) -> None:
        """Wait at *gate* until released, if the plan pauses the request there."""
        if gate not in self.pauses:
            return
        self.pauses.remove(gate)
        self.held[gate] = asyncio.get_running_loop().create_future()
        try:
            await self.held[gate]
        finally:
            self.held.pop(gate, None)

    def give_up(self) -> None:
        """Cancel everything that waits for this request: its server has stopped."""
        self.pauses.clear()
        for waiter in self.held.values():
            waiter.cancel()

    def hold_delivery(self) -> bool:
        """Return whether the delivery of the response is held."""
        if "delivery" in self.pauses:
            self.pauses.remove("delivery")
            self.held["delivery"] = asyncio.get_running_loop().create_future()
        return "delivery" in self.held

    def let_go(self) -> str | None:
        """Open the gate at which it waits; return the gate's name."""
        for gate, waiter in self.held.items():
            if not waiter.done():
                waiter.set_result(None)
                if gate == "delivery":
                    del self.held[gate]
                return gate
        return None
