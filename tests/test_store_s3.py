"""The store in an object store: what fails for a while is tried again, what fails for good is named, nothing is committed twice or half."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from obstore.store import S3Store
from zarr.storage import ObjectStore

from repsearch.errors import StoreError
from store import Store, ZarrStore, open_store
from store.object_files import ObjectFiles
from store.opening import check_remote
from store.patience import Patience
from store.verification import verify_group
from tests.late_files import Clock
from tests.s3_server import S3Server

ARRAYS = {"block0": np.random.default_rng(0).standard_normal((50, 4, 3)).astype(np.float32), "fitness": np.linspace(-1, 0, 50)}
GROUP = "rounds/00000/search/00000-a1"
CHUNK = f"{GROUP}/block0/c.1.0.0"
MANIFEST = f"{GROUP}/MANIFEST.json"


def opened(location: str, *, limit_s: float = 60.0, late_s: float = 30.0) -> tuple[ZarrStore, Clock]:
    """Return a store that waits by a clock of its own."""
    clock = Clock()
    patience = Patience(limit_s, clock=clock.time, pause=clock.pause)
    late = Patience(late_s, clock=clock.time, pause=clock.pause)
    return ZarrStore(ObjectFiles(location, patience=patience), chunk_mb=1e-3, late=late), clock


def use(store: Store) -> Any:
    """Write, list, read and delete; return the reference of what was written."""
    with store.begin(GROUP, rows=50, dtypes={"block0": "float16"}) as writer:
        for start in range(0, 50, 20):
            writer.append({name: array[start : start + 20] for name, array in ARRAYS.items()})
        reference = writer.commit({"kind": "search"})
    store.write_document("rounds/00000/round.json", {"shards": [reference.digest]}, create=True)
    store.write_document("run.json", {"term": 1}, create=False)
    assert store.committed("rounds/00000/search") == ["00000-a1"]
    assert store.documents("rounds/00000") == ["round.json"]
    assert store.read_document("rounds/00000/round.json") == {"shards": [reference.digest]}
    np.testing.assert_array_equal(store.read(reference, "fitness"), ARRAYS["fitness"])
    verify_group(store, reference)
    store.write("states/a", ARRAYS, attributes={})
    store.delete("states/a")
    assert store.committed("states") == []
    return reference


def test_the_same_bytes_as_on_a_disk(s3_location: str, tmp_path: Path) -> None:
    disk = ZarrStore(tmp_path, chunk_mb=1e-3)
    assert use(opened(s3_location)[0]) == use(disk)
    files = ObjectFiles(s3_location)
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert files.below("") == sorted(names)
    assert all(files.read(name) == (tmp_path / name).read_bytes() for name in names)


def test_zarr_reads_it_by_its_own_object_store(s3_location: str) -> None:
    use(opened(s3_location)[0])
    prefix = f"{s3_location.removeprefix('s3://runs/')}/{GROUP}"
    objects = S3Store("runs", prefix=prefix, client_options={"allow_http": True})
    group = zarr.open_group(ObjectStore(objects, read_only=True), mode="r")
    np.testing.assert_array_equal(group["block0"][:], ARRAYS["block0"].astype(np.float16))


PASSING: list[dict[str, Any]] = [
    {"status": 500},
    {"status": 503, "code": "SlowDown", "times": 4},
    {"status": 400, "code": "RequestTimeout"},
    {"cut": True},
    {"status": 500, "after": True},
    {"cut": True, "after": True, "times": 2},
]
METHODS = [("PUT", CHUNK), ("PUT", f"{GROUP}/zarr.json"), ("PUT", MANIFEST), ("PUT", "round.json"), ("PUT", "run.json")]
METHODS += [("GET", CHUNK), ("GET", MANIFEST), ("GET", "round.json"), ("HEAD", ""), ("GET", ""), ("POST", "")]


@pytest.mark.faults
@pytest.mark.fault(23)
@pytest.mark.parametrize(("method", "path"), METHODS)
def test_a_fault_that_passes_changes_nothing(s3: S3Server, s3_location: str, tmp_path: Path, method: str, path: str) -> None:
    expected = use(ZarrStore(tmp_path, chunk_mb=1e-3))
    for number, fault in enumerate(PASSING):
        store, clock = opened(f"{s3_location}/{number}")
        injected = s3.fail(method, path, **fault)
        assert use(store) == expected, fault
        assert injected.done == fault.get("times", 1), "the fault was not reached"
        assert 0 < clock.now < 10 or method == "HEAD"
        assert ObjectFiles(f"{s3_location}/{number}").below("states") == []


@pytest.mark.fault(23)
def test_an_answer_that_is_lost_does_not_hide_who_created_a_document(s3: S3Server, s3_location: str) -> None:
    store, _ = opened(s3_location)
    s3.fail("PUT", "round.json", status=500, after=True)
    store.write_document("rounds/00000/round.json", {"by": "first"}, create=True)
    # The same content by another writer is another writer's all the same.
    s3.fail("PUT", "round.json", status=500)
    with pytest.raises(StoreError, match=r"round\.json: exists already"):
        opened(s3_location)[0].write_document("rounds/00000/round.json", {"by": "first"}, create=True)


@pytest.mark.faults
@pytest.mark.fault(23)
@pytest.mark.parametrize("path", [CHUNK, MANIFEST, f"{GROUP}/block0/zarr.json"])
def test_an_object_not_found_right_after_it_was_written_is_waited_for(s3: S3Server, s3_location: str, path: str) -> None:
    reference = use(opened(s3_location)[0])
    s3.fail("GET", path, times=3, status=404, code="NoSuchKey")
    store, clock = opened(s3_location)
    np.testing.assert_array_equal(store.read(reference, "block0"), ARRAYS["block0"].astype(np.float16))
    assert 0 < clock.now < 5
    s3.fail("GET", path, times=1000, status=404, code="NoSuchKey")
    with pytest.raises(StoreError, match=GROUP):
        store.read(reference, "block0")
    assert clock.now < 40


LASTING = [
    ({"status": 503, "code": "SlowDown"}, r"503 SlowDown.*, \d+ times; try again when the store answers"),
    ({"cut": True}, r"no answer \(.*\), \d+ times; check the network, AWS_ENDPOINT_URL and AWS_REGION"),
    ({"status": 403, "code": "AccessDenied"}, "403 AccessDenied.*; allow these credentials s3:ListBucket"),
    ({"status": 400, "code": "ExpiredToken"}, "400 ExpiredToken.*; renew the credentials, restart the daemons"),
    ({"status": 403, "code": "InvalidAccessKeyId"}, "check AWS_ACCESS_KEY_ID"),
    ({"status": 403, "code": "RequestTimeTooSkewed"}, "set the clock"),
    ({"status": 404, "code": "NoSuchBucket"}, "404 NoSuchBucket.*; make the bucket, or name another"),
    ({"status": 400, "code": "AuthorizationHeaderMalformed"}, "AWS_REGION"),
    ({"status": 301, "code": "PermanentRedirect"}, "AWS_REGION"),
]


@pytest.mark.faults
@pytest.mark.fault(23)
@pytest.mark.parametrize(("fault", "message"), LASTING)
@pytest.mark.parametrize("at", [CHUNK, MANIFEST, "round.json"])
def test_a_fault_that_lasts_is_named_in_bounded_time_and_commits_nothing(
    s3: S3Server, s3_location: str, fault: dict[str, Any], message: str, at: str
) -> None:
    store, clock = opened(s3_location)
    s3.fail("PUT", at, times=1000, **fault)
    with pytest.raises(StoreError, match=message) as caught:
        use(store)
    assert (at if at == "round.json" else GROUP) in str(caught.value) and s3_location in str(caught.value)
    assert clock.now <= 60
    s3.heal()
    assert opened(s3_location)[0].documents("rounds/00000") == []
    assert opened(s3_location)[0].committed("rounds/00000/search") == (["00000-a1"] if at == "round.json" else [])
    # Once the store answers, the same is done again.
    opened(s3_location)[0].delete(GROUP)
    use(opened(s3_location)[0])


@pytest.mark.fault(23)
def test_a_store_that_hangs_is_given_up(s3: S3Server, s3_location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.object_files.REQUEST_S", 0.3)
    s3.fail("PUT", "run.json", times=1000, hang=True)
    store = ZarrStore(ObjectFiles(s3_location, patience=Patience(1.0)))
    with pytest.raises(StoreError, match=r"run\.json: cannot be written in .*: no answer \(.*[Tt]ime"):
        store.write_document("run.json", {}, create=True)


@pytest.mark.faults
@pytest.mark.fault(23)
def test_of_writers_through_faults_one_creates_the_document(s3: S3Server, s3_location: str) -> None:
    for path in (f"{number}.json" for number in range(3)):
        s3.fail("PUT", path, times=2, status=500, after=True)
        s3.fail("PUT", path, times=2, cut=True, after=True)
        won: list[int] = []

        def create(by: int, path: str = path, won: list[int] = won) -> None:
            try:
                opened(s3_location)[0].write_document(path, {"same": "content"}, create=True)
            except StoreError:
                return
            won.append(by)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_a_check_leaves_nothing_and_names_what_is_wrong(s3: S3Server, s3_location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_remote(s3_location)
    assert ObjectFiles(s3_location).below("") == []
    with pytest.raises(StoreError, match=r"s3://absent-bucket/runs: cannot be used: 404 NoSuchBucket.*make the bucket"):
        check_remote("s3://absent-bucket/runs")
    s3.careless = True
    with pytest.raises(StoreError, match=r"does not refuse to create an object that is there \(If-None-Match\)"):
        check_remote(s3_location)
    s3.careless = False
    monkeypatch.setattr("store.opening.CHECK_S", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"cannot be used: no answer \(.*AWS_ENDPOINT_URL"):
        check_remote(s3_location)


def test_missing_credentials_are_named(s3: S3Server, s3_location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        check_remote(s3_location)


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"s3://runs/a: needs obstore, which is not installed; pip install 'repsearch\[s3\]'"):
        open_store("s3://runs/a")


@pytest.mark.parametrize("location", ["s3://", "s3:///a", "s3://A/b", "s3://ab", "s3://a bucket/x"])
def test_locations_that_name_no_bucket(location: str) -> None:
    with pytest.raises(StoreError, match="name it as s3://bucket/prefix"):
        open_store(location)


@pytest.mark.parametrize("location", ["s3://bucket/../other", "s3://bucket/a//b", "s3://bucket/./a"])
def test_locations_that_are_not_in_normal_form(location: str) -> None:
    with pytest.raises(StoreError, match="store path"):
        open_store(location)


DAMAGE: list[Callable[[bytes], bytes | None]] = [
    lambda _: None,
    lambda data: data[:-5],
    lambda _: b"",
    lambda data: bytes([data[0] ^ 4]) + data[1:],
]


@pytest.mark.faults
@pytest.mark.fault(21)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("path", [CHUNK, MANIFEST, f"{GROUP}/block0/zarr.json"])
def test_damaged_objects_are_named(s3_location: str, path: str, damage: Callable[[bytes], bytes | None]) -> None:
    store, _ = opened(s3_location, late_s=0)
    reference, files = use(store), ObjectFiles(s3_location)
    data = damage(files.read(path))
    if data is None:
        files.remove(path, durable=True)
    else:
        files.write(path, data, create=False)
    with pytest.raises(StoreError, match=GROUP) as caught:
        store.read(reference, "block0")
    assert path.rpartition("/")[2] in str(caught.value)
