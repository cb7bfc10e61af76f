"""From what a user writes for a store to a store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from repsearch.errors import StoreError
from store.access import Files
from store.base import Store
from store.files import failures, on_network
from store.local_files import LocalFiles
from store.memory_store import MemoryStore
from store.patience import Patience
from store.zarr_store import ZarrStore

if TYPE_CHECKING:
    from store.object_files import ObjectFiles

CHECK_S = 10.0
"""Seconds for which a check tries again what fails."""
REMOTE_LATE_S = 30.0
"""Seconds after which an object is seen by everybody; on Amazon's S3 it is seen at once."""
SHARED_LATE_S = 90.0
"""The same for a file on a network file system: NFS keeps what it knows of a folder for 60 s."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def open_store(location: str | Path, *, chunk_mb: float = 4.0, late_s: float | None = None, retry_s: float | None = None) -> Store:
    """Return the store at `location`: a local path, `file:///path`, `s3://bucket/prefix`, or `memory:` (a new, empty store each time).

    Nothing is created before the first write, and nothing asked of a remote store. `chunk_mb` is the size of a chunk in MB. By default
    according to where the store lies: `late_s`, seconds after which what another process wrote is seen for sure, and `retry_s`, seconds
    for which a request that fails is tried again. Raises `StoreError` for any other scheme, for a path that is not a folder, and where
    the client of a remote store is not installed.
    """
    if str(location) == "memory:":
        return MemoryStore(chunk_mb=chunk_mb)
    if is_remote(str(location)):
        files: Files = _object_files(str(location), None if retry_s is None else Patience(retry_s))
        late_s = REMOTE_LATE_S if late_s is None else late_s
    else:
        files = LocalFiles(_local_path(location))
        late_s = (SHARED_LATE_S if on_network(str(files)) else 0.0) if late_s is None else late_s
    return ZarrStore(files, chunk_mb=chunk_mb, late=Patience(late_s))


def is_remote(location: str) -> bool:
    """Return whether `location` is in an object store."""
    return location.startswith("s3://")


def check_remote(location: str) -> None:
    """Raise `StoreError` unless the object store at `location` can be used; leaves nothing there."""
    _object_files(location, Patience(CHECK_S)).check()


def folders_in(location: str) -> list[str]:
    """Return the names of the folders directly below `location`, which is in an object store."""
    with failures(f"{location}: cannot be listed"):
        return _object_files(location, Patience(CHECK_S)).entries("")[1]


def _object_files(location: str, patience: Patience | None = None) -> ObjectFiles:
    # Here, because few runs need a client of object stores, and it is an extra.
    from store.object_files import RETRIES, ObjectFiles

    return ObjectFiles(location, patience=patience or RETRIES)


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
        raise StoreError(
            f"store {location!r}: scheme {scheme!r} is not supported; give a local path, file:///path, s3://bucket/prefix or memory:"
        )
    return Path(unquote(rest))
