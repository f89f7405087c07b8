"""An application with each kind of parameter and result, for the tests of its schema."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aiohttp_session_ws import rpc

shop = rpc.Routes("shop.", timeout=5)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclasses.dataclass
class Item:
    """What is sold."""

    name: str
    size: Size = Size.SMALL
    picture: bytes | None = None


class Order(msgspec.Struct):
    id: int
    items: list[Item]
    notes: dict[str, str] = {}


@dataclasses.dataclass
class Client:
    """A name that the browser's client has too."""

    name: str


@shop.route("order.{id}.add")
async def add(
    id: int, item: Item, count: Annotated[int, Meta(ge=1)] = 1, *, session: rpc.Session
) -> Order:
    """Add an item to an order."""
    return Order(id, [item] * count)


@shop.route("order.{id}")
async def order(id: int) -> Client:
    return Client(str(id))


@shop.route("order.list")
async def orders(*, page: int) -> list[Client]:
    return [Client(str(page))]


@shop.route()
async def find(default: int = 0, **named: str) -> Client:
    return Client(named.get("by", str(default)))


@shop.route()
async def prices(symbols: list[str], *, db: Any) -> AsyncIterator[tuple[str, float]]:
    for symbol in symbols:
        yield symbol, 1.0


@shop.route()
def total(*numbers: float, **named: int) -> float | None:
    return sum(numbers) + sum(named.values())


@shop.route()
async def anything(value=None):  # type: ignore[no-untyped-def]
    return value


@shop.topic("stock.{symbol}")
async def stock(symbol: str) -> AsyncIterator[None]:
    """What is left."""
    yield


application = rpc.Application()
application.default.add_rpc_routes(shop)
application.default.errors[LookupError] = "shop.error.not_found"
application.set_default_arg("db", object())
