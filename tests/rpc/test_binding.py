"""Arguments: converted, injected, refused."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from typing import Annotated, Any, cast

import msgspec
import pytest
from aiohttp import web
from msgspec import Meta

from aiohttp_session_ws import rpc
from aiohttp_session_ws.rpc.call import Call
from aiohttp_session_ws.rpc.signature import Binder, Signature


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Item:
    name: str
    price: float = 1.0


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Database:
    pass


class FakeSession:
    request = "the request"


SESSION = cast("rpc.Session", FakeSession())


def call(
    function: Any,
    *args: Any,
    parts: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Call a function as a peer would."""
    signature = Signature(function, parts=tuple(parts or {}))
    binder = Binder(signature, defaults or {})
    values, named = binder.bind(SESSION, Call(1, "name", list(args), kwargs, 0), parts or {})
    return function(*values, **named)


def refusal(function: Any, *args: Any, **options: Any) -> str:
    """Return what a peer is told of a call that doesn't fit."""
    with pytest.raises(rpc.RPCError) as refused:
        call(function, *args, **options)
    assert refused.value.uri == "wamp.error.invalid_argument"
    return str(refused.value.args[0])


class TestConversion:
    @pytest.mark.parametrize(
        ("annotation", "given", "got"),
        [
            (int, "7", 7),
            (int, 41, 41),
            (bool, "true", True),
            (float, 1, 1.0),
            (str, "a", "a"),
            (Color, "red", Color.RED),
            (Item, {"name": "tea"}, Item("tea")),
            (Point, {"x": "1"}, Point(1)),
            (list[Point], [{"x": 1, "y": 2}], [Point(1, 2)]),
            (dict[int, str], {"1": "a"}, {1: "a"}),
            (datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
            (bytes, "AAE=", b"\0\1"),
            (bytes, b"\0\1", b"\0\1"),
            (int | None, None, None),
            (Any, [1], [1]),
        ],
    )
    @pytest.mark.parametrize("named", [False, True])
    def test_types(self, annotation: Any, given: Any, got: Any, named: bool) -> None:
        """An argument becomes what its annotation says, by position and by name."""

        def take(value):  # type: ignore[no-untyped-def]
            return value

        take.__annotations__["value"] = annotation

        assert (call(take, value=given) if named else call(take, given)) == got

    def test_constraints(self) -> None:
        """What a constraint forbids is refused, in msgspec's words."""

        def take(count: Annotated[int, Meta(ge=1)] = 1) -> int:
            return count

        assert call(take) == 1
        assert refusal(take, 0) == "count: Expected `int` >= 1"

    def test_unfit_names_the_argument(self) -> None:
        """Of several arguments the one that doesn't fit is named, with the place inside it."""

        def take(a: int, item: Item) -> None: ...

        assert refusal(take, 1, {"name": 5}) == "item: Expected `str`, got `int` - at `$.name`"

    def test_without_annotation(self) -> None:
        """An argument without annotation is taken as it comes."""

        def take(a, b=2):  # type: ignore[no-untyped-def]
            return a, b

        assert call(take, [1]) == ([1], 2)


class TestShape:
    def test_missing(self) -> None:
        """A missing argument is named."""

        def take(a: int, b: int) -> None: ...

        assert "'b'" in refusal(take, 1)

    def test_unknown(self) -> None:
        """An unknown one as well."""

        def take(a: int) -> None: ...

        assert "'c'" in refusal(take, 1, c=2)

    def test_twice(self) -> None:
        """And one that is given twice."""

        def take(a: int) -> None: ...

        assert "'a'" in refusal(take, 1, a=2)

    def test_too_many(self) -> None:
        """More arguments than taken are refused."""

        def take(a: int) -> None: ...

        assert refusal(take, 1, 2) == "too many positional arguments"

    def test_rest(self) -> None:
        """``*args`` and ``**kwargs`` take the rest, each converted."""

        def take(a: int, *args: int, **kwargs: float) -> Any:
            return a, args, kwargs

        assert call(take, "1", "2", "3", x="4") == (1, (2, 3), {"x": 4.0})
        assert refusal(take, 1, "x").startswith("args: ")
        assert refusal(take, 1, x="y").startswith("x: ")

    def test_positional_only(self) -> None:
        """A positional argument can't be named."""

        def take(a: int, /) -> int:
            return a

        assert call(take, "1") == 1
        assert "'a'" in refusal(take, a=1)

    def test_keyword_only(self) -> None:
        """A named argument can't be given by position."""

        def take(a: int, *, b: int = 2) -> Any:
            return a, b

        assert call(take, 1, b="3") == (1, 3)
        assert call(take, 1) == (1, 2)
        refusal(take, 1, 2)

    def test_gap(self) -> None:
        """An argument that is left out doesn't shift those behind it."""

        def take(a: int, b: int = 2, c: int = 3) -> Any:
            return a, b, c

        assert call(take, 1, c=5) == (1, 2, 5)

    def test_parts(self) -> None:
        """The parts of a pattern are arguments, and no caller can give them besides."""

        def take(id: int, item: str, count: int = 1) -> Any:
            return id, item, count

        assert call(take, "tea", 2, parts={"id": "7"}) == (7, "tea", 2)
        assert refusal(take, "tea", parts={"id": "x"}).startswith("id: ")
        assert refusal(take, "tea", parts={"id": "7"}, id=8) == "id: not for a caller to give"


class TestInjection:
    def test_by_name_and_annotation(self) -> None:
        """Session, request and call come by themselves, wherever they stand."""

        def take(
            session: Any, a: int, mine: rpc.Session, request: Any, what: rpc.RPCRequest
        ) -> Any:
            return session, a, mine, request, what

        got = call(take, "5")

        assert got[:4] == (SESSION, 5, SESSION, "the request")
        assert got[4] == rpc.RPCRequest("name", ("5",), {}, SESSION)

    def test_request_by_annotation(self) -> None:
        """A request may have any name."""

        def take(a: int, *, of: web.Request) -> Any:
            return a, of

        assert call(take, 1) == (1, "the request")

    @pytest.mark.parametrize("name", ["session", "db", "of", "request"])
    def test_never_settable(self, name: str) -> None:
        """What is injected can't be given by a peer."""

        def take(a: int, session: Any, db: Database, of: web.Request, request: Any) -> None: ...

        words = refusal(take, 1, defaults={"db": Database()}, **{name: 1})

        assert words == f"{name}: not for a caller to give"
        assert "too many" in refusal(take, 1, 2, defaults={"db": Database()})

    def test_default_args(self) -> None:
        """Default arguments are the realm's, also where the function has a default."""

        def take(a: int, db: Database | None = None) -> Any:
            return a, db

        assert call(take, 1, defaults={"db": 5}) == (1, 5)


class TestBadUse:
    def test_unreadable_annotation(self) -> None:
        """An annotation that msgspec can't read is an error that names function and argument."""

        def take(a: int | Annotated[int, Meta(ge=5)] | Point | Item) -> None: ...

        with pytest.raises(TypeError, match=r"take\(\) has an annotation of 'a' that msgspec"):
            Signature(take)

    def test_unknown_name(self) -> None:
        """So is one that isn't there."""

        def take(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(TypeError, match=r"take\(\) has an annotation that can't be resolved"):
            Signature(take)

    def test_custom_type(self) -> None:
        """A type of the application's needs a default argument; the error says so."""

        def take(db: Database) -> None: ...

        signature = Signature(take)
        signature.check({"db": Database()})

        with pytest.raises(TypeError, match=r"take\(\) takes 'db' .* set_default_arg\('db', …\)"):
            signature.check({})

    def test_part_that_is_not_taken(self) -> None:
        """A pattern's parts must be taken."""

        def take(a: int) -> None: ...

        with pytest.raises(TypeError, match=r"take\(\) has no parameter for id of its pattern"):
            Signature(take, parts=("id",))
