"""Groups given piece by piece: checks that the pieces fit one another, and hands them on to where a store puts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from repsearch.errors import StoreError
from store import formats, manifest
from store.base import Reference
from store.formats import Form


class Sink(Protocol):
    """A group being written; failures are those of `RepresentationStore.write`."""

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take further rows of every array."""

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        """Make the group readable."""

    def close(self) -> None:
        """Release everything held; without a commit the group does not exist."""


class Pieces:
    """The `GroupWriter` of a group of `rows` rows; `open_sink` is called with the forms of the arrays, once they are known."""

    def __init__(
        self,
        path: str,
        rows: int,
        *,
        dtypes: Mapping[str, str],
        finite: bool,
        chunk_mb: float,
        open_sink: Callable[[Mapping[str, Form]], Sink],
    ) -> None:
        self._path, self._total = path, rows
        self._dtypes, self._finite, self._chunk_mb = dtypes, finite, chunk_mb
        self._open_sink = open_sink
        self._forms: dict[str, Form] = {}
        self._sink: Sink | None = None
        self._rows = 0

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write further rows of every array, as `GroupWriter.append` says."""
        forms = formats.forms_of(self._path, arrays, self._dtypes, finite=self._finite, chunk_mb=self._chunk_mb, rows=self._total)
        if self._sink is None:
            self._forms, self._sink = forms, self._open_sink(forms)
        if forms != self._forms:
            raise StoreError(f"{self._path}: a piece has other arrays, shapes or dtypes than the first; give the same in every piece")
        counts = {len(values) for values in arrays.values()}
        if len(counts) > 1 or self._rows + max(counts, default=0) > self._total:
            found = f"a piece has {sorted(counts)} rows after {self._rows} of {self._total}"
            raise StoreError(f"{self._path}: {found}; give as many of each array, and no more than there are")
        self._sink.append(arrays)
        self._rows += max(counts, default=0)

    def commit(self, attributes: Mapping[str, Any]) -> Reference:
        """Make the group readable, as `GroupWriter.commit` says."""
        if self._sink is None or self._rows != self._total:
            raise StoreError(f"{self._path}: has {self._rows} rows of {self._total}; append the others before the commit")
        manifest.check(self._path, attributes)
        return self._sink.commit(attributes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._sink is not None:
            self._sink.close()
