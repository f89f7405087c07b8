"""
Requests to other nodes, and the answers to them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable
from itertools import count
from typing import Any, Final, TypeAlias

from .._logging import OncePerMinute, log
from ..registry.questions import WAIT
from .decoding import DECODE_ERRORS
from .io.connect import REDIS_ERRORS
from .io.publisher import Publisher
from .membership import Membership
from .messages import DATA, VERSION, request_text

__all__: list[str] = []

Answer: TypeAlias = dict[str, Any]

REPORTS: Final = "answers"  # the channel of reports, which ends with the name of a node
SHORTEST: Final = 0.1  # seconds to wait at least for the list of members


class PendingRequest:
    """
    A request to other nodes, with the answers so far.

    Attributes:
        number: The number of the request, which the answers carry.
        expected: The nodes whose answers are expected.
        answered: The nodes that have answered in full.
        answers: The answers, and parts of answers.
        known: Whether all nodes that had to be asked are known.
        unresolved: The nodes that can't resolve identities or labels, or don't know the request.
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
        Whether all nodes are known, have answered, and could resolve the request.
        """
        return self.known and not self.unresolved and self.expected <= self.answered

    def add_answer(self, sender: str, answer: Answer) -> None:
        """
        Add an answer, or a part of one; an answer that settles the request ends the wait.
        """
        self.answers.append(answer)
        if answer.get("unresolved"):
            self.unresolved.add(sender)  # it may have sockets that it can't find
        if answer.get("last", True):
            self.answered.add(sender)
        settled = answer.get("settles") or self.expected <= self.answered
        if settled and not self._all.done():
            self._all.set_result(None)

    def expect(self, others: Iterable[str]) -> None:
        """
        Expect answers of further nodes.
        """
        self.expected.update(others)
        if self._all.done() and not self.expected <= self.answered:
            self._all = asyncio.get_running_loop().create_future()

    async def wait(self, timeout: float) -> None:
        """
        Wait until all nodes have answered, for *timeout* seconds at most.
        """
        if not self.expected <= self.answered:
            await asyncio.wait({self._all}, timeout=timeout)


class Requests:
    """
    The pending requests of a node.

    Args:
        instance: The node's own name.
        membership: The members of the cluster.
        reports: Publishes reports on orders.
        data: Publishes everything else.
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
        Open a request to all other nodes, or to those in *of*; :meth:`close` it in the end.
        """
        others: Collection[str] = self._membership.members - {self._instance}
        others = others if of is None else of
        request = PendingRequest(str(next(self._numbers)), others, known=self._membership.known)
        self._open[request.number] = request
        return request

    def close(self, request: PendingRequest) -> None:
        """
        Ignore further answers to a request.
        """
        self._open.pop(request.number, None)

    async def wait_for_joined(self, request: PendingRequest, timeout: float) -> None:
        """
        Wait for the answers of nodes that joined before the request was published.

        Args:
            request: A request that was published.
            timeout: Seconds to wait at most.
        """
        if not request.complete:
            return
        try:
            async with asyncio.timeout(max(timeout, SHORTEST)):
                listed = await self._membership.listed()
        except REDIS_ERRORS:
            request.known = False
            return
        request.expect(listed - {self._instance})
        await request.wait(timeout)

    @property
    def alone(self) -> bool:
        """
        Whether the members are known, and there is no other node.
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
        The number of other nodes that are known.
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
        Send a request to all other nodes, and wait for the answers.

        Args:
            body: The request.
            payload: The bytes that follow it in the message.
            timeout: Seconds to wait at most.
            of: The nodes to ask, if not all.
        """
        request = self.open(of)
        if of is not None:
            body = {**body, "to": sorted(of)}
        until = asyncio.get_running_loop().time() + timeout
        try:
            published = self.send(body, payload, request.number)
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

    async def discover(self, body: Answer) -> bool:
        """
        Send a request to all other nodes, those that Redis couldn't list too: those that answer
        within :data:`WAIT` become members. Return whether Redis has published the request.
        """
        request = self.open()
        try:
            if not await self.publish(body, b"", request.number):
                return False
            await asyncio.sleep(WAIT)
            self._membership.add_unlisted(request.answered)
        finally:
            self.close(request)
        return True

    def send(self, body: Answer, payload: bytes, number: str = "") -> asyncio.Future[Any] | None:
        """
        Publish a message to all other nodes, which answer it only if it has a *number*.

        Returns:
            A future that is done when Redis has published it; ``None`` if it can't be sent now.
        """
        text = request_text(self._instance, number, body)
        return self._publishers[DATA].put(DATA, text.encode() + b"\n" + payload)

    async def publish(self, body: Answer, payload: bytes, number: str = "") -> bool:
        """
        Publish a message to all other nodes; return whether Redis did so within :data:`WAIT`.
        """
        published = self.send(body, payload, number)
        if published is None:
            return False
        done, _ = await asyncio.wait({published}, timeout=WAIT)
        return bool(done) and not published.cancelled() and published.exception() is None

    def receive_answer(self, data: bytes) -> None:
        """
        Decode an answer that was published to this node, and add it to its request.
        """
        try:
            body = json.loads(data)
            if body["v"] != VERSION:
                return
            sender, number = str(body["from"]), str(body["q"])
            request = self._open.get(number)
        except DECODE_ERRORS:
            if self._logged.allows("answer"):
                log.warning("a foreign or malformed message on our channel of answers was ignored")
            return
        if request is not None:
            request.add_answer(sender, body)

    def answer(self, asker: str, number: str, channel: str, body: Answer) -> bool:
        """
        Answer a request of another node; return whether the answer could be sent.
        """
        text = request_text(self._instance, number, body)
        return self._publishers[channel].put(f"{channel}:{asker}", text.encode()) is not None
