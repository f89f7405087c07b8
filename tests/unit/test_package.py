from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import aiohttp_session_ws
import aiohttp_session_ws.redis
from aiohttp_session_ws import exceptions
from tests.support.processes import ROOT

PACKAGE = Path(aiohttp_session_ws.__file__).parent
#: The modules that users import from; all others are internal.
HOMES = [
    aiohttp_session_ws,
    aiohttp_session_ws.redis,
    *[
        importlib.import_module(f"aiohttp_session_ws.{name}")
        for name in ("close_codes", "exceptions", "options", "results", "signals", "typing")
    ],
]
MODULES = sorted(
    info.name for info in pkgutil.walk_packages([str(PACKAGE)], "aiohttp_session_ws.")
)


def public() -> Iterator[tuple[str, object]]:
    """Yield all public names with their objects, including public members of classes."""
    for home in HOMES:
        for name in home.__all__:
            thing = getattr(home, name)
            yield name, thing
            if inspect.isclass(thing):
                for attribute, member in vars(thing).items():
                    documented = inspect.isroutine(member) or isinstance(member, property)
                    if documented and not attribute.startswith("_"):
                        yield f"{name}.{attribute}", member


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.__name__)
class TestHomes:
    def test_sorted(self, home: ModuleType) -> None:
        """``__all__`` has no duplicates and is sorted: constants, classes, functions."""
        names = home.__all__

        def key(name: str) -> tuple[int, str]:
            return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

        assert names == sorted(names, key=key)
        assert len(names) == len(set(names))

    def test_are_there(self, home: ModuleType) -> None:
        """Every name in ``__all__`` is defined."""
        assert all(hasattr(home, name) for name in home.__all__)


class TestNames:
    def test_top(self) -> None:
        """The package has no public names except those in ``__all__`` and its modules."""
        names = {name for name in vars(aiohttp_session_ws) if not name.startswith("_")}
        modules = {name.split(".")[1] for name in MODULES}

        assert names - modules == set(aiohttp_session_ws.__all__)

    def test_one_home(self) -> None:
        """A name that both the package and a module of it export is the same object."""
        for home in HOMES[2:]:
            for name in set(home.__all__) & set(aiohttp_session_ws.__all__):
                assert getattr(aiohttp_session_ws, name) is getattr(home, name)

    def test_predecessor(self) -> None:
        """All names documented for version 1.1.1 are exported."""
        names = {
            *("DEFAULT_ID_FACTORY", "DEFAULT_SESSION_KEY", "REGISTRY_KEY", "SessionWSRegistry"),
            *("get_session_ws_id", "new_session_ws_id", "delete_session_ws_id"),
            *("ensure_session_ws_id", "schedule_close_all_session_ws"),
            *("session_ws", "session_ws_middleware", "setup"),
        }

        assert names <= set(aiohttp_session_ws.__all__)


class TestDocstrings:
    def test_public(self) -> None:
        """Every public class, function, method and property has a docstring."""
        missing = [
            name
            for name, thing in public()
            if (inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property))
            and not (thing.__doc__ or "").strip()
        ]

        assert missing == []

    @pytest.mark.parametrize("name", [name for name in MODULES if "__main__" not in name])
    def test_modules(self, name: str) -> None:
        """Every module except ``__main__`` has a docstring."""
        assert importlib.import_module(name).__doc__

    def test_tree(self) -> None:
        """The tree in the docstring of ``exceptions`` shows all of them and their base classes."""
        drawn = re.findall(r"\+-- (\w+)(?: \(([\w.]+)\))?", exceptions.__doc__ or "")
        real = {
            name: {f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__[1:]}
            for name, cls in inspect.getmembers(exceptions, inspect.isclass)
            if name in exceptions.__all__ and name != "SessionWSError"
        }

        assert {name for name, _ in drawn} == set(real)
        for name, base in drawn:
            bases = {known.rpartition(".")[2] for known in real[name]}
            assert {"SessionWSError", base.rpartition(".")[2]} - {""} <= bases


class TestVersion:
    def test_pyproject(self) -> None:
        """The version in ``pyproject.toml`` is that of the package."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

        assert project["version"] == aiohttp_session_ws.__version__

    @pytest.mark.skipif(not (ROOT / "CHANGES.rst").exists(), reason="there is no CHANGES.rst yet")
    def test_changes(self) -> None:
        """The newest entry of the changelog is about this version."""
        changes = (ROOT / "CHANGES.rst").read_text()
        versions = re.findall(r"^v?(\d+\.\d+\.\d+)\b.*\n[-=~]{3,}$", changes, re.MULTILINE)

        assert versions[:1] == [aiohttp_session_ws.__version__]


class TestFiles:
    def test_typed(self) -> None:
        """The package has the marker file for type checkers, ``py.typed``."""
        assert (PACKAGE / "py.typed").is_file()

    def test_no_redis(self) -> None:
        """Importing the package doesn't import redis, so that it needn't be installed."""
        code = "import sys, aiohttp_session_ws; print(*[m for m in sys.modules if 'redis' in m])"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )

        assert done.stdout.split() == []

    @pytest.mark.parametrize(
        ("module", "missing", "extra"),
        [("redis", "redis", "redis"), ("redis", "hiredis", "redis"), ("rpc", "msgspec", "rpc")],
    )
    def test_without_an_extra(self, module: str, missing: str, extra: str) -> None:
        """Importing a module whose extra isn't installed fails and names the extra to install."""
        code = f"import sys; sys.modules['{missing}'] = None; import aiohttp_session_ws.{module}"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
        )

        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith(
            f"needs {missing}: pip install 'aiohttp-session-ws[{extra}]'"
        )
