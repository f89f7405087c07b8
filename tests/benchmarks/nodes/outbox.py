"""
How many orders Redis takes in a second, for ids that nobody holds.
"""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from functools import partial
from typing import Final

from aiohttp_session_ws.closing import SESSION_ENDED
from aiohttp_session_ws.redis.client import client_maker
from aiohttp_session_ws.redis.store import Store
from aiohttp_session_ws.redis.wire import Ended, Unit
from aiohttp_session_ws.redis.writer import BATCH, Writer
from redis.asyncio import Redis

from aiohttp_session_ws.redis import RedisSessionWSRegistry

from ..report import in_turns, line, median, ratio

ORDERS: Final = 20_000  # per round
TTL: Final = 3600.0


async def _forget(redis: Redis) -> None:
    """
    Delete all but who lives, so that Redis stays as small as it was.
    """
    keys = [key async for key in redis.scan_iter(match="*:rev:*", count=10_000)]
    for start in range(0, len(keys), 1000):
        await redis.unlink(*keys[start : start + 1000])
    gc.collect()


async def _bare(redis: Redis) -> float:
    """
    Write and publish as many bytes by redis-py's pipeline.
    """
    ids = [uuid.uuid4().hex for _ in range(ORDERS)]
    begin = time.perf_counter()
    for start in range(0, ORDERS, BATCH):
        orders = [Ended(id_, 1e9, TTL) for id_ in ids[start : start + BATCH]]
        texts = [order.text() for order in orders]
        async with redis.pipeline(transaction=True) as pipeline:
            for order, text in zip(orders, texts, strict=True):
                _ = pipeline.set(f"bare:{order.key()}", text, px=3_600_000)
            _ = pipeline.publish("bare:orders", ",".join(texts))
            await pipeline.execute()
    rate = ORDERS / (time.perf_counter() - begin)
    await _forget(redis)
    return rate


async def _alone(redis: Redis, url: str) -> float:
    """
    Put orders into an outbox, and wait until it is empty.
    """
    store = Store(client_maker(url), "alone", lambda: None)
    writer = Writer(store, "me", lambda *_: None)
    running = asyncio.create_task(writer.run())
    writer.put([Ended("", 1e9, TTL)])
    await writer.drain(60)  # it is connected
    ids = [uuid.uuid4().hex for _ in range(ORDERS)]
    begin = time.perf_counter()
    for id_ in ids:
        orders = (Ended(id_, 1e9, TTL),)
        writer.put(orders, Unit(orders, SESSION_ENDED))
    assert not await writer.drain(60)
    rate = ORDERS / (time.perf_counter() - begin)
    running.cancel()
    await store.stop()
    await _forget(redis)
    return rate


async def _calls(redis: Redis, url: str) -> float:
    """
    Call ``end_session()``, and wait until Redis has taken all.
    """
    async with RedisSessionWSRegistry(url) as registry:
        ids = [uuid.uuid4().hex for _ in range(ORDERS)]
        begin = time.perf_counter()
        for id_ in ids:
            await registry.end_session(id_)
        assert not await registry._node.writer.drain(60)
        rate = ORDERS / (time.perf_counter() - begin)
    await _forget(redis)
    return rate


async def measure(url: str, rounds: int) -> None:
    """
    Write bursts of orders; no other process hears them.
    """
    async with Redis.from_url(url) as redis:
        arms = [partial(_bare, redis), partial(_alone, redis, url), partial(_calls, redis, url)]
        floor, alone, calls = await in_turns(rounds, *arms)
    for name, figures, target in (
        ("orders, outbox alone", alone, "; target >= 80,000 /s"),
        ("orders, end_session()", calls, ""),
    ):
        line(
            name,
            f"{median(figures):,.0f} /s",
            f"{min(figures):,.0f} to {max(figures):,.0f}; a pipeline of redis-py"
            f" {median(floor):,.0f} /s, {ratio(floor, figures):.2f} x{target}",
        )
