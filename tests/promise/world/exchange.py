"""
One request of somebody in a world, from the first byte to the delivery of its response.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from .wire import Client

#: Where a request can be held up, in the order in which it comes by.
GATES = [
    "load",  # before the storage is asked
    "loaded",  # before the storage's answer is used
    "identify",
    "id_factory",
    "authorize",
    "prepare",  # before the response's head is sent
    "proving",  # before a proof that a client has begun is done
    "handler",  # before the handler does anything
    "handled",  # before the handler returns
    "save",  # before the storage is told
    "saved",  # before the storage's answer is used
    "answer",  # before the response is sent
    "delivery",  # on its way back
]

#: What asks for a connection that lasts, and where.
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
    """What somebody is about to do.

    Attributes:
        action: A name in ``ACTIONS``, or one in ``ENDPOINTS``: ``"open"`` for a websocket,
            ``"knock"`` for one that ``authorize`` refuses, ``"stream"``, ``"adopt"`` for a
            websocket that is opened by another library, ``"prove"`` for one over which its
            client may say who it is.
        user: Who logs in, if somebody does.
        device: With what.
        ending: How the handler ends, one of ``ENDINGS``.
        pauses: The gates at which the request is held up, each once.
        lost: Whether the response never arrives.
        upgrade: Whether a page is asked for with the ``Upgrade`` header of a websocket.
        node: Which server is asked.
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
        """Tell whether this asks for a connection that lasts: a websocket, or a stream."""
        return self.action in ENDPOINTS

    @property
    def path(self) -> str:
        """What is asked for."""
        return ENDPOINTS.get(self.action, "/page")

    @property
    def shakes_hands(self) -> bool:
        """Tell whether it comes with the headers of a websocket handshake."""
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
    """One request and what became of it.

    Attributes:
        number: Its number in this world.
        presenter: The browser's name, or ``"thief"``.
        plan: What it is meant to do.
        cookie: The session cookie it came with.
        arrived: When it was sent, by the oracle's time.
        expects: Which log-in its browser believes in.
        client: The other end.
        loaded: What the session held as the storage gave it first.
        loaded_at: When the storage gave it.
        judged_at: When its session had been judged, and the handler began.
        saw: What the session held when the handler began; ``None`` if it never did.
        left: What it held when the handler was done.
        replaced: Whether the handler put another session in its place, or emptied it.
        saved: What was saved, each time.
        order: The number of its last save among all, for who overtakes whom.
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
        """The token of the log-in that its cookie carried."""
        token: str | None = (self.loaded or {}).get("tok")
        return token

    @property
    def refused(self) -> bool:
        """Whether it was a handshake that opened nothing."""
        return self.plan.opens and self.client.hello is None

    async def pass_gate(self, gate: str) -> None:
        """Wait at *gate* until let through, if this is where the request is to be held up."""
        if gate not in self.pauses:
            return
        self.pauses.remove(gate)
        self.held[gate] = asyncio.get_running_loop().create_future()
        try:
            await self.held[gate]
        finally:
            self.held.pop(gate, None)

    def give_up(self) -> None:
        """Let nothing of it go on: its server isn't there any more."""
        self.pauses.clear()
        for waiter in self.held.values():
            waiter.cancel()

    def hold_delivery(self) -> bool:
        """Tell whether the response is to be held up on its way."""
        if "delivery" in self.pauses:
            self.pauses.remove("delivery")
            self.held["delivery"] = asyncio.get_running_loop().create_future()
        return "delivery" in self.held

    def let_go(self) -> str | None:
        """Open the gate at which it waits; return which."""
        for gate, waiter in self.held.items():
            if not waiter.done():
                waiter.set_result(None)
                if gate == "delivery":
                    del self.held[gate]
                return gate
        return None
