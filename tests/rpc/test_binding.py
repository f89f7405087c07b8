"""Argument binding: conversion, injection, refusal."""

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
    """Bind arguments as for a call of a peer, and call the function."""
    signature = Signature(function, parts=tuple(parts or {}))
    binder = Binder(signature, defaults or {})
    values, named = binder.bind(SESSION, Call(1, "name", list(args), kwargs, 0), parts or {})
    return function(*values, **named)


def refusal(function: Any, *args: Any, **options: Any) -> str:
    """Return the error text for a call whose arguments are refused."""
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
        """An argument is converted to its annotated type, by position and by name."""

        def take(value):  # type: ignore[no-untyped-def]
            return value

        take.__annotations__["value"] = annotation

        assert (call(take, value=given) if named else call(take, given)) == got

    def test_constraints(self) -> None:
        """A value that violates a constraint is refused with msgspec's error text."""

        def take(count: Annotated[int, Meta(ge=1)] = 1) -> int:
            return count

        assert call(take) == 1
        assert refusal(take, 0) == "count: Expected `int` >= 1"

    def test_unfit_names_the_argument(self) -> None:
        """The error names the argument that can't be converted, and the path inside its value."""

        def take(a: int, item: Item) -> None: ...

        assert refusal(take, 1, {"name": 5}) == "item: Expected `str`, got `int` - at `$.name`"

    def test_without_annotation(self) -> None:
        """An argument without annotation is passed unconverted."""

        def take(a, b=2):  # type: ignore[no-untyped-def]
            return a, b

        assert call(take, [1]) == ([1], 2)


class TestShape:
    def test_missing(self) -> None:
        """The error for a missing argument names it."""

        def take(a: int, b: int) -> None: ...

        assert "'b'" in refusal(take, 1)

    def test_unknown(self) -> None:
        """The error for an unknown argument names it."""

        def take(a: int) -> None: ...

        assert "'c'" in refusal(take, 1, c=2)

    def test_twice(self) -> None:
        """The error for an argument given by position and by name names it."""

        def take(a: int) -> None: ...

        assert "'a'" in refusal(take, 1, a=2)

    def test_too_many(self) -> None:
        """More positional arguments than the function takes are refused."""

        def take(a: int) -> None: ...

        assert refusal(take, 1, 2) == "too many positional arguments"

    def test_rest(self) -> None:
        """``*args`` and ``**kwargs`` take the remaining arguments, each converted."""

        def take(a: int, *args: int, **kwargs: float) -> Any:
            return a, args, kwargs

        assert call(take, "1", "2", "3", x="4") == (1, (2, 3), {"x": 4.0})
        assert refusal(take, 1, "x").startswith("args: ")
        assert refusal(take, 1, x="y").startswith("x: ")

    def test_positional_only(self) -> None:
        """A positional-only argument can't be given by name."""

        def take(a: int, /) -> int:
            return a

        assert call(take, "1") == 1
        assert "'a'" in refusal(take, a=1)

    def test_keyword_only(self) -> None:
        """A keyword-only argument can't be given by position."""

        def take(a: int, *, b: int = 2) -> Any:
            return a, b

        assert call(take, 1, b="3") == (1, 3)
        assert call(take, 1) == (1, 2)
        refusal(take, 1, 2)

    def test_gap(self) -> None:
        """An omitted argument keeps its default, and doesn't shift the arguments after it."""

        def take(a: int, b: int = 2, c: int = 3) -> Any:
            return a, b, c

        assert call(take, 1, c=5) == (1, 2, 5)

    def test_parts(self) -> None:
        """The parts of a pattern are passed as arguments, and a caller can't pass them too."""

        def take(id: int, item: str, count: int = 1) -> Any:
            return id, item, count

        assert call(take, "tea", 2, parts={"id": "7"}) == (7, "tea", 2)
        assert refusal(take, "tea", parts={"id": "x"}).startswith("id: ")
        assert refusal(take, "tea", parts={"id": "7"}, id=8) == "id: not for a caller to give"


class TestInjection:
    def test_by_name_and_annotation(self) -> None:
        """Session, request and call are injected by name or annotation, in any position."""

        def take(
            session: Any, a: int, mine: rpc.Session, request: Any, what: rpc.RPCRequest
        ) -> Any:
            return session, a, mine, request, what

        got = call(take, "5")

        assert got[:4] == (SESSION, 5, SESSION, "the request")
        assert got[4] == rpc.RPCRequest("name", ("5",), {}, SESSION)

    def test_request_by_annotation(self) -> None:
        """The request is injected by annotation, whatever the parameter's name."""

        def take(a: int, *, of: web.Request) -> Any:
            return a, of

        assert call(take, 1) == (1, "the request")

    @pytest.mark.parametrize("name", ["session", "db", "of", "request"])
    def test_never_settable(self, name: str) -> None:
        """A peer can't pass an injected argument, by name or by position."""

        def take(a: int, session: Any, db: Database, of: web.Request, request: Any) -> None: ...

        words = refusal(take, 1, defaults={"db": Database()}, **{name: 1})

        assert words == f"{name}: not for a caller to give"
        assert "too many" in refusal(take, 1, 2, defaults={"db": Database()})

    def test_default_args(self) -> None:
        """A default argument of the realm takes precedence over the function's own default."""

        def take(a: int, db: Database | None = None) -> Any:
            return a, db

        assert call(take, 1, defaults={"db": 5}) == (1, 5)


class TestBadUse:
    def test_unreadable_annotation(self) -> None:
        """The error for an annotation unsupported by msgspec names function and argument."""

        def take(a: int | Annotated[int, Meta(ge=5)] | Point | Item) -> None: ...

        with pytest.raises(TypeError, match=r"take\(\) has an annotation of 'a' that msgspec"):
            Signature(take)

    def test_unknown_name(self) -> None:
        """An annotation whose name can't be resolved raises an error that names the function."""

        def take(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(TypeError, match=r"take\(\) has an annotation that can't be resolved"):
            Signature(take)

    def test_custom_type(self) -> None:
        """A parameter of a custom type needs a default argument; the error says how to set it."""

        def take(db: Database) -> None: ...

        signature = Signature(take)
        signature.check({"db": Database()})

        with pytest.raises(TypeError, match=r"take\(\) takes 'db' .* set_default_arg\('db', …\)"):
            signature.check({})

    def test_part_that_is_not_taken(self) -> None:
        """A function that has no parameter for a part of its pattern is refused."""

        def take(a: int) -> None: ...

        with pytest.raises(TypeError, match=r"take\(\) has no parameter for id of its pattern"):
            Signature(take, parts=("id",))
