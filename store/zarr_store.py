"""Groups as Zarr v3 arrays on a local or shared disk.

    <path>/zarr.json              the Zarr group
           block0/zarr.json       one Zarr array: chunks along rows, CRC32C, no compression
           block0/c.3.0.0.0       its chunk 3
           MANIFEST.json          last: without it nothing here is readable

Zarr alone reads a missing chunk as zeros and keeps no digest; here the manifest says which chunks exist and what they hold.
One writer per path: two at once may spoil each other's uncommitted files, which the digests show, and only one commits.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from repsearch.errors import StoreError
from store import documents, files, formats, manifest
from store.base import Reference
from store.files import failures
from store.manifest import ArrayInfo, Manifest
from store.paths import MANIFEST, METADATA, check_document_path, check_folder, check_path, is_document_name

_REDO = "restore the group from a copy, or delete it and have it made again"


class ZarrStore:
    """The store in folder `root`, which the first write creates; `chunk_mb` is the size of a chunk in MB."""

    def __init__(self, root: Path, *, chunk_mb: float = 4.0) -> None:
        with failures(f"store {root}"):
            self._root = Path(root).resolve()
        if self._root.exists() and not self._root.is_dir():
            raise StoreError(f"store {root}: is not a folder; give the path of a folder")
        self._chunk_mb = chunk_mb

    def write(
        self,
        path: str,
        arrays: Mapping[str, np.ndarray],
        *,
        attributes: Mapping[str, Any],
        dtypes: Mapping[str, str] | None = None,
        finite: bool = True,
    ) -> Reference:
        """Write and commit a group, as `RepresentationStore.write` says."""
        folder = self._locate(path)
        with failures(f"{path}: cannot be written in {self._root}"):
            self._require_free(path, folder)
            encoded = formats.encode_arrays(path, arrays, dtypes or {}, finite=finite, chunk_mb=self._chunk_mb)
            manifest.encode(path, {}, attributes, {})  # refuses attributes that are not JSON before anything is written
            self._clear(path, folder)
            files.make_folders(folder.parent, self._root)
            _write_arrays(folder, encoded)
            metadata = {name: _file_digest(folder / name) for name in [METADATA, *(f"{array}/{METADATA}" for array in encoded)]}
            data = manifest.encode(path, {name: array.info for name, array in encoded.items()}, attributes, metadata)
            files.sync_all([*files.tree(folder), folder, folder.parent])
            if not files.create_file(folder / MANIFEST, data):
                raise StoreError(f"{path}: was committed by another writer meanwhile; use a path of its own for each attempt")
        return Reference(path, hashlib.sha256(data).hexdigest())

    def manifest(self, ref: Reference | str) -> Manifest:
        """Return the manifest of a committed group, as `RepresentationStore.manifest` says."""
        path = ref if isinstance(ref, str) else ref.path
        file = f"{path}/{MANIFEST}"
        try:
            with failures(f"{file}: cannot be read in {self._root}"):
                data = (self._locate(path) / MANIFEST).read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise StoreError(
                    f"{path}: nothing is committed here (no {file} in {self._root}); it was never finished, or is gone"
                ) from None
            raise
        if isinstance(ref, Reference) and hashlib.sha256(data).hexdigest() != ref.digest:
            raise StoreError(f"{file}: is not the manifest referred to (its digest differs from {ref.digest[:12]}); {_REDO}")
        return manifest.decode(path, file, data)

    def read(self, ref: Reference | str, name: str, rows: slice | None = None) -> np.ndarray:
        """Return an array or some of its rows, verified, as `RepresentationStore.read` says."""
        found = self.manifest(ref)
        path = ref if isinstance(ref, str) else ref.path
        info = found.array(path, name)
        selected, chunks = formats.span(info, rows)
        folder = self._locate(path)
        for file in (METADATA, f"{name}/{METADATA}"):
            _check_metadata(folder, path, file, found.metadata)
        values = _read_chunks(folder, path, name, info, chunks)
        return formats.decode(formats.select(values, chunks.start * info.chunk_rows, selected), info)

    def committed(self, path: str) -> list[str]:
        """Return the names of the committed groups directly below `path`, sorted; none if there is no such folder."""
        return [entry.name for entry in self._entries(path) if (entry / MANIFEST).is_file()]

    def delete(self, path: str) -> None:
        """Delete a group, the manifest first, as `RepresentationStore.delete` says."""
        folder = self._locate(path)
        with failures(f"{path}: cannot be deleted in {self._root}"):
            if (folder / MANIFEST).is_file():
                (folder / MANIFEST).unlink()
                files.sync(folder)
            self._clear(path, folder)

    def write_document(self, path: str, document: Mapping[str, Any], *, create: bool) -> str:
        """Write a document, as `DocumentStore.write_document` says."""
        file = self._locate(check_document_path(path))
        data, digest = documents.encode(path, document)
        with failures(f"{path}: cannot be written in {self._root}"):
            files.make_folders(file.parent, self._root)
            if not create:
                files.replace_file(file, data)
            elif not files.create_file(file, data):
                raise StoreError(f"{path}: exists already in {self._root}; another process wrote it, or it is of an earlier run")
        return digest

    def read_document(self, path: str) -> dict[str, Any]:
        """Return a document, verified, as `DocumentStore.read_document` says."""
        with failures(f"{path}: cannot be read in {self._root}"):
            data = self._locate(check_document_path(path)).read_bytes()
        return documents.decode(path, data)

    def documents(self, path: str) -> list[str]:
        """Return the names of the documents directly below `path` ("" is the root), sorted; none if there is no such folder."""
        return [entry.name for entry in self._entries(path) if is_document_name(entry.name) and entry.is_file()]

    def _locate(self, path: str) -> Path:
        """Return the place of `path`; raises `StoreError` if it, or a link on the way, leaves the root."""
        place = self._root / check_path(path)
        with failures(f"{path}: cannot be found in {self._root}"):
            if not place.resolve().is_relative_to(self._root):
                raise StoreError(f"{path}: is a link that leaves the store's root {self._root}; put the data inside the root")
        return place

    def _entries(self, path: str) -> list[Path]:
        folder = self._locate(path) if check_folder(path) else self._root
        with failures(f"{path or self._root}: cannot be listed"):
            return sorted(folder.iterdir()) if folder.is_dir() else []

    def _require_free(self, path: str, folder: Path) -> None:
        for place in files.ancestors(folder, self._root):
            if (place / MANIFEST).exists():
                taken = place.relative_to(self._root).as_posix()
                raise StoreError(f"{path}: group {taken} is committed there and never changes; write to another path, or delete it first")

    def _clear(self, path: str, folder: Path) -> None:
        """Remove what an unfinished write or delete left in `folder`; refuses to remove anything else."""
        if not (folder.exists() or folder.is_symlink()):
            return
        for entry in files.tree(folder) if folder.is_dir() else [folder]:
            if not entry.is_dir() and not _is_of_group(entry.name):
                raise StoreError(f"{path}: holds {entry.relative_to(self._root)}, which no unfinished write leaves; choose another path")
        shutil.rmtree(folder)
        files.sync(folder.parent)


def _is_of_group(name: str) -> bool:
    return name == METADATA or name.startswith("c.") or name.endswith(files.PARTIAL)


def _write_arrays(folder: Path, encoded: Mapping[str, formats.Encoded]) -> None:
    group = zarr.create_group(store=LocalStore(folder))
    for name, array in encoded.items():
        target = group.create_array(
            name,
            shape=array.info.shape,
            dtype=array.values.dtype,
            chunks=_chunk_shape(array.info),
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


def _chunk_shape(info: ArrayInfo) -> tuple[int, ...]:
    return (info.chunk_rows, *(max(1, size) for size in info.shape[1:]))


def _chunk_file(name: str, info: ArrayInfo, chunk: int) -> str:
    return ".".join([f"{name}/c", str(chunk), *("0" for _ in info.shape[1:])])


def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_metadata(folder: Path, path: str, file: str, expected: Mapping[str, str]) -> None:
    with failures(f"{path}/{file}: cannot be read; {_REDO}"):
        if _file_digest(folder / file) != expected.get(file):
            raise StoreError(f"{path}/{file}: is not what was written (its digest differs); {_REDO}")


def _read_chunks(folder: Path, path: str, name: str, info: ArrayInfo, chunks: range) -> np.ndarray:
    if not chunks:
        return np.zeros((0 if info.chunk_digests else info.shape[0], *info.shape[1:]), info.dtype)
    for chunk in chunks:
        if not (folder / _chunk_file(name, info, chunk)).is_file():
            raise StoreError(f"{_named(path, name, info, chunk)} is missing; {_REDO}")
    array = zarr.open_array(store=LocalStore(folder, read_only=True), path=name, mode="r")
    first = info.rows_of(chunks[0]).start
    try:
        values = np.asarray(array[first : info.rows_of(chunks[-1]).stop])
    except MemoryError:
        raise
    except Exception as error:
        raise _damage(array, path, name, info, chunks, error) from error
    for chunk in chunks:
        rows = info.rows_of(chunk)
        if formats.chunk_digest(values[rows.start - first : rows.stop - first]) != info.chunk_digests[chunk]:
            raise StoreError(f"{_named(path, name, info, chunk)} is not what was written (its digest differs); {_REDO}")
    return values


def _damage(array: zarr.Array[Any], path: str, name: str, info: ArrayInfo, chunks: range, error: Exception) -> StoreError:
    # Codecs raise errors of many kinds that do not name the chunk: read one by one to find it.
    for chunk in chunks:
        try:
            array[info.rows_of(chunk)]
        except Exception as found:
            return StoreError(f"{_named(path, name, info, chunk)} is truncated or altered ({found}); {_REDO}")
    return StoreError(f"{path}: array {name!r} cannot be read ({error}); {_REDO}")


def _named(path: str, name: str, info: ArrayInfo, chunk: int) -> str:
    return f"{path}/{_chunk_file(name, info, chunk)}: chunk {chunk} of array {name!r}"
