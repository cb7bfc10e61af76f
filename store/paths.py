"""Which paths and names a store accepts."""

from __future__ import annotations

import re

from repsearch.errors import StoreError

MANIFEST = "MANIFEST.json"
METADATA = "zarr.json"
REDO = "restore the group from a copy, or delete it and have it made again"
"""The way out of every damaged group."""

_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_path(path: str) -> str:
    """Return `path` if it is relative, inside the root and in normal form; raises `StoreError` otherwise."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        raise StoreError(f"store path {path!r} leaves the store's root; give a path relative to it, without '..'")
    if any(part in ("", ".") for part in parts) or any(char == "\\" or ord(char) < 32 for char in path):
        raise StoreError(f"store path {path!r} is not in normal form; give names separated by single '/'")
    return path


def check_folder(path: str) -> str:
    """Return `path` if it is accepted by `check_path` or is "", the root."""
    return path and check_path(path)


def check_document_path(path: str) -> str:
    """Return `path` if it can name a document; raises `StoreError` otherwise."""
    if not is_document_name(check_path(path).rpartition("/")[2]):
        raise StoreError(f"store path {path!r} cannot name a document; it ends in .json and is not {MANIFEST} or {METADATA}")
    return path


def ancestors(path: str) -> list[str]:
    """Return `path` and the folders it lies in, innermost first, "" (the root) last."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


def is_document_name(name: str) -> bool:
    """Whether a file of this name is a document."""
    return name.endswith(".json") and not name.startswith(".") and name not in (MANIFEST, METADATA)


def check_array_name(path: str, name: str) -> None:
    """Raise `StoreError` unless `name` can name an array of the group `path`."""
    # Zarr reserves names that begin with two underscores.
    if not _ARRAY_NAME.fullmatch(name) or name.startswith("__") or name in (MANIFEST, METADATA):
        raise StoreError(f"{path}: {name!r} cannot name an array; use letters, digits, '_', '-' and '.'")
