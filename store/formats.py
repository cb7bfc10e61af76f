"""Arrays as stored: precision, chunks along rows, a digest per chunk.

bfloat16 has no numpy dtype: it lies as uint16, the upper half of the float32, rounded to nearest, ties to even.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repsearch.errors import NumericalError, StoreError
from store.manifest import ArrayInfo
from store.paths import check_array_name

PRECISIONS = ("float16", "bfloat16", "float32")
_KINDS = "biufc"
_ITEM_BYTES = 16  # complex128; larger ones (long double) differ between machines
_EXPONENT = 0x7F80  # of bfloat16: all ones is infinite
_MAGNITUDE, _INFINITE = np.uint16(0x7FFF), 0x7C00  # of float16


@dataclass(frozen=True)
class Form:
    """How one array is stored, known before its values are.

    what: the array in messages. shape, dtype, logical_dtype, chunk_rows: as in `ArrayInfo`. given: dtype of the values to be stored.
    finite: refuse values that are not finite.
    """

    what: str
    shape: tuple[int, ...]
    given: np.dtype[Any]
    dtype: np.dtype[Any]
    logical_dtype: str
    chunk_rows: int
    finite: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def chunks(self) -> int:
        """Number of chunks; none of an array without elements."""
        return -(-self.shape[0] // self.chunk_rows) if math.prod(self.shape) else 0

    def info(self, chunk_digests: Sequence[str]) -> ArrayInfo:
        """Return what the manifest says of the array."""
        return ArrayInfo(self.shape, self.dtype.name, self.logical_dtype, self.chunk_rows, tuple(chunk_digests))

    def encode(self, values: np.ndarray, first_row: int) -> np.ndarray:
        """Return `values`, rows of the array from `first_row` on, as they are stored: contiguous, little-endian.

        Raises `NumericalError` naming the array and the row of a value that cannot be stored.
        """
        stored = self._converted(values)
        # What is not finite stays so in every precision, and what is too large becomes so: one look finds both.
        if not self._storable(values, stored):
            self._refuse(values, first_row)
        return stored

    def _converted(self, values: np.ndarray) -> np.ndarray:
        if self.logical_dtype == "bfloat16":
            with np.errstate(over="ignore", under="ignore"):
                return _round_to_bfloat16(values.astype(np.float32, copy=False))
        with np.errstate(over="ignore", under="ignore"):
            return np.ascontiguousarray(values, dtype=self.dtype)

    def _storable(self, values: np.ndarray, stored: np.ndarray) -> bool:
        if self.logical_dtype == "bfloat16":
            return bool(np.isfinite(values).all() and ((stored & _EXPONENT) != _EXPONENT).all())
        if not self.finite or not stored.size or stored.dtype.kind not in "fc":
            return True
        if stored.dtype == np.float16:
            # numpy looks at one float16 at a time; as integers they are compared in vectors.
            return int((stored.view(np.uint16) & _MAGNITUDE).max()) < _INFINITE
        return bool(np.isfinite(stored).all())

    def _refuse(self, values: np.ndarray, first_row: int) -> None:
        problem = "is not finite"
        good = np.isfinite(values)
        if good.all():
            too_large = "store it as float32" if self.logical_dtype == "bfloat16" else "store it with a wider range"
            problem = f"is too large for {self.logical_dtype}; {too_large}"
            stored = self._converted(values)
            good = (stored & _EXPONENT) != _EXPONENT if self.logical_dtype == "bfloat16" else np.isfinite(stored)
        index = np.unravel_index(int(np.argmin(good)), good.shape)
        raise NumericalError(f"{self.what}, row {first_row + int(index[0])}: value {values[index]} {problem}")


def forms_of(
    path: str, arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str], *, finite: bool, chunk_mb: float, rows: int | None = None
) -> dict[str, Form]:
    """Return how the arrays of the group `path` are stored; raises `StoreError` naming the array that cannot be.

    `rows`: number of rows in all, if `arrays` are only the first of them.
    """
    if surplus := sorted(dtypes.keys() - arrays.keys()):
        raise StoreError(f"{path}: a dtype is given for {surplus[0]!r}, which is not among the arrays {', '.join(sorted(arrays))}")
    for name in arrays:
        check_array_name(path, name)
    return {name: _form(f"{path}: array {name!r}", array, dtypes.get(name), finite, chunk_mb, rows) for name, array in arrays.items()}


def decode(values: np.ndarray, info: ArrayInfo) -> np.ndarray:
    """Return stored `values` as numbers: bfloat16 as float32, anything else unchanged."""
    if info.logical_dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def chunk_digest(values: np.ndarray) -> str:
    """Return the hex SHA-256 of the bytes of stored `values`."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


def chunk_digests(values: np.ndarray, form: Form) -> list[str]:
    """Return the digest of each chunk of the stored `values` of a whole array."""
    return [chunk_digest(values[start : start + form.chunk_rows]) for start in range(0, form.chunks * form.chunk_rows, form.chunk_rows)]


def span(info: ArrayInfo, rows: slice | None) -> tuple[range, range]:
    """Return the rows that `rows` selects and the chunks they lie in."""
    selected = range(info.shape[0])[rows if rows is not None else slice(None)]
    if not selected or not info.chunk_digests:
        return selected, range(0)
    low, high = min(selected[0], selected[-1]), max(selected[0], selected[-1])
    return selected, range(low // info.chunk_rows, high // info.chunk_rows + 1)


def select(values: np.ndarray, first_row: int, selected: range) -> np.ndarray:
    """Return the rows `selected` (numbered in the whole array) of `values`, which begin at row `first_row`, as an own array."""
    if not selected:
        return values[:0].copy()
    low, high = min(selected[0], selected[-1]) - first_row, max(selected[0], selected[-1]) - first_row + 1
    rows = values[low:high][:: selected.step]
    # A view would keep the unselected rows of its chunks in memory.
    return rows if rows.size == values.size and selected.step == 1 else rows.copy()


def _form(what: str, array: np.ndarray, dtype: str | None, finite: bool, chunk_mb: float, rows: int | None) -> Form:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS or array.dtype.itemsize > _ITEM_BYTES:
        raise StoreError(f"{what}: is {getattr(array, 'dtype', type(array).__name__)}; give a numpy array of numbers or booleans")
    if array.ndim == 0:
        raise StoreError(f"{what}: has shape () and so no rows; give it at least one axis")
    stored = array.dtype.newbyteorder("<") if dtype is None else _precision(what, array, dtype)
    shape = (array.shape[0] if rows is None else rows, *array.shape[1:])
    row_bytes = max(1, stored.itemsize * math.prod(shape[1:]))
    chunk_rows = max(1, min(shape[0], int(chunk_mb * 1e6) // row_bytes))
    return Form(what, shape, array.dtype, stored, dtype or stored.name, chunk_rows, finite or dtype is not None)


def _precision(what: str, array: np.ndarray, dtype: str) -> np.dtype[Any]:
    if dtype not in PRECISIONS:
        raise StoreError(f"{what}: cannot be stored as {dtype!r}; choose one of {', '.join(PRECISIONS)}")
    if array.dtype.kind != "f":
        raise StoreError(f"{what}: is {array.dtype}, only float arrays are stored as {dtype}; leave its dtype out")
    return np.dtype({"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}[dtype])


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Half of the last kept bit, minus one unless that bit is odd: a tie goes to the even neighbour.
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
