"""Other systems' placement and routing, to compare with: PETALS, BPRR, whole models, random.

All see the same servers, links and sizes, and count cache the same way: a session takes one slot of every block it
runs. They place every server themselves, so none may be pinned. Where a model has an embedding and a head, each server
keeps room for both, so that every window of blocks is open to it; without them the counts are those of the sources.
"""
