"""What a store is: groups of arrays (`RepresentationStore`) and small documents (`DocumentStore`).

Paths are relative to the store's root (a run's folder) and separated by `/`; a path that is absolute or leaves the root is refused.
Every failure is a `StoreError` that names the path; numbers that cannot be stored are a `NumericalError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from store.manifest import Manifest


@dataclass(frozen=True)
class Reference:
    """A committed group and exactly what it holds. `digest` is the hex SHA-256 of the manifest's bytes."""

    path: str
    digest: str


class GroupWriter(Protocol):
    """A group given piece by piece, from `RepresentationStore.begin`; a context, left without a commit the group does not exist.

    Failures are those of `RepresentationStore.write`; after one the writer is of no more use.
    """

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write further rows: as many of each array, of the same arrays, shapes and dtypes in every piece."""

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        """Make the group readable and return its reference: that of `write` of the whole arrays."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...


class RepresentationStore(Protocol):
    """Groups of arrays; a group becomes readable all at once, when its manifest is written, and never changes afterwards."""

    def write(
        self,
        path: str,
        arrays: Mapping[str, np.ndarray],
        *,
        attributes: Mapping[str, Any],
        dtypes: Mapping[str, str] | None = None,
        finite: bool = True,
    ) -> Reference:
        """Write and commit the group `path`, and return its reference.

        `dtypes` names the float arrays to store as "float16", "bfloat16" or "float32"; the others are stored exactly as given.
        `attributes` are JSON values. Rows are the first axis, so an array has at least one. What an unfinished write left at `path`
        is removed first; a committed group there is refused. A value that is not finite or does not fit its dtype is a
        `NumericalError` with array and row; `finite=False` admits NaN and infinity in the arrays that `dtypes` does not name.
        """

    def begin(self, path: str, *, rows: int, dtypes: Mapping[str, str] | None = None, finite: bool = True) -> GroupWriter:
        """Return the writer of the group `path`, whose arrays have `rows` rows each; the other arguments are those of `write`."""

    def manifest(self, ref: Reference | str) -> Manifest:
        """Return the manifest of a committed group: exactly the one referred to, or (for a path) whatever is committed there."""

    def read(self, ref: Reference | str, name: str, rows: slice | None = None) -> np.ndarray:
        """Return array `name`, or its `rows`, as a new array; bfloat16 comes back as float32.

        Every chunk read is checked against the manifest; a missing, truncated or altered one is a `StoreError` that names it.
        """

    def committed(self, path: str) -> list[str]:
        """Return the names of the committed groups directly below `path`, sorted; none if there is no such folder."""

    def delete(self, path: str) -> None:
        """Delete the group `path`, the manifest first, or what an unfinished write or delete left there; absent is fine."""


class DocumentStore(Protocol):
    """Small JSON documents, each carrying its own digest; a document appears whole or not at all."""

    def write_document(self, path: str, document: Mapping[str, Any], *, create: bool) -> str:
        """Write the document `path` (ending in .json) and return the hex SHA-256 of its content.

        With `create` an existing document is refused: of several writers at once exactly one succeeds. Keys become strings.
        """

    def read_document(self, path: str) -> dict[str, Any]:
        """Return the document `path`; raises `StoreError` if it is missing, truncated or altered."""

    def documents(self, path: str) -> list[str]:
        """Return the names of the documents directly below `path` ("" is the root), sorted; none if there is no such folder."""


class Store(RepresentationStore, DocumentStore, Protocol):
    """Both: what holds a run."""

    def relaxed(self) -> Store:
        """Return the same store, whose groups are whole but perhaps not on the disk when they are committed, or deleted.

        A power failure may damage them, which their digests show; a killed process does them no harm.
        """

    def sweep(self, named: Callable[[], Collection[str]]) -> list[str]:
        """Remove what killed writers left: temporary files, and groups without a manifest; return those groups, sorted.

        A group that `named` returns, asked only if there is one to remove, is left as it is: that it has no manifest is damage.
        """

    def settle(self, paths: Sequence[str]) -> None:
        """Flush committed groups that were written to the relaxed store to the disk; returns when they are there."""
