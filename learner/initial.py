"""A group that several learners may be told to write, those of a run and of its next opening: the first that commits has written it.

It is one file, which is there whole or not at all, so that a late writer neither removes it nor spoils what others have written of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from repsearch.errors import StoreError
from store import Reference, Store, reference_at


def created(store: Store, path: str, attributes: Mapping[str, Any], write: Callable[[Store], Reference]) -> Reference:
    """Return the group `path` with `attributes`, by `write` unless it is there; raises `StoreError` if what is there has others."""
    if not _there(store, path):
        try:
            write(store.relaxed())
        except StoreError:
            if not _there(store, path):
                raise
    # Also what another wrote, who may not have come to this.
    store.settle([path])
    reference = reference_at(store, path)
    found = store.manifest(reference).attributes
    wanted = json.loads(json.dumps(attributes))
    if differing := [name for name, value in wanted.items() if found.get(name) != value]:
        raise StoreError(f"{path}: is there, of another {', '.join(differing)}; remove it, which somebody put there, and resume")
    return reference


def _there(store: Store, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name in store.committed(folder)
