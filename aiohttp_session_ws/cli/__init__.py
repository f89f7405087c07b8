"""
The operator's command line. Internal: run ``python -m aiohttp_session_ws --help``.
"""
