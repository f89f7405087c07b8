"""
What it costs that processes tell each other of orders, each figure beside its floor.

Run ``python tests/benchmarks/cluster.py``.
"""
