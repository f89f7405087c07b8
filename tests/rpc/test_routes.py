"""Route tables: names, patterns, and errors in their declaration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

import msgspec
import pytest

from aiohttp_session_ws import Limits, rpc
from aiohttp_session_ws.rpc.table import Served


def served(routes: rpc.Routes) -> Served:
    """Return the routes as served by a realm."""
    realm = rpc.Realm("r")
    realm.add_rpc_routes(routes)
    return realm.served


def meaning(routes: rpc.Routes, name: str) -> tuple[str, dict[str, str]] | None:
    """Return the function that a name resolves to, and the pattern's parts."""
    found = served(routes).procedures.find(name)
    return found and (found[0].signature.name.rpartition(".")[2], dict(found[1]))


class TestNames:
    def test_prefix_and_default(self) -> None:
        """A route is named after its function, with the prefix."""
        routes = rpc.Routes("shop.")

        @routes.route()
        async def add() -> None: ...

        assert meaning(routes, "shop.add") == ("add", {})
        assert meaning(routes, "add") is None

    def test_exact_wins(self) -> None:
        """An exact name takes precedence over a pattern that is declared before it."""
        routes = rpc.Routes()

        @routes.route("order.{id}")
        async def one(id: int) -> None: ...

        @routes.route("order.all")
        async def every() -> None: ...

        assert meaning(routes, "order.all") == ("every", {})
        assert meaning(routes, "order.7") == ("one", {"id": "7"})
        assert meaning(routes, "order.7.8") is None
        assert meaning(routes, "order.") is None

    def test_patterns(self) -> None:
        """Patterns with parts in different places coexist."""
        routes = rpc.Routes()

        @routes.route("a.{x}.c")
        async def first(x: str) -> None: ...

        @routes.route("{x}.{y}.d")
        async def second(x: str, y: str) -> None: ...

        assert meaning(routes, "a.1.c") == ("first", {"x": "1"})
        assert meaning(routes, "a.1.d") == ("second", {"x": "a", "y": "1"})
        assert meaning(routes, "a.1.e") is None

    def test_never_by_attribute(self) -> None:
        """A name is never resolved by attribute lookup."""
        routes = rpc.Routes()

        @routes.route_class("cart")
        class Cart:
            @rpc.expose
            async def put(self) -> None: ...

            async def hidden(self) -> None: ...

        assert meaning(routes, "cart.put") == ("put", {})
        for name in ("cart.hidden", "cart.__init__", "cart.put.__call__", "__class__", "cart"):
            assert meaning(routes, name) is None

    def test_init(self) -> None:
        """``init()`` is called by the name of its route class."""
        routes = rpc.Routes("shop.")

        @routes.route_class("cart")
        class Cart:
            @rpc.expose
            async def init(self) -> None: ...

        assert meaning(routes, "shop.cart") == ("init", {})

    def test_local_types(self) -> None:
        """An annotation can name a type that is local to the function that declares the route."""

        class Local(msgspec.Struct):
            x: int

        routes = rpc.Routes()

        @routes.route()
        async def take(value: Local) -> None: ...

        (procedure,) = served(routes).procedures
        assert procedure.signature.parameters[0].annotation is Local

    def test_later(self) -> None:
        """A route declared after its routes were added to a realm is served."""
        routes = rpc.Routes()
        found = served(routes)

        @routes.route()
        async def late() -> None: ...

        assert found.procedures.find("late") is not None


class TestBadUse:
    def test_twice(self) -> None:
        """Declaring one name for two functions is an error that names both."""
        routes = rpc.Routes()

        @routes.route("x")
        async def one() -> None: ...

        expected = r"two\(\): the name 'x' conflicts with 'x' of .*one\(\);"
        with pytest.raises(ValueError, match=expected):

            @routes.route("x")
            async def two() -> None: ...

    def test_two_routes_in_a_realm(self) -> None:
        """Adding two sets of routes with the same name to one realm is an error."""
        realm = rpc.Realm("r")
        for routes in (rpc.Routes(), rpc.Routes()):

            @routes.route("x")
            async def one() -> None: ...

            if realm.served.procedures.find("x") is None:
                realm.add_routes(routes)
            else:
                with pytest.raises(ValueError, match="name 'x' conflicts with 'x'"):
                    realm.add_routes(routes)

    def test_patterns_that_meet(self) -> None:
        """Declaring two patterns that one name could match is an error."""
        routes = rpc.Routes()

        @routes.route("a.{x}")
        async def one(x: str) -> None: ...

        with pytest.raises(ValueError, match=r"'\{y\}\.b'.*'a\.\{x\}'"):

            @routes.route("{y}.b")
            async def two(y: str) -> None: ...

    @pytest.mark.parametrize("name", ["", "a..b", "a.{b", "a{b}", "{1}"])
    def test_no_name(self, name: str) -> None:
        """An invalid name is refused."""
        with pytest.raises(ValueError, match="is not a valid name"):

            @rpc.Routes().route(name)
            async def f(b: int) -> None: ...

    def test_without_parentheses(self) -> None:
        """``route`` used without parentheses is an error that says so."""
        with pytest.raises(TypeError, match=r"needs parentheses: @routes\.route\(\)$"):

            @rpc.Routes().route  # type: ignore[arg-type]
            async def f() -> None: ...

    def test_topic_without_parentheses(self) -> None:
        """``topic`` used without parentheses is an error that says so."""
        with pytest.raises(TypeError, match=r'needs parentheses: @routes\.topic\("name"\)$'):

            @rpc.Routes().topic  # type: ignore[arg-type]
            async def f() -> AsyncIterator[None]:
                yield

    def test_class_without_parentheses(self) -> None:
        """``route_class`` used without parentheses is an error that says so."""
        with pytest.raises(TypeError, match=r'needs parentheses: @routes\.route_class\("name"\)$'):

            @rpc.Routes().route_class  # type: ignore[arg-type]
            class C:
                @rpc.expose
                async def f(self) -> None: ...

    def test_gives_back(self) -> None:
        """Decorators return the decorated object, with its type for type checkers."""

        class Cart:
            @rpc.expose
            async def put(self) -> None: ...

        def by_ticket(session: rpc.Session, ticket: str) -> str:
            return ticket

        def by_address(session: rpc.Session) -> str:
            return "127.0.0.1"

        cart = rpc.Routes().route_class("cart")(Cart)
        ticket = rpc.Realm("r").set_ticket_authenticator(by_ticket)
        address = rpc.Realm("r").add_transport_authenticator(by_address)
        session: Any = None
        assert_type(cart, type[Cart])
        assert_type(ticket(session, "x"), str)
        assert_type(address(session), str)

        assert (cart, ticket, address) == (Cart, by_ticket, by_address)

    def test_topic_without_yield(self) -> None:
        """A topic that isn't an async generator function is refused."""
        expected = r"f\(\) is a topic: it must be an async generator function with one"
        with pytest.raises(TypeError, match=expected):

            @rpc.Routes().topic("t")
            async def f() -> None: ...

    def test_threaded_coroutine(self) -> None:
        """A coroutine function can't be declared as ``threaded``."""
        with pytest.raises(TypeError, match=r"f\(\) is async: only a plain function"):

            @rpc.Routes().route(threaded=True)
            async def f() -> None: ...

    def test_class_that_exposes_nothing(self) -> None:
        """A route class that exposes no methods is refused."""
        with pytest.raises(TypeError, match="exposes no methods"):

            @rpc.Routes().route_class("c")
            class C:
                async def f(self) -> None: ...

    @pytest.mark.parametrize("kind", [staticmethod, classmethod])
    def test_method_without_object(self, kind: Any) -> None:
        """A static or class method can't be exposed."""

        class C:
            @kind  # type: ignore[untyped-decorator]  # one of two
            @rpc.expose
            def f(*args: int) -> None: ...

        with pytest.raises(TypeError, match=r"C\.f\(\) can't be exposed"):
            rpc.Routes().route_class("c")(C)

    def test_state_handler_without_yield(self) -> None:
        """A session state handler that isn't an async generator function is refused."""

        async def f(session: rpc.Session) -> None: ...

        async def g(session: rpc.Session) -> AsyncIterator[None]:
            yield

        rpc.Realm("r").add_session_state_handler(g)
        expected = r"f\(\) is a session state handler: it must be an async generator"
        with pytest.raises(TypeError, match=expected):
            rpc.Application().add_session_state_handler(f)

    def test_two_realms(self) -> None:
        """A second realm with the same URI is refused."""
        calls = rpc.Application()
        calls.add_realm(rpc.Realm("r"))
        with pytest.raises(ValueError, match="realm 'r' exists already"):
            calls.add_realm(rpc.Realm("r"))

    def test_no_realm(self) -> None:
        """``add_realm()`` refuses a string."""
        with pytest.raises(TypeError, match="takes a Realm, not 'r'"):
            rpc.Application().add_realm("r")  # type: ignore[arg-type]

    def test_unknown_options(self) -> None:
        """An unknown websocket option is refused when the application is created."""
        unknown: Any = {"heart_beat": 30.0}
        with pytest.raises(TypeError, match="heart_beat"):
            rpc.Application(options=unknown)

    def test_handler_beside_ticket(self) -> None:
        """An authentication handler can't be combined with a ticket authenticator."""
        realm = rpc.Realm("r")
        realm.set_ticket_authenticator(lambda session, ticket: None)
        with pytest.raises(ValueError, match="a ticket authenticator or CRA; set only one"):
            realm.set_authentication_handler(lambda session: None)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"calls": 0}, ValueError),
            ({"calls": 1.5}, TypeError),
            ({"patience": "5"}, TypeError),
            ({"join": -1.0}, ValueError),
            ({"calls": True}, TypeError),
        ],
    )
    def test_limits(self, options: dict[str, object], error: type[Exception]) -> None:
        """The error for a limit of the wrong type or size names the limit."""
        with pytest.raises(error, match=f"CallLimits\\({next(iter(options))}="):
            rpc.CallLimits(**options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("option", "value"), [("limits", Limits(per_session=5)), ("authorize", "everybody")]
    )
    def test_options(self, option: str, value: object) -> None:
        """The error for an option of the wrong type, such as a registry's limits, names it."""
        with pytest.raises(TypeError, match=f"^{option} must be"):
            rpc.Application(**{option: value})  # type: ignore[arg-type]

    def test_dialects(self) -> None:
        """An unknown dialect is refused."""
        with pytest.raises(ValueError, match="dialects="):
            rpc.Application(dialects={"soap"})  # type: ignore[arg-type]
