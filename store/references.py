"""References of groups that are there."""

from __future__ import annotations

from store.base import Reference, RepresentationStore


def reference_at(store: RepresentationStore, path: str) -> Reference:
    """Return the reference of the group committed at `path`."""
    return Reference(path, store.manifest(path).digest)
