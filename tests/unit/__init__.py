"""
What each part does by itself; mirrors the package.
"""
