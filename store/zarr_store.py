"""Groups as Zarr v3 arrays on a local or shared disk.

    <path>/zarr.json              the Zarr group
           block0/zarr.json       one Zarr array: chunks along rows, CRC32C, no compression
           block0/c.3.0.0.0       its chunk 3
           MANIFEST.json          last: without it nothing here is readable
    <path>.pack                   a group of a relaxed store, see `store.packed`

One writer per path: two at once may spoil each other's uncommitted files, which the digests show, and only one commits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repsearch.errors import StoreError
from store import documents, files, formats, manifest, packed
from store.base import GroupWriter, Reference
from store.files import failures
from store.manifest import Manifest
from store.paths import MANIFEST, METADATA, check_document_path, check_folder, check_path, is_document_name
from store.pieces import Pieces, Sink


class ZarrStore:
    """The store in folder `root`, which the first write creates; `chunk_mb` is the size of a chunk in MB."""

    def __init__(self, root: Path, *, chunk_mb: float = 4.0, durable: bool = True) -> None:
        with failures(f"store {root}"):
            self._root = Path(root).resolve()
        if self._root.exists() and not self._root.is_dir():
            raise StoreError(f"store {root}: is not a folder; give the path of a folder")
        self._chunk_mb, self._durable = chunk_mb, durable

    def relaxed(self) -> ZarrStore:
        """Return the same store without waiting for the disk, as `Store.relaxed` says."""
        return ZarrStore(self._root, chunk_mb=self._chunk_mb, durable=False)

    def settle(self, paths: Sequence[str]) -> None:
        """Flush groups to the disk, as `Store.settle` says."""
        with failures(f"{self._root}: cannot be flushed"):
            if files.sync_filesystem(self._root):
                return
            places = [self._locate(path) for path in paths]
            above = {parent for place in places for parent in files.ancestors(place, self._root)[1:]}
            below = [file for place in places for file in (packed.pack_of(place), place, *files.tree(place)) if file.exists()]
            files.sync_all([*below, *sorted(above)])

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
            self._require_free(path, self._locate(path))

        def open_sink(forms: Mapping[str, formats.Form]) -> Sink:
            return self._open_sink(path, forms)

        return Pieces(path, rows, dtypes=dtypes or {}, finite=finite, chunk_mb=self._chunk_mb, open_sink=open_sink)

    def manifest(self, ref: Reference | str) -> Manifest:
        """Return the manifest of a committed group, as `RepresentationStore.manifest` says."""
        path = ref if isinstance(ref, str) else ref.path
        expected = None if isinstance(ref, str) else ref.digest
        file, place = f"{path}/{MANIFEST}", self._locate(path)
        with failures(f"{path}: no committed group can be read ({file} in {self._root})"):
            if (pack := packed.pack_of(place)).exists():
                return packed.read_manifest(path, pack, expected=expected)
            data = (place / MANIFEST).read_bytes()
        return manifest.decode(path, file, data, expected=expected)

    def read(self, ref: Reference | str, name: str, rows: slice | None = None) -> np.ndarray:
        """Return an array or some of its rows, verified, as `RepresentationStore.read` says."""
        path = ref if isinstance(ref, str) else ref.path
        if (pack := packed.pack_of(self._locate(path))).exists():
            with failures(f"{path}: cannot be read in {self._root}"):
                return packed.read_array(path, pack, name, rows, expected=None if isinstance(ref, str) else ref.digest)
        from store.zarr_arrays import GroupFolder

        found = self.manifest(ref)
        info = found.array(path, name)
        selected, chunks = formats.span(info, rows)
        values = GroupFolder(self._locate(path), path, found).read_chunks(name, chunks)
        return formats.decode(formats.select(values, chunks.start * info.chunk_rows, selected), info)

    def committed(self, path: str) -> list[str]:
        """Return the names of the committed groups directly below `path`, sorted; none if there is no such folder."""
        entries = self._entries(path)
        packs = [entry.name.removesuffix(packed.SUFFIX) for entry in entries if _is_pack(entry)]
        return sorted([*packs, *(entry.name for entry in entries if (entry / MANIFEST).is_file())])

    def delete(self, path: str) -> None:
        """Delete a group, the manifest first, as `RepresentationStore.delete` says."""
        folder = self._locate(path)
        with failures(f"{path}: cannot be deleted in {self._root}"):
            with contextlib.suppress(FileNotFoundError):
                packed.pack_of(folder).unlink()
            if (folder / MANIFEST).is_file():
                (folder / MANIFEST).unlink()
                if self._durable:
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
            if not Path(os.path.realpath(place)).is_relative_to(self._root):
                raise StoreError(f"{path}: is a link that leaves the store's root {self._root}; put the data inside the root")
        return place

    def _open_sink(self, path: str, forms: Mapping[str, formats.Form]) -> Sink:
        """Return where the arrays of the group `path` go, its folder cleared."""
        # Here, because importing zarr takes half a second, which a command that reads documents alone should not pay.
        from store.zarr_writing import GroupFiles

        folder = self._locate(path)
        with failures(self._unwritable(path)):
            self._require_free(path, folder)
            self._clear(path, folder)
            if not self._durable:
                return packed.PackWriter(path, packed.pack_of(folder), forms, packed.publish)
            return GroupFiles(path, folder, self._root, forms)

    def _unwritable(self, path: str) -> str:
        return f"{path}: cannot be written in {self._root}"

    def _entries(self, path: str) -> list[Path]:
        folder = self._locate(path) if check_folder(path) else self._root
        with failures(f"{path or self._root}: cannot be listed"):
            return sorted(folder.iterdir()) if folder.is_dir() else []

    def _require_free(self, path: str, folder: Path) -> None:
        for place in files.ancestors(folder, self._root):
            if (place / MANIFEST).exists() or (place != self._root and packed.pack_of(place).exists()):
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
        if self._durable:
            files.sync(folder.parent)


def _is_pack(entry: Path) -> bool:
    return entry.name.endswith(packed.SUFFIX) and not entry.name.startswith(".") and entry.is_file()


def _is_of_group(name: str) -> bool:
    return name == METADATA or name.startswith("c.") or name.endswith(files.PARTIAL)
