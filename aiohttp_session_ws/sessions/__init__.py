"""
What is known of sessions: who may still open a socket. Internal.
"""
