"""The registry: vectors with names, proofs and a history.

Immutable content-addressed objects, canonical JSON manifests, and an index on SQLite or PostgreSQL
that can be rebuilt from both. Nothing here imports torch before an adapter is read.
"""
