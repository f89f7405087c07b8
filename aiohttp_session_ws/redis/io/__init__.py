"""
The connections to Redis: everything that waits for it. Internal.
"""
