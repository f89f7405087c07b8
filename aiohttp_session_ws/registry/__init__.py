"""
The object that an application holds, and its parts. Internal but for ``SessionWSRegistry``.
"""
