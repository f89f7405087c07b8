"""
The promise as a game: random worlds, judged by data.

:mod:`.world` plays a list of steps (:mod:`.plans` makes them from a seed) against the real library
behind aiohttp's real server: browsers and a thief (:mod:`.wire`, :mod:`.exchange`) ask for pages
(:mod:`.actions`) and sockets of an application (:mod:`.app`), by a virtual time (:mod:`.virtual`).
:mod:`.ledger` knows which log-ins are over, and :mod:`.oracle` says what must not happen then.
"""
