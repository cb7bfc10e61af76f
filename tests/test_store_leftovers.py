"""What killed writers leave is removed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from store import ZarrStore, layout
from store.verification import named_groups

ARRAYS = {"logits": np.zeros((4, 3), np.float32)}


def unfinished(store: ZarrStore, path: str) -> None:
    with store.begin(path, rows=8) as writer:
        writer.append(ARRAYS)


def files_of(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_unfinished_groups_and_temporary_files_are_removed(tmp_path: Path) -> None:
    store = ZarrStore(tmp_path)
    for path in ("rounds/00000/search/00000-a1", "checkpoints/00000/a01-e0001"):
        store.write(path, ARRAYS, attributes={})
    store.relaxed().write("stream/networks/00000001-a1001", ARRAYS, attributes={})
    store.write_document("rounds/00000/round.json", {}, create=True)
    (tmp_path / "c.notes.partial").write_text("not ours")
    whole = files_of(tmp_path)
    left = ["rounds/00000/search/00000-a2", "states/00000/a1"]
    for path in left:
        unfinished(store, path)
    for file in (
        "run.json",
        "rounds/00000/round.json",
        "stream/networks/00000001-a1001.pack",
        "rounds/00000/search/00000-a1/MANIFEST.json",
    ):
        (tmp_path / file).with_name(f".{Path(file).name}.0123.partial").write_bytes(b"half")
    assert files_of(tmp_path) > whole
    assert store.sweep(list) == left
    assert files_of(tmp_path) == whole


def test_a_group_that_a_document_names_stays_though_its_manifest_is_lost(tmp_path: Path) -> None:
    store = ZarrStore(tmp_path)
    store.write_document(layout.RUN_DOCUMENT, {}, create=True)
    named = store.write(layout.shard_path(0, 0, 1), ARRAYS, attributes={})
    store.write_document(layout.round_document(0), {"shards": [{"path": named.path, "digest": named.digest}]}, create=True)
    (tmp_path / named.path / "MANIFEST.json").unlink()
    unfinished(store, layout.shard_path(0, 0, 2))
    assert store.sweep(lambda: named_groups(store)) == [layout.shard_path(0, 0, 2)]
    assert (tmp_path / named.path / "logits").is_dir()
