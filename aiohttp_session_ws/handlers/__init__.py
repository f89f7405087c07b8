"""
The API that handlers are written with: ``WebSocket``, function handlers and views. Internal.
"""
