"""
Unit tests of single modules, in folders named as those of the package.
"""
