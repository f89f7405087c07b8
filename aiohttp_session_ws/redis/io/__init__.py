"""
The connections to Redis: all network I/O with it. Internal.
"""
