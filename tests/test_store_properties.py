"""Properties of formats and parameters; independent readers and roundings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repsearch.errors import NumericalError, StoreError
from store import MemoryStore, Store, ZarrStore
from store.parameters import read_parameters, write_parameters
from store.verification import verify_group

DTYPES = st.sampled_from(["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">i4", ">f4", ">f8"])
BOUNDS = st.none() | st.integers(-9, 9)
ROWS = st.none() | st.builds(slice, BOUNDS, BOUNDS, st.none() | st.sampled_from([1, 2, 3, -1, -2]))
CHUNK_MB = st.sampled_from([1e-6, 2e-5, 1e-4, 4.0])


def bits(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return an array of random bits: for floats every kind of NaN, infinity and subnormal number."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(seed).integers(0, 2 if dtype == "?" else 256, size, np.uint8)
    return data.view(np.dtype(dtype)).reshape(shape)


ARRAYS = st.builds(bits, DTYPES, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6), st.integers(0, 2**32))
PARAMETERS = st.builds(bits, DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), st.integers(0, 2**32))


def stores(chunk_mb: float) -> Iterator[Store]:
    yield MemoryStore(chunk_mb=chunk_mb)
    with tempfile.TemporaryDirectory() as folder:
        yield ZarrStore(Path(folder), chunk_mb=chunk_mb)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays have the same shape and the same values in every bit, in whatever byte order they lie."""
    native = right.astype(right.dtype.newbyteorder("="))
    return left.dtype == native.dtype and left.shape == native.shape and left.tobytes() == native.tobytes()


@settings(max_examples=60, deadline=None)
@given(array=ARRAYS, rows=ROWS, chunk_mb=CHUNK_MB, transposed=st.booleans())
def test_any_array_comes_back(array: np.ndarray, rows: slice | None, chunk_mb: float, transposed: bool) -> None:
    array = array.T if transposed else array
    for store in stores(chunk_mb):
        ref = store.write("g", {"x": array}, attributes={}, finite=False)
        assert same_bits(store.read(ref, "x"), array)
        assert same_bits(store.read(ref, "x", rows), array[rows] if rows is not None else array)
        assert verify_group(store, ref) == store.manifest("g")


@settings(max_examples=40, deadline=None)
@given(arrays=st.dictionaries(st.text(max_size=8), PARAMETERS, max_size=6), chunk_mb=CHUNK_MB)
def test_any_parameters_come_back(arrays: dict[str, np.ndarray], chunk_mb: float) -> None:
    for store in stores(chunk_mb):
        ref = write_parameters(store, "network", arrays, {"kind": "network"})
        read = read_parameters(store, ref)
        assert list(read) == list(arrays)
        assert all(same_bits(read[name], array) for name, array in arrays.items())
        assert store.manifest(ref).attributes["kind"] == "network"
        assert set(store.manifest(ref).arrays) == {array.dtype.name for array in arrays.values()}


def test_parameters_that_are_none() -> None:
    store = MemoryStore()
    ref = store.write("g", {}, attributes={})
    with pytest.raises(StoreError, match="g: holds no parameters"):
        read_parameters(store, ref)
    with pytest.raises(StoreError, match="attribute 'parameters'"):
        write_parameters(store, "h", {}, {"parameters": 1})


def test_parameters_are_own_arrays_that_can_be_changed() -> None:
    store = MemoryStore()
    ref = write_parameters(store, "n", {"a": np.ones(2), "b": np.zeros(2)}, {})
    read = read_parameters(store, ref)
    read["a"][:] = 5
    np.testing.assert_array_equal(read["b"], np.zeros(2))
    np.testing.assert_array_equal(read_parameters(store, ref)["a"], np.ones(2))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_bfloat16_rounds_as_torch_does(seed: int) -> None:
    values = bits("f4", (1000,), seed)
    values = values[np.isfinite(values) & (np.abs(values) < 3.3e38)]
    # Ties: the lower half is exactly one half of the last bit kept.
    ties = ((values.view(np.uint32) & 0xFFFF0000) | 0x8000).view(np.float32)
    values = np.concatenate([values, ties[np.isfinite(ties) & (np.abs(ties) < 3.3e38)]])
    store = MemoryStore()
    ref = store.write("g", {"x": values}, attributes={}, dtypes={"x": "bfloat16"})
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert same_bits(store.read(ref, "x"), expected)


@settings(max_examples=60, deadline=None)
@given(exponent=st.integers(0, 255), fraction=st.integers(0, 2**23 - 1), dtype=st.sampled_from(["float16", "bfloat16"]))
def test_refused_exactly_when_torch_gives_infinity(exponent: int, fraction: int, dtype: str) -> None:
    value = np.array([exponent << 23 | fraction], np.uint32).view(np.float32)
    store = MemoryStore()
    if torch.from_numpy(value).to(getattr(torch, dtype)).isfinite().all():
        ref = store.write("g", {"x": value}, attributes={}, dtypes={"x": dtype})
        assert same_bits(store.read(ref, "x").astype(np.float32), torch.from_numpy(value).to(getattr(torch, dtype)).float().numpy())
    else:
        with pytest.raises(NumericalError, match="row 0"):
            store.write("g", {"x": value}, attributes={}, dtypes={"x": dtype})


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8", "float16", "float32", "float64", "bfloat16"])
def test_tensorstore_reads_the_same_bits(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(1).standard_normal((23, 4, 3, 3)) * 100
    array = values.astype(np.float32) if dtype == "bfloat16" else values.astype(dtype)
    store = ZarrStore(tmp_path, chunk_mb=1e-3)
    ref = store.write("rounds/00000/search/00000-a1", {"x": array}, attributes={}, dtypes={"x": dtype} if dtype == "bfloat16" else None)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / ref.path / "x")}}
    read = tensorstore.open(spec, read=True).result().read().result()
    if dtype == "bfloat16":
        assert read.dtype == np.uint16
        expected = torch.from_numpy(array).to(torch.bfloat16)
        assert torch.equal(torch.from_numpy(read).view(torch.bfloat16), expected)
    else:
        assert same_bits(read, array)


def test_equal_content_has_equal_references(tmp_path: Path) -> None:
    array = np.random.default_rng(1).standard_normal((50, 4))
    refs = [ZarrStore(tmp_path / name).write("g", {"x": array}, attributes={"a": 1}) for name in ("one", "two")]
    assert refs[0] == refs[1]
    assert ZarrStore(tmp_path / "three").write("g", {"x": -array}, attributes={"a": 1}) != refs[0]
