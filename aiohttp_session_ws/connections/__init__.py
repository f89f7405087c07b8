"""
The sockets of this process. Internal, but for ``Connection``, which the package exports.

Nothing here knows of sessions, requests or records: a connection has an id, an identity, labels
and a lineage to be found by, and an order to close it comes from above.
"""
