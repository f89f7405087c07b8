"""
Benchmarks: what the package costs, compared with the least possible and with alternatives.

Run ``python -m tests.benchmarks``; ``--help`` lists the options. Linux only: CPU time and
memory are read from ``/proc``.
"""
