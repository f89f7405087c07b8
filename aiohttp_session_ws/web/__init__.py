"""
The interface to aiohttp: setup, the middleware, handshakes and streams. Internal.
"""
