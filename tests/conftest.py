"""
All fixtures are in :mod:`tests.support.plugin` and ``node_plugin``.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.support")  # before anything of it is imported

pytest_plugins = ["tests.support.plugin", "tests.support.node_plugin"]
