"""
Log-outs in the middle of every trouble.
"""
