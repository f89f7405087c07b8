"""
The package follows its structural rules, and each rule detects its violations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests import house_rules as rules, journeys
from tests.house import TESTS, House, Module, shape

HOUSE = House.installed()
PRIVATE = rules.private_names(HOUSE)
TEST_MODULES = [Module(path, TESTS) for path in sorted(TESTS.rglob("*.py"))]

Findings: TypeAlias = Iterator[rules.Finding]

#: The rules for a single module.
OF_MODULES: dict[str, Callable[[House, Module], Findings]] = {
    "imports only downward": rules.upward_imports,
    "knows its own libraries": lambda _, module: rules.foreign_libraries(module),
    "reaches for no private name": rules.reaching,
    "short functions": lambda _, module: rules.long_functions(module),
    "short, or says why not": lambda _, module: rules.long_module(module),
}
#: The rules for the package as a whole.
OF_THE_PACKAGE: dict[str, Callable[[House], Findings]] = {
    "no circles": rules.circles,
    "shallow classes": rules.deep_classes,
    "facets without state": rules.facet_state,
    "a small top": rules.crowded_top,
    "one home for each name": rules.homeless_names,
}


def report(findings: Iterable[rules.Finding]) -> str:
    """Return findings as text, each once and on a line of its own."""
    return "".join(dict.fromkeys(f"\n{finding}" for finding in findings))


@pytest.mark.parametrize("module", HOUSE.modules.values(), ids=HOUSE.modules)
@pytest.mark.parametrize("rule", OF_MODULES)
def test_modules(rule: str, module: Module) -> None:
    """Each module of the package follows the rule."""
    found = report(OF_MODULES[rule](HOUSE, module))

    assert not found, found


@pytest.mark.parametrize("rule", OF_THE_PACKAGE)
def test_package(rule: str) -> None:
    """The package as a whole follows the rule."""
    found = report(OF_THE_PACKAGE[rule](HOUSE))

    assert not found, found


@pytest.mark.parametrize("module", TEST_MODULES, ids=lambda module: module.place)
def test_doors(module: Module) -> None:
    """Tests use private names of the package only through ``support/inspect.py``."""
    found = report(rules.doors(module, PRIVATE))

    assert not found, found


#: The files of a package that breaks a rule, and the finding for it.
BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "a layer that knows the one above": (
        {"registry/core.py": "", "sessions/records.py": "import house.registry.core"},
        "sessions/records.py:1: sessions imports registry.core (registry)",
    ),
    "an annotation that does": (
        {
            "connections/manager.py": "if TYPE_CHECKING:\n    from ..sessions import records",
            "sessions/records.py": "",
        },
        "connections/manager.py:2: connections imports sessions.records (sessions)",
    ),
    "a leaf that knows the top": (
        {"results.py": "from . import __version__\n__all__ = []"},
        "results.py:1: leaves imports the top (top)",
    ),
    "a module of no layer": ({"things.py": ""}, "things.py:1: a module of no layer"),
    "a private attribute": (
        {"web/setup.py": "registry._core"},
        "web/setup.py:1: registry._core",
    ),
    "a private name": (
        {"_tasks.py": "_x = 1", "web/setup.py": "from .._tasks import _x"},
        "web/setup.py:1: imports _x of house._tasks",
    ),
    "a private attribute by its name": (
        {"web/setup.py": "getattr(registry, '_core')"},
        "web/setup.py:1: registry._core by getattr",
    ),
    "another's library": (
        {"web/setup.py": "import redis.asyncio"},
        "web/setup.py:1: imports redis.asyncio",
    ),
    "a long function": (
        {"results.py": "def _f():\n" + "    x = 1\n" * 41},
        "results.py:1: _f() has 42 lines",
    ),
    "a long module": (
        {"results.py": "'A list as long as it is.'\n" + "_x = 1\n" * 300},
        "results.py:1: 301 lines",
    ),
    "a module that was long": (
        {"results.py": "'Over 300 lines long: so it was.'\n"},
        "results.py:1: 1 lines",
    ),
    "a deep class": (
        {"rpc/calls.py": "".join(f"class C{n + 1}(C{n}): ...\n" for n in range(4))},
        "rpc/calls.py:4: C4 < C3 < C2 < C1",
    ),
    "a facet with state": (
        {
            "registry/ids.py": "class Ids:\n    def f(self):\n        self._core = self._x = 1",
            "registry/registry.py": "from .ids import Ids\nclass SessionWSRegistry(Ids): ...",
        },
        "registry/ids.py:3: facet Ids stores self._x",
    ),
    "a crowded top": (
        {"__init__.py": f"__all__ = {[f'name{n}' for n in range(37)]}"},
        "__init__.py:1: 37 names at the top",
    ),
    "two homes": (
        {"results.py": "__all__ = ['Count']", "typing.py": "__all__ = ['Count']"},
        "__init__.py:1: Count lives in results and typing",
    ),
    "no home": (
        {"results.py": "class Count: ..."},
        "results.py:1: Count is public without a home",
    ),
}


def build(folder: Path, files: dict[str, str]) -> House:
    """Write the files of a package, and return it."""
    root = folder / "house"
    for place, source in {"__init__.py": "", **files}.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
    return House(root)


class TestRules:
    @pytest.mark.parametrize("case", BROKEN)
    def test_broken(self, tmp_path: Path, case: str) -> None:
        """A violation leads to exactly one finding, which names its place."""
        files, expected = BROKEN[case]
        house = build(tmp_path, files)
        found = [str(f) for rule in OF_THE_PACKAGE.values() for f in rule(house)]
        for module in house.modules.values():
            found += [str(f) for rule in OF_MODULES.values() for f in rule(house, module)]

        assert len(found) == 1, found
        assert found[0].startswith(f"{expected}; ")

    def test_circle(self, tmp_path: Path) -> None:
        """Each module of an import cycle is reported, with the line of the import."""
        files = {
            "results.py": "def _f():\n    from . import typing",
            "typing.py": "from . import results",
        }
        found = [str(finding) for finding in rules.circles(build(tmp_path, files))]

        assert [line.split(";")[0] for line in found] == [
            "results.py:2: house.results and house.typing import each other, 2 in a circle",
            "typing.py:1: house.typing and house.results import each other, 2 in a circle",
        ]

    def test_floors(self, tmp_path: Path) -> None:
        """A chain of eleven modules, each importing the next, has eleven floors."""
        files = {f"rpc/m{n}.py": f"from . import m{n + 1}" for n in range(10)}

        assert build(tmp_path, {**files, "rpc/m10.py": ""}).floors == 11

    def test_door(self, tmp_path: Path) -> None:
        """A private name used in a test is reported, except in ``support/inspect.py`` itself."""
        place = {name: f"{name}/{rules.DOOR}" for name in ("tests", "other")}
        house = build(tmp_path, {place["tests"]: "r._core", place["other"]: "r._core"})
        root = tmp_path / "house" / "tests"

        assert not list(rules.doors(Module(root / rules.DOOR, root), {"_core"}))
        assert list(rules.doors(Module(root / rules.DOOR, house.folder), {"_core"}))


class TestFigures:
    def test_shape(self) -> None:
        """The figures count the modules and the public names of the package."""
        figures = shape(HOUSE)

        assert figures["modules"] == len(HOUSE.modules)
        assert figures["names at the top"] == len(HOUSE.modules["aiohttp_session_ws"].exported)

    def test_journeys(self) -> None:
        """Each journey has several distinct calls between files."""
        figures = journeys.figures()

        assert all(int(figure.split(", ")[0]) > 1 for figure in figures.values())
