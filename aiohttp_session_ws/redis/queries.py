"""
Queries about the sockets of all nodes, and pushes and other messages to the other nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import asdict
from typing import Any, Final, TypeVar

from .._lineage import Subject
from .._logging import OncePerMinute, log
from ..registry.cluster import LocalNode
from ..registry.questions import Answers
from ..results import ConnectionInfo, Count, Delivery, NodeInfo, Nodes, Snapshot
from ..sessions.encoding import as_tuple, subject_of
from ..typing import Data
from .decoding import DECODE_ERRORS, name
from .messages import DATA, VERSION, subject_text
from .requests import Requests

__all__: list[str] = []

Info = TypeVar("Info", ConnectionInfo, NodeInfo)

PART: Final = 500  # connections in one message


class Queries:
    """
    Sends queries and pushes to the other nodes, and answers theirs.

    Args:
        node: This node.
        instance: Its own name.
        label: Its name for operators.
        requests: Sends requests, and collects the answers.
        publish_again: Called with a node that asks for the orders that Redis refuses to record.
        add_listed: Called with a node that is newly listed in Redis.
        remove_stopped: Called with a node that has stopped, but is still on that list.
        take_over: Called with the unrecorded orders of a node that stops; returns whether this
            one retries them from now on.
        serves: Whether it holds sockets.
        resolves: The kinds of subjects by which it finds its sockets.
    """

    def __init__(
        self,
        node: LocalNode,
        instance: str,
        label: str,
        requests: Requests,
        publish_again: Callable[[str], None],
        add_listed: Callable[[str], None],
        remove_stopped: Callable[[str], None],
        take_over: Callable[[bytes], bool],
        *,
        serves: bool,
        resolves: frozenset[str],
    ) -> None:
        self._node = node
        self._instance = instance
        self._label = label
        self._requests = requests
        self._publish_again = publish_again
        self._add_listed = add_listed
        self._remove_stopped = remove_stopped
        self._take_over = take_over
        self._serves = serves
        self._resolves = resolves
        self._logged = OncePerMinute()

    async def connections(self, subject: Subject | None, here: Snapshot) -> Snapshot:
        """
        Return the connections on all nodes; *here* are those on this one.
        """
        request = await self._requests.ask({"do": "connections", "of": _as_list(subject)})
        encoded = [info for answer in request.answers for info in answer.get("infos", ())]
        there = _read(ConnectionInfo, encoded)
        infos = sorted([*here, *there], key=lambda info: info.opened_at)
        readable = len(there) == len(encoded)
        return Snapshot(infos, complete=here.complete and request.complete and readable)

    async def count(self, here: int) -> Count:
        """
        Return the number of sockets on all nodes; *here* of them are on this one.
        """
        request = await self._requests.ask({"do": "count"})
        there = sum(int(answer.get("sockets", 0)) for answer in request.answers)
        return Count(here + there, complete=request.complete)

    async def nodes(self) -> Nodes:
        """
        Return the nodes that hold sockets.
        """
        request = await self._requests.ask({"do": "nodes"})
        nodes = _read(NodeInfo, [answer.get("node") for answer in request.answers])
        readable = len(nodes) == len(request.answers)
        if self._serves:
            nodes.append(self._own_info())
        nodes.sort(key=lambda node: node.name)
        return Nodes(nodes, complete=request.complete and readable)

    async def push(
        self, subject: Subject | None, data: Data, here: Delivery, *, wait: float = 0.0
    ) -> Delivery:
        """
        Push to the sockets of the other nodes.

        Args:
            subject: The id, identity or label; ``None`` for all sockets.
            data: The message.
            here: The delivery on this node.
            wait: Seconds to wait for the answers of the other nodes; with 0 they don't answer.
        """
        text = isinstance(data, str)
        payload = data.encode() if isinstance(data, str) else bytes(data)
        body = {"do": "push", "of": _as_list(subject), "text": text}
        nodes = here.nodes if self._serves else 0
        if not wait:
            sent = self._requests.send(body, payload) is not None
            complete = here.complete and sent and self._requests.alone
            return Delivery(here.sockets, nodes, complete)
        request = await self._requests.ask(body, payload, timeout=wait)
        answers = request.answers
        return Delivery(
            here.sockets + sum(int(answer.get("sockets", 0)) for answer in answers),
            nodes + len(request.answered),
            here.complete and request.complete and all(a.get("complete") for a in answers),
        )

    async def ask(
        self, name: str, body: dict[str, Any], wait: float, of: Collection[str] | None = None
    ) -> Answers:
        """
        Send a request to all other nodes, which their registries answer.

        Args:
            name: The name of the request.
            body: Its content, as JSON can hold it.
            wait: Seconds to wait for the answers; with 0 the nodes don't answer.
            of: The nodes to ask, if not all.
        """
        text = {"do": name, **body}
        if not wait:
            sent = self._requests.send(text, b"") is not None
            return Answers(expected=0 if sent and self._requests.alone else 1)
        request = await self._requests.ask(text, timeout=wait, of=of)
        answered = len(request.answered)
        expected = max(len(request.expected | request.answered), answered + (not request.complete))
        return Answers(tuple(request.answers), expected, answered)

    async def relay(self, name: str, data: bytes) -> Delivery:
        """
        Send a message to the same endpoint on all other nodes; wait until Redis has published it.
        """
        taken = await self._requests.publish({"do": "relay", "name": name}, data)
        nodes = self._requests.others if taken else 0
        return Delivery(0, nodes, complete=taken and self._requests.known)

    async def leave(self) -> None:
        """
        Notify all other nodes that this one stops.
        """
        _ = await self._requests.publish({"do": "left"}, b"")

    async def receive(self, data: bytes) -> None:
        """
        Handle a message of another node: a request, a push or a notification.
        """
        head, _, payload = data.partition(b"\n")
        try:
            body = json.loads(head)
            if body["v"] != VERSION:
                return
            asker, number = name(body["from"]), str(body["q"])
            if asker == self._instance or self._instance not in body.get("to", (self._instance,)):
                return
            async for answer in self._answers(asker, number, body, payload):
                if number and not self._requests.answer(asker, number, DATA, answer):
                    return  # an answer without its last part isn't complete
        except DECODE_ERRORS:
            if self._logged.allows("question"):
                log.warning("a foreign or malformed message on our data channel was ignored")

    async def _answers(
        self, asker: str, number: str, body: dict[str, Any], payload: bytes
    ) -> AsyncIterator[dict[str, Any]]:
        match body["do"]:
            case "count":
                yield {"sockets": self._node.connections.open.size}
            case "nodes":
                yield {"node": asdict(self._own_info())}
            case "connections":
                subject = _as_subject(body["of"])
                unresolved = not self._can_find(subject)
                found = self._node.snapshot(subject)
                for start in range(0, max(1, len(found)), PART):
                    infos = [asdict(info) for info in found[start : start + PART]]
                    last = start + PART >= len(found)
                    yield {"infos": infos, "last": last, "unresolved": unresolved}
                    await asyncio.sleep(0)  # each part takes a while
            case "push":
                data = payload.decode() if body["text"] else payload
                subject = _as_subject(body["of"])
                delivery = await self._node.push_here(subject, data)
                complete = delivery.complete and self._can_find(subject)
                yield {"sockets": delivery.sockets, "complete": complete}
            case "relay":
                self._node.relays.receive(str(body["name"]), payload)
            case "unrecorded":
                self._publish_again(asker)
                yield {}
            case "joined":
                self._add_listed(asker)
            case "left":
                self._remove_stopped(asker)
            case "take over":
                if self._take_over(payload):
                    yield {}
            case _:  # it may take long, and must not delay the pushes behind it
                answer = self._answer(asker, number, body)
                _ = self._node.tasks.spawn(answer, "answer another node")

    async def _answer(self, asker: str, number: str, body: dict[str, Any]) -> None:
        answer = await self._node.questions.answer(str(body["do"]), body)
        if number:
            _ = self._requests.answer(asker, number, DATA, answer)

    def _can_find(self, subject: Subject | None) -> bool:
        return subject is None or subject.kind in self._resolves

    def _own_info(self) -> NodeInfo:
        connections = self._node.connections
        return NodeInfo(
            self._label,
            connections.open.size,
            len(connections.open),
            connections.opening.size,
        )


def _read(kind: type[Info], encoded: Iterable[Any]) -> list[Info]:
    """
    Decode infos of other nodes, without unreadable ones and fields of newer versions.
    """
    found = []
    for info in encoded:
        with contextlib.suppress(*DECODE_ERRORS):
            names = [name for name in kind.__match_args__ if name in info]
            found.append(kind(**{name: as_tuple(info[name]) for name in names}))
    return found


def _as_list(subject: Subject | None) -> Any:
    return None if subject is None else json.loads(subject_text(subject))


def _as_subject(body: Any) -> Subject | None:
    return None if body is None else Subject(body[0], subject_of(body[1]))
