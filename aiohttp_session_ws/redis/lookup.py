"""
Look up the records of a session in Redis when a request or a handshake arrives with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

from .._expiring import ExpiringDict
from .._lineage import Subject
from .._logging import OncePerMinute, describe_error, log
from .._refused import Unavailable
from ..connections.connection import TrackedConnection
from ..exceptions import RedisUnavailable
from ..registry.cluster import LocalNode
from ..sessions.records import Change
from .apply import Applier
from .decoding import read_records
from .io.commands import Commands
from .io.connect import REDIS_ERRORS, reason
from .messages import encode_record, keys_of_lookup, split

__all__: list[str] = []

INTERVAL: Final = 60.0  # seconds between two look-ups of a lineage for HTTP requests
PATIENCE: Final = 0.25  # seconds that an HTTP request waits for the answer
MOST: Final = 100_000  # lineages that are remembered as looked up

OnOutage = Literal["refuse", "accept"]


class Lookup:
    """
    Looks up the records of sessions in Redis, and applies them.

    Args:
        node: This node.
        commands: The connection for commands.
        applier: Applies the records that are found.
        on_outage: What happens to handshakes while Redis is away.

    Attributes:
        unchecked: Whether a handshake was accepted without a look-up: when Redis is back, all
            connections are looked up.
    """

    def __init__(
        self,
        node: LocalNode,
        commands: Commands,
        applier: Applier,
        on_outage: OnOutage,
    ) -> None:
        self._node = node
        self._commands = commands
        self._applier = applier
        self._on_outage = on_outage
        self.forget()
        self._logged = OncePerMinute()
        self.unchecked = False

    def check_due(self, token: str) -> bool:
        """
        Return whether a lineage is due to be looked up.
        """
        return self._commands.available and self._recently_looked_up.peek(token) is None

    def forget(self) -> None:
        """
        Forget which lineages were looked up: this node may have missed their ends.
        """
        # Replaced, not cleared: a pending look-up is noted in the old one, as it may be outdated.
        self._recently_looked_up: ExpiringDict[str, bool] = ExpiringDict(MOST, INTERVAL)

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """
        Look up the session of an HTTP request.

        It waits for :data:`PATIENCE`; a later answer takes effect all the same.

        Returns:
            Whether the answer has arrived.
        """
        if not self._commands.available:
            return False
        answer = self._commands.read(keys_of_lookup(token, subjects, closes=False))
        answer.add_done_callback(partial(self._apply_answer, self._recently_looked_up, token))
        done, _ = await asyncio.wait({answer}, timeout=PATIENCE)
        return bool(done) and answer.exception() is None

    def _apply_answer(
        self,
        looked_up: ExpiringDict[str, bool],
        token: str,
        answer: asyncio.Future[list[bytes | None]],
    ) -> None:
        """
        Apply an answer; until there is one, each request of the lineage is looked up.
        """
        if answer.cancelled() or answer.exception() is not None:
            return
        looked_up.put(token, True)
        records, readable = read_records(answer.result())
        if not readable and self._logged.allows("unreadable"):
            log.warning("a record can't be read (another version, or foreign): it is ignored")
        changes, _ = split(records)
        try:
            self._applier.apply_except_open_sockets(changes)
        except Exception as exc:  # noqa: BLE001  it would be reported nowhere else
            if self._logged.allows(type(exc).__name__):
                log.error(
                    "records found by a look-up could not be applied: %s", describe_error(exc)
                )
        for change in changes:
            self._restart_ttl(change)

    def _restart_ttl(self, change: Change) -> None:
        """
        Restart the TTL of a record in Redis, too.

        It isn't written again: if Redis has lost it meanwhile, it needs a new number, or a node
        that missed it would never find it.
        """
        key, ttl, _ = encode_record(change)
        _ = self._commands.call("PEXPIRE", self._commands.prefix + key, ttl)

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """
        Look up the session of a handshake.

        Raises:
            aiohttp.web.HTTPServiceUnavailable: If the look-up fails, and handshakes are refused
                then.
        """
        try:
            values = await self._commands.read(keys_of_connection(connection))
        except REDIS_ERRORS as exc:
            if self._on_outage == "accept":
                self.unchecked = True
                return
            why = reason(exc)
            if not isinstance(exc, RedisUnavailable) and self._logged.allows(why):
                log.error("handshakes can't be checked, and are refused meanwhile: %s", why)
            text = "websocket refused: the session can't be checked now"
            raise Unavailable("redis", text) from None
        self.apply_values(connection, values)

    def apply_values(self, connection: TrackedConnection, values: Sequence[bytes | None]) -> None:
        """
        Apply the values that were read for *connection*.
        """
        if not any(values):
            return
        records, readable = read_records(values)
        self._applier.apply_to_connection(connection, records)
        if not readable:  # it was put there for a reason
            if self._logged.allows("unreadable"):
                log.warning(
                    "a record can't be read (another version, or foreign): the sockets of its"
                    " session are made to reconnect"
                )
            self._applier.make_reconnect(connection)


def keys_of_connection(connection: TrackedConnection) -> list[str]:
    """
    Return the keys of all records that may concern a connection.
    """
    subjects = [Subject("id", connection.session_ws_id), *connection.labels]
    if connection.identity is not None:
        subjects.append(Subject("identity", connection.identity))
    if connection.proven is not None:
        subjects.append(Subject("identity", connection.proven[0]))
    return keys_of_lookup(connection.lineage.token, subjects, closes=True)
