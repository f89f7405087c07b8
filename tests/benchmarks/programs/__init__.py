"""
The programs of the benchmarks: servers that are measured, clients, and a plotter.

Each is run as ``python -m programs.NAME`` by the Python of its own environment, which has
neither the package nor the rest of the tests, unless ``PYTHONPATH`` names their folder.
"""
