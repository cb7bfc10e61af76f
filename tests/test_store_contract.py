"""The contract of a store, for every implementation."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from repsearch.errors import NumericalError, StoreError
from store import MemoryStore, Reference, Store, ZarrStore, open_store

ARRAYS = {"block0": np.arange(60, dtype=np.float32).reshape(10, 2, 3), "label": np.arange(10)}


@pytest.fixture(params=["zarr", "packed", "memory", "s3", pytest.param("s3 packed", marks=pytest.mark.faults)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    # Chunks of 100 bytes: block0 has 24 bytes per row, so 4 rows per chunk and a shorter last one.
    if request.param == "memory":
        return MemoryStore(chunk_mb=1e-4)
    location = request.getfixturevalue("s3_location") if request.param.startswith("s3") else tmp_path / "run"
    store = open_store(location, chunk_mb=1e-4, late_s=0)
    return store.relaxed() if request.param.endswith("packed") else store


def test_round_trip(store: Store) -> None:
    ref = store.write("rounds/00000/search/00000-a1", ARRAYS, attributes={"kind": "search", "count": 10, "curve": [0.5, 1e-9]})
    assert store.manifest(ref) == store.manifest(ref.path)
    manifest = store.manifest(ref)
    assert Reference(ref.path, manifest.digest) == ref
    assert manifest.attributes == {"kind": "search", "count": 10, "curve": [0.5, 1e-9]}
    info = manifest.arrays["block0"]
    assert (info.shape, info.dtype, info.logical_dtype, info.chunk_rows) == ((10, 2, 3), "float32", "float32", 4)
    assert len(info.chunk_digests) == 3
    for name, array in ARRAYS.items():
        read = store.read(ref, name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    "rows", [slice(0, 4), slice(3, 5), slice(9, 10), slice(-3, None), slice(None, None, 3), slice(8, 1, -2), slice(4, 4), slice(7, 99)]
)
def test_rows(store: Store, rows: slice) -> None:
    ref = store.write("g", ARRAYS, attributes={})
    np.testing.assert_array_equal(store.read(ref, "block0", rows), ARRAYS["block0"][rows])


def test_what_is_read_or_was_written_can_change_without_changing_the_store(store: Store) -> None:
    array = ARRAYS["block0"].copy()
    ref = store.write("g", {"x": array}, attributes={})
    array[:] = -1
    store.read(ref, "x")[:] = -2
    np.testing.assert_array_equal(store.read(ref, "x"), ARRAYS["block0"])


def test_precision(store: Store) -> None:
    values = np.array([[1.0, 1 / 3], [-65504, 1e-3]])
    ref = store.write(
        "g", {"h": values, "b": values, "f": values, "d": values}, attributes={}, dtypes={"h": "float16", "b": "bfloat16", "f": "float32"}
    )
    arrays = store.manifest(ref).arrays
    assert {name: (info.dtype, info.logical_dtype) for name, info in arrays.items()} == {
        "h": ("float16", "float16"),
        "b": ("uint16", "bfloat16"),
        "f": ("float32", "float32"),
        "d": ("float64", "float64"),
    }
    np.testing.assert_array_equal(store.read(ref, "h"), values.astype(np.float16))
    np.testing.assert_array_equal(store.read(ref, "f"), values.astype(np.float32))
    np.testing.assert_array_equal(store.read(ref, "d"), values)
    assert store.read(ref, "b").dtype == np.float32
    np.testing.assert_allclose(store.read(ref, "b"), values, rtol=2**-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtypes", [{}, {"fitness": "float16"}, {"fitness": "bfloat16"}])
def test_not_finite_is_named(store: Store, bad: float, dtypes: dict[str, str]) -> None:
    fitness = np.zeros((20, 3), np.float32)
    fitness[17, 1] = bad
    with pytest.raises(NumericalError, match=r"g: array 'fitness', row 17: value .*(nan|inf).* is not finite"):
        store.write("g", {"fitness": fitness}, attributes={}, dtypes=dtypes)
    assert store.committed("") == []


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", 3.4e38), ("float32", 1e300)])
def test_overflow_is_named(store: Store, dtype: str, value: float) -> None:
    values = np.zeros((5, 2))
    values[3, 0] = value
    with pytest.raises(NumericalError, match=rf"g: array 'x', row 3: value .* is too large for {dtype}"):
        store.write("g", {"x": values}, attributes={}, dtypes={"x": dtype})


def test_not_finite_is_kept_where_asked_for(store: Store) -> None:
    values = np.array([0x7FC01234, 0xFF800000, 0x7F800001], np.uint32).view(np.float32)
    ref = store.write("g", {"x": values}, attributes={}, finite=False)
    np.testing.assert_array_equal(store.read(ref, "x").view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize(
    ("arrays", "dtypes", "message"),
    [
        ({"x": np.zeros(())}, {}, "has shape"),
        ({"x": np.array(["a"])}, {}, "numbers or booleans"),
        ({"x": np.array([None])}, {}, "numbers or booleans"),
        ({"x": [1.0]}, {}, "numbers or booleans"),
        ({"x": np.zeros(3)}, {"y": "float16"}, "'y', which is not among the arrays x"),
        ({"x": np.zeros(3)}, {"x": "float8"}, "'float8'; choose one of float16, bfloat16, float32"),
        ({"x": np.arange(3)}, {"x": "float16"}, "only float arrays"),
        ({"../x": np.zeros(3)}, {}, "cannot name an array"),
        ({"zarr.json": np.zeros(3)}, {}, "cannot name an array"),
        ({"": np.zeros(3)}, {}, "cannot name an array"),
    ],
)
def test_arrays_that_cannot_be_stored(store: Store, arrays: dict[str, np.ndarray], dtypes: dict[str, str], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        store.write("g", arrays, attributes={}, dtypes=dtypes)


def test_attributes_are_json(store: Store) -> None:
    with pytest.raises(NumericalError, match="g: holds a number that is not finite"):
        store.write("g", {}, attributes={"loss": float("nan")})
    with pytest.raises(StoreError, match="g: holds a value that JSON cannot"):
        store.write("g", {}, attributes={"loss": object()})
    ref = store.write("g", {}, attributes={"loss": np.float32(0.5), "n": np.int64(3), "names": ("a", "b")})
    assert store.manifest(ref).attributes == {"loss": 0.5, "n": 3, "names": ["a", "b"]}


def test_a_committed_group_never_changes(store: Store) -> None:
    ref = store.write("a/b", ARRAYS, attributes={})
    for path in ("a/b", "a/b/c"):
        with pytest.raises(StoreError, match="group a/b is committed there"):
            store.write(path, ARRAYS, attributes={})
    with pytest.raises(StoreError, match="a: holds"):
        store.write("a", ARRAYS, attributes={})
    with pytest.raises(StoreError, match="a: holds"):
        store.delete("a")
    np.testing.assert_array_equal(store.read(ref, "label"), ARRAYS["label"])


def test_reference_is_to_exact_content(store: Store) -> None:
    first = store.write("g", ARRAYS, attributes={"attempt": 1})
    store.delete("g")
    second = store.write("g", ARRAYS, attributes={"attempt": 2})
    assert store.manifest(second).attributes == {"attempt": 2}
    for use in (lambda ref: store.manifest(ref), lambda ref: store.read(ref, "label")):
        with pytest.raises(StoreError, match=r"g(/MANIFEST.json|\.pack): is not the manifest referred to"):
            use(first)
    store.delete("g")
    assert store.write("g", ARRAYS, attributes={"attempt": 1}) == first


def test_what_is_not_there(store: Store) -> None:
    for ref in ("rounds/00001/network/initial", Reference("rounds/00001/network/initial", "0" * 64)):
        with pytest.raises(StoreError, match="rounds/00001/network/initial: no"):
            store.read(ref, "x")
    ref = store.write("g", ARRAYS, attributes={})
    with pytest.raises(StoreError, match="g: has no array 'logits'; it has block0, label"):
        store.read(ref, "logits")
    store.delete("absent")
    assert store.committed("absent") == store.documents("absent") == []


def test_committed_and_delete(store: Store) -> None:
    for name in ("00001-a1", "00000-a2", "00000-a1"):
        store.write(f"rounds/00000/search/{name}", ARRAYS, attributes={})
    assert store.committed("rounds/00000/search") == ["00000-a1", "00000-a2", "00001-a1"]
    assert store.committed("rounds/00000") == store.committed("") == []
    store.delete("rounds/00000/search/00000-a2")
    assert store.committed("rounds/00000/search") == ["00000-a1", "00001-a1"]
    with pytest.raises(StoreError):
        store.manifest("rounds/00000/search/00000-a2")


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "a/..", "", ".", "a//b", "a/./b", "a/", "a\\b", "a\0b"])
def test_paths_that_leave_the_root_or_are_not_normal(store: Store, path: str) -> None:
    uses = (
        lambda: store.write(path, {}, attributes={}),
        lambda: store.manifest(path),
        lambda: store.read(Reference(path, "0"), "x"),
        lambda: store.delete(path),
        lambda: store.write_document(path + ".json" if path.endswith("x") else path, {}, create=True),
        lambda: store.read_document(path),
    )
    for use in uses:
        with pytest.raises(StoreError, match="store path"):
            use()
    if path:
        for listing in (store.committed, store.documents):
            with pytest.raises(StoreError, match="store path"):
                listing(path)


def test_documents(store: Store) -> None:
    digest = store.write_document(
        "rounds/00000/round.json", {"shards": [{"path": "a", "x": 0.1}], "b": {"z": None, "a": True}}, create=True
    )
    assert len(digest) == 64
    assert store.read_document("rounds/00000/round.json") == {"shards": [{"path": "a", "x": 0.1}], "b": {"z": None, "a": True}}
    assert list(store.read_document("rounds/00000/round.json")["b"]) == ["z", "a"]
    with pytest.raises(StoreError, match=r"rounds/00000/round\.json: exists already"):
        store.write_document("rounds/00000/round.json", {}, create=True)
    assert store.write_document("rounds/00000/round.json", {"n": 2}, create=False) != digest
    assert store.read_document("rounds/00000/round.json") == {"n": 2}
    store.write_document("run.json", {}, create=False)
    assert store.documents("rounds/00000") == ["round.json"]
    assert store.documents("") == ["run.json"]
    with pytest.raises(StoreError, match=r"absent\.json: "):
        store.read_document("absent.json")
    for name in ("run", "MANIFEST.json", "a/zarr.json"):
        with pytest.raises(StoreError, match="cannot name a document"):
            store.write_document(name, {}, create=True)


def test_documents_hold_finite_json(store: Store) -> None:
    with pytest.raises(NumericalError, match=r"run\.json: holds a number that is not finite"):
        store.write_document("run.json", {"accuracy": float("inf")}, create=True)
    with pytest.raises(StoreError, match=r"run\.json: holds a value that JSON cannot"):
        store.write_document("run.json", {"path": Path()}, create=True)
    assert store.documents("") == []


def test_of_threads_that_create_a_document_one_wins(store: Store) -> None:
    start = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        start.wait()
        try:
            store.write_document("round.json", {"by": number}, create=True)
        except StoreError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.read_document("round.json")["by"]] == won


def test_open_store(tmp_path: Path) -> None:
    assert isinstance(open_store("memory:"), MemoryStore)
    for location in (str(tmp_path / "a:b"), tmp_path, f"file://{tmp_path}"):
        assert isinstance(open_store(location), ZarrStore)
    assert list(tmp_path.iterdir()) == []
    for location, message in (("gs://bucket/run", "scheme 'gs' is not supported"), ("file://host/run", "'file'"), ("", "empty")):
        with pytest.raises(StoreError, match=message):
            open_store(location)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="is not a folder"):
        open_store(tmp_path / "file")
