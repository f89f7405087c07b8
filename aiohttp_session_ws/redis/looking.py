"""
Looking at the sockets of all processes, and pushing to them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from ..ids import as_tuple
from ..push import Data, Delivery
from ..registry import ANY
from ..snapshot import ConnectionInfo, Count, Snapshot, snapshot
from .asking import DATA, Asking
from .node import Node
from .reading import WRONG, name
from .wire import VERSION, as_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from .registry import RedisSessionWSRegistry

__all__ = ["NodeInfo", "Nodes"]

log = logging.getLogger("aiohttp_session_ws")

PART: Final = 500  # connections in one message


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """
    One process at the moment when it was asked.

    Attributes:
        name: How it is called.
        sockets: How many are open.
        sessions: How many sessions have one.
        handshakes: How many are on their way.
    """

    name: str
    sockets: int
    sessions: int
    handshakes: int


class Nodes(tuple[NodeInfo, ...]):
    """
    The processes, by name.

    Attributes:
        complete: Whether everybody has answered who gave a sign of life within 15 seconds.
    """

    complete: bool

    def __new__(cls, nodes: Iterable[NodeInfo], *, complete: bool = True) -> Self:
        """
        Return a tuple of *nodes*.
        """
        self = super().__new__(cls, nodes)
        self.complete = complete
        return self


class Looking:
    """
    Asks the other processes about their sockets, and answers them.
    """

    def __init__(self, registry: RedisSessionWSRegistry, node: Node, asking: Asking) -> None:
        self._registry = registry
        self._node = node
        self._asking = asking

    async def connections(self, session: Hashable | None, identity: Hashable | None) -> Snapshot:
        """
        See :meth:`SessionWSRegistry.connections`.
        """
        body: dict[str, Any] = {"do": "connections"}
        if session is not ANY:
            body["session"] = json.loads(as_json(session))
        if identity is not ANY:
            body["identity"] = json.loads(as_json(identity))
        here = self._snapshot(session, identity)
        question = await self._asking.ask(body)
        there = [
            ConnectionInfo(**{key: as_tuple(value) for key, value in info.items()})
            for answer in question.answers
            for info in answer.get("infos", ())
        ]
        infos = sorted([*here, *there], key=lambda info: info.opened_at)
        return Snapshot(infos, complete=question.complete)

    async def count(self) -> Count:
        """
        See :meth:`SessionWSRegistry.count`.
        """
        here = self._registry._sockets.open.size
        question = await self._asking.ask({"do": "count"})
        there = sum(int(answer.get("sockets", 0)) for answer in question.answers)
        return Count(here + there, complete=question.complete)

    async def nodes(self) -> Nodes:
        """
        See :meth:`RedisSessionWSRegistry.nodes`.
        """
        question = await self._asking.ask({"do": "nodes"})
        nodes = [NodeInfo(**answer["node"]) for answer in question.answers]
        if self._registry._serves:
            nodes.append(self._myself())
        return Nodes(sorted(nodes, key=lambda node: node.name), complete=question.complete)

    async def push(self, to: list[Any], data: Data, here: Delivery) -> Delivery:
        """
        Push to the sockets of all other processes.

        Args:
            to: Whom: ``["session", id]``, ``["identity", identity]`` or ``["all"]``.
            data: What.
            here: What became of it here.
        """
        text = isinstance(data, str)
        payload = data.encode() if isinstance(data, str) else bytes(data)
        question = await self._asking.ask({"do": "push", "to": to, "text": text}, payload)
        answers = question.answers
        return Delivery(
            here.sockets + sum(int(answer.get("sockets", 0)) for answer in answers),
            int(self._registry._serves) + len(question.answered),
            here.complete
            and question.complete
            and all(answer.get("complete") for answer in answers),
        )

    async def hear(self, data: bytes) -> None:
        """
        Answer a question of another process.
        """
        head, _, payload = data.partition(b"\n")
        try:
            body = json.loads(head)
            if body["v"] != VERSION:
                return
            asker, number, do = name(body["from"]), str(body["q"]), body["do"]
            if asker == self._node.instance:
                return
            async for answer in self._answers(do, body, payload):
                if not self._asking.answer(asker, number, DATA, answer):
                    return  # without its last part it doesn't count as complete
        except WRONG:
            log.warning("a message that isn't ours is on our channel")

    async def _answers(
        self, do: str, body: dict[str, Any], payload: bytes
    ) -> AsyncIterator[dict[str, Any]]:
        if do == "count":
            yield {"sockets": self._registry._sockets.open.size}
        elif do == "nodes":
            yield {"node": asdict(self._myself())}
        elif do == "connections":
            asked = {key: as_tuple(body[key]) for key in ("session", "identity") if key in body}
            found = self._snapshot(**asked)
            for start in range(0, max(1, len(found)), PART):
                infos = [asdict(info) for info in found[start : start + PART]]
                yield {"infos": infos, "last": start + PART >= len(found)}
                await asyncio.sleep(0)  # the next part may take as long
        elif do == "push":
            text = payload.decode() if body["text"] else payload
            delivery = await self._registry._push_here(as_tuple(body["to"]), text)
            yield {"sockets": delivery.sockets, "complete": delivery.complete}

    def _snapshot(
        self, session: Hashable | None = ANY, identity: Hashable | None = ANY
    ) -> Snapshot:
        found = self._registry._find(session=session, identity=identity)
        return snapshot(found, asyncio.get_running_loop().time(), self._node.name)

    def _myself(self) -> NodeInfo:
        sockets = self._registry._sockets
        return NodeInfo(
            self._node.name, sockets.open.size, len(sockets.open), sockets.opening.size
        )
