"""
Rules for the structure of the package, each a function that yields its violations.

A finding has its file, line and remedy. ``tests/unit/test_house.py`` checks the package
against all rules.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .house import OWN, House, Module, foreign_underscores, function_lines

LEAVES: Final = frozenset(
    {
        *("exceptions", "close_codes", "options", "results", "signals", "typing"),
        *("_origin", "_expiring", "_tasks", "_logging", "_lineage", "_refused"),
    }
)
#: Layers, lowest first: each may import itself and those before it.
ROOMS: Final = ("leaves", "connections", "sessions", "registry", "web", "handlers", "rpc")
MAY_IMPORT: Final[Mapping[str, frozenset[str]]] = {
    **{room: frozenset(ROOMS[: floor + 1]) for floor, room in enumerate(ROOMS)},
    "redis": frozenset({*ROOMS[:4], "redis"}),
    "cli": frozenset({*ROOMS[:4], "redis", "cli", "top"}),
    "top": frozenset({*ROOMS, "top"}),
    "testing": frozenset({*ROOMS, "top", "testing"}),
    "__main__": frozenset({"cli"}),
}
#: Libraries, and the only files or folders that may import them.
TOUCHES: Final[Mapping[str, tuple[str, ...]]] = {
    "redis": ("redis/",),
}
#: Private names of other libraries without a public equivalent; tests fail if one is removed.
PERMITTED: Final = frozenset(
    {
        ("sessions/session.py", "_changed"),
        ("registry/request_again.py", "_read_bytes"),
        ("redis/io/wire.py", "_writer"),
    }
)
#: Modules and folders whose ``__all__`` has public names.
HOMES: Final = (
    *("close_codes", "exceptions", "options", "results", "signals", "typing"),
    *("redis", "rpc"),
)
DOOR: Final = "support/inspect.py"  # the only test module that may use internals

MAX_DEPTH: Final = 3  # classes of the package in a chain of inheritance, the last included
MAX_FUNCTION: Final = 40  # lines without the docstring
MAX_MODULE: Final = 300  # lines, unless the module's docstring says why there are more
MAX_TOP: Final = 36  # names


@dataclass(frozen=True, slots=True)
class Finding:
    """
    A violation of a rule.

    Attributes:
        place: The file, relative to the package's folder.
        line: The line in it.
        what: The violation.
        remedy: What to do about it.
    """

    place: str
    line: int
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.what}; {self.remedy}"


def room(module: Module) -> str:
    """
    Return the layer that a module belongs to, ``"?"`` if it is in none.
    """
    if not module.parts:
        return "top"
    first = module.parts[0]
    if len(module.parts) > 1 or module.is_package:
        return first if first in MAY_IMPORT else "?"
    if first in LEAVES:
        return "leaves"
    return first if first in ("__main__", "testing") else "?"


def upward_imports(house: House, module: Module) -> Iterator[Finding]:
    """
    Find imports of higher layers, including those for annotations.
    """
    here = room(module)
    if here == "?":
        remedy = (
            "move it into the folder of its layer (or name it in LEAVES, tests/house_rules.py)"
        )
        yield Finding(module.place, 1, "a module of no layer", remedy)
        return
    for target in house.imports(module):
        there = room(house.modules[target.target])
        if there not in MAY_IMPORT[here]:
            remedy = "pass the object or a Protocol in, or move what is shared further down"
            what = f"{here} imports {target.target.partition('.')[2] or 'the top'} ({there})"
            yield Finding(module.place, target.line, what, remedy)


def foreign_libraries(module: Module) -> Iterator[Finding]:
    """
    Find imports of libraries outside of the files that may import them.
    """
    found: list[tuple[int, str]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.append((node.lineno, node.module))
    for line, name in found:
        allowed = TOUCHES.get(name.split(".")[0], ("",))
        if not module.place.startswith(allowed):
            remedy = f"only {' and '.join(allowed)} may; go through it"
            yield Finding(module.place, line, f"imports {name}", remedy)


def reaching(house: House, module: Module) -> Iterator[Finding]:
    """
    Find uses of another object's ``x._name``, and imports of private names.
    """
    remedy = "give the owner a method or a public attribute, or move the code to the owner"
    for line, what, name in foreign_underscores(module):
        if (module.place, name) not in PERMITTED:
            yield Finding(module.place, line, what, remedy)
    for one in house.imports(module):
        if one.name is not None and one.name.startswith("_") and not one.name.startswith("__"):
            what = f"imports {one.name} of {one.target}"
            yield Finding(module.place, one.line, what, remedy)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            owner, name = ast.unparse(node.args[0]), ast.unparse(node.args[1]).strip("'")
            if name.startswith("_") and not name.startswith("__") and owner not in OWN:
                yield Finding(module.place, node.lineno, f"{owner}.{name} by getattr", remedy)


def long_functions(module: Module) -> Iterator[Finding]:
    """
    Find functions of more than :data:`MAX_FUNCTION` lines.
    """
    for function in module.functions:
        lines = function_lines(function)
        if lines > MAX_FUNCTION:
            remedy = f"name its steps; {MAX_FUNCTION} lines are the limit"
            what = f"{function.name}() has {lines} lines"
            yield Finding(module.place, function.lineno, what, remedy)


def long_module(module: Module) -> Iterator[Finding]:
    """
    Find a long module whose docstring gives no reason, and a short one that gives a reason.
    """
    lines = len(module.source.splitlines())
    head = " ".join((ast.get_docstring(module.tree) or "").split())
    if lines > MAX_MODULE and f"{MAX_MODULE} lines" not in head:
        remedy = f"split it by responsibility, or say why it has over {MAX_MODULE} lines"
        yield Finding(module.place, 1, f"{lines} lines", remedy)
    elif lines <= MAX_MODULE and f"{MAX_MODULE} lines" in head:
        yield Finding(module.place, 1, f"{lines} lines", "say no more that it is long")


def circles(house: House) -> Iterator[Finding]:
    """
    Find imports within a cycle of modules.
    """
    for group in house.circles:
        for name in group:
            module = house.modules[name]
            for one in house.imports(module):
                if one.target in group and one.target != name:
                    what = f"{name} and {one.target} import each other, {len(group)} in a circle"
                    remedy = "let the lower one know a Protocol, or move what both need down"
                    yield Finding(module.place, one.line, what, remedy)


def deep_classes(house: House) -> Iterator[Finding]:
    """
    Find classes whose chain of inheritance within the package is too long.
    """
    for name, found in house.classes.items():
        chain = [house.classes[one].name for one in house.ancestry(name)]
        if len(chain) > MAX_DEPTH:
            remedy = f"{MAX_DEPTH} are the limit: hold the part instead of being it"
            yield Finding(found.module.place, found.node.lineno, " < ".join(chain), remedy)


def facet_state(house: House, registry: str = "SessionWSRegistry") -> Iterator[Finding]:
    """
    Find attributes that the registry's base classes store, other than ``self._core``.
    """
    registries = [name for name, one in house.classes.items() if one.name == registry]
    for name in sorted(set[str]().union(*map(house.ancestors, registries))):
        facet = house.classes[name]
        for node in ast.walk(facet.node):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            attribute = ast.unparse(node)
            if attribute.startswith("self.") and attribute != "self._core":
                remedy = "keep it in Core or in a part of Core"
                what = f"facet {facet.name} stores {attribute}"
                yield Finding(facet.module.place, node.lineno, what, remedy)


def crowded_top(house: House) -> Iterator[Finding]:
    """
    Find too many names at the top, and names there that their own module doesn't export.
    """
    top = house.modules[house.folder.name]
    if len(top.exported) > MAX_TOP:
        remedy = f"{MAX_TOP} are the limit: leave the rest in {', '.join(HOMES)}"
        yield Finding(top.place, 1, f"{len(top.exported)} names at the top", remedy)
    for one in house.imports(top):
        home = house.modules[one.target]
        at_home = ".".join(home.parts) not in HOMES or one.name in home.exported
        if one.name in top.exported and not at_home:
            remedy = f"add it to __all__ of {home.place}"
            what = f"{one.name} is at the top, but not exported by its home"
            yield Finding(top.place, one.line, what, remedy)


def homeless_names(house: House) -> Iterator[Finding]:
    """
    Find public names that none, or more than one, of :data:`HOMES` exports.
    """
    top = house.modules[house.folder.name]
    found = [(home, house.modules.get(f"{top.name}.{home}")) for home in HOMES]
    homes = {home: module for home, module in found if module is not None}
    for name, count in Counter(n for m in homes.values() for n in m.exported).items():
        if count > 1:
            where = " and ".join(home for home, m in homes.items() if name in m.exported)
            yield Finding(top.place, 1, f"{name} lives in {where}", "choose one home for it")
    for module in homes.values():
        if module.is_package:
            continue
        for line, name in _public_definitions(module):
            if name not in module.exported:
                remedy = "add it to __all__, or begin its name with an underscore"
                yield Finding(module.place, line, f"{name} is public without a home", remedy)


def _public_definitions(module: Module) -> Iterator[tuple[int, str]]:
    for node in module.tree.body:
        names: Iterable[str] = ()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = (node.name,)
        elif isinstance(node, ast.Assign):
            names = (ast.unparse(target) for target in node.targets)
        elif isinstance(node, ast.AnnAssign):
            names = (ast.unparse(node.target),)
        for name in names:
            # A type variable is not public.
            typevar = isinstance(node, ast.Assign) and "TypeVar(" in ast.unparse(node.value)
            if not name.startswith("_") and not typevar:
                yield node.lineno, name


def private_names(house: House) -> set[str]:
    """
    Return the private names that the package defines, but for those in :data:`PERMITTED`.
    """
    names = (name for module in house.modules.values() for name in module.own_names)
    others = {name for _, name in PERMITTED}  # each has a test of its own
    return {name for name in names if name.startswith("_") and not name.startswith("__")} - others


def doors(tests: Module, private: set[str]) -> Iterator[Finding]:
    """
    Find uses of private names of the package in a test module other than :data:`DOOR`.
    """
    if tests.place == DOOR:
        return
    for line, what, name in foreign_underscores(tests):
        if name in private:
            remedy = f"use or extend tests/{DOOR}"
            yield Finding(tests.place, line, what, remedy)
