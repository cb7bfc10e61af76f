"""Named parameters as a group: one flat array per dtype and an index in the attributes.

An array costs milliseconds to create, and a network has dozens of parameters and buffers. Bits are kept exactly, NaN payloads included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from repsearch.errors import StoreError
from store.base import Reference, RepresentationStore

INDEX = "parameters"
"""Attribute with one entry per parameter, in order: name, shape, offset (in elements of the flat array) and dtype (its name)."""


def write_parameters(store: RepresentationStore, path: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> Reference:
    """Write and commit `arrays`, of any shapes and numeric dtypes, as the group `path`, and return its reference."""
    if INDEX in attributes:
        raise StoreError(f"{path}: attribute {INDEX!r} is kept for the index of the parameters; choose another name")
    index: list[dict[str, Any]] = []
    parts: dict[str, list[np.ndarray]] = {}
    ends: dict[str, int] = {}
    for name, array in arrays.items():
        dtype = array.dtype.name
        index.append({"name": name, "shape": list(array.shape), "offset": ends.get(dtype, 0), "dtype": dtype})
        parts.setdefault(dtype, []).append(array.reshape(-1))
        ends[dtype] = ends.get(dtype, 0) + array.size
    flat = {dtype: np.concatenate(pieces) for dtype, pieces in parts.items()}
    return store.write(path, flat, attributes={**attributes, INDEX: index}, finite=False)


def read_parameters(store: RepresentationStore, ref: Reference | str) -> dict[str, np.ndarray]:
    """Return the arrays that `write_parameters` wrote, in order; raises `StoreError` if the group is damaged or holds none."""
    path = ref if isinstance(ref, str) else ref.path
    manifest = store.manifest(ref)
    index = manifest.attributes.get(INDEX)
    if not isinstance(index, list):
        raise StoreError(f"{path}: holds no parameters (no attribute {INDEX!r}); give a network or a checkpoint")
    flat = {dtype: store.read(ref, dtype) for dtype in manifest.arrays}
    return {entry["name"]: _cut(flat[entry["dtype"]], entry) for entry in index}


def _cut(flat: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    shape = tuple(entry["shape"])
    size = math.prod(shape)
    return flat[entry["offset"] : entry["offset"] + size].reshape(shape).copy()
