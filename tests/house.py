"""
Measure the structure of the package: sizes, imports, class depth, and three call paths.

``python -m tests.house [FOLDER]`` prints the numbers of modules, lines and functions, of
accesses to private names of other modules, and of the files that a handshake, a log-out and
an order from another node pass through (see :mod:`tests.journeys`). FOLDER is any package;
the call paths are those of the installed one.

The rules are in :mod:`tests.house_rules`, and ``tests/unit/test_house.py`` checks the
package against them.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import json
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias

PACKAGE: Final = "aiohttp_session_ws"
TESTS: Final = Path(__file__).parent

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_DOCUMENTED: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_NO_CODE: Final = frozenset(
    {
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
        *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    }
)
_NAMED_TUPLES: Final = frozenset({"_replace", "_asdict", "_fields", "_make"})  # public, all four
OWN: Final = frozenset({"self", "cls", "super()", "type(self)"})  # the object itself or its class


@dataclass(frozen=True, slots=True)
class Import:
    """
    An import of a module of the same package.

    Attributes:
        line: The line of the import.
        target: The dotted name of the imported module.
        name: The name imported from it, ``None`` for the module itself.
    """

    line: int
    target: str
    name: str | None


@dataclass(frozen=True, slots=True)
class ClassIn:
    """
    A class and its module.
    """

    module: Module
    node: ast.ClassDef

    @property
    def name(self) -> str:
        """
        The name of the class.
        """
        return self.node.name


class Module:
    """
    A parsed file.

    Args:
        path: The file.
        root: The folder of its package.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.place = path.relative_to(root).as_posix()
        self.parts = path.relative_to(root).with_suffix("").parts
        self.is_package = self.parts[-1] == "__init__"
        if self.is_package:
            self.parts = self.parts[:-1]
        self.name = ".".join((root.name, *self.parts))
        self.source = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)

    @cached_property
    def functions(self) -> list[Function]:
        """
        All functions and methods, inner ones too.
        """
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]

    @cached_property
    def classes(self) -> list[ast.ClassDef]:
        """
        All classes.
        """
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    @cached_property
    def own_names(self) -> set[str]:
        """
        The names of functions, classes and attributes of ``self`` in this file.
        """
        names = {node.name for node in (*self.functions, *self.classes)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                names.add(node.attr)
        return names

    @cached_property
    def exported(self) -> list[str]:
        """
        The names in ``__all__``.
        """
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return [str(name) for name in ast.literal_eval(node.value)]
        return []

    @cached_property
    def code_lines(self) -> int:
        """
        The number of lines without blank lines, comments and docstrings.
        """
        prose: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, False) is not None:
                prose.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        code: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type not in _NO_CODE:
                code.update(range(token.start[0], token.end[0] + 1))
        return len(code - prose)


def function_lines(function: Function) -> int:
    """
    Return the number of lines of a function without its docstring.
    """
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function, False) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def foreign_underscores(module: Module) -> Iterator[tuple[int, str, str]]:
    """
    Find ``x._name`` where the module defines no ``_name`` and *x* is not in :data:`OWN`.

    Yields:
        Line, expression, private name.
    """
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Attribute) or node.attr in module.own_names | _NAMED_TUPLES:
            continue
        if node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in OWN:
                yield node.lineno, f"{owner}.{node.attr}", node.attr


class House:
    """
    A package, parsed.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules = {
            module.name: module
            for module in (Module(path, folder) for path in sorted(folder.rglob("*.py")))
        }

    @classmethod
    def installed(cls) -> House:
        """
        Return the package as Python would import it here.
        """
        spec = importlib.util.find_spec(PACKAGE)
        assert spec is not None
        assert spec.origin is not None
        return cls(Path(spec.origin).parent)

    def imports(self, module: Module) -> Iterator[Import]:
        """
        Find all imports from the module's own package, also those in functions and those for
        annotations only.
        """
        package = module.name.split(".")[: None if module.is_package else -1]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self.modules:
                        yield Import(node.lineno, alias.name, None)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    if f"{source}.{alias.name}" in self.modules:
                        yield Import(node.lineno, f"{source}.{alias.name}", None)
                    elif source in self.modules:
                        yield Import(node.lineno, source, alias.name)

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        """
        The modules that each module imports; ``__init__`` modules are not counted as targets.
        """
        return {
            module.name: {
                target.target
                for target in self.imports(module)
                if target.target != module.name and not self.modules[target.target].is_package
            }
            for module in self.modules.values()
        }

    @cached_property
    def groups(self) -> list[list[str]]:
        """
        The strongly connected groups of the import graph; imported groups come first.
        """
        return _strongly_connected(self.graph)

    @property
    def circles(self) -> list[list[str]]:
        """
        The groups of more than one module: import cycles.
        """
        return [group for group in self.groups if len(group) > 1]

    @property
    def floors(self) -> int:
        """
        The number of layers of the import graph.
        """
        floor_of: dict[str, int] = {}
        for group in self.groups:
            below = {target for name in group for target in self.graph[name]} - {*group}
            floor = 1 + max((floor_of[target] for target in below), default=0)
            floor_of.update(dict.fromkeys(group, floor))
        return max(floor_of.values())

    @cached_property
    def classes(self) -> dict[str, ClassIn]:
        """
        All classes, by their dotted names.
        """
        return {
            f"{module.name}.{node.name}": ClassIn(module, node)
            for module in self.modules.values()
            for node in module.classes
        }

    def bases(self, name: str) -> list[str]:
        """
        Return the bases of a class that the package defines.
        """
        module, node = self.classes[name].module, self.classes[name].node
        places = {one.name: one.target for one in self.imports(module)}
        found = []
        for base in map(_plain_name, node.bases):
            place = module.name
            if f"{place}.{base}" not in self.classes:
                place = places.get(base, "")
            if f"{place}.{base}" in self.classes and f"{place}.{base}" != name:
                found.append(f"{place}.{base}")
        return found

    def ancestry(self, name: str) -> list[str]:
        """
        Return the longest chain of the package's classes from *name* up.
        """
        return [name, *max(map(self.ancestry, self.bases(name)), key=len, default=[])]

    def ancestors(self, name: str) -> set[str]:
        """
        Return all ancestors of *name* that the package defines.
        """
        direct = self.bases(name)
        return {*direct}.union(*map(self.ancestors, direct))


def _plain_name(base: ast.expr) -> str:
    return ast.unparse(base).split("[")[0].split(".")[-1]


def _strongly_connected(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """
    Group a graph's nodes by Tarjan's algorithm.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            start = stack.index(node)
            groups.append(sorted(stack[start:]))
            del stack[start:]

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def shape(house: House) -> dict[str, object]:
    """
    Return the figures of a package.
    """
    modules = house.modules.values()
    lines = sum(len(module.source.splitlines()) for module in modules)
    functions = sorted(function_lines(f) for module in modules for f in module.functions)
    foreign = sum(1 for module in modules for _ in foreign_underscores(module))
    folders: defaultdict[str, int] = defaultdict(int)
    for module in modules:
        inside = len(module.parts) > 1 or module.is_package
        folders[module.parts[0] if module.parts and inside else "(top)"] += module.code_lines
    deepest = max(map(house.ancestry, house.classes), key=len, default=[])
    return {
        "modules": len(house.modules),
        "lines": lines,
        "code lines": sum(folders.values()),
        "code lines per folder": dict(folders),
        "functions": len(functions),
        "function lines, median": statistics.median(functions),
        "function lines, p90": functions[int(0.9 * len(functions))],
        "function lines, max": functions[-1],
        "foreign underscores": foreign,
        "foreign underscores per 1,000 lines": round(1000 * foreign / lines, 1),
        "import circles": sorted((len(circle) for circle in house.circles), reverse=True),
        "floors of the import graph": house.floors,
        "deepest class": len(deepest),
        "deepest class, from below": " < ".join(house.classes[name].name for name in deepest),
        "names at the top": len(house.modules[house.folder.name].exported),
    }


def main() -> None:
    """
    Print the figures of a package.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.house", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="default: the installed package")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    house = House.installed() if options.folder is None else House(options.folder.resolve())
    figures = shape(house)
    if options.folder is None:
        from tests import journeys  # imports the package, which may not be the one measured

        figures.update(journeys.figures())
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name:<44}{value}\n")


if __name__ == "__main__":
    main()
