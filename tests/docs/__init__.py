"""
What the documents and the demo say is so.
"""
