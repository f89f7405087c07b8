"""
Hand-over of unrecorded orders from a node that stops to another, which retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable
from typing import Final

from .encoder import Encoder, body_of
from .entries import AnyEntry
from .requests import Requests

__all__: list[str] = []

PATIENCE: Final = 2.0  # seconds for the whole hand-over
AT_ONCE: Final = 500  # orders in one message


async def hand_over(
    entries: Iterable[AnyEntry], encoder: Encoder, requests: Requests
) -> list[AnyEntry]:
    """
    Hand over orders to the other nodes; return those that no node has taken.

    Args:
        entries: The orders that are left in the outbox.
        encoder: Builds messages from them.
        requests: Sends these to the other nodes.
    """
    left = list(entries)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            living = (await requests.ask({"do": "count"})).answered
            for heir in random.sample(sorted(living), len(living)):
                while left:
                    args = encoder.arguments(left[:AT_ONCE], "")
                    if args is None:
                        return left  # their time isn't known
                    body = body_of(args)
                    request = await requests.ask({"do": "take over"}, body, of=[heir])
                    if heir not in request.answered:
                        break  # it is stopping, too
                    del left[:AT_ONCE]
    return left
