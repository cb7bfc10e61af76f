"""Arrays of one group folder through Zarr: written whole, read by chunks, every chunk checked against the manifest.

Zarr alone reads a missing chunk as zeros and keeps no digest; here the manifest says which chunks exist and what they hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import LocalStore

from repsearch.errors import StoreError
from store import formats
from store.files import failures
from store.manifest import ArrayInfo, Manifest
from store.paths import METADATA, REDO


def write_arrays(folder: Path, encoded: Mapping[str, formats.Encoded]) -> dict[str, str]:
    """Write a Zarr group with the arrays into `folder` and return the hex SHA-256 of each metadata file, by path in the group."""
    try:
        _write(folder, encoded)
    except (ContainsGroupError, ContainsArrayError):
        raise StoreError(f"{folder}: another writer is at work there; use a path of its own for each attempt") from None
    return {file: _file_digest(folder / file) for file in (METADATA, *(f"{name}/{METADATA}" for name in encoded))}


def _write(folder: Path, encoded: Mapping[str, formats.Encoded]) -> None:
    group = zarr.create_group(store=LocalStore(folder))
    for name, array in encoded.items():
        target = group.create_array(
            name,
            shape=array.info.shape,
            dtype=array.values.dtype,
            chunks=(array.info.chunk_rows, *(max(1, size) for size in array.info.shape[1:])),
            filters=None,
            compressors=[Crc32cCodec()],
            fill_value=0,
            # One folder per array: with "/" every chunk has folders of its own, to be created and flushed.
            chunk_key_encoding={"name": "default", "separator": "."},
            # By default Zarr leaves a chunk of zeros out, which could not be told from a lost one.
            config={"write_empty_chunks": True},
        )
        if array.info.chunk_digests:
            target[...] = array.values


@dataclass(frozen=True)
class GroupFolder:
    """A committed group: where it lies, its path in the store (for messages), and what it has to hold."""

    folder: Path
    path: str
    manifest: Manifest

    def read_chunks(self, name: str, chunks: range) -> np.ndarray:
        """Return the stored rows of consecutive `chunks` of array `name`; raises `StoreError` naming a chunk that is not as written.

        No chunks: all rows of an array without elements, otherwise none.
        """
        info = self.manifest.array(self.path, name)
        for file in (METADATA, f"{name}/{METADATA}"):
            self._check_metadata(file)
        if not chunks:
            return np.zeros((0 if info.chunk_digests else info.shape[0], *info.shape[1:]), info.dtype)
        for chunk in chunks:
            if not (self.folder / _chunk_file(name, info, chunk)).is_file():
                raise self._damaged(name, chunk, "is missing")
        values = self._read(name, info, chunks)
        first = info.rows_of(chunks[0]).start
        for chunk in chunks:
            rows = info.rows_of(chunk)
            if formats.chunk_digest(values[rows.start - first : rows.stop - first]) != info.chunk_digests[chunk]:
                raise self._damaged(name, chunk, "is not what was written (its digest differs)")
        return values

    def _read(self, name: str, info: ArrayInfo, chunks: range) -> np.ndarray:
        try:
            array = zarr.open_array(store=LocalStore(self.folder, read_only=True), path=name, mode="r")
            return np.asarray(array[info.rows_of(chunks[0]).start : info.rows_of(chunks[-1]).stop])
        except MemoryError:
            raise
        except Exception as error:
            # Codecs raise errors of many kinds, none of which names the chunk: read one by one to find it.
            if len(chunks) == 1:
                raise self._damaged(name, chunks[0], f"is truncated or altered ({error})") from error
        return np.concatenate([self._read(name, info, range(chunk, chunk + 1)) for chunk in chunks])

    def _check_metadata(self, file: str) -> None:
        with failures(f"{self.path}/{file}: cannot be read ({REDO})"):
            if _file_digest(self.folder / file) != self.manifest.metadata.get(file):
                raise StoreError(f"{self.path}/{file}: is not what was written (its digest differs); {REDO}")

    def _damaged(self, name: str, chunk: int, problem: str) -> StoreError:
        file = _chunk_file(name, self.manifest.arrays[name], chunk)
        return StoreError(f"{self.path}/{file}: chunk {chunk} of array {name!r} {problem}; {REDO}")


def _chunk_file(name: str, info: ArrayInfo, chunk: int) -> str:
    return ".".join([f"{name}/c", str(chunk), *("0" for _ in info.shape[1:])])


def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
