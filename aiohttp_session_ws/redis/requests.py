"""
Requests to other nodes, and their answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable
from itertools import count
from typing import Any, Final, TypeAlias

from .._logging import OncePerMinute, log
from ..registry.questions import WAIT
from .decoding import WRONG
from .io.connect import TROUBLE
from .io.publisher import Publisher
from .membership import Membership
from .messages import DATA, VERSION, question_text

__all__: list[str] = []

Answer: TypeAlias = dict[str, Any]

REPORTS: Final = "answers"  # the channel of reports, to which the name of a node is added
SHORTEST: Final = 0.1  # seconds to wait for Redis when that is over


class PendingRequest:
    """
    What was asked, and who has answered.

    Attributes:
        number: What the answers refer to.
        expected: Who was asked.
        answered: Who has answered in full.
        answers: What they said.
        known: Whether it is known who had to be asked.
        unresolved: Who has answered, but doesn't know identities, labels or the question.
    """

    def __init__(self, number: str, expected: Iterable[str], *, known: bool) -> None:
        self.number = number
        self.expected = set(expected)
        self.answered: set[str] = set()
        self.answers: list[Answer] = []
        self.known = known
        self.unresolved: set[str] = set()
        self._all = asyncio.get_running_loop().create_future()

    @property
    def complete(self) -> bool:
        """
        Whether all have answered, and could.
        """
        return self.known and not self.unresolved and self.expected <= self.answered

    def take(self, sender: str, answer: Answer) -> None:
        """
        Take an answer, or a part of one; one that settles the question needs no other.
        """
        self.answers.append(answer)
        if answer.get("unresolved"):
            self.unresolved.add(sender)  # there may be more
        if answer.get("last", True):
            self.answered.add(sender)
        settled = answer.get("settles") or self.expected <= self.answered
        if settled and not self._all.done():
            self._all.set_result(None)

    def expect(self, others: Iterable[str]) -> None:
        """
        Expect answers of others, too.
        """
        self.expected.update(others)
        if self._all.done() and not self.expected <= self.answered:
            self._all = asyncio.get_running_loop().create_future()

    async def wait(self, timeout: float) -> None:
        """
        Wait until all have answered, for *timeout* seconds at most.
        """
        if not self.expected <= self.answered:
            await asyncio.wait({self._all}, timeout=timeout)


class Requests:
    """
    The requests of a node that are open.

    Args:
        instance: The node's own name.
        membership: Who else lives.
        reports: Publishes reports of orders.
        data: Publishes all else.
    """

    def __init__(
        self, instance: str, membership: Membership, reports: Publisher, data: Publisher
    ) -> None:
        self._instance = instance
        self._membership = membership
        self._publishers = {REPORTS: reports, DATA: data}
        self._numbers = count(1)
        self._open: dict[str, PendingRequest] = {}
        self._logged = OncePerMinute()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, of: Collection[str] | None = None) -> PendingRequest:
        """
        Open a request to all others, or to those in *of*; :meth:`close` it.
        """
        others: Collection[str] = self._membership.members - {self._instance}
        others = others if of is None else of
        request = PendingRequest(str(next(self._numbers)), others, known=self._membership.known)
        self._open[request.number] = request
        return request

    def close(self, request: PendingRequest) -> None:
        """
        Take no more answers.
        """
        self._open.pop(request.number, None)

    async def wait_for_joined(self, request: PendingRequest, timeout: float) -> None:
        """
        Wait for the answers of those who have joined before the request was published.

        Args:
            request: A request that was published.
            timeout: Seconds to wait at most.
        """
        if not request.complete:
            return
        try:
            async with asyncio.timeout(max(timeout, SHORTEST)):
                listed = await self._membership.listed()
        except TROUBLE:
            request.known = False
            return
        request.expect(listed - {self._instance})
        await request.wait(timeout)

    @property
    def alone(self) -> bool:
        """
        Whether there is certainly no other node.
        """
        return self.known and not self.others

    @property
    def known(self) -> bool:
        """
        Whether the other nodes are known.
        """
        return self._membership.known

    @property
    def others(self) -> int:
        """
        How many other nodes are known.
        """
        return len(self._membership.members - {self._instance})

    async def ask(
        self,
        body: Answer,
        payload: bytes = b"",
        *,
        timeout: float = WAIT,
        of: Collection[str] | None = None,
    ) -> PendingRequest:
        """
        Ask all others, and wait until they have answered.

        Args:
            body: The question.
            payload: What goes with it.
            timeout: Seconds to wait at most.
            of: Whom to ask, if not all.
        """
        request = self.open(of)
        if of is not None:
            body = {**body, "to": sorted(of)}
        until = asyncio.get_running_loop().time() + timeout
        try:
            published = self.tell(body, payload, request.number)
            if published is None:
                request.known = False
                return request
            await asyncio.gather(request.wait(timeout), asyncio.wait({published}, timeout=timeout))
            if not published.done() or published.exception() is not None:
                request.known = False
            if of is None:
                await self.wait_for_joined(request, until - asyncio.get_running_loop().time())
        finally:
            self.close(request)
        return request

    async def meet(self, body: Answer) -> bool:
        """
        Ask all others, also those that Redis couldn't list: who has answered within
        :data:`WAIT` is a member. Tell whether Redis has published the question.
        """
        request = self.open()
        try:
            if not await self.publish(body, b"", request.number):
                return False
            await asyncio.sleep(WAIT)
            self._membership.meet(request.answered)
        finally:
            self.close(request)
        return True

    def tell(self, body: Answer, payload: bytes, number: str = "") -> asyncio.Future[Any] | None:
        """
        Tell all others something that they don't answer, unless it has a *number*.

        Returns:
            A future that is done when Redis has published it; ``None`` if that can't be now.
        """
        text = question_text(self._instance, number, body)
        return self._publishers[DATA].put(DATA, text.encode() + b"\n" + payload)

    async def publish(self, body: Answer, payload: bytes, number: str = "") -> bool:
        """
        Tell all others something, and wait until Redis has published it: tell whether it has.
        """
        published = self.tell(body, payload, number)
        if published is None:
            return False
        done, _ = await asyncio.wait({published}, timeout=WAIT)
        return bool(done) and not published.cancelled() and published.exception() is None

    def take(self, data: bytes) -> None:
        """
        Take an answer that was published to this node.
        """
        try:
            body = json.loads(data)
            if body["v"] != VERSION:
                return
            sender, number = str(body["from"]), str(body["q"])
            request = self._open.get(number)
        except WRONG:
            if self._logged.allows("answer"):
                log.warning("a message that isn't ours is on our channel of answers")
            return
        if request is not None:
            request.take(sender, body)

    def answer(self, asker: str, number: str, channel: str, body: Answer) -> bool:
        """
        Answer a request of another node; tell whether that could be done.
        """
        text = question_text(self._instance, number, body)
        return self._publishers[channel].put(f"{channel}:{asker}", text.encode()) is not None
