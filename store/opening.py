"""From what a user writes for a store to a store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from repsearch.errors import StoreError
from store.base import Store
from store.memory_store import MemoryStore
from store.zarr_store import ZarrStore

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def open_store(location: str | Path, *, chunk_mb: float = 4.0) -> Store:
    """Return the store at `location`: a local path, `file:///path`, or `memory:` (a new, empty store each time).

    Nothing is created before the first write. `chunk_mb` is the size of a chunk in MB. Raises `StoreError` for any other scheme and
    for a path that is not a folder.
    """
    if str(location) == "memory:":
        return MemoryStore(chunk_mb=chunk_mb)
    return ZarrStore(_local_path(location), chunk_mb=chunk_mb)


def _local_path(location: str | Path) -> Path:
    if isinstance(location, Path):
        return location
    match = _SCHEME.fullmatch(location)
    if match is None:
        if not location:
            raise StoreError("store location is empty; give a folder")
        return Path(location)
    scheme, rest = match.groups()
    if scheme != "file" or not rest.startswith("/"):
        raise StoreError(f"store {location!r}: scheme {scheme!r} is not supported; give a local path, file:///path or memory:")
    return Path(unquote(rest))
