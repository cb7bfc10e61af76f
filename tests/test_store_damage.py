"""Damage on disk: every kind is a `StoreError` that names the path, never wrong numbers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from repsearch.errors import StoreError
from store import Reference, ZarrStore
from store.verification import verify_group
from tests.small_disk import can_mount, on_small_disk

GROUP = "rounds/00000/search/00000-a1"
ARRAYS = {"block0": np.random.default_rng(0).standard_normal((10, 2, 3)), "logits": np.ones((10, 4), np.float32)}
CHUNK = f"{GROUP}/block0/c.1.0.0"


@pytest.fixture
def store(tmp_path: Path) -> ZarrStore:
    return ZarrStore(tmp_path, chunk_mb=2e-4)


@pytest.fixture
def ref(store: ZarrStore) -> Reference:
    store.write("rounds/00000/search/00001-a1", {name: array + 1 for name, array in ARRAYS.items()}, attributes={})
    return store.write(GROUP, ARRAYS, attributes={"kind": "search"}, dtypes={"logits": "float16"})


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def leave_partial(file: Path) -> None:
    file.rename(file.with_name("c.9f3e.partial"))


def another_chunk(file: Path) -> None:
    shutil.copy(file.with_name("c.0.0.0"), file)


def another_group(file: Path) -> None:
    shutil.copy(Path(str(file).replace("00000-a1", "00001-a1")), file)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE = [remove, truncate, empty, flip_bit, another_group, folder_instead]


@pytest.mark.fault(21)
@pytest.mark.parametrize("damage", [*DAMAGE, leave_partial, another_chunk])
def test_damaged_chunk(store: ZarrStore, ref: Reference, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / CHUNK)
    for use in (lambda: store.read(ref, "block0"), lambda: store.read(GROUP, "block0", slice(4, 5)), lambda: verify_group(store, ref)):
        with pytest.raises(StoreError, match=rf"{CHUNK}: chunk 1 of array 'block0' (is|is missing|is truncated or altered|is not what)"):
            use()
    # What lies in whole chunks can still be read.
    np.testing.assert_array_equal(store.read(ref, "block0", slice(0, 4)), ARRAYS["block0"][:4])
    np.testing.assert_array_equal(store.read(ref, "logits"), ARRAYS["logits"].astype(np.float16))


@pytest.mark.fault(21)
@pytest.mark.parametrize("damage", [remove, truncate, empty, flip_bit, folder_instead])
@pytest.mark.parametrize("name", ["zarr.json", "block0/zarr.json"])
def test_damaged_metadata(store: ZarrStore, ref: Reference, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / GROUP / name)
    for use in (lambda: store.read(ref, "block0"), lambda: verify_group(store, ref)):
        with pytest.raises(StoreError, match=f"{GROUP}/{name}: (is not what was written|cannot be read)"):
            use()


@pytest.mark.fault(21)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("by_path", [False, True])
def test_damaged_manifest(store: ZarrStore, ref: Reference, tmp_path: Path, by_path: bool, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / GROUP / "MANIFEST.json")
    for use in (store.manifest, lambda group: store.read(group, "block0"), lambda group: verify_group(store, group)):
        with pytest.raises(StoreError, match=f"{GROUP}.*MANIFEST.json"):
            use(GROUP if by_path else ref)


def test_every_bit_of_the_manifest_counts(store: ZarrStore, ref: Reference, tmp_path: Path) -> None:
    file = tmp_path / GROUP / "MANIFEST.json"
    whole, manifest = file.read_bytes(), store.manifest(GROUP)
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        file.write_bytes(data)
        with pytest.raises(StoreError):
            store.manifest(ref)
        try:
            # Without a digest to compare with, white space between the values may differ, the content may not.
            assert store.manifest(GROUP) == manifest
        except StoreError as error:
            assert GROUP in str(error)


@pytest.mark.fault(21)
def test_lost_folder(store: ZarrStore, ref: Reference, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / GROUP / "block0")
    with pytest.raises(StoreError, match=f"{GROUP}/block0/zarr.json: cannot be read"):
        store.read(ref, "block0")
    shutil.rmtree(tmp_path / GROUP)
    with pytest.raises(StoreError, match=f"{GROUP}: no committed group"):
        store.read(ref, "block0")


@pytest.mark.fault(21)
def test_zeros_are_on_disk_and_a_lost_one_is_noticed(store: ZarrStore, tmp_path: Path) -> None:
    ref = store.write("g", {"x": np.zeros((9, 10))}, attributes={})
    assert sorted(file.name for file in (tmp_path / "g/x").glob("c.*")) == [f"c.{chunk}.0" for chunk in range(5)]
    np.testing.assert_array_equal(store.read(ref, "x"), np.zeros((9, 10)))
    (tmp_path / "g/x/c.3.0").unlink()
    with pytest.raises(StoreError, match=r"g/x/c.3.0: chunk 3 of array 'x' is missing"):
        store.read(ref, "x")


@pytest.mark.fault(21)
def test_crash_before_the_manifest(store: ZarrStore, ref: Reference, tmp_path: Path) -> None:
    (tmp_path / GROUP / "MANIFEST.json").unlink()
    (tmp_path / GROUP / "block0/c.5af2.partial").write_bytes(b"half")
    (tmp_path / GROUP / ".MANIFEST.json.77aa.partial").write_bytes(b"half")
    assert store.committed("rounds/00000/search") == ["00001-a1"]
    with pytest.raises(StoreError, match=f"{GROUP}: no committed group"):
        store.read(ref, "block0")
    again = store.write(GROUP, {"other": np.arange(3)}, attributes={})
    assert sorted(path.name for path in (tmp_path / GROUP).iterdir()) == ["MANIFEST.json", "other", "zarr.json"]
    np.testing.assert_array_equal(store.read(again, "other"), np.arange(3))


def test_delete_finishes_an_unfinished_delete(store: ZarrStore, ref: Reference, tmp_path: Path) -> None:
    (tmp_path / GROUP / "MANIFEST.json").unlink()
    store.delete(GROUP)
    assert not (tmp_path / GROUP).exists()


def test_foreign_files_are_not_removed(store: ZarrStore, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep")
    for use in (lambda: store.write("notes", {}, attributes={}), lambda: store.delete("notes")):
        with pytest.raises(StoreError, match=r"notes: holds notes/mine\.txt"):
            use()
    assert (tmp_path / "notes/mine.txt").read_text() == "keep"


def test_links_that_leave_the_root(tmp_path: Path) -> None:
    outside = ZarrStore(tmp_path / "outside")
    ref = outside.write("g", ARRAYS, attributes={})
    outside.write_document("d.json", {}, create=True)
    store = ZarrStore(tmp_path / "root")
    store.write_document("run.json", {}, create=True)
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    (tmp_path / "root/g").symlink_to(tmp_path / "outside/g")
    (tmp_path / "root/d.json").symlink_to(tmp_path / "outside/d.json")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root/loop")
    uses: list[Callable[[], object]] = [
        lambda: store.read(ref, "block0"),
        lambda: store.write("link/new", ARRAYS, attributes={}),
        lambda: store.delete("link/g"),
        lambda: store.delete("g"),
        lambda: store.committed("link"),
        lambda: store.documents("link"),
        lambda: store.read_document("d.json"),
        lambda: store.write_document("link/e.json", {}, create=True),
    ]
    for use in uses:
        with pytest.raises(StoreError, match="is a link that leaves the store's root"):
            use()
    with pytest.raises(StoreError, match="loop"):
        store.manifest("loop/g")
    np.testing.assert_array_equal(outside.read(ref, "block0"), ARRAYS["block0"])


@pytest.mark.fault(27)
def test_document_truncated_at_every_length(store: ZarrStore, tmp_path: Path) -> None:
    document = {"round": 3, "shards": [{"path": GROUP, "digest": "ab" * 32}], "metrics": {"test/accuracy": 0.95}}
    store.write_document("rounds/00003/round.json", document, create=True)
    file = tmp_path / "rounds/00003/round.json"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        try:
            assert store.read_document("rounds/00003/round.json") == document
        except StoreError as error:
            assert "rounds/00003/round.json" in str(error)
        else:
            assert length == len(whole) - 1  # the newline at the end


def test_document_altered(store: ZarrStore, tmp_path: Path) -> None:
    store.write_document("run.json", {"term": 11, "name": "x"}, create=True)
    file = tmp_path / "run.json"
    whole = file.read_bytes()
    for old, new in ((b"11", b"12"), (b'"x"', b'"y"'), (b'"term"', b'"Term"'), (b"}", b""), (b"\n", b"\x00")):
        assert old in whole
        file.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(StoreError, match=r"run\.json: is not"):
            store.read_document("run.json")


_RACE = """
import sys
from pathlib import Path
from repsearch.errors import StoreError
from store import ZarrStore
store = ZarrStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    store.write_document("rounds/00000/round.json", {"by": sys.argv[2]}, create=True)
except StoreError:
    print("lost")
else:
    print("won")
"""


@pytest.mark.fault(26)
def test_of_processes_that_create_a_document_one_wins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RACE, str(tmp_path)]
    racers = [subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in range(3)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(outcomes) == ["lost", "lost", "won"]
    assert ZarrStore(tmp_path).read_document("rounds/00000/round.json") == {"by": str(outcomes.index("won"))}
    assert [file.name for file in (tmp_path / "rounds/00000").iterdir()] == ["round.json"]


_NO_ROOM = """
import resource, sys
from pathlib import Path
import numpy as np
from repsearch.errors import StoreError
from store import ZarrStore
store = ZarrStore(Path(sys.argv[1]))
store.write_document("run.json", {"n": 1}, create=True)
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for write in (
    lambda: store.write("g", {"x": np.ones(100_000)}, attributes={}),
    lambda: store.write("h", {}, attributes={"long": "x" * 200_000}),
    lambda: store.relaxed().write("i", {"x": np.ones(100_000)}, attributes={}),
    lambda: store.write_document("run.json", {"long": "x" * 200_000}, create=False),
):
    try:
        write()
    except StoreError as error:
        print(error)
assert store.committed("") == []
assert store.read_document("run.json") == {"n": 1}
assert [path.name for path in Path(sys.argv[1]).rglob("*.json.*")] == []
print("whole")
"""


@pytest.mark.fault(22)
@pytest.mark.parametrize("means", ["limit", "tmpfs"])
def test_full_disk_is_named_and_spoils_nothing(tmp_path: Path, means: str) -> None:
    command = [sys.executable, "-c", _NO_ROOM, str(tmp_path), means]
    if means == "tmpfs":
        if not can_mount():
            pytest.skip("this machine does not let us mount a tmpfs")
        command = on_small_disk(tmp_path, 100, command)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    *lines, last = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["g", "h", "i", "run.json"]
    assert all("make room on the disk" in line for line in lines)
    assert all(("No space left" if means == "tmpfs" else "File too large") in line for line in lines)
    assert last == "whole"


@pytest.mark.fault(26)
def test_of_writers_of_one_path_at_most_one_commits(store: ZarrStore) -> None:
    start = threading.Barrier(4)
    committed: list[Reference] = []

    def write(number: int, path: str) -> None:
        start.wait()
        try:
            committed.append(store.write(path, ARRAYS, attributes={"by": number}))
        except StoreError as error:
            assert path in str(error)

    for path in ("g0", "g1", "g2"):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4), [path] * 4))
        winners = [ref for ref in committed if ref.path == path]
        assert len(winners) == len([name for name in store.committed("") if name == path]) <= 1
        for ref in winners:
            assert store.manifest(ref)


_ENDLESS = """
import itertools, sys
from pathlib import Path
import numpy as np
from store import ZarrStore
store = ZarrStore(Path(sys.argv[1]), chunk_mb=0.01)
for number in itertools.count():
    store.write(f"search/{number:05d}-a1", {"x": np.full((1000, 8), number), "y": np.ones(3)}, attributes={"number": number})
    print(number, flush=True)
"""


@pytest.mark.fault(21)
def test_killed_while_writing_leaves_whole_groups_only(tmp_path: Path) -> None:
    for kills in range(3):
        root = tmp_path / str(kills)
        writer = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(root)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(2 + kills):
            reported = int(writer.stdout.readline())
        writer.kill()
        writer.communicate()
        store = ZarrStore(root)
        committed = store.committed("search")
        assert len(committed) > reported
        for number, name in enumerate(committed):
            verify_group(store, f"search/{name}")
            assert store.read(f"search/{name}", "x")[999, 7] == number
        # The group it was at, if it had begun one, can be written again.
        again = store.write(f"search/{len(committed):05d}-a1", ARRAYS, attributes={})
        verify_group(store, again)


def test_name_too_long(store: ZarrStore) -> None:
    with pytest.raises(StoreError, match="name"):
        store.write_document("a" * 300 + ".json", {}, create=True)


@pytest.mark.fault(21, 27)
def test_a_packed_group_cut_or_altered_anywhere_is_refused(tmp_path: Path) -> None:
    store = ZarrStore(tmp_path, chunk_mb=1e-5).relaxed()
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(6, 2), "b": np.arange(3)}
    reference = store.write("stream/g", arrays, attributes={"kind": "x"})
    file = tmp_path / "stream/g.pack"
    whole = file.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))] + [whole + b"0"]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(StoreError, match="stream/g"):
            for name in arrays:
                store.read(reference, name)
    file.write_bytes(whole)
    assert np.array_equal(store.read(reference, "a"), arrays["a"])
    assert [path.name for path in (tmp_path / "stream").iterdir()] == ["g.pack"]
    store.delete("stream/g")
    assert store.committed("stream") == []
