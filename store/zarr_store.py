"""Groups as Zarr v3 arrays, on a local or shared disk or in an object store.

    <path>/zarr.json              the Zarr group
           block0/zarr.json       one Zarr array: chunks along rows, CRC32C, no compression
           block0/c.3.0.0.0       its chunk 3
           MANIFEST.json          last: without it nothing here is readable
    <path>.pack                   a group of a relaxed store, see `store.packed`

One writer per path: two at once may spoil each other's uncommitted files, which the digests show, and only one commits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repsearch.errors import StoreError
from repsearch.failpoints import reach
from store import documents, files, formats, leftovers, manifest, packed
from store.access import Files
from store.base import GroupWriter, Reference
from store.files import failures
from store.local_files import LocalFiles
from store.manifest import Manifest
from store.paths import MANIFEST, METADATA, ancestors, check_document_path, check_folder, check_path, is_document_name
from store.patience import IMPATIENT, Patience
from store.pieces import Pieces, Sink


class ZarrStore:
    """The store in folder `root`, which the first write creates; `chunk_mb` is the size of a chunk in MB."""

    def __init__(self, root: Path | Files, *, chunk_mb: float = 4.0, durable: bool = True, late: Patience = IMPATIENT) -> None:
        self._files: Files = LocalFiles(root) if isinstance(root, Path) else root
        self._chunk_mb, self._durable, self._late = chunk_mb, durable, late

    def relaxed(self) -> ZarrStore:
        """Return the same store without waiting for the disk, as `Store.relaxed` says."""
        return ZarrStore(self._files, chunk_mb=self._chunk_mb, durable=False, late=self._late)

    def sweep(self, named: Callable[[], Collection[str]]) -> list[str]:
        """Remove what killed writers left, as `Store.sweep` says."""
        with failures(f"{self._files}: cannot be swept"):
            groups = leftovers.remove_temporary(self._files, durable=self._durable)
            named_ones = named() if groups else ()
            groups = [group for group in groups if group not in named_ones]
        for group in groups:
            self.delete(group)
        return groups

    def settle(self, paths: Sequence[str]) -> None:
        """Flush groups to the disk, as `Store.settle` says."""
        reach("store.settle.before")
        with failures(f"{self._files}: cannot be flushed"):
            self._files.settle([key for path in paths for key in (packed.pack_of(check_path(path)), path)])
        reach("store.settle.after")

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
        with failures(self._unwritable(path)):
            forms = formats.forms_of(path, arrays, dtypes or {}, finite=finite, chunk_mb=self._chunk_mb)
            manifest.check(path, attributes)  # before anything is written
            with contextlib.closing(self._open_sink(path, forms)) as sink:
                sink.append(arrays)
                return sink.commit(attributes)

    def begin(self, path: str, *, rows: int, dtypes: Mapping[str, str] | None = None, finite: bool = True) -> GroupWriter:
        """Return the writer of a group given piece by piece, as `RepresentationStore.begin` says."""
        with failures(self._unwritable(path)):
            self._require_free(check_path(path))

        def open_sink(forms: Mapping[str, formats.Form]) -> Sink:
            return self._open_sink(path, forms)

        return Pieces(path, rows, dtypes=dtypes or {}, finite=finite, chunk_mb=self._chunk_mb, open_sink=open_sink)

    def manifest(self, ref: Reference | str) -> Manifest:
        """Return the manifest of a committed group, as `RepresentationStore.manifest` says."""
        path, expected = _named(ref)
        file = f"{path}/{MANIFEST}"

        def look() -> Manifest:
            if self._packed_size(path) is not None:
                return packed.read_manifest(self._files, path, expected=expected)
            return manifest.decode(path, file, self._files.read(file), expected=expected)

        with failures(f"{path}: no committed group can be read ({file} in {self._files})"):
            # What somebody refers to was written, and so will be seen.
            return look() if expected is None else self._late.until_there(look)

    def read(self, ref: Reference | str, name: str, rows: slice | None = None) -> np.ndarray:
        """Return an array or some of its rows, verified, as `RepresentationStore.read` says."""
        path, expected = _named(ref)
        with failures(f"{path}: cannot be read in {self._files}"):
            size = self._packed_size(path)
            if size is None and not (found := self.manifest(ref)).metadata:
                size = self._packed_size(path)  # it came while the manifest was waited for
            if size is not None:
                return packed.read_array(self._files, path, size, name, rows, expected=expected)
        from store.zarr_arrays import GroupFolder

        info = found.array(path, name)
        selected, chunks = formats.span(info, rows)
        values = GroupFolder(self._files, path, found, self._late).read_chunks(name, chunks)
        return formats.decode(formats.select(values, chunks.start * info.chunk_rows, selected), info)

    def committed(self, path: str) -> list[str]:
        """Return the names of the committed groups directly below `path`, sorted; none if there is no such folder."""
        names, folders = self._entries(path)
        with failures(f"{path or self._files}: cannot be listed"):
            sizes = self._files.sizes([f"{path}/{name}/{MANIFEST}".removeprefix("/") for name in folders])
        packs = [name.removesuffix(packed.SUFFIX) for name in names if name.endswith(packed.SUFFIX) and not name.startswith(".")]
        return sorted([*packs, *(name for name, size in zip(folders, sizes, strict=True) if size is not None)])

    def delete(self, path: str) -> None:
        """Delete a group, the manifest first, as `RepresentationStore.delete` says."""
        check_path(path)
        reach("store.delete.before")
        with failures(f"{path}: cannot be deleted in {self._files}"):
            for key in (packed.pack_of(path), f"{path}/{MANIFEST}"):
                self._files.remove(key, durable=self._durable)
            reach("store.delete.unreadable")
            self._clear(path)
        reach("store.delete.after")

    def write_document(self, path: str, document: Mapping[str, Any], *, create: bool) -> str:
        """Write a document, as `DocumentStore.write_document` says."""
        data, digest = documents.encode(check_document_path(path), document)
        with failures(f"{path}: cannot be written in {self._files}"):
            if not self._files.write(path, data, create=create):
                raise StoreError(f"{path}: exists already in {self._files}; another process wrote it, or it is of an earlier run")
        return digest

    def read_document(self, path: str) -> dict[str, Any]:
        """Return a document, verified, as `DocumentStore.read_document` says."""
        with failures(f"{path}: cannot be read in {self._files}"):
            data = self._files.read(check_document_path(path))
        return documents.decode(path, data)

    def documents(self, path: str) -> list[str]:
        """Return the names of the documents directly below `path` ("" is the root), sorted; none if there is no such folder."""
        return [name for name in self._entries(path)[0] if is_document_name(name)]

    def _open_sink(self, path: str, forms: Mapping[str, formats.Form]) -> Sink:
        """Return where the arrays of the group `path` go, its folder cleared."""
        # Here, because importing zarr takes half a second, which a command that reads documents alone should not pay.
        from store.zarr_writing import GroupFiles

        check_path(path)
        with failures(self._unwritable(path)):
            self._require_free(path)
            self._clear(path)
            if not self._durable:
                return packed.PackWriter(self._files, path, forms)
            return GroupFiles(self._files, path, forms)

    def _unwritable(self, path: str) -> str:
        return f"{path}: cannot be written in {self._files}"

    def _packed_size(self, path: str) -> int | None:
        return self._files.sizes([packed.pack_of(path)])[0]

    def _entries(self, path: str) -> tuple[list[str], list[str]]:
        """Return the names of files and folders directly below `path`."""
        check_folder(path)
        with failures(f"{path or self._files}: cannot be listed"):
            return self._files.entries(path)

    def _require_free(self, path: str) -> None:
        places = ancestors(path)[:-1]
        keys = [key for place in places for key in (f"{place}/{MANIFEST}", packed.pack_of(place))]
        for key, size in zip(keys, self._files.sizes(keys), strict=True):
            if size is not None:
                taken = key.removesuffix(packed.SUFFIX).removesuffix(f"/{MANIFEST}")
                raise StoreError(f"{path}: group {taken} is committed there and never changes; write to another path, or delete it first")

    def _clear(self, path: str) -> None:
        """Remove what an unfinished write or delete left at `path`; refuses to remove anything else."""
        for key in self._files.below(path):
            if not _is_of_group(key.rpartition("/")[2]):
                raise StoreError(f"{path}: holds {key}, which no unfinished write leaves; choose another path")
        self._files.remove_folder(path, durable=self._durable)


def _named(ref: Reference | str) -> tuple[str, str | None]:
    """Return the path of a group, and the digest of its manifest if that is known."""
    return (check_path(ref), None) if isinstance(ref, str) else (check_path(ref.path), ref.digest)


def _is_of_group(name: str) -> bool:
    return name == METADATA or name.startswith("c.") or name.endswith(files.PARTIAL)
