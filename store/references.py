"""References of groups that are there."""

from __future__ import annotations

import hashlib

from store import manifest
from store.base import Reference, RepresentationStore


def reference_at(store: RepresentationStore, path: str) -> Reference:
    """Return the reference of the group committed at `path`."""
    found = store.manifest(path)
    data = manifest.encode(path, found.arrays, found.attributes, found.metadata)
    return Reference(path, hashlib.sha256(data).hexdigest())
