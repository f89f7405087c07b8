"""
Tests that the documents and the demo do what they say.
"""
