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

SOURCES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = [aiohttp_session_ws, aiohttp_session_ws.redis]
MODULES = {
    package: sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    for package in PACKAGES
}
ALL = [(package, name) for package in PACKAGES for name in MODULES[package]]
MAX_LINES = 350


def module(package: ModuleType, name: str) -> ModuleType:
    """Import a module of a package."""
    return importlib.import_module(f"{package.__name__}.{name}")


def public() -> Iterator[tuple[str, object]]:
    """Find all public names, those of classes' own members too."""
    for package in PACKAGES:
        for name in package.__all__:
            thing = getattr(package, name)
            yield name, thing
            if inspect.isclass(thing):
                for attribute, member in vars(thing).items():
                    documented = inspect.isroutine(member) or isinstance(member, property)
                    if documented and not attribute.startswith("_"):
                        yield f"{name}.{attribute}", member


@pytest.mark.parametrize("package", PACKAGES)
class TestPackages:
    def test_sorted(self, package: ModuleType) -> None:
        """The public names stand in order: constants, classes, functions."""
        names = package.__all__

        def key(name: str) -> tuple[int, str]:
            return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

        assert names == sorted(names, key=key)
        assert len(names) == len(set(names))

    def test_union(self, package: ModuleType) -> None:
        """A package exports what its modules export, no more and no less."""
        exported = [name for m in MODULES[package] for name in module(package, m).__all__]

        assert sorted(exported) == sorted(package.__all__)

    def test_nothing_else(self, package: ModuleType) -> None:
        """A package has no other public names than its modules."""
        names = {name for name in vars(package) if not name.startswith("_")}
        modules = {m.name for m in pkgutil.iter_modules(package.__path__)}

        assert names - modules == set(package.__all__)


class TestNames:
    @pytest.mark.parametrize(("package", "name"), ALL)
    def test_module(self, package: ModuleType, name: str) -> None:
        """What a module exports is there, and is what its package exports."""
        for exported in module(package, name).__all__:
            thing = getattr(module(package, name), exported)

            assert getattr(package, exported) is thing

    def test_predecessor(self) -> None:
        """The names that 1.1.1 documents are there."""
        names = {
            *("DEFAULT_ID_FACTORY", "DEFAULT_SESSION_KEY", "REGISTRY_KEY", "SessionWSRegistry"),
            *("get_session_ws_id", "new_session_ws_id", "delete_session_ws_id"),
            *("ensure_session_ws_id", "schedule_close_all_session_ws"),
            *("session_ws", "session_ws_middleware", "setup"),
        }

        assert names <= set(aiohttp_session_ws.__all__)


class TestDocstrings:
    def test_public(self) -> None:
        """Every public class, function, method and property says what it does."""
        missing = [
            name
            for name, thing in public()
            if (inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property))
            and not (thing.__doc__ or "").strip()
        ]

        assert missing == []

    @pytest.mark.parametrize(("package", "name"), ALL)
    def test_modules(self, package: ModuleType, name: str) -> None:
        """Every module says what it holds."""
        assert module(package, name).__doc__

    def test_tree(self) -> None:
        """The tree in the docstring of ``exceptions`` is the tree."""
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
        """The version of the distribution is that of the package."""
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
        """The package tells type checkers that it has types."""
        assert (PACKAGE / "py.typed").is_file()

    @pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES])
    def test_size(self, path: Path) -> None:
        """No module grows beyond what one can read at a sitting."""
        assert len(path.read_text().splitlines()) <= MAX_LINES

    def test_handlers(self) -> None:
        """What handlers are written with is small."""
        paths = [PACKAGE / "websocket.py", PACKAGE / "views.py"]

        assert sum(len(path.read_text().splitlines()) for path in paths) < MAX_LINES

    def test_no_redis(self) -> None:
        """Who doesn't use Redis needn't have it: the import doesn't look for it."""
        code = "import sys, aiohttp_session_ws; print(*[m for m in sys.modules if 'redis' in m])"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )

        assert done.stdout.split() == []
