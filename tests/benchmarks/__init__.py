"""
What the package costs, each figure beside its floor and beside what one would use instead.

Run ``python -m tests.benchmarks``; ``--help`` tells the rest. Linux only: CPU time and
memory are read from ``/proc``.
"""
