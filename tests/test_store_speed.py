"""The store's benchmark measures what it says: the same bytes in every row, and a row per name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import store_speed
from store import ZarrStore
from store.formats import forms_of


def test_zarr_writes_the_same_chunks_as_the_store(tmp_path: Path) -> None:
    arrays = store_speed.shard(40)
    ZarrStore(tmp_path / "store", chunk_mb=0.02).write("g", arrays, attributes={})
    store_speed.write_zarr(tmp_path / "zarr", arrays, forms_of("g", arrays, {}, finite=True, chunk_mb=0.02))
    for name, array in arrays.items():
        ours = sorted((tmp_path / "store/g" / name).glob("c.*"), key=lambda file: int(file.name.split(".")[1]))
        folder = tmp_path / "zarr" / name / "c"
        chunks = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: int(file.relative_to(folder).parts[0]))
        assert [file.read_bytes() for file in ours] == [file.read_bytes() for file in chunks]
        assert len(ours) > (name == "block0")
        assert np.array_equal(store_speed.read_zarr(tmp_path / "zarr", {name: array})[0], array)


def test_rows_have_names_and_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["store_speed", "--images", "50", "--repeats", "2", "--folder", str(tmp_path), "--json", str(file)])
    store_speed.main()
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == ["store", "zarr", "zarr_fsync", "store_read", "zarr_read"]
    assert all(row["mb_per_s"] > 0 for row in rows.values())
    assert rows["zarr"]["of_zarr"] == 1
    assert "of zarr + fsync" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [file]
