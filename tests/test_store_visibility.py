"""A shared folder whose files and listings are seen late by other hosts: nothing wrong is read, and what is referred to is waited for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repsearch.errors import StoreError
from store import Reference, ZarrStore, reference_at
from store.files import on_network
from store.patience import Patience
from store.verification import verify_group
from tests.late_files import LateFiles, Share

ARRAYS = {"block0": np.arange(600, dtype=np.float32).reshape(100, 6), "fitness": np.linspace(-1, 0, 100)}
LATE_S = 60.0


def host(share: Share, name: str, *, wait_s: float = 90.0, relaxed: bool = False) -> ZarrStore:
    late = Patience(wait_s, clock=share.clock.time, pause=share.clock.pause)
    return ZarrStore(LateFiles(share, name), chunk_mb=2e-4, late=late, durable=not relaxed)


@pytest.mark.fault(24)
@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_referred_to_is_waited_for(tmp_path: Path, seed: int, relaxed: bool) -> None:
    share = Share(tmp_path, LATE_S, seed)
    reference = host(share, "searcher", relaxed=relaxed).write("search/00000-a1", ARRAYS, attributes={"count": 100})
    learner = host(share, "learner", relaxed=relaxed)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(learner.read(reference, name), array)
    assert learner.manifest(reference).attributes == {"count": 100}
    assert verify_group(host(share, "orchestrator"), reference)
    assert 0 < share.clock.now <= 2 * LATE_S


@pytest.mark.fault(24)
def test_what_never_comes_is_an_error_that_names_it_after_the_wait(tmp_path: Path) -> None:
    share = Share(tmp_path, LATE_S)
    reader = host(share, "learner")
    with pytest.raises(StoreError, match=r"^search/00000-a1: no committed group can be read .*MANIFEST\.json"):
        reader.manifest(Reference("search/00000-a1", "0" * 64))
    assert share.clock.now <= 90
    began = share.clock.now
    with pytest.raises(StoreError, match="no committed group"):
        reader.manifest("search/00000-a1")
    assert share.clock.now == began, "nobody says that it is there, so nobody waits"
    reference = host(share, "searcher").write("search/00000-a1", ARRAYS, attributes={})
    (tmp_path / "search/00000-a1/block0/c.3.0").unlink()
    with pytest.raises(StoreError, match=r"search/00000-a1/block0/c\.3\.0: chunk 3 of array 'block0' is missing"):
        reader.read(reference, "block0")


@pytest.mark.fault(24)
@pytest.mark.parametrize("seed", range(4))
def test_a_late_listing_shows_whole_groups_only_and_hides_no_commit(tmp_path: Path, seed: int) -> None:
    share = Share(tmp_path, LATE_S, seed)
    first, second = host(share, "first"), host(share, "second")
    written = [first.write(f"search/0000{shard}-a1", ARRAYS, attributes={}).path.partition("/")[2] for shard in range(5)]
    first.write_document("rounds/00000/round.json", {"by": "first"}, create=True)
    seen = set[str]()
    while len(seen) < len(written):
        shown = second.committed("search")
        assert seen <= set(shown) <= set(written)
        for name in shown:
            verify_group(second, reference_at(second, f"search/{name}"))
        seen = set(shown)
        share.clock.pause(5)
    # Another host, to which the document is not shown yet, cannot create it a second time.
    with pytest.raises(StoreError, match=r"round\.json: exists already"):
        host(share, "third").write_document("rounds/00000/round.json", {"by": "third"}, create=True)
    share.clock.pause(2 * LATE_S)
    assert host(share, "third").read_document("rounds/00000/round.json") == {"by": "first"}


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /shared rw,relatime shared:2 - nfs4 server:/export rw,vers=4.2
41 40 0:36 / /shared/scratch rw - xfs /dev/sdb1 rw
42 22 0:37 / /home/me/remote rw - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("folder", "network"),
    [("/tmp/runs", False), ("/shared/runs", True), ("/shared/scratch/runs", False), ("/sharedruns", False), ("/home/me/remote", True)],
)
def test_network_file_systems_are_known(tmp_path: Path, folder: str, network: bool) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert on_network(folder, tmp_path / "mountinfo") is network
    assert not on_network(folder, tmp_path / "none")
