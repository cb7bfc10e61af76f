"""Groups given piece by piece are those of `write`, in every store; an unfinished one does not exist."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repsearch.errors import NumericalError, StoreError
from store import MemoryStore, Store, ZarrStore, open_store
from store.verification import verify_group

ROWS = 23
ARRAYS = {
    "block0": np.linspace(-3, 3, ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3),
    "code": np.linspace(-1, 1, ROWS * 2).reshape(ROWS, 2),
    "label": np.arange(ROWS),
    "nothing": np.zeros((ROWS, 0), np.float32),
}
DTYPES = {"block0": "float16", "code": "bfloat16"}


@pytest.fixture(params=["zarr", "packed", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    # Chunks of 100 bytes: 8 rows of block0, 12 of label.
    if request.param == "memory":
        return MemoryStore(chunk_mb=1e-4)
    location = request.getfixturevalue("s3_location") if request.param == "s3" else tmp_path / "run"
    store = open_store(location, chunk_mb=1e-4, late_s=0)
    return store.relaxed() if request.param == "packed" else store


def pieces(cuts: list[int]) -> list[dict[str, np.ndarray]]:
    bounds = [0, *sorted(cuts), ROWS]
    return [{name: array[first:end] for name, array in ARRAYS.items()} for first, end in itertools.pairwise(bounds)]


def written(store: Store, path: str, parts: list[dict[str, np.ndarray]], **options: Any) -> Any:
    with store.begin(path, rows=ROWS, dtypes=DTYPES, **options) as writer:
        for part in parts:
            writer.append(part)
        return writer.commit({"kind": "search"})


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=6))
def test_any_cut_gives_the_reference_of_the_whole(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("cut")
    expected = ZarrStore(folder / "whole", chunk_mb=1e-4).write("g", ARRAYS, attributes={"kind": "search"}, dtypes=DTYPES)
    store = ZarrStore(folder / "pieces", chunk_mb=1e-4)
    assert written(store, "g", pieces(cuts)) == expected
    verify_group(store, expected)
    assert np.array_equal(store.read(expected, "block0"), ARRAYS["block0"].astype(np.float16))
    memory = MemoryStore(chunk_mb=1e-4)
    assert written(memory, "g", pieces(cuts)) == MemoryStore(chunk_mb=1e-4).write("g", ARRAYS, attributes={"kind": "search"}, dtypes=DTYPES)


def test_large_pieces_are_written_by_several_threads_with_the_same_result(tmp_path: Path) -> None:
    arrays = {name: np.random.default_rng(0).standard_normal((900, 700), np.float32) for name in ("a", "b")}
    whole = ZarrStore(tmp_path / "whole", chunk_mb=0.1).write("g", arrays, attributes={})
    store = ZarrStore(tmp_path / "pieces", chunk_mb=0.1)
    with store.begin("g", rows=900) as writer:
        for rows in (slice(0, 500), slice(500, 900)):
            writer.append({name: array[rows] for name, array in arrays.items()})
        assert writer.commit({}) == whole
    verify_group(store, whole)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("chunks", "flush"))]


def test_a_group_without_its_commit_does_not_exist_and_can_be_written_again(store: Store) -> None:
    with store.begin("search/a", rows=ROWS, dtypes=DTYPES) as writer:
        writer.append(pieces([9])[0])
    assert store.committed("search") == []
    reference = written(store, "search/a", pieces([4]))
    assert store.committed("search") == ["a"]
    with pytest.raises(StoreError, match="committed there and never changes"):
        store.begin("search/a", rows=ROWS)
    assert store.manifest(reference).attributes == {"kind": "search"}


def test_the_row_of_a_bad_value_is_that_of_the_whole_array(store: Store) -> None:
    parts = pieces([9])
    for value, problem in ((1e6, "is too large for float16"), (np.nan, "is not finite")):
        bad = {**parts[1], "block0": parts[1]["block0"].copy()}
        bad["block0"][5, 1, 2] = value
        with pytest.raises(NumericalError, match=rf"g: array 'block0', row 14: value .* {problem}"):
            written(store, "g", [parts[0], bad])
    assert store.committed("") == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda part: {**part, "label": part["label"][:-1]}, "give as many of each array"),
        (lambda part: {**part, "label": part["label"].astype(np.int32)}, "other arrays, shapes or dtypes"),
        (lambda part: {name: values for name, values in part.items() if name != "label"}, "other arrays, shapes or dtypes"),
        (lambda part: {**part, "code": part["code"][:, :1]}, "other arrays, shapes or dtypes"),
        (lambda part: {name: values[:-1] for name, values in part.items()}, "has 22 rows of 23; append the others"),
        (lambda part: {name: np.concatenate([values, values]) for name, values in part.items()}, "no more than there are"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(store: Store, spoil: Any, message: str) -> None:
    first, second = pieces([9])
    with pytest.raises(StoreError, match=rf"^g: .*{message}"):
        written(store, "g", [first, spoil(second)])
    assert store.committed("") == []
