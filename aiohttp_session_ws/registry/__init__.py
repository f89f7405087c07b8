"""
The registry that an application holds, and its parts. Internal except ``SessionWSRegistry``.

Start with the head of ``core.py``: the theory of operation, which module decides what, and what
may not be awaited where.
"""
