"""
What handlers are written with: the conversation object, function handlers and views. Internal.
"""
