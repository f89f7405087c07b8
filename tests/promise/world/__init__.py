"""
Randomized tests of the promise, judged by an independent oracle.

:mod:`.world` runs a list of steps (:mod:`.plans` generates them from a seed) against the real
library behind aiohttp's real server: browsers and a thief (:mod:`.wire`, :mod:`.exchange`) request
pages (:mod:`.actions`) and sockets of an application (:mod:`.app`) in virtual time
(:mod:`.virtual`). :mod:`.ledger` records which log-ins have ended, and :mod:`.oracle` reports
what must not happen after that.
"""
