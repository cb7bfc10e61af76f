"""Stop, pause and resume from anywhere: requests reach who they are meant for, and nobody else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.control import NOW_FILE, REQUEST_FILE, Control, write_json
from orchestrator.journal import read_journal
from orchestrator.oversight import Wait
from orchestrator.runs import LOCK_FILE, RunLock, holder_of
from orchestrator.status import status_of
from orchestrator.steering import ask, is_paused, working_on
from orchestrator.verify import verify
from repsearch.errors import StoppedError, StoreError
from tests.background_runs import daemons, resumed, run_on
from tests.orchestrator_runs import learned
from tests.serving_processes import DaemonProcess, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "night"
    run.mkdir()
    return run


@pytest.fixture
def control(folder: Path) -> Iterator[Control]:
    with RunLock(folder), Control(folder) as opened:
        yield opened


def test_requests_reach_the_orchestrator(folder: Path, control: Control) -> None:
    assert control.wanted() == ""
    who = ask(folder, "pause")
    assert f"process {holder_of(folder)['pid']}" in who
    until(lambda: control.wanted() == "pause")
    until(lambda: is_paused(folder))
    ask(folder, "go_on")
    until(lambda: control.wanted() == "")
    until(lambda: not is_paused(folder))
    ask(folder, "stop_now")
    with pytest.raises(StoppedError):
        until(lambda: control.wanted() == "never")


def test_a_request_for_another_opening_of_the_run_is_dropped(folder: Path, control: Control) -> None:
    write_json(folder / REQUEST_FILE, {"wanted": "stop", "of": {**holder_of(folder), "token": "of yesterday"}})
    until(lambda: not (folder / REQUEST_FILE).exists())
    assert control.wanted() == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"wanted": "dance"}'])
def test_a_request_that_makes_no_sense_is_passed_over(folder: Path, control: Control, text: str) -> None:
    (folder / REQUEST_FILE).write_text(text)
    ask(folder, "pause")
    until(lambda: control.wanted() == "pause")


def test_nobody_runs_it(folder: Path) -> None:
    with RunLock(folder):
        pass
    with pytest.raises(StoreError, match="nobody runs it, so there is nothing to stop"):
        ask(folder, "stop")
    assert not (folder / REQUEST_FILE).exists()


def test_an_orchestrator_that_does_not_hear_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.steering.HEARD_S", 0.3)
    with RunLock(folder), pytest.raises(StoreError, match="has not heard within"):
        ask(folder, "stop")
    assert not (folder / REQUEST_FILE).exists()


def test_an_orchestrator_on_another_host_is_known_by_its_beat(folder: Path) -> None:
    """Where locks do not reach other hosts, nobody seems to hold this one."""
    (folder / LOCK_FILE).write_text(json.dumps({"pid": 7, "host": "far-away", "token": "t"}))
    assert working_on(folder) is None
    beats, stop = iter(range(1, 10**6)), threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            write_json(folder / NOW_FILE, {"beat": next(beats), "wanted": "", "waits": []})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        until(lambda: (folder / NOW_FILE).exists())
        found = working_on(folder)
        assert found is not None and found["host"] == "far-away"
    finally:
        stop.set()
        thread.join()


def test_waits_are_told_with_times_on_the_wall(folder: Path, control: Control) -> None:
    begun = time.monotonic() - 100
    control.waits([Wait(who="orchestrator", what="shard 3", since=begun, until=begun + 160, note="slow")])

    def told() -> list[dict[str, Any]]:
        path = folder / NOW_FILE
        return json.loads(path.read_text())["waits"] if path.exists() else []

    until(lambda: bool(told()))
    wait = told()[0]
    assert (wait["who"], wait["what"], wait["note"]) == ("orchestrator", "shard 3", "slow")
    assert abs(time.time() - wait["since"] - 100) < 10 and abs(wait["until"] - wait["since"] - 160) < 1


def test_what_a_killed_orchestrator_left_of_its_word_is_removed(folder: Path) -> None:
    (folder / f"{NOW_FILE}.123.part").write_text('{"beat')
    with RunLock(folder), Control(folder):
        pass
    assert [path.name for path in folder.iterdir() if path.name.startswith(NOW_FILE)] == []


def test_a_full_disk_does_not_stop_the_run(folder: Path, control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.control.write_json", full)
    control.waits([Wait(who="orchestrator", what="room", since=time.monotonic())])
    ask(folder, "pause")
    until(lambda: control.wanted() == "pause")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steering") / "runs"


@pytest.fixture(scope="module")
def fleet(root: Path) -> Iterator[tuple[list[DaemonProcess], DaemonProcess]]:
    with daemons(root, 1) as started:
        yield started


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return getattr(result.exception, "exit_code", result.exit_code), f"{result.output}{result.exception or ''}"


@pytest.mark.slow
def test_paused_resumed_stopped_and_resumed_a_run_learns_the_same_bits(
    root: Path, fleet: tuple[list[DaemonProcess], DaemonProcess]
) -> None:
    with run_on(root, *fleet, "undisturbed") as run:
        assert run.end() is None
    with run_on(root, *fleet, "night", "searcher.shard_examples=20") as run:
        name = str(run.folder)
        run.until_file("rounds/00000/search/*/MANIFEST.json")
        code, text = command("pause", name)
        assert code == 0 and f"orchestrator resume {name}" in text
        # What ran has committed; nothing more begins.
        run.until(lambda: status_of(run.folder)["state"] == "paused" and len(status_of(run.folder)["waits"]) == 1)
        shards = len(list(run.folder.glob("rounds/*/search/*/MANIFEST.json")))
        code, text = command("status", name)
        assert code == 0 and "paused" in text and f"orchestrator waits for `orchestrator resume {name}`" in text
        assert json.loads(command("status", name, "--json")[1])["waits"][0]["until"] is None
        assert len(list(run.folder.glob("rounds/*/search/*/MANIFEST.json"))) == shards < 10
        code, text = command("resume", name)
        assert code == 0 and "goes on with the run" in text
        run.until_file("checkpoints/00000/*/MANIFEST.json")
        assert command("stop", name)[0] == 0
        error = run.end()
        assert isinstance(error, StoppedError) and error.exit_code == 9
        assert f"orchestrator resume {name}" in str(error)
    assert status_of(run.folder)["state"] == "stopped"
    assert read_journal(run.folder)[-1]["status"] == "KILLED"
    code, text = command("stop", name)
    assert code == 4 and "nobody runs it" in text
    with resumed(run.folder) as again:
        again.until_file("rounds/00001/search/*/MANIFEST.json")
        assert command("stop", "--now", name)[0] == 0
        assert isinstance(again.end(), StoppedError)
    with resumed(run.folder) as again:
        assert again.end() is None
    assert learned(run.folder) == learned(root / "undisturbed")
    assert verify(run.folder) == []
    assert not (run.folder / NOW_FILE).exists() and not (run.folder / REQUEST_FILE).exists()
