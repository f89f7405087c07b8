"""
Orders that Redis publishes, but refuses to record: it is full, a replica, or can't save.

They have no numbers. So a node that wasn't subscribed meanwhile can't find them, and asks all
other nodes to publish theirs again. And the node that gave one may be gone when Redis accepts
writes again, so every node that has received it writes it then.
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
    Makes orders that Redis refuses to record reach all nodes now, and Redis later.

    Args:
        membership: The members, and whether Redis accepts writes.
        outbox: Keeps the orders of this node until Redis has recorded them.
        requests: Sends requests to the other nodes.
        write_back: Writes the records that this node knows.
        tasks: The background tasks of this node.

    Attributes:
        since: When the first order was received that may not be recorded yet, by the monotonic
            clock; infinite if there is none.
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
        self._missed = False  # whether some may have been missed
        self.since = math.inf

    def received(self) -> None:
        """
        Record that an order was received which Redis had refused to record.
        """
        self.since = min(self.since, time.monotonic())

    def missed(self) -> None:
        """
        Record that this node may have missed such orders.
        """
        self._missed = True

    def publish_again(self, asker: str) -> None:
        """
        Publish the unrecorded orders of this node again, for a node that asks for them; add it to
        the members, for Redis can't list it either.
        """
        self._membership.add_unlisted({asker})
        self._outbox.publish_again()

    def heartbeat_answered(self, *, receives_data: bool) -> None:
        """
        Write what was received, if Redis accepts writes; else request what may have been missed.

        Args:
            receives_data: Whether this node receives answers.
        """
        now, takes_writes = time.monotonic(), self._membership.takes_writes
        if self.since <= now and takes_writes:
            # The nodes that gave these orders write them now, if they live. After a long time they
            # aren't among the recent orders any more, but their changes are among the records.
            self._write_back.lost(everything=now - self.since > KEPT)
            self.since = math.inf
        if self._missed and (takes_writes or receives_data):
            self._missed = False
            if not takes_writes:  # recorded orders have numbers, and are found by these
                _ = self._tasks.spawn(self._request_unrecorded(), "request unrecorded orders")

    async def _request_unrecorded(self) -> None:
        """
        Request all other nodes to publish theirs again, and add those that answer to the members.
        """
        if not await self._requests.discover({"do": "unrecorded"}):
            self._missed = True
