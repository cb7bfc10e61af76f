"""The manifest of a group: its attributes, and for each array what is stored and the digests of its chunks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from repsearch.errors import StoreError
from store import documents
from store.paths import REDO

SCHEMA = 1
"""Version of the manifest; a reader refuses any other."""


@dataclass(frozen=True)
class ArrayInfo:
    """What is stored of one array.

    `dtype` is the numpy name of what lies on disk, `logical_dtype` that of the values ("bfloat16" lies as uint16). A chunk is
    `chunk_rows` rows (the last one may be shorter); `chunk_digests` has the hex SHA-256 of the bytes of each, in order.
    """

    shape: tuple[int, ...]
    dtype: str
    logical_dtype: str
    chunk_rows: int
    chunk_digests: tuple[str, ...]

    def rows_of(self, chunk: int) -> slice:
        """Return the rows of chunk number `chunk`."""
        return slice(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.shape[0]))


@dataclass(frozen=True)
class Manifest:
    """A committed group.

    `metadata` has the hex SHA-256 of the files beside the chunks, by path in the group; `digest` that of the manifest itself, as in a
    `Reference` to the group.
    """

    schema: int
    attributes: dict[str, Any]
    arrays: dict[str, ArrayInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    def array(self, path: str, name: str) -> ArrayInfo:
        """Return the array `name`; raises `StoreError` naming the group `path` and the arrays it has."""
        if name not in self.arrays:
            raise StoreError(f"{path}: has no array {name!r}; it has {', '.join(sorted(self.arrays)) or 'none'}")
        return self.arrays[name]


def encode(path: str, arrays: Mapping[str, ArrayInfo], attributes: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of the manifest of the group `path`; equal content gives equal bytes."""
    body = {
        "schema": SCHEMA,
        "path": path,
        "attributes": dict(attributes),
        "arrays": {name: dataclasses.asdict(info) for name, info in arrays.items()},
        "metadata": dict(metadata),
    }
    return documents.encode(path, body, compact=True)[0]


def check(path: str, attributes: Mapping[str, Any]) -> None:
    """Raise what `encode` raises for attributes that are not JSON."""
    documents.encode(path, dict(attributes), compact=True)


def decode(path: str, file: str, data: bytes, *, expected: str | None = None) -> Manifest:
    """Return the manifest of the group `path` from the bytes of `file`; `expected`: their hex SHA-256, if it is known.

    Raises `StoreError` naming `file` if they are not whole, altered, or another group's.
    """
    digest = digest_of(data)
    if expected is not None and digest != expected:
        raise StoreError(f"{file}: is not the manifest referred to (its digest differs from {expected[:12]}); {REDO}")
    body = documents.decode(file, data)
    documents.require_schema(file, body, SCHEMA)
    if body.get("path") != path:
        raise StoreError(f"{file}: is the manifest of {body.get('path')!r}, not of {path!r}; {REDO}")
    try:
        arrays = {name: _array(info) for name, info in body["arrays"].items()}
        return Manifest(SCHEMA, body["attributes"], arrays, body["metadata"], digest)
    except (KeyError, TypeError, AttributeError):
        raise StoreError(f"{file}: is not a manifest; {REDO}") from None


def digest_of(data: bytes) -> str:
    """Return the digest that a `Reference` to the group with these manifest bytes has."""
    return hashlib.sha256(data).hexdigest()


def _array(info: Mapping[str, Any]) -> ArrayInfo:
    return ArrayInfo(
        shape=tuple(info["shape"]),
        dtype=info["dtype"],
        logical_dtype=info["logical_dtype"],
        chunk_rows=info["chunk_rows"],
        chunk_digests=tuple(info["chunk_digests"]),
    )
