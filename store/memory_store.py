"""The store in memory: the contract of `ZarrStore` for tests and trials, gone with the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from repsearch.errors import StoreError
from store import documents, formats, manifest
from store.base import GroupWriter, Reference
from store.formats import Form
from store.manifest import Manifest
from store.paths import MANIFEST, check_document_path, check_folder, check_path
from store.pieces import Pieces


class MemoryStore:
    """A store that begins empty; threads may share it."""

    def __init__(self, *, chunk_mb: float = 4.0) -> None:
        self._chunk_mb = chunk_mb
        self._lock = threading.Lock()
        self._groups: dict[str, tuple[bytes, dict[str, np.ndarray]]] = {}
        self._documents: dict[str, bytes] = {}

    def relaxed(self) -> MemoryStore:
        """Return the store itself."""
        return self

    def sweep(self, named: Callable[[], Collection[str]]) -> list[str]:
        """Do nothing: what was not committed went with its writer."""
        return []

    def settle(self, paths: Sequence[str]) -> None:
        """Do nothing: there is no disk."""

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
        forms = formats.forms_of(check_path(path), arrays, dtypes or {}, finite=finite, chunk_mb=self._chunk_mb)
        sink = self._open_sink(path, forms)
        sink.append(arrays)
        return sink.commit(attributes)

    def begin(self, path: str, *, rows: int, dtypes: Mapping[str, str] | None = None, finite: bool = True) -> GroupWriter:
        """Return the writer of a group given piece by piece, as `RepresentationStore.begin` says."""
        self._require_free(check_path(path))
        return Pieces(
            path, rows, dtypes=dtypes or {}, finite=finite, chunk_mb=self._chunk_mb, open_sink=lambda forms: self._open_sink(path, forms)
        )

    def manifest(self, ref: Reference | str) -> Manifest:
        """Return the manifest of a committed group, as `RepresentationStore.manifest` says."""
        path = check_path(ref if isinstance(ref, str) else ref.path)
        if path not in self._groups:
            raise StoreError(f"{path}: nothing is committed here; it was never finished, or is gone")
        data, _ = self._groups[path]
        return manifest.decode(path, f"{path}/{MANIFEST}", data, expected=None if isinstance(ref, str) else ref.digest)

    def read(self, ref: Reference | str, name: str, rows: slice | None = None) -> np.ndarray:
        """Return an array or some of its rows, as `RepresentationStore.read` says."""
        path = ref if isinstance(ref, str) else ref.path
        info = self.manifest(ref).array(path, name)
        selected, _ = formats.span(info, rows)
        return formats.decode(formats.select(self._groups[path][1][name], 0, selected).copy(), info)

    def committed(self, path: str) -> list[str]:
        """Return the names of the committed groups directly below `path`, sorted."""
        return _below(check_folder(path), list(self._groups))

    def delete(self, path: str) -> None:
        """Delete a group; absent is fine."""
        check_path(path)
        with self._lock:
            if any(other.startswith(f"{path}/") for other in (*self._groups, *self._documents)):
                raise StoreError(f"{path}: holds groups or documents and is not a group; delete them one by one")
            self._groups.pop(path, None)

    def write_document(self, path: str, document: Mapping[str, Any], *, create: bool) -> str:
        """Write a document, as `DocumentStore.write_document` says."""
        data, digest = documents.encode(check_document_path(path), document)
        with self._lock:
            if create and path in self._documents:
                raise StoreError(f"{path}: exists already; another process wrote it, or it is of an earlier run")
            self._documents[path] = data
        return digest

    def read_document(self, path: str) -> dict[str, Any]:
        """Return a document, as `DocumentStore.read_document` says."""
        if check_document_path(path) not in self._documents:
            raise StoreError(f"{path}: cannot be read: there is no such document")
        return documents.decode(path, self._documents[path])

    def documents(self, path: str) -> list[str]:
        """Return the names of the documents directly below `path` ("" is the root), sorted."""
        return _below(check_folder(path), list(self._documents))

    def _open_sink(self, path: str, forms: Mapping[str, formats.Form]) -> GroupArrays:
        self._require_free(path)
        return GroupArrays(path, forms, self._put)

    def _put(self, path: str, data: bytes, values: dict[str, np.ndarray]) -> None:
        with self._lock:
            self._require_free(path)
            self._groups[path] = (data, values)

    def _require_free(self, path: str) -> None:
        for taken in self._groups:
            if path == taken or path.startswith(f"{taken}/"):
                raise StoreError(f"{path}: group {taken} is committed there and never changes; write to another path, or delete it first")
        if any(other.startswith(f"{path}/") for other in (*self._groups, *self._documents)):
            raise StoreError(f"{path}: holds groups or documents, which no unfinished write leaves; choose another path")


class GroupArrays:
    """The `Sink` of a group; `put` takes the bytes of the manifest and the arrays when it is committed."""

    def __init__(self, path: str, forms: Mapping[str, Form], put: Callable[[str, bytes, dict[str, np.ndarray]], None]) -> None:
        self._path, self._forms, self._put = path, forms, put
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in forms}

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep further rows, as `Sink.append` says."""
        for name, values in arrays.items():
            first_row = sum(map(len, self._parts[name]))
            self._parts[name].append(self._forms[name].encode(values, first_row).copy())

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        """Make the group readable, as `Sink.commit` says."""
        values = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        infos = {name: form.info(formats.chunk_digests(values[name], form)) for name, form in self._forms.items()}
        data = manifest.encode(self._path, infos, attributes, {})
        self._put(self._path, data, values)
        return Reference(self._path, manifest.digest_of(data))

    def close(self) -> None:
        """Do nothing: what was not committed goes with this object."""


def _below(folder: str, paths: list[str]) -> list[str]:
    parents = ((path.rpartition("/"), path) for path in paths)
    return sorted(name for (parent, _, name), _ in parents if parent == folder)
