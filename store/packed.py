"""Groups as one file each, for those that come and go by the dozen a second: `<path>.pack`.

    8 bytes    magic
    8 bytes    length of the manifest, little-endian
    manifest   as in MANIFEST.json; chunks are rows of the arrays, with a digest each
    arrays     one after the other, in the order of the manifest

A group of three arrays as a folder is fifteen files and folders; creating each takes from a tenth of a millisecond to a whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from repsearch.errors import StoreError
from store import files, formats, manifest
from store.base import Reference
from store.formats import Form
from store.manifest import ArrayInfo, Manifest
from store.paths import REDO

SUFFIX = ".pack"
_MAGIC = b"RSPACK1\n"
_LENGTH_BYTES = 8


def pack_of(place: Path) -> Path:
    """Return the file of the group at `place`, whether it is there or not."""
    return place.with_name(place.name + SUFFIX)


class PackWriter:
    """The `Sink` of a group in one file, kept in memory until the commit, which `publish` makes visible: (file, bytes) -> bool."""

    def __init__(self, path: str, file: Path, forms: Mapping[str, Form], publish: Callable[[Path, bytes], bool]) -> None:
        self._path, self._file, self._forms, self._publish = path, file, forms, publish
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in forms}
        self._rows = dict.fromkeys(forms, 0)

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take further rows of every array, as `Sink.append` says."""
        for name, values in arrays.items():
            self._parts[name].append(self._forms[name].encode(values, self._rows[name]).copy())
            self._rows[name] += len(values)

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        """Write the file, as `Sink.commit` says."""
        values = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in self._parts.items()}
        infos = {name: form.info(formats.chunk_digests(values[name], form)) for name, form in self._forms.items()}
        head = manifest.encode(self._path, infos, attributes, {})
        body = [value.reshape(-1).view(np.uint8).tobytes() for value in values.values()]
        data = b"".join([_MAGIC, len(head).to_bytes(_LENGTH_BYTES, "little"), head, *body])
        if not self._publish(self._file, data):
            raise StoreError(f"{self._path}: was committed by another writer meanwhile; use a path of its own for each attempt")
        return Reference(self._path, manifest.digest_of(head))

    def close(self) -> None:
        """Do nothing: what was not committed was never written."""


def read_manifest(path: str, file: Path, *, expected: str | None) -> Manifest:
    """Return the manifest of the group `path` in `file`; raises `StoreError` if it is not whole."""
    with file.open("rb") as opened:
        return _head(path, file, opened, expected)


def read_array(path: str, file: Path, name: str, rows: slice | None, *, expected: str | None) -> np.ndarray:
    """Return an array of the group `path`, or some of its rows, every chunk checked; failures are those of `read_manifest`."""
    with file.open("rb") as opened:
        found = _head(path, file, opened, expected)
        info = found.array(path, name)
        selected, chunks = formats.span(info, rows)
        body, names = opened.tell(), list(found.arrays)
        offset = sum(_size(found.arrays[before]) for before in names[: names.index(name)])
        if file.stat().st_size != body + sum(map(_size, found.arrays.values())):
            raise StoreError(f"{path}: {file.name} is truncated or altered (its length differs); {REDO}")
        values = _read(path, file, opened, name, info, chunks, body + offset)
    return formats.decode(formats.select(values, chunks.start * info.chunk_rows, selected), info)


def _head(path: str, file: Path, opened: BinaryIO, expected: str | None) -> Manifest:
    start = opened.read(len(_MAGIC) + _LENGTH_BYTES)
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    if len(start) < len(_MAGIC) + _LENGTH_BYTES or not start.startswith(_MAGIC) or length > file.stat().st_size:
        raise StoreError(f"{path}: {file.name} is truncated or altered; {REDO}")
    return manifest.decode(path, f"{path}{SUFFIX}", opened.read(length), expected=expected)


def _read(path: str, file: Path, opened: BinaryIO, name: str, info: ArrayInfo, chunks: range, start: int) -> np.ndarray:
    if not chunks:
        return np.zeros((0 if info.chunk_digests else info.shape[0], *info.shape[1:]), info.dtype)
    first, stop = info.rows_of(chunks[0]).start, info.rows_of(chunks[-1]).stop
    values = np.empty((stop - first, *info.shape[1:]), np.dtype(info.dtype).newbyteorder("<"))
    opened.seek(start + first * (_size(info) // max(1, info.shape[0])))
    opened.readinto(values.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
    for chunk in chunks:
        rows = info.rows_of(chunk)
        if formats.chunk_digest(values[rows.start - first : rows.stop - first]) != info.chunk_digests[chunk]:
            raise StoreError(f"{path}: chunk {chunk} of array {name!r} in {file.name} is not what was written (its digest differs); {REDO}")
    return values


def _size(info: ArrayInfo) -> int:
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize


def publish(file: Path, data: bytes) -> bool:
    """Write `data` as `file`, whole or not at all, without waiting for the disk; False if it is there."""
    if file.exists():
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(file, data, durable=False)
    return True
