"""Arrays as stored: precision, chunks along rows, a digest per chunk.

bfloat16 has no numpy dtype: it lies as uint16, the upper half of the float32, rounded to nearest, ties to even.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from repsearch.errors import NumericalError, StoreError
from store.manifest import ArrayInfo
from store.paths import check_array_name

PRECISIONS = ("float16", "bfloat16", "float32")
_KINDS = "biufc"
_ITEM_BYTES = 16  # complex128; larger ones (long double) differ between machines
_EXPONENT = 0x7F80  # of bfloat16: all ones is infinite


@dataclass(frozen=True)
class Encoded:
    """An array ready to be written: contiguous little-endian `values`, and what the manifest says of them."""

    values: np.ndarray
    info: ArrayInfo


def encode_arrays(
    path: str, arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str], *, finite: bool, chunk_mb: float
) -> dict[str, Encoded]:
    """Return the arrays of the group `path` as stored; raises `StoreError` or `NumericalError` naming the array that cannot be."""
    if surplus := sorted(dtypes.keys() - arrays.keys()):
        raise StoreError(f"{path}: a dtype is given for {surplus[0]!r}, which is not among the arrays {', '.join(sorted(arrays))}")
    for name in arrays:
        check_array_name(path, name)
    return {name: _encode(f"{path}: array {name!r}", array, dtypes.get(name), finite, chunk_mb) for name, array in arrays.items()}


def decode(values: np.ndarray, info: ArrayInfo) -> np.ndarray:
    """Return stored `values` as numbers: bfloat16 as float32, anything else unchanged."""
    if info.logical_dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def chunk_digest(values: np.ndarray) -> str:
    """Return the hex SHA-256 of the bytes of stored `values`."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


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


def _encode(what: str, array: np.ndarray, dtype: str | None, finite: bool, chunk_mb: float) -> Encoded:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS or array.dtype.itemsize > _ITEM_BYTES:
        raise StoreError(f"{what}: is {getattr(array, 'dtype', type(array).__name__)}; give a numpy array of numbers or booleans")
    if array.ndim == 0:
        raise StoreError(f"{what}: has shape () and so no rows; give it at least one axis")
    if array.dtype.kind in "fc" and (finite or dtype is not None):
        _require(np.isfinite(array), what, array, "is not finite")
    values = array if dtype is None else _convert(what, array, dtype)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    chunk_rows = _chunk_rows(values, chunk_mb)
    starts = range(0, values.shape[0], chunk_rows) if values.size else range(0)
    digests = tuple(chunk_digest(values[start : start + chunk_rows]) for start in starts)
    return Encoded(values, ArrayInfo(values.shape, values.dtype.name, dtype or values.dtype.name, chunk_rows, digests))


def _chunk_rows(values: np.ndarray, chunk_mb: float) -> int:
    rows: int = values.shape[0]
    row_bytes = max(1, values.itemsize * math.prod(values.shape[1:]))
    return max(1, min(rows, int(chunk_mb * 1e6) // row_bytes))


def _convert(what: str, array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype not in PRECISIONS:
        raise StoreError(f"{what}: cannot be stored as {dtype!r}; choose one of {', '.join(PRECISIONS)}")
    if array.dtype.kind != "f":
        raise StoreError(f"{what}: is {array.dtype}, only float arrays are stored as {dtype}; leave its dtype out")
    with np.errstate(over="ignore", under="ignore"):
        values = array.astype(np.float16 if dtype == "float16" else np.float32, copy=False)
    _require(np.isfinite(values), what, array, f"is too large for {dtype}; store it with a wider range")
    if dtype != "bfloat16":
        return values
    rounded = _round_to_bfloat16(values)
    _require((rounded & _EXPONENT) != _EXPONENT, what, array, "is too large for bfloat16; store it as float32")
    return rounded


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Half of the last kept bit, minus one unless that bit is odd: a tie goes to the even neighbour.
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def _require(good: np.ndarray, what: str, array: np.ndarray, problem: str) -> None:
    if not good.all():
        index = np.unravel_index(int(np.argmin(good)), good.shape)
        raise NumericalError(f"{what}, row {int(index[0])}: value {array[index]} {problem}")
