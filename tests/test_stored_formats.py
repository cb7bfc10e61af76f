"""Examples of each format that was ever written (`tests/stored`): an older one is read rightly or refused, a newer one refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from orchestrator.journal import read_journal
from orchestrator.rounds import load_reports
from orchestrator.runs import open_run
from orchestrator.status import status_of
from orchestrator.sweeps.running import SCHEMA as SWEEP_SCHEMA
from orchestrator.sweeps.running import reopen
from orchestrator.verify import verify
from repsearch.errors import StoreError
from store import Store, documents, layout, manifest, open_store, packed
from tests.orchestrator_runs import complete

STORED = Path(__file__).parent / "stored"
DIGESTS = {
    "run-1": "79babf3a33f736ce2ef770302f01ba2ad5f3f8a98b41beb331b587a883e77f83",
    "run-1-streamed": "a1c7ace244452e39d6f8a40901d399f4e55d480e4e3f923c9bbad8cc7f05ddd5",
    "run-1-older": "79babf3a33f736ce2ef770302f01ba2ad5f3f8a98b41beb331b587a883e77f83",
    "run-1-first": "0887cb6f42c648f5581478c4c6664dce072ab50be96327a29f64f48987b1bdf5",
}
"""Example: SHA-256 of all its arrays, with their names, types and shapes, as the code that wrote it read them."""
READ = ("run-1", "run-1-streamed", "run-1-older")


def groups_of(folder: Path) -> list[str]:
    """The groups of an example, of either form."""
    folders = {str(path.parent.relative_to(folder)) for path in folder.rglob("MANIFEST.json")}
    return sorted(folders | {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.pack")})


def digest_of(folder: Path) -> str:
    """What `DIGESTS` has."""
    store, digest = open_store(folder), hashlib.sha256()
    for group in groups_of(folder):
        for name in sorted(store.manifest(group).arrays):
            values = store.read(group, name)
            digest.update(f"{group} {name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of an example, to be altered."""
    return Path(shutil.copytree(STORED / "run-1", tmp_path / "run-1"))


def rewrite(path: Path, **changes: object) -> None:
    """Alter a document as a program that means it does: with the digest that fits."""
    document = documents.decode(str(path), path.read_bytes())
    path.write_bytes(documents.encode(str(path), {**document, **changes})[0])


def test_each_format_has_an_example() -> None:
    """Whoever raises a number stores an example of it, and says here what older ones are."""
    assert set(DIGESTS) == {path.name for path in STORED.iterdir() if path.is_dir()}
    of_runs = {json.loads((STORED / name / "run.json").read_text())["document"]["schema"] for name in DIGESTS}
    assert of_runs == set(range(1, layout.RUN_SCHEMA + 1))
    of_groups = {json.loads(path.read_text())["document"]["schema"] for path in STORED.rglob("MANIFEST.json")}
    assert of_groups == set(range(1, manifest.SCHEMA + 1))
    assert {path.read_bytes()[:8] for path in STORED.rglob("*.pack")} == {packed._MAGIC}


@pytest.mark.parametrize("name", DIGESTS)
def test_every_value_is_read_as_it_was_written(name: str) -> None:
    assert digest_of(STORED / name) == DIGESTS[name]


def test_values_are_those_of_the_bytes() -> None:
    """Read beside the store: format 1 is little-endian rows without compression, and four bytes of checksum."""
    group = STORED / "run-1/rounds/00000/search/00000-a1"
    raw = np.frombuffer((group / "block0/c.0.0").read_bytes()[:-4], "<f2")
    read = open_store(STORED / "run-1").read("rounds/00000/search/00000-a1", "block0")
    np.testing.assert_array_equal(read.reshape(-1), raw.astype(read.dtype))


@pytest.mark.parametrize("name", READ)
def test_a_run_is_read(name: str) -> None:
    folder = STORED / name
    run, reports = open_run(folder), load_reports(open_store(folder))
    assert verify(folder) == []
    assert run.config.search.strategy["population"] == 4 and run.config.learn.rule["name"] == "backprop"
    assert [report.round for report in reports] == list(range(3 if name == "run-1-streamed" else 1))
    assert read_journal(folder)[-1]["status"] == "FINISHED"
    status = status_of(folder)
    assert (status["state"], status["rounds_finished"], status["evaluations"]) == (
        "finished",
        len(reports),
        72.0 if len(reports) == 3 else 48.0,
    )
    if name != "run-1-streamed":
        assert reports[0].metrics["test/cross_entropy"] == 2.4727073005913582


def test_a_run_with_settings_of_another_version_is_refused_by_their_name() -> None:
    for use in (open_run, status_of):
        with pytest.raises(
            StoreError, match=r"run-1-first/run\.json: was written by another version, 0\.1\.0.*'tile_examples'.*use the version"
        ):
            use(STORED / "run-1-first")


@pytest.mark.fault(30)
def test_a_newer_run_is_refused(copied: Path) -> None:
    rewrite(copied / "run.json", schema=layout.RUN_SCHEMA + 1)
    for use in (open_run, status_of):
        with pytest.raises(StoreError, match=r"run-1/run\.json: has schema 2, this version reads 1; use the version that wrote the run"):
            use(copied)
    assert [(finding["path"], finding["problem"].split(";")[0]) for finding in verify(copied)] == [
        ("run.json", "run.json: has schema 2, this version reads 1")
    ]


def test_a_run_that_says_no_number_is_refused(copied: Path) -> None:
    rewrite(copied / "run.json", schema=None)
    with pytest.raises(StoreError, match="has schema None"):
        open_run(copied)


@pytest.mark.fault(30)
def test_a_newer_group_is_refused(copied: Path) -> None:
    group = "rounds/00000/search/00000-a1"
    store: Store = open_store(copied)
    assert store.read(group, "block0").any()
    rewrite(copied / group / "MANIFEST.json", schema=manifest.SCHEMA + 1)
    for use in (store.manifest, lambda path: store.read(path, "block0")):
        with pytest.raises(StoreError, match=r"00000-a1/MANIFEST\.json: has schema 2, this version reads 1; use the version that wrote"):
            use(group)


@pytest.mark.fault(30)
def test_a_newer_group_in_one_file_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(STORED / "run-1-streamed", tmp_path / "run"))
    path = folder / "stream/targets/00000000-a1001.pack"
    path.write_bytes(re.sub(rb"^RSPACK1", b"RSPACK2", path.read_bytes()))
    store = open_store(folder)
    for use in (store.manifest, lambda group: store.read(group, "block0")):
        with pytest.raises(StoreError, match=r"00000000-a1001\.pack has form 2, this version reads 1; use the version that wrote the run"):
            use("stream/targets/00000000-a1001")


def test_a_record_of_a_kind_that_is_not_known_is_refused(copied: Path) -> None:
    journal = copied / "journal.jsonl"
    count = len(journal.read_text().splitlines())
    with journal.open("a") as file:
        file.write(json.dumps({"n": count, "time": 0.0, "kind": "of_the_future"}) + "\n")
    with pytest.raises(StoreError, match="unknown kind 'of_the_future'"):
        read_journal(copied)


def test_a_newer_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": SWEEP_SCHEMA + 1, "table": {}}))
    with pytest.raises(StoreError, match=r"sweep\.json: has schema 2, this version reads 1"):
        reopen(tmp_path, 1)


@pytest.mark.faults
@pytest.mark.fault(30)
@pytest.mark.parametrize("name", ["run-1", "run-1-older"])
def test_a_stored_run_goes_on(name: str, tmp_path: Path) -> None:
    """Its network is searched and learned on, which a misread one could be too: the committed round is the same afterwards.

    The older one lacks fields that there are now; it goes on with their defaults, as which it was run.
    """
    folder = Path(shutil.copytree(STORED / name, tmp_path / "runs" / name))
    complete("resume", str(folder), "--set", "rounds.count=2", folder=tmp_path)
    assert verify(folder) == []
    first, second = load_reports(open_store(folder))
    assert first == load_reports(open_store(STORED / name))[0]
    assert second.searched == first.learned
