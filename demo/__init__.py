"""
A page whose tabs know when their session ends.
"""
