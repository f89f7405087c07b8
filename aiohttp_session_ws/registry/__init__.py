"""
The object that an application holds, and its parts. Internal but for ``SessionWSRegistry``.

``core.py`` comes first: its head tells the theory of operation, where each thing is decided, and
what may not be awaited where.
"""
