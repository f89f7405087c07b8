"""
Log-outs during random faults of Redis, nodes and networks.
"""
