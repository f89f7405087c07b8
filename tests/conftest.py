"""
Loads all fixtures, from :mod:`tests.support.plugin` and ``node_plugin``.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.support")  # before its first import

pytest_plugins = ["tests.support.plugin", "tests.support.node_plugin"]
