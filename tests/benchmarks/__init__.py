"""
What the package costs, each figure beside its floor.

Run ``python -m tests.benchmarks``, or ``python tests/benchmarks/core.py`` where a
dependency brings a package ``tests`` of its own.
"""
