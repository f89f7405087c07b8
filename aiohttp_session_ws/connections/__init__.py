"""
The connections of this process. Internal, except ``Connection``, which the package exports.

This layer has no notion of sessions, request contexts or records: connections are indexed by id,
identity, labels and lineage, and closed by orders of the layers above.
"""
