"""What an application says of itself: JSON Schema and TypeScript."""

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
    """Return what is said of procedures."""
    found: dict[str, Any] = served.application.schema()["realms"][""]["procedures"]
    return found


class TestSchema:
    def test_arguments(self) -> None:
        """Arguments have types, docstrings and constraints; what is injected isn't among them."""
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
        """A stream has the type of its parts."""
        prices = procedures()["shop.prices"]

        assert [a["name"] for a in prices["arguments"]] == ["symbols"]
        assert prices["progress"]["prefixItems"] == [{"type": "string"}, {"type": "number"}]
        assert prices["result"] == {"type": "null"}

    def test_rest(self) -> None:
        """``*args`` and ``**kwargs`` are told, and what has no annotation is anything."""
        total = procedures()["shop.total"]

        assert [a["in"] for a in total["arguments"]] == ["rest", "named rest"]
        assert procedures()["shop.anything"]["result"] == {}

    def test_topics_and_errors(self) -> None:
        """Topics and the errors that are declared are told too."""
        realm = served.application.schema()["realms"][""]

        assert realm["topics"]["shop.stock.{symbol}"]["description"] == "What is left."
        assert realm["errors"] == ["shop.error.not_found"]

    def test_default_args(self) -> None:
        """What a default argument gives, a realm's too, is nothing for a peer to give."""
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
        """It is JSON, with all definitions."""
        schema = json.loads(json.dumps(served.application.schema()))

        assert set(schema["$defs"]) == {"Client", "Item", "Order", "Size"}

    def test_unfit(self) -> None:
        """What no peer can give is an error here as well."""
        routes = rpc.Routes()

        @routes.route()
        async def f(db: TestSchema) -> None: ...

        calls = rpc.Application()
        calls.default.add_rpc_routes(routes)
        with pytest.raises(TypeError, match="takes 'db'"):
            calls.schema()


class TestCommand:
    def test_schema(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The command writes the schema."""
        assert main(["schema", "tests.rpc.served:application"]) == 0
        assert json.loads(capsys.readouterr().out) == served.application.schema()

    @pytest.mark.parametrize(
        "name", ["nowhere:x", "tests.rpc.served:nothing", "tests.rpc.served:shop", "tests", ""]
    )
    def test_no_application(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """What is no application is told in one line."""
        with pytest.raises(SystemExit) as ended:
            main(["schema", name])
        assert ended.value.code == 2
        assert "error:" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["tests.rpc.served", "tests.rpc.served:", ":application"])
    def test_half_a_name(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """A module alone, or an application alone, is told to be one of two."""
        with pytest.raises(SystemExit):
            main(["schema", name])
        assert "expected module:application, such as shop:calls" in capsys.readouterr().err

    def test_as_module(self, tmp_path: pathlib.Path) -> None:
        """It runs as a module, in the directory of the application."""
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
    """Check types; return what the compiler says."""
    compiler = HERE / "node_modules" / "typescript" / "bin" / "tsc"
    expect_clients(compiler)
    command = ["node", str(compiler), "--noEmit", "--strict", "--target", "es2022", "--module",
               "es2022", "--moduleResolution", "bundler", "--lib", "es2022,dom,dom.iterable",
               *options]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout


def test_typescript(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What TypeScript makes of the types: right calls fit, wrong ones don't."""
    main(["typescript", "tests.rpc.served:application"])
    (tmp_path / "session-ws.d.ts").write_text(capsys.readouterr().out)
    shutil.copy(HERE / "served.ts", tmp_path)
    assert compile_typescript(tmp_path, "served.ts") == ""


def test_typescript_of_demo(tmp_path: pathlib.Path) -> None:
    """The demo's page calls what is served, and a call of something else doesn't compile."""
    for file in (HERE.parent.parent / "demo" / "static").iterdir():
        shutil.copy(file, tmp_path)
    options = ["--allowJs", "--checkJs", "calls.js"]
    assert compile_typescript(tmp_path, *options) == ""
    page = tmp_path / "calls.js"
    page.write_text(page.read_text().replace('"demo.write", [text]', '"demo.write", [5]'))
    assert "number" in compile_typescript(tmp_path, *options)
