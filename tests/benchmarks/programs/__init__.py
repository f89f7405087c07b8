"""
The processes that are measured, and the one that loads them.

Each is run as ``python -m programs.NAME`` by the Python of its own environment, which has
neither the package nor the rest of the tests unless it is told where they are.
"""
