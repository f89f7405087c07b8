"""
The answer of Redis to a heartbeat. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__: list[str] = []

RUN_ID: Final = 40  # characters


class HeartbeatReply(NamedTuple):
    """
    The answer of Redis to a heartbeat.

    Attributes:
        time: The time of the clock shared by all nodes.
        last: The last number that was given to a record.
        epoch: A random name; another one if Redis has lost its data.
        server: Its run_id and its master_replid: the first changes when the server restarts, the
            second when another one has been primary meanwhile.
        members: The version of the list of members.
        refused: Why Redis refuses writes; "" if it accepts them.
        ahead: By how many seconds the shared clock is ahead of Redis' own.
        ttl: For how many seconds nodes need the records of ends.
        evicted: How many keys the server has evicted since it started.
        joined: Whether the heartbeat added the node to the list of members.
    """

    time: float
    last: int
    epoch: str
    server: str
    members: str
    refused: str
    ahead: float
    ttl: float
    evicted: int
    joined: bool

    def completed_by(self, known: HeartbeatReply | None) -> HeartbeatReply:
        """
        Return this answer, with the epoch and the server of *known* where it lacks them.

        Redis may not permit ``INFO``, or may have been unable to write its epoch.
        """
        if known is None:
            return self
        return self._replace(epoch=self.epoch or known.epoch, server=self.server or known.server)

    def is_other_server(self, known: HeartbeatReply) -> bool:
        """
        Return whether another server process answered than for *known*, as far as both are known.
        """
        return differs(known.server[:RUN_ID], self.server[:RUN_ID])

    def has_evicted_since(self, known: HeartbeatReply | None) -> bool:
        """
        Return whether the server has evicted keys since another heartbeat.
        """
        if known is None or self.is_other_server(known):
            return False
        return self.evicted > known.evicted

    def is_of_replica(self) -> bool:
        """
        Return whether the server is a replica.
        """
        return "READONLY" in self.refused


def read_heartbeat(answer: Sequence[bytes]) -> HeartbeatReply:
    """
    Parse the reply of the heartbeat script.
    """
    at, last, epoch, server, members, refused, *rest = map(bytes.decode, answer)
    ahead, ttl, evicted, joined = rest
    return HeartbeatReply(
        time=float(at),
        last=int(last),
        epoch=epoch,
        server=server,
        members=members,
        refused=refused,
        ahead=float(ahead),
        ttl=float(ttl),
        evicted=int(evicted or 0),
        joined=joined == "1",
    )


def differs(known: str, now: str) -> bool:
    """
    Return whether a name has changed; false if none was *known*.
    """
    return bool(known) and known != now
