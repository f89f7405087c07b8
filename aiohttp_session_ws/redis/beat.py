"""
What Redis answers to a heartbeat. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__: list[str] = []

RUN_ID: Final = 40  # characters


class Beat(NamedTuple):
    """
    What Redis answers to a heartbeat.

    Attributes:
        time: Its time.
        last: The last number that it gave.
        epoch: A random name, new if it has lost its data.
        server: Its run_id and its master_replid, of which one is new whenever it has started, or
            another has been primary meanwhile.
        members: The version of the list of members.
        refused: Why it takes no writes, "" if it does.
        ahead: By how many seconds that time is ahead of its own clock.
        ttl: For how many seconds nodes need ends.
        evicted: How many keys the server has evicted since it started.
        joined: Whether the node wasn't in the list of members.
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

    def after(self, known: Beat | None) -> Beat:
        """
        Return the same with what *known* tells and this one doesn't.

        Redis may refuse to tell, or have been unable to write its epoch.
        """
        if known is None:
            return self
        return self._replace(epoch=self.epoch or known.epoch, server=self.server or known.server)

    def is_elsewhere(self, known: Beat) -> bool:
        """
        Tell whether another process has answered than did for *known*, as far as they tell.
        """
        return differs(known.server[:RUN_ID], self.server[:RUN_ID])

    def has_evicted_since(self, known: Beat | None) -> bool:
        """
        Tell whether the server has evicted keys since another heartbeat.
        """
        if known is None or self.is_elsewhere(known):
            return False
        return self.evicted > known.evicted

    def is_of_replica(self) -> bool:
        """
        Tell whether the server is a replica.
        """
        return "READONLY" in self.refused


def read_beat(answer: Sequence[bytes]) -> Beat:
    """
    Return what Redis has answered.
    """
    at, last, epoch, server, members, refused, *rest = map(bytes.decode, answer)
    ahead, ttl, evicted, joined = rest
    return Beat(
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
    Tell whether a name is another one than was *known*, if any was.
    """
    return bool(known) and known != now
