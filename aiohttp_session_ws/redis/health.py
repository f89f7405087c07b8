"""
The connection state of a node, with hysteresis: whether Redis answers and all use of it works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from .._logging import OncePerMinute, log
from .io.commands import Commands
from .outages import Outages

__all__: list[str] = []

State: TypeAlias = Literal["connected", "degraded"]

STEADY: Final = 1.0  # seconds that a change has to last until it changes the state

#: What may fail though Redis answers, in the words of the log; the worst first.
RECEIVE_ORDERS: Final = "subscribing to orders fails"
HEARTBEATS: Final = "heartbeats fail"
RECORD: Final = "orders can't be recorded"
RECEIVE_DATA: Final = "pushes and requests of other nodes can't be received"
SEND_DATA: Final = "pushes and requests can't be sent"
ALL: Final = (RECEIVE_ORDERS, HEARTBEATS, RECORD, RECEIVE_DATA, SEND_DATA)


class Health:
    """
    Tracks which uses of Redis work on this node, and derives the connection state.

    Args:
        commands: The connection for commands, which detects whether Redis answers.
        outages: Counts how often and for how long the state was degraded.
        changed: Called with the new state.

    Attributes:
        state: ``"degraded"`` while Redis doesn't answer or something doesn't work.
    """

    def __init__(
        self, commands: Commands, outages: Outages, changed: Callable[[State], None]
    ) -> None:
        self.state: State = "degraded"
        self._commands = commands
        self._outages = outages
        self._changed = changed
        self._failures = dict.fromkeys(ALL, "not connected yet")  # what doesn't work, and why
        self._logged = OncePerMinute()
        self._updated = asyncio.Event()
        self._started = False
        self._pending_connected = False
        self._pending_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._warned = False  # whether the current outage was logged as a warning

    @property
    def connected(self) -> bool:
        """
        Whether Redis answers and everything works at this moment.
        """
        return self._commands.available and not self._failures

    @property
    def why(self) -> str:
        """
        Why it is not connected, for messages.
        """
        if not self._commands.available:
            return self._commands.why
        return next(
            (f"{what}: {self._failures[what]}" for what in ALL if what in self._failures), ""
        )

    @property
    def receives_orders(self) -> bool:
        """
        Whether orders are received.
        """
        return self.works(RECEIVE_ORDERS)

    def works(self, what: str) -> bool:
        """
        Return whether something works, one of :data:`ALL`.
        """
        return what not in self._failures

    async def settle(self, timeout: float) -> None:
        """
        Wait until everything works or Redis is away, and begin to report the state.

        It waits for *timeout* seconds at most.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._commands.available and self._failures:
                    self._updated.clear()
                    await self._updated.wait()
        except TimeoutError:
            pass
        self._started, self._pending_connected = True, self.connected
        if not self.connected:
            self._warned = True
            self._outages.begin()
        self._report()

    def stop(self) -> None:
        """
        Stop reporting; the state is degraded from now on.
        """
        if self._timer is not None:
            self._timer.cancel()
        self.state = "degraded"
        self._outages.end()

    def availability_changed(self) -> None:
        """
        Record that Redis has become unavailable, or is available again.
        """
        why = self._commands.why
        if not self._commands.available and self._logged.allows(why.partition(":")[0]):
            log.info("Redis is away: %s", why)  # the change of state logs a warning soon
        self._update()

    def mark_working(self, what: str) -> None:
        """
        Record that something works, one of :data:`ALL`.
        """
        _ = self._failures.pop(what, None)
        self._update()

    def mark_failed(self, what: str, why: str) -> None:
        """
        Record that something fails, one of :data:`ALL`, and why.
        """
        if what == RECEIVE_ORDERS and self.receives_orders and self._logged.allows("subscription"):
            log.warning(
                "the subscription to orders of other nodes broke (%s): subscribing again, and"
                " reading the missed orders",
                why,
            )
        self._failures[what] = why
        self._update()

    def _update(self) -> None:
        """
        Change the state once this has lasted: short interruptions are not reported.
        """
        self._updated.set()
        if not self._started or self.connected == self._pending_connected:
            return
        loop = asyncio.get_running_loop()
        self._pending_connected, self._pending_since = self.connected, loop.time()
        if not self._commands.available:
            self._report()  # it hasn't answered for a second, which is long enough
        elif self._timer is None:
            self._timer = loop.call_later(STEADY, self._report_if_steady)

    def _report_if_steady(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < (until := self._pending_since + STEADY):
            self._timer = loop.call_at(until, self._report_if_steady)
        else:
            self._timer = None
            self._report()

    def _report(self) -> None:
        state: State = "connected" if self.connected else "degraded"
        if state != self.state:
            self.state = state
            self._log_state()
            self._changed(state)

    def _log_state(self) -> None:
        """
        Count an outage, and log it and its end: as warnings only the first within a minute.
        """
        if self.state == "degraded":
            self._outages.begin()
            self._warned = self._logged.allows("degraded")
            log.log(
                logging.WARNING if self._warned else logging.INFO,
                "the websocket registry is degraded (%s): orders are queued until Redis records"
                " them, and handshakes that can't be checked are decided by on_outage=",
                self.why,
            )
            return
        lasted = self._outages.end()
        if self._warned:
            log.warning("the websocket registry is connected, was degraded for %.1f s", lasted)
        else:
            log.info("the websocket registry is connected")
