"""Layout, and verification of whole runs, in both stores."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from repsearch.errors import StoreError
from store import MemoryStore, Store, ZarrStore, layout, reference_at
from store.verification import Finding, references_in, verify_group, verify_run


def make_run(store: Store, rounds: int = 3) -> Store:
    store.write_document(layout.RUN_DOCUMENT, {"schema": layout.RUN_SCHEMA, "config": {"rounds": {"count": 5}}}, create=True)
    for round in range(rounds):
        shards = [store.write(layout.shard_path(round, shard, 1), {"x": np.ones((8, 2)) * shard}, attributes={}) for shard in range(2)]
        learned = store.write(layout.learned_network_path(round, 1), {"w": np.arange(4.0)}, attributes={})
        store.write_document(layout.round_document(round), {"shards": [asdict(shard) for shard in shards]}, create=True)
        store.write_document(layout.report_document(round), {"learned": asdict(learned), "searched": None, "metrics": {}}, create=True)
    store.write(layout.shard_path(rounds, 0, 1), {"x": np.ones(3)}, attributes={})
    return store


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return make_run(ZarrStore(tmp_path, chunk_mb=6e-5))


def test_whole_run(run: Store) -> None:
    assert verify_run(run) == []
    assert verify_run(make_run(MemoryStore())) == []
    run.write_document(layout.round_document(3), {"shards": []}, create=True)  # a round that is going on
    assert verify_run(run) == []


@pytest.mark.fault(21)
def test_every_damage_is_found(run: Store, tmp_path: Path) -> None:
    (tmp_path / "rounds/00000/search/00001-a1/x/c.1.0").unlink()
    (tmp_path / "rounds/00001/network/learned-a1/MANIFEST.json").write_bytes(b"{}")
    (tmp_path / "rounds/00001/round.json").unlink()
    shutil.rmtree(tmp_path / "rounds/00002/search/00000-a1")
    findings = verify_run(run)
    assert [finding.path for finding in findings] == [
        "rounds/00001/round.json",
        "rounds/00000/search/00001-a1",
        "rounds/00001/network/learned-a1",
        "rounds/00002/search/00000-a1",
    ]
    assert all(finding.path in finding.problem for finding in findings)
    assert "rounds/00000/search/00001-a1/x/c.1.0: chunk 1 of array 'x' is missing" in findings[1].problem


def test_damaged_snapshots_are_found(tmp_path: Path) -> None:
    store = make_run(ZarrStore(tmp_path), rounds=0)
    snapshots = [store.write(f"rounds/00000/snapshots/epoch{epoch}", {"w": np.ones(4) * epoch}, attributes={}) for epoch in (1, 2)]
    listed = [{"epoch": epoch, **asdict(snapshot)} for epoch, snapshot in enumerate(snapshots)]
    learned = store.write(layout.learned_network_path(0, 1), {"w": np.arange(4.0)}, attributes={"snapshots": listed})
    store.write_document(layout.round_document(0), {"shards": []}, create=True)
    store.write_document(layout.report_document(0), {"learned": asdict(learned)}, create=True)
    assert verify_run(store) == []
    (tmp_path / "rounds/00000/snapshots/epoch2/w/c.0").write_bytes(b"")
    assert [finding.path for finding in verify_run(store)] == ["rounds/00000/snapshots/epoch2"]


def test_a_group_written_when_manifests_looked_otherwise_has_its_own_reference(tmp_path: Path) -> None:
    store = ZarrStore(tmp_path)
    assert store.write("network", {"w": np.arange(4.0)}, attributes={"kind": "network"}) == reference_at(store, "network")
    file = tmp_path / "network" / "MANIFEST.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    reference = reference_at(store, "network")
    assert store.manifest(reference).attributes == {"kind": "network"} and verify_group(store, reference).digest == reference.digest


def test_lost_round_does_not_hide_the_next(run: Store, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "rounds/00001")
    (tmp_path / "rounds/00002/network/learned-a1/w/c.0").write_bytes(b"")
    assert [finding.path for finding in verify_run(run)] == [
        "rounds/00001/round.json",
        "rounds/00001/report.json",
        "rounds/00002/network/learned-a1",
    ]


@pytest.mark.fault(30)
def test_run_document_lost_or_altered(run: Store, tmp_path: Path) -> None:
    file = tmp_path / layout.RUN_DOCUMENT
    file.write_bytes(file.read_bytes().replace(b"5", b"6", 1))
    assert [finding.path for finding in verify_run(run)] == ["run.json"]
    file.unlink()
    assert [finding.path for finding in verify_run(run)] == ["run.json"]
    assert [finding.path for finding in verify_run(MemoryStore())] == ["run.json"]
    assert isinstance(verify_run(MemoryStore())[0], Finding)


def test_verify_group_reads_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.verification._READ_BYTES", 1000)
    store = ZarrStore(tmp_path, chunk_mb=3e-4)
    ref = store.write("g", {"x": np.arange(1000.0), "e": np.zeros((0, 3))}, attributes={})
    assert len(verify_group(store, ref).arrays["x"].chunk_digests) == 28
    (tmp_path / "g/x/c.26").write_bytes(b"")
    with pytest.raises(StoreError, match=r"g/x/c\.26: chunk 26"):
        verify_group(store, ref)


def test_references_in() -> None:
    document = {"a": [{"path": "p", "digest": "d"}, {"path": "q"}], "b": {"c": {"digest": "e", "path": "r", "x": 1}}, "n": 1}
    assert [ref.path for ref in references_in(document)] == ["p", "r"]


def test_layout() -> None:
    assert layout.initial_network_path() == "rounds/00000/network/initial"
    assert layout.learned_network_path(3, 1) == "rounds/00003/network/learned-a1"
    assert layout.network_folder(3) == "rounds/00003/network"
    assert layout.search_folder(3) == "rounds/00003/search"
    assert layout.shard_path(3, 17, 2) == "rounds/00003/search/00017-a2"
    assert layout.checkpoint_folder(3) == "checkpoints/00003"
    assert layout.checkpoint_path(3, 1, 7) == "checkpoints/00003/a01-e0007"
    assert layout.round_document(3) == "rounds/00003/round.json"
    assert layout.report_document(3) == "rounds/00003/report.json"
    assert layout.RUN_DOCUMENT == "run.json"
    assert layout.parse_shard_name("00017-a2") == (17, 2)
    assert layout.parse_shard_name(layout.shard_path(0, 123456, 12).rpartition("/")[2]) == (123456, 12)
    assert layout.parse_checkpoint_name("a01-e0007") == (1, 7)
    for name in ("17-a2", "00017", "00017-a2.partial", "00017-a-2", "00017-a2\n", ""):
        with pytest.raises(StoreError, match="does not name a shard attempt"):
            layout.parse_shard_name(name)
    with pytest.raises(StoreError, match="does not name a checkpoint"):
        layout.parse_checkpoint_name("a1-e7")
