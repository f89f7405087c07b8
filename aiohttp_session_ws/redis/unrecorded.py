"""
Orders that Redis publishes, but refuses to record: it is full, a replica, or can't save.

They have no numbers. So a node that was deaf meanwhile can't find them, and asks all others to
publish theirs again. And who has given one may be gone when Redis takes writes again, so that
whoever has heard it writes it then.
"""

from __future__ import annotations

import math
import time

from .._tasks import BackgroundTasks
from .io.outbox import Outbox
from .membership import Membership
from .recent import KEPT
from .requests import Requests
from .write_back import WriteBack

__all__: list[str] = []


class Unrecorded:
    """
    Sees to it that orders which Redis refuses to record reach all nodes, and Redis at last.

    Args:
        membership: Knows whether Redis takes writes, and who is there.
        outbox: Keeps what this node has given until Redis has taken it.
        requests: Asks the other nodes.
        write_back: Writes what this node knows.
        tasks: Where it waits for the others.

    Attributes:
        since: When the first was heard that may not be written yet, by the monotonic clock;
            infinite if none was.
    """

    def __init__(
        self,
        membership: Membership,
        outbox: Outbox,
        requests: Requests,
        write_back: WriteBack,
        tasks: BackgroundTasks,
    ) -> None:
        self._membership = membership
        self._outbox = outbox
        self._requests = requests
        self._write_back = write_back
        self._tasks = tasks
        self._missed = False  # some perhaps, while nothing was heard
        self.since = math.inf

    def heard(self) -> None:
        """
        Note that an order was heard which Redis had refused to record.
        """
        self.since = min(self.since, time.monotonic())

    def missed(self) -> None:
        """
        Note that this node may have missed some.
        """
        self._missed = True

    def publish_again(self, asker: str) -> None:
        """
        Publish again what this node has given, for one who can't be listed in Redis either.
        """
        self._membership.meet({asker})
        self._outbox.publish_again()

    def beaten(self, *, hears_data: bool) -> None:
        """
        Write what was heard, if Redis takes writes again; ask for what was missed, if it doesn't.

        Args:
            hears_data: Whether the others' answers would be heard.
        """
        now, takes_writes = time.monotonic(), self._membership.takes_writes
        if self.since <= now and takes_writes:
            # Whoever gave these orders writes them now, if it lives. After a long time only what
            # they have ended is known, not that they were given.
            self._write_back.lost(everything=now - self.since > KEPT)
            self.since = math.inf
        if self._missed and (takes_writes or hears_data):
            self._missed = False
            if not takes_writes:  # what is recorded has a number, and is read
                _ = self._tasks.spawn(self._ask(), "ask for what isn't recorded")

    async def _ask(self) -> None:
        """
        Have all others publish theirs again, and come to know them.
        """
        if not await self._requests.meet({"do": "unrecorded"}):
            self._missed = True
