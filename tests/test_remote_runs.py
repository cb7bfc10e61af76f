"""Whole runs whose store is in an object store: the bits of a run on a disk, killed and resumed, on one host and on the next."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orchestrator.journal import read_journal
from orchestrator.remote import location_of
from orchestrator.runs import open_run
from orchestrator.verify import verify
from store import layout, open_store
from store.object_files import ObjectFiles
from tests.orchestrator_runs import Orchestrator, complete, learned, orchestrator, write_config
from tests.s3_server import S3Server
from tests.serving_processes import DaemonProcess, daemon

DEADLINE_S = 400.0
pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Client and server share the processors with the run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.orchestrator_runs.DEADLINE_S", DEADLINE_S)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    complete("run", str(write_config(folder)), folder=folder)
    return learned(folder / "runs/tiny-1")


def await_object(process: Orchestrator, location: str, found: Callable[[str], bool]) -> None:
    """Return when there is an object whose key is `found`."""
    files, deadline = ObjectFiles(location), time.monotonic() + DEADLINE_S
    while not any(map(found, files.below(""))):
        assert process.process.poll() is None, process.text()
        assert time.monotonic() < deadline, process.text()
        time.sleep(0.05)


def check_whole(run: Path, location: str, undisturbed: list[tuple[str, ...]]) -> None:
    assert learned_at(location) == undisturbed
    assert verify(run) == verify(location) == []
    points = [(record["round"], record["key"], record["step"]) for record in read_journal(run) if record["kind"] == "point"]
    assert len(points) == len(set(points))
    assert open_store(location).committed("checkpoints/00000") == [], "checkpoints of rounds that are done are removed"
    assert not (run / "rounds").exists(), "nothing of the store lies in the folder"


def served(service: str, location: str, folder: Path) -> AbstractContextManager[DaemonProcess]:
    return daemon(folder / service, "--store", location, service=service, module=service)


def learned_at(location: str, rounds: int = 2) -> list[tuple[str, ...]]:
    store, found = open_store(location), []
    for round in range(rounds):
        arrays = store.manifest(store.read_document(layout.report_document(round))["report"]["learned"]["path"]).arrays
        found.append(tuple(digest for name in sorted(arrays) for digest in arrays[name].chunk_digests))
    return found


@pytest.mark.fault(23)
def test_killed_and_resumed_with_daemons_at_addresses(
    s3: S3Server, s3_location: str, tmp_path: Path, undisturbed: list[tuple[str, ...]]
) -> None:
    run, location = tmp_path / "runs/tiny-1", f"{s3_location}/tiny-1"
    with served("searcher", s3_location, tmp_path) as searcher, served("learner", s3_location, tmp_path) as learner:
        addresses = [f'searcher.addresses=["{searcher.address}"]', f"learner.address={learner.address}"]
        sets = [part for value in (f"store.root={s3_location}", *addresses) for part in ("--set", value)]
        with orchestrator("run", str(write_config(tmp_path)), *sets, folder=tmp_path) as process:
            await_object(process, location, lambda key: "/search/" in key and key.endswith("MANIFEST.json"))
            s3.fail("PUT", times=100_000, status=400, code="ExpiredToken")
            assert process.wait() == 4, process.text()
            assert "400 ExpiredToken" in process.text() and "renew the credentials" in process.text()
            assert f"orchestrator resume {run}" in process.text()
        s3.heal()
        # Answers fail now and then, also after the fact.
        s3.fail("PUT", "MANIFEST.json", times=3, status=503, code="SlowDown")
        s3.fail("PUT", "round.json", times=2, status=500, after=True)
        s3.fail("GET", "MANIFEST.json", times=5, status=500)
        s3.fail("HEAD", "", times=5, cut=True)
        with orchestrator("resume", str(run), folder=tmp_path) as process:
            await_object(process, location, lambda key: "checkpoints/00000" in key and key.endswith("MANIFEST.json"))
            process.send(signal.SIGKILL)
            process.wait()
        complete("resume", str(run), folder=tmp_path)
    assert location_of(run) == location
    check_whole(run, location, undisturbed)
    assert open_run(run).term == 3


@pytest.mark.fault(8)
def test_a_run_whose_host_is_lost_goes_on_from_its_store_elsewhere(
    s3: S3Server, s3_location: str, tmp_path: Path, undisturbed: list[tuple[str, ...]]
) -> None:
    location = f"{s3_location}/tiny-1"
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    config = write_config(first)
    config.write_text(config.read_text().replace(str(first / "runs"), "runs"))
    # The run does not get on while another orchestrator tries to take it.
    s3.fail("PUT", "round.json", times=1000, status=503, code="SlowDown")
    with orchestrator("run", str(config), "--set", f"store.root={s3_location}", folder=first) as process:
        await_object(process, location, lambda key: key.endswith("-beat.json"))
        with orchestrator("resume", location, folder=second) as other:
            assert other.wait() == 4
            assert f"in use by process {process.process.pid} on host" in other.text()
        s3.heal()
        await_object(process, location, lambda key: "search" in key and key.endswith("MANIFEST.json"))
        process.send(signal.SIGKILL)
        process.wait()
    shutil.rmtree(first / "runs/tiny-1")
    text = complete("resume", location, folder=second)
    run = second / "runs/tiny-1"
    assert "waiting 60 s for a sign of it" in text and "term 2" in text
    check_whole(run, location, undisturbed)
    assert [record["round"] for record in read_journal(run) if record["kind"] == "round_finished"] == [0, 1]
    with orchestrator("run", str(config), "--set", f"store.root={s3_location}", "--name", "tiny-1", folder=first) as third:
        assert third.wait() == 4
        assert "the run name is taken in store.root" in third.text()


def test_streamed_rounds_and_old_rounds_that_go(s3: S3Server, s3_location: str, tmp_path: Path) -> None:
    windows = ["rounds.policy=streaming", "rounds.count=6", "rounds.examples_per_round=100", "rounds.keep.rounds=2"]
    sets = [*windows, "learn.start=continue", "learn.epochs=1", "run.baseline=true", f"store.root={s3_location}"]
    complete("run", str(write_config(tmp_path)), *(part for text in sets for part in ("--set", text)), folder=tmp_path)
    run, location = tmp_path / "runs/tiny-1", f"{s3_location}/tiny-1"
    assert verify(run) == verify(f"{location}-baseline") == []
    store = open_store(location)
    assert store.read_document(layout.PRUNED_DOCUMENT)["before"] > 0
    assert len(store.committed("stream/targets")) < 6 and len(store.committed("stream/states")) == 1
