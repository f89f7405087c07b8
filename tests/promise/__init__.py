"""
Tests of the central promise: no socket survives the end of its session.
"""
