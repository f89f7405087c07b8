"""
What may never break.
"""
