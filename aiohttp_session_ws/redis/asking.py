"""
Questions to the other processes, and their answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from itertools import count
from typing import Any, Final, TypeAlias

from .node import Node
from .reading import WRONG
from .wire import VERSION

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

Answer: TypeAlias = dict[str, Any]

DATA: Final = "data"  # the channel, to which the name of a node is added for answers
PATIENCE: Final = 1.0  # seconds to wait for the answers to a question


class Question:
    """
    What was asked, and who has answered.

    Attributes:
        number: What the answers refer to.
        expected: Who was asked.
        answered: Who has answered in full.
        answers: What they said.
    """

    def __init__(self, number: str, expected: Iterable[str]) -> None:
        self.number = number
        self.expected = set(expected)
        self.answered: set[str] = set()
        self.answers: list[Answer] = []
        self._all = asyncio.get_running_loop().create_future()

    @property
    def complete(self) -> bool:
        """
        Whether all have answered.
        """
        return self.expected <= self.answered

    def hear(self, sender: str, answer: Answer) -> None:
        """
        Take an answer, or a part of one.
        """
        self.answers.append(answer)
        if answer.get("last", True):
            self.answered.add(sender)
        if self.complete and not self._all.done():
            self._all.set_result(None)

    async def wait(self, timeout: float) -> None:
        """
        Wait until all have answered, for *timeout* seconds at most.
        """
        if not self.complete:
            await asyncio.wait({self._all}, timeout=timeout)


class Asking:
    """
    The questions of a process that are open.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._numbers = count(1)
        self._open: dict[str, Question] = {}

    def open(self) -> Question:
        """
        Open a question to all others; :meth:`close` it.
        """
        others = [member for member in self._node.members if member != self._node.instance]
        question = Question(str(next(self._numbers)), others)
        self._open[question.number] = question
        return question

    def close(self, question: Question) -> None:
        """
        Take no more answers.
        """
        self._open.pop(question.number, None)

    async def ask(self, body: Answer, payload: bytes = b"") -> Question:
        """
        Ask all others, and wait until they have answered or :data:`PATIENCE` is over.
        """
        question = self.open()
        await asyncio.sleep(0)  # who asks again and again may be the only one to know of
        try:
            header = {"v": VERSION, "from": self._node.instance, "q": question.number, **body}
            if self._node.mailbox.put(DATA, json.dumps(header).encode() + b"\n" + payload):
                await question.wait(PATIENCE)
            else:
                question.expected.add("")  # whoever would have answered
        finally:
            self.close(question)
        return question

    def hear(self, data: bytes) -> None:
        """
        Take an answer that was published to this process.
        """
        try:
            body = json.loads(data)
            if body["v"] != VERSION:
                return
            sender, number = str(body["from"]), str(body["q"])
            question = self._open.get(number)
        except WRONG:
            log.warning("a message that isn't ours is on our channel of answers")
            return
        if question is not None:
            question.hear(sender, body)

    def answer(self, asker: str, number: str, channel: str, body: Answer) -> bool:
        """
        Answer a question of another process; tell whether that will be tried.
        """
        header = {"v": VERSION, "from": self._node.instance, "q": number}
        return self._node.mailbox.put(f"{channel}:{asker}", json.dumps(header | body))
