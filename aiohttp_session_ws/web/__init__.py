"""
Where aiohttp enters: setup, the middleware, and the opening of sockets. Internal.
"""
