"""
What real browsers see.
"""
