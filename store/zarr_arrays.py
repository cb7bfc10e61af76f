"""Arrays of one group: described by Zarr, read by chunks, every chunk checked against the manifest.

Zarr alone reads a missing chunk as zeros and keeps no digest; here the manifest says which chunks exist and what they hold.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from repsearch.errors import StoreError
from store import formats
from store.access import Files
from store.files import failures
from store.manifest import ArrayInfo, Manifest
from store.paths import METADATA, REDO
from store.patience import Patience

_CHECKSUM_BYTES = 4


def metadata_of(forms: Mapping[str, formats.Form]) -> dict[str, bytes]:
    """Return the metadata files of a Zarr group with empty arrays, by path in the group."""
    metadata = {METADATA: _group_metadata()}
    for name, form in forms.items():
        chunks = (form.chunk_rows, *(max(1, size) for size in form.shape[1:]))
        metadata[f"{name}/{METADATA}"] = _array_metadata(form.shape, chunks, form.dtype)
    return metadata


# Zarr takes 2 ms to create an array, which is as long as writing 1 MB, and the groups of a run have the same arrays over and over.
@functools.lru_cache(maxsize=256)
def _array_metadata(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    created: dict[str, Any] = {}
    zarr.create_array(
        store=MemoryStore(created),
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=0,
        # One folder per array: with "/" every chunk has folders of its own, to be created and flushed.
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    return bytes(created[METADATA].to_bytes())


@functools.lru_cache(maxsize=1)
def _group_metadata() -> bytes:
    created: dict[str, Any] = {}
    zarr.create_group(store=MemoryStore(created))
    return bytes(created[METADATA].to_bytes())


@dataclass(frozen=True)
class GroupFolder:
    """A committed group: the files of its store, its path there, what it has to hold, and how long that may take to be seen."""

    files: Files
    path: str
    manifest: Manifest
    late: Patience

    def read_chunks(self, name: str, chunks: range) -> np.ndarray:
        """Return the stored rows of consecutive `chunks` of array `name`; raises `StoreError` naming a chunk that is not as written.

        No chunks: all rows of an array without elements, otherwise none.
        """
        info = self.manifest.array(self.path, name)
        for file in (METADATA, f"{name}/{METADATA}"):
            self._check_metadata(file)
        if not chunks:
            return np.zeros((0 if info.chunk_digests else info.shape[0], *info.shape[1:]), info.dtype)
        first, stop = info.rows_of(chunks[0]).start, info.rows_of(chunks[-1]).stop
        values = np.empty((stop - first, *info.shape[1:]), np.dtype(info.dtype).newbyteorder("<"))
        for chunk in chunks:
            rows = info.rows_of(chunk)
            self._read_chunk(name, info, chunk, values[rows.start - first : rows.stop - first])
        return values

    def _read_chunk(self, name: str, info: ArrayInfo, chunk: int, values: np.ndarray) -> None:
        """Read a chunk into `values`; raises `StoreError` naming it if it is not as written."""
        # Not through Zarr, whose event loop takes milliseconds an array: a chunk is its rows, zeros up to its full size, and CRC32C.
        row_bytes = values.dtype.itemsize * math.prod(values.shape[1:])
        rest = (info.chunk_rows - len(values)) * row_bytes + _CHECKSUM_BYTES
        place: np.ndarray = values.reshape(-1).view(np.uint8)
        try:
            data = self._read(chunk_file(name, len(info.shape), chunk), len(place) + rest + 1)
        except FileNotFoundError:
            raise self._damaged(name, chunk, "is missing") from None
        except OSError as error:
            raise self._damaged(name, chunk, f"is truncated or altered ({error})") from error
        if len(data) != len(place) + rest:
            raise self._damaged(name, chunk, f"is truncated or altered ({len(data)} bytes, not {len(place) + rest})")
        stored = np.frombuffer(data, np.uint8)
        checksum = google_crc32c.extend(0, stored[:-_CHECKSUM_BYTES])
        if checksum.to_bytes(_CHECKSUM_BYTES, "little") != data[-_CHECKSUM_BYTES:]:
            raise self._damaged(name, chunk, "is truncated or altered (its checksum differs)")
        place[:] = stored[: len(place)]
        if formats.chunk_digest(values) != info.chunk_digests[chunk]:
            raise self._damaged(name, chunk, "is not what was written (its digest differs)")

    def _read(self, file: str, length: int | None = None) -> bytes:
        return self.late.until_there(lambda: self.files.read(f"{self.path}/{file}", 0, length))

    def _check_metadata(self, file: str) -> None:
        with failures(f"{self.path}/{file}: cannot be read ({REDO})"):
            if hashlib.sha256(self._read(file)).hexdigest() != self.manifest.metadata.get(file):
                raise StoreError(f"{self.path}/{file}: is not what was written (its digest differs); {REDO}")

    def _damaged(self, name: str, chunk: int, problem: str) -> StoreError:
        file = chunk_file(name, len(self.manifest.arrays[name].shape), chunk)
        return StoreError(f"{self.path}/{file}: chunk {chunk} of array {name!r} {problem}; {REDO}")


def chunk_file(name: str, dimensions: int, chunk: int) -> str:
    """Return the path, in the group, of a chunk of an array; chunks are cut along the first of its dimensions only."""
    return ".".join([f"{name}/c", str(chunk), *("0" for _ in range(dimensions - 1))])
