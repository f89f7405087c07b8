"""
The state of sessions: which are alive, and so may open sockets. Internal.
"""
