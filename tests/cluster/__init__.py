"""
Tests with several nodes on one Redis.
"""
