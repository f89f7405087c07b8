"""
All fixtures are in :mod:`tests.support.plugin`.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.support")  # before anything of it is imported

pytest_plugins = ["tests.support.plugin"]
