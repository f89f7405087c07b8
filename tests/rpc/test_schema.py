"""The description of an application as JSON Schema and TypeScript."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiohttp_session_ws import rpc
from aiohttp_session_ws.rpc.__main__ import main

from . import served
from .support import expect_clients

HERE = pathlib.Path(__file__).parent


def procedures() -> dict[str, Any]:
    """Return the schema's entries for procedures."""
    found: dict[str, Any] = served.application.schema()["realms"][""]["procedures"]
    return found


class TestSchema:
    def test_arguments(self) -> None:
        """A procedure has its docstring, and its arguments with types, without injected ones."""
        add = procedures()["shop.order.{id}.add"]

        assert add["description"] == "Add an item to an order."
        assert add["timeout"] == 5
        assert add["arguments"] == [
            {"name": "id", "schema": {"type": "integer"}, "in": "name", "required": True},
            {"name": "item", "schema": {"$ref": "#/$defs/Item"}, "required": True},
            {"name": "count", "schema": {"type": "integer", "minimum": 1}, "required": False},
        ]
        assert add["result"] == {"$ref": "#/$defs/Order"}

    def test_stream(self) -> None:
        """The entry of a stream has the type of its parts as its progress."""
        prices = procedures()["shop.prices"]

        assert [a["name"] for a in prices["arguments"]] == ["symbols"]
        assert prices["progress"]["prefixItems"] == [{"type": "string"}, {"type": "number"}]
        assert prices["result"] == {"type": "null"}

    def test_rest(self) -> None:
        """``*args`` and ``**kwargs`` are marked, and a result without annotation has any type."""
        total = procedures()["shop.total"]

        assert [a["in"] for a in total["arguments"]] == ["rest", "named rest"]
        assert procedures()["shop.anything"]["result"] == {}

    def test_topics_and_errors(self) -> None:
        """The schema has the realm's topics and its mapped errors."""
        realm = served.application.schema()["realms"][""]

        assert realm["topics"]["shop.stock.{symbol}"]["description"] == "What is left."
        assert realm["errors"] == ["shop.error.not_found"]

    def test_default_args(self) -> None:
        """Default arguments, of realm and application, aren't listed among a peer's arguments."""
        realm, routes = rpc.Realm("club"), rpc.Routes()

        @routes.route()
        async def find(name: str, db: str, log: str) -> None: ...

        @routes.topic("news.{of}")
        async def news(of: str, db: str, log: str) -> AsyncIterator[None]:
            yield

        realm.add_rpc_routes(routes)
        realm.set_default_arg("db", "")
        calls = rpc.Application()
        calls.add_realm(realm)
        calls.set_default_arg("log", "")
        club = calls.schema()["realms"]["club"]

        assert [one["name"] for one in club["procedures"]["find"]["arguments"]] == ["name"]
        assert [one["name"] for one in club["topics"]["news.{of}"]["arguments"]] == ["of"]

    def test_json(self) -> None:
        """The schema is valid JSON, with the definitions of all named types."""
        schema = json.loads(json.dumps(served.application.schema()))

        assert set(schema["$defs"]) == {"Client", "Item", "Order", "Size"}

    def test_unfit(self) -> None:
        """``schema()`` raises an error for an argument that no peer can pass."""
        routes = rpc.Routes()

        @routes.route()
        async def f(db: TestSchema) -> None: ...

        calls = rpc.Application()
        calls.default.add_rpc_routes(routes)
        with pytest.raises(TypeError, match="takes 'db'"):
            calls.schema()


class TestCommand:
    def test_schema(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The ``schema`` command prints the schema."""
        assert main(["schema", "tests.rpc.served:application"]) == 0
        assert json.loads(capsys.readouterr().out) == served.application.schema()

    @pytest.mark.parametrize(
        "name", ["nowhere:x", "tests.rpc.served:nothing", "tests.rpc.served:shop", "tests", ""]
    )
    def test_no_application(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """A name that isn't an application's ends the command with status 2 and an error."""
        with pytest.raises(SystemExit) as ended:
            main(["schema", name])
        assert ended.value.code == 2
        assert "error:" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["tests.rpc.served", "tests.rpc.served:", ":application"])
    def test_half_a_name(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The error for a module or an application alone names the expected form."""
        with pytest.raises(SystemExit):
            main(["schema", name])
        assert "expected module:application, such as shop:calls" in capsys.readouterr().err

    def test_as_module(self, tmp_path: pathlib.Path) -> None:
        """The command runs as a module, and imports from the current directory."""
        (tmp_path / "shop.py").write_text(
            "from aiohttp_session_ws import rpc\ncalls = rpc.Application()\n"
        )
        command = [sys.executable, "-m", "aiohttp_session_ws.rpc", "typescript", "shop:calls"]
        root = str(HERE.parent.parent)
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": root},
        )  # fmt: skip
        assert "export type Topic = never;" in done.stdout


def compile_typescript(folder: pathlib.Path, *options: str) -> str:
    """Check types with the TypeScript compiler; return its output."""
    compiler = HERE / "node_modules" / "typescript" / "bin" / "tsc"
    expect_clients(compiler)
    command = ["node", str(compiler), "--noEmit", "--strict", "--target", "es2022", "--module",
               "es2022", "--moduleResolution", "bundler", "--lib", "es2022,dom,dom.iterable",
               *options]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout


def test_typescript(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The generated types accept the correct calls of ``served.ts`` and reject its wrong ones."""
    main(["typescript", "tests.rpc.served:application"])
    (tmp_path / "session-ws.d.ts").write_text(capsys.readouterr().out)
    shutil.copy(HERE / "served.ts", tmp_path)
    assert compile_typescript(tmp_path, "served.ts") == ""


def test_typescript_of_demo(tmp_path: pathlib.Path) -> None:
    """The demo's page passes type checks, and a call with a wrong argument type doesn't."""
    for file in (HERE.parent.parent / "demo" / "static").iterdir():
        shutil.copy(file, tmp_path)
    options = ["--allowJs", "--checkJs", "calls.js"]
    assert compile_typescript(tmp_path, *options) == ""
    page = tmp_path / "calls.js"
    page.write_text(page.read_text().replace('"demo.write", [text]', '"demo.write", [5]'))
    assert "number" in compile_typescript(tmp_path, *options)
