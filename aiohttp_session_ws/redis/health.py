"""
Whether a node is connected: Redis answers, and orders are heard. With hysteresis.
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

STEADY: Final = 1.0  # seconds that a change has to last until it is one of the state


class Health:
    """
    What is known of a node's connections.

    Args:
        commands: Tells whether Redis answers.
        outages: Counts for how long it was away.
        changed: Called with the new state.

    Attributes:
        state: ``"degraded"`` while Redis doesn't answer or orders can't be heard.
        hears: Whether orders are heard.
        hears_data: Whether questions, answers and pushes are heard.
    """

    def __init__(
        self, commands: Commands, outages: Outages, changed: Callable[[State], None]
    ) -> None:
        self.state: State = "degraded"
        self.hears = False
        self.hears_data = False
        self._commands = commands
        self._outages = outages
        self._changed = changed
        self._why_deaf = "not subscribed yet"
        self._logged = OncePerMinute()
        self._news = asyncio.Event()
        self._started = False
        self._seemed = False
        self._seemed_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._warned = False  # of the outage that lasts

    @property
    def connected(self) -> bool:
        """
        Whether Redis answers, and orders are heard, at this moment.
        """
        return self._commands.available and self.hears

    @property
    def why(self) -> str:
        """
        Why it is not connected, for messages.
        """
        if not self._commands.available:
            return self._commands.why
        return f"it can't be subscribed to: {self._why_deaf}"

    async def settle(self, timeout: float) -> None:
        """
        Wait until all is connected, or something can't be, and begin to tell the state.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._commands.available and not (self.hears and self.hears_data):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        self._started, self._seemed = True, self.connected
        if not self.connected:
            self._warned = True
            self._outages.begin()
        self._report()

    def stop(self) -> None:
        """
        Tell nothing any more.
        """
        if self._timer is not None:
            self._timer.cancel()
        self.state = "degraded"
        self._outages.end()

    def availability_changed(self) -> None:
        """
        Note that Redis has gone away, or is back.
        """
        why = self._commands.why
        if not self._commands.available and self._logged.allows(why.partition(":")[0]):
            log.info("Redis is away: %s", why)  # the state, soon, is a warning
        self._note()

    def subscribed(self) -> None:
        """
        Note that orders are heard.
        """
        self.hears = True
        self._note()

    def unsubscribed(self, why: str) -> None:
        """
        Note that orders can't be heard.
        """
        self._why_deaf = why
        if self.hears and self._logged.allows("deaf"):
            log.warning("orders of other nodes can't be heard: %s", why)
        self.hears = False
        self._note()

    def subscribed_to_data(self) -> None:
        """
        Note that questions, answers and pushes are heard.
        """
        self.hears_data = True
        self._note()

    def unsubscribed_from_data(self, why: str) -> None:
        """
        Note that they can't be heard.
        """
        self.hears_data = False
        self._note()

    def _note(self) -> None:
        """
        Change the state soon, if this lasts: what Redis does in between is no news.
        """
        self._news.set()
        if not self._started or self.connected == self._seemed:
            return
        loop = asyncio.get_running_loop()
        self._seemed, self._seemed_since = self.connected, loop.time()
        if not self._commands.available:
            self._report()  # it has not answered for a second
        elif self._timer is None:
            self._timer = loop.call_later(STEADY, self._report_if_steady)

    def _report_if_steady(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < (until := self._seemed_since + STEADY):
            self._timer = loop.call_at(until, self._report_if_steady)
        else:
            self._timer = None
            self._report()

    def _report(self) -> None:
        state: State = "connected" if self.connected else "degraded"
        if state != self.state:
            self.state = state
            if state == "degraded":
                self._outages.begin()
                self._log(0.0)
            else:
                self._log(self._outages.end())
            self._changed(state)

    def _log(self, lasted: float) -> None:
        """
        Log the state: an outage, and its end, as a warning; of more in a minute the first.
        """
        if self.state == "degraded":
            self._warned = self._logged.allows("degraded")
            log.log(
                logging.WARNING if self._warned else logging.INFO,
                "the websocket registry is degraded (%s): until Redis is back orders wait for it,"
                " and handshakes are decided by on_outage=",
                self.why,
            )
        elif self._warned:
            log.warning("the websocket registry is connected, after %.1f s without Redis", lasted)
        else:
            log.info("the websocket registry is connected")
