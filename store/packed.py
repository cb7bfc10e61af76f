"""Groups as one file each, for those that come and go by the dozen a second: `<path>.pack`.

    8 bytes    magic
    8 bytes    length of the manifest, little-endian
    manifest   as in MANIFEST.json; chunks are rows of the arrays, with a digest each
    arrays     one after the other, in the order of the manifest

A group of three arrays as a folder is fifteen files and folders; creating each takes from a tenth of a millisecond to a whole one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from repsearch.errors import StoreError
from repsearch.failpoints import reach
from store import formats, manifest
from store.access import Files
from store.base import Reference
from store.files import failures
from store.formats import Form
from store.manifest import ArrayInfo, Manifest
from store.paths import REDO

SUFFIX = ".pack"
_MAGIC = b"RSPACK1\n"
"""The digit is the version of the form; a reader refuses any other."""
_ANY_MAGIC = re.compile(rb"RSPACK(\d+)\n")
_LENGTH_BYTES = 8
_START_BYTES = 16_384
"""Bytes read at first: the manifest, if it is of a usual size, so that a store far away is asked once for it."""


def pack_of(path: str) -> str:
    """Return the key of the file of the group `path`, whether it is there or not."""
    return path + SUFFIX


class PackWriter:
    """The `Sink` of a group in one file, kept in memory until the commit."""

    def __init__(self, files: Files, path: str, forms: Mapping[str, Form]) -> None:
        self._files, self._path, self._forms = files, path, forms
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
        reach("store.pack.before")
        with failures(f"{self._path}: cannot be written in {self._files}"):
            created = self._files.write(pack_of(self._path), data, create=True, durable=False)
        if not created:
            raise StoreError(f"{self._path}: was committed by another writer meanwhile; use a path of its own for each attempt")
        reach("store.pack.after")
        return Reference(self._path, manifest.digest_of(head))

    def close(self) -> None:
        """Do nothing: what was not committed was never written."""


def read_manifest(files: Files, path: str, *, expected: str | None) -> Manifest:
    """Return the manifest of the group `path`; raises `StoreError` if it is not whole."""
    return _head(files, path, expected)[0]


def read_array(files: Files, path: str, size: int, name: str, rows: slice | None, *, expected: str | None) -> np.ndarray:
    """Return an array of the group `path`, or some of its rows, every chunk checked; failures are those of `read_manifest`.

    size: of the group's file.
    """
    found, body, start = _head(files, path, expected)
    info = found.array(path, name)
    selected, chunks = formats.span(info, rows)
    names = list(found.arrays)
    offset = sum(_size(found.arrays[before]) for before in names[: names.index(name)])
    if size != body + sum(map(_size, found.arrays.values())):
        raise StoreError(f"{path}: {_name(path)} is truncated or altered (its length differs); {REDO}")
    values = _empty(info, chunks)
    if chunks:
        first = body + offset + chunks.start * info.chunk_rows * (values.nbytes // max(1, len(values)))
        whole = first + values.nbytes <= len(start)
        data = start[first : first + values.nbytes] if whole else files.read(pack_of(path), first, values.nbytes)
        _fill(values, data, path, name, info, chunks)
    return formats.decode(formats.select(values, chunks.start * info.chunk_rows, selected), info)


def _head(files: Files, path: str, expected: str | None) -> tuple[Manifest, int, bytes]:
    """Return the manifest, where the arrays begin, and the first bytes of the file, at least up to there."""
    file = pack_of(path)
    data = files.read(file, 0, _START_BYTES)
    if (of_version := _ANY_MAGIC.match(data)) and not data.startswith(_MAGIC):
        version = int(of_version[1])
        raise StoreError(f"{path}: {_name(path)} has form {version}, this version reads 1; use the version that wrote the run")
    end = len(_MAGIC) + _LENGTH_BYTES + int.from_bytes(data[len(_MAGIC) :][:_LENGTH_BYTES], "little")
    if data.startswith(_MAGIC) and len(data) == _START_BYTES < end <= (files.sizes([file])[0] or 0):
        data = files.read(file, 0, end)
    if not data.startswith(_MAGIC) or len(data) < max(end, len(_MAGIC) + _LENGTH_BYTES):
        raise StoreError(f"{path}: {_name(path)} is truncated or altered; {REDO}")
    return manifest.decode(path, file, data[len(_MAGIC) + _LENGTH_BYTES : end], expected=expected), end, data


def _empty(info: ArrayInfo, chunks: range) -> np.ndarray:
    """Return room for the rows of `chunks`; of an array without elements, all of it."""
    if not chunks:
        return np.zeros((0 if info.chunk_digests else info.shape[0], *info.shape[1:]), info.dtype)
    rows = info.rows_of(chunks[-1]).stop - info.rows_of(chunks[0]).start
    return np.empty((rows, *info.shape[1:]), np.dtype(info.dtype).newbyteorder("<"))


def _fill(values: np.ndarray, data: bytes, path: str, name: str, info: ArrayInfo, chunks: range) -> None:
    """Make `values`, the rows of `chunks`, what `data` holds; raises `StoreError` naming the chunk that is not what was written."""
    values.reshape(-1).view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    for chunk in chunks:
        rows = slice((chunk - chunks.start) * info.chunk_rows, (chunk - chunks.start + 1) * info.chunk_rows)
        if len(data) != values.nbytes or formats.chunk_digest(values[rows]) != info.chunk_digests[chunk]:
            what = f"chunk {chunk} of array {name!r} in {_name(path)}"
            raise StoreError(f"{path}: {what} is not what was written (its digest differs); {REDO}")


def _name(path: str) -> str:
    return pack_of(path).rpartition("/")[2]


def _size(info: ArrayInfo) -> int:
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize
