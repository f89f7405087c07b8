"""
The documents, and the programs in them.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import docutils.core
import docutils.nodes

from tests.support.processes import ROOT

DOCUMENTS = [
    "README.rst",
    "CHANGES.rst",
    "CONTRIBUTING.rst",
    "SECURITY.rst",
    "demo/README.rst",
    "docs/calls.rst",
    "docs/guide.rst",
    "docs/operating.rst",
    "docs/works-with.rst",
]
# The commands that the README gives.
START = "python3 -m venv .venv && .venv/bin/pip install '.[demo]' && .venv/bin/python -m demo"
RECIPE = """\
export REDIS_URL=redis://localhost COOKIE_KEY=$(head -c32 /dev/urandom | base64 | tr +/ -_)
gunicorn -k aiohttp.GunicornWebWorker -w 4 workers:application"""
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"


def parse(name: str) -> docutils.nodes.document:
    """Parse a document; any warning of docutils is an error."""
    settings = {"report_level": 2, "halt_level": 2, "syntax_highlight": "none"}
    text = (ROOT / name).read_text("utf-8")
    return docutils.core.publish_doctree(text, settings_overrides=settings)


def blocks(name: str = "README.rst", *, python: bool) -> list[str]:
    """Return the code blocks of a document."""
    nodes = parse(name).findall(docutils.nodes.literal_block)
    return [node.astext() for node in nodes if ("python" in node["classes"]) is python]


PROGRAM, HANDLERS, CALLS, OPTIONS, WORKERS = blocks(python=True)
GUIDE = blocks("docs/guide.rst", python=True)
NAIVE, AUTHORIZE, ORDERS, CONVERSATIONS, STREAM, ADOPT, PROTOCOL, *REST = GUIDE
IDENTITY, LABELS, REFRESH, PROOF, *REST = REST
PUSHING, LOOKING, DEVICES, TIME, SIGNALS, THREADS, DRAIN, JOURNAL, *PROCESSES, TESTING = REST


def run(block: str) -> dict[str, Any]:
    """Run a block as a module; return its names."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.rst", "exec"), names)
    return names


def program() -> ModuleType:
    """Return the README's first program as the module ``app`` that others import from."""
    module = ModuleType("app")
    exec(compile(PROGRAM, "README.rst", "exec"), module.__dict__)
    return module
