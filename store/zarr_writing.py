"""Groups written piece by piece: chunk files filled front to back, each digested, checksummed and flushed while others are written.

Zarr writes the metadata. The chunks are written here, because Zarr takes a chunk only whole, makes two copies of it, and leaves
neither a digest nor a flushed file: the bytes of a piece are encoded once, then digested, checksummed and written as they are.

    append -> per chunk touched: encode, SHA-256, CRC32C, write     (side by side, if there is much of it)
           -> a full chunk: flush                                   (in the background)
    commit -> flush folders and metadata, wait for all flushes, manifest
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import google_crc32c
import numpy as np

from repsearch.errors import StoreError
from repsearch.failpoints import reach
from store import manifest
from store.access import Files, Output
from store.base import Reference
from store.files import failures
from store.formats import Form
from store.paths import MANIFEST, ancestors
from store.zarr_arrays import chunk_file, metadata_of

_WORKERS = 4
_SIDE_BY_SIDE_BYTES = 1_000_000
"""Pieces of at least this size are written by several threads."""
_BLOCK_BYTES = 1_000_000
"""Bytes encoded, digested and written at a time, so that conversion needs little memory."""
_FLUSHERS = 16
_PENDING = 32
"""Files that may wait to be flushed."""


class Chunk:
    """A chunk file being filled; `digest` is that of its rows once it is complete."""

    def __init__(self, files: Files, key: str, form: Form) -> None:
        self._files, self._key, self._form = files, key, form
        self.digest = ""
        self._file: Output | None = None
        self._sha256 = hashlib.sha256()
        self._crc32c = 0
        self._rows = 0

    def add(self, values: np.ndarray, first_row: int, *, last: bool) -> None:
        """Append `values`, rows of the array from `first_row` on; `last`: the chunk is complete then."""
        if self._file is None:
            self._file = _created(self._files, self._key)
        step = max(1, _BLOCK_BYTES // max(1, self._form.row_bytes))
        for start in range(0, len(values), step):
            block = values[start : start + step]
            data = self._form.encode(block, first_row + start).reshape(-1).view(np.uint8)
            self._sha256.update(data.data)
            self._write(self._file, data)
        self._rows += len(values)
        if last:
            # In the file every chunk has its full size; the digest is that of the rows there are.
            self._write(self._file, np.zeros((self._form.chunk_rows - self._rows) * self._form.row_bytes, np.uint8))
            self._file.write(memoryview(self._crc32c.to_bytes(4, "little")))
            self.digest = self._sha256.hexdigest()
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def flush(self) -> None:
        """Have the complete chunk stay."""
        assert self._file is not None
        _flush(self._file, self._key)

    def _write(self, file: Output, data: np.ndarray) -> None:
        self._crc32c = google_crc32c.extend(self._crc32c, data)
        file.write(data.data)


class ArrayFiles:
    """The chunk files of one array."""

    def __init__(self, files: Files, path: str, name: str, form: Form) -> None:
        self._files, self._path, self._name, self.form = files, path, name, form
        self.row = 0
        self.chunks: list[Chunk] = []

    def parts(self, values: np.ndarray) -> Iterator[tuple[Chunk, Callable[[], None], bool]]:
        """Yield the work of appending `values`: per chunk touched the chunk, what to call, and whether it is complete after that."""
        size = self.form.chunk_rows if self.form.chunks and len(values) else 0
        for start in range(self.row - self.row % size, self.row + len(values), size) if size else ():
            if start // size == len(self.chunks):
                key = f"{self._path}/{chunk_file(self._name, len(self.form.shape), len(self.chunks))}"
                self.chunks.append(Chunk(self._files, key, self.form))
            chunk = self.chunks[start // size]
            first, end = max(start, self.row), min(start + size, self.row + len(values))
            last = end == min(start + size, self.form.shape[0])
            yield chunk, _adding(chunk, values[first - self.row : end - self.row], first, last), last
        self.row += len(values)


class GroupFiles:
    """The `Sink` of the group `path`, new among `files`. Used by one thread at a time."""

    def __init__(self, files: Files, path: str, forms: Mapping[str, Form]) -> None:
        self._files, self._path = files, path
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="chunks")
        self._flushers = ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="flush")
        self._flushes: list[Future[None]] = []
        self._metadata = metadata_of(forms)
        reach("store.group.before")
        self._described = {key: _written(files, key, data) for key, data in self._keys(self._metadata)}
        self._arrays = {name: ArrayFiles(files, path, name, form) for name, form in forms.items()}
        reach("store.group.empty")

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Append rows to the arrays; what fails first, in the order of the arrays, is raised."""
        parts = [part for name, values in arrays.items() for part in self._arrays[name].parts(values)]
        with self._failures():
            if len(parts) > 1 and sum(values.nbytes for values in arrays.values()) >= _SIDE_BY_SIDE_BYTES:
                for done in [self._workers.submit(self._do, *part) for part in parts]:
                    done.result()
            else:
                for part in parts:
                    self._do(*part)
        reach("store.group.rows")

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        """Flush everything, write the manifest, and return the group's reference."""
        infos = {name: array.form.info([chunk.digest for chunk in array.chunks]) for name, array in self._arrays.items()}
        metadata = {file: hashlib.sha256(content).hexdigest() for file, content in self._metadata.items()}
        data = manifest.encode(self._path, infos, attributes, metadata)
        with self._failures():
            for folder in (*ancestors(self._path), *(f"{self._path}/{name}" for name in self._arrays)):
                self._flush(functools.partial(self._files.flush_folder, folder))
            for key, output in self._described.items():
                self._flush(functools.partial(_flush, output, key))
            for flush in self._flushes:
                flush.result()
            reach("store.group.flushed")
            if not self._files.write(f"{self._path}/{MANIFEST}", data, create=True):
                raise StoreError(f"{self._path}: was committed by another writer meanwhile; use a path of its own for each attempt")
        reach("store.group.after")
        return Reference(self._path, manifest.digest_of(data))

    def close(self) -> None:
        """End the threads and close the files; they have what was appended, or an error was raised."""
        self._workers.shutdown(cancel_futures=True)
        self._flushers.shutdown(cancel_futures=True)
        for array in self._arrays.values():
            for chunk in array.chunks:
                chunk.close()

    def _failures(self) -> AbstractContextManager[None]:
        return failures(f"{self._path}: cannot be written in {self._files}")

    def _keys(self, files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        return ((f"{self._path}/{file}", data) for file, data in files.items())

    def _do(self, chunk: Chunk, add: Callable[[], None], last: bool) -> None:
        add()
        if last:
            self._flush(chunk.flush)

    def _flush(self, flush: Callable[[], None]) -> None:
        if len(self._flushes) >= _PENDING:
            # A chunk stays in memory until it is in an object store.
            self._flushes[-_PENDING].result()
        # Together, because a journalling file system commits concurrent flushes at once: 17 files take 5 ms, one by one 55 ms.
        self._flushes.append(self._flushers.submit(flush))


def _created(files: Files, key: str) -> Output:
    try:
        return files.output(key)
    except FileExistsError:
        raise _at_work(key) from None


def _written(files: Files, key: str, data: bytes) -> Output:
    output = _created(files, key)
    with contextlib.closing(output):
        output.write(memoryview(data))
    return output


def _flush(output: Output, key: str) -> None:
    try:
        output.flush()
    except FileExistsError:
        raise _at_work(key) from None


def _at_work(key: str) -> StoreError:
    return StoreError(f"{key}: another writer is at work there; use a path of its own for each attempt")


def _adding(chunk: Chunk, values: np.ndarray, first_row: int, last: bool) -> Callable[[], None]:
    return lambda: chunk.add(values, first_row, last=last)
