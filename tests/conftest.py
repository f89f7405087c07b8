"""
All fixtures are in :mod:`tests.support.plugin` and ``node_plugin``.
"""

from __future__ import annotations

import contextlib

import pytest

pytest.register_assert_rewrite("tests.support")  # before anything of it is imported

pytest_plugins = ["tests.support.plugin"]
with contextlib.suppress(ImportError):  # the cluster is being rebuilt
    import tests.support.node_plugin  # noqa: F401

    pytest_plugins.append("tests.support.node_plugin")
