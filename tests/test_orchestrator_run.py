"""Whole runs on real daemons, local and at addresses, through the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.journal import read_journal
from orchestrator.runs import RunLock
from orchestrator.status import status_of
from tests.orchestrator_runs import complete, learned, orchestrator, write_config
from tests.serving_processes import DaemonProcess, daemon


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run with a baseline: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    output = complete("run", str(write_config(folder)), "--set", "run.baseline=true", folder=folder)
    return folder / "runs/tiny-1", output


def answer(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(str(ended.value.code or 0)), capsys.readouterr().out


def test_the_table_ends_with_the_baseline(finished: tuple[Path, str]) -> None:
    run, output = finished
    lines = [line.split() for line in output.splitlines() if line.strip()]
    table = [line for line in lines if line[0] in ("0", "1", "baseline") and "%" in "".join(line)]
    assert [line[0] for line in table[-3:]] == ["0", "1", "baseline"]
    assert output.count("->") == 6
    assert f"run: {run}" in output
    assert "MLflow" not in output


def test_overhead_is_small(finished: tuple[Path, str]) -> None:
    for number in (0, 1):
        report = json.loads((finished[0] / f"rounds/{number:05d}/report.json").read_text())
        metrics = find(report, "metrics")
        assert metrics["seconds/overhead"] < 1
        assert metrics["seconds/search"] > 0


def find(document: dict, key: str) -> dict:
    """Value of `key` at any depth."""
    return document[key] if key in document else next(find(value, key) for value in document.values() if isinstance(value, dict))


def test_status_compare_and_verify_as_json(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(finished[0])
    code, output = answer(["status", run, "--json"], monkeypatch, capsys)
    state = json.loads(output)
    assert (code, state["state"], state["rounds_finished"], state["owner"]) == (0, "finished", 2, None)
    code, output = answer(["verify", run, "--json"], monkeypatch, capsys)
    assert (code, json.loads(output)["ok"]) == (0, True)
    code, output = answer(["compare", run, f"{run}-baseline", "--json"], monkeypatch, capsys)
    rows = json.loads(output)
    assert [row["name"] for row in rows] == ["tiny-1", "tiny-1-baseline"]
    assert rows[0]["metrics"].keys() >= {"test/accuracy", "seconds/overhead"}
    assert [row["settings"]["learn.objective.name"] for row in rows] == ["regression", "cross_entropy"]


def test_a_finished_run_is_not_resumed(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = answer(["resume", str(finished[0])], monkeypatch, capsys)
    assert code == 0
    assert "nothing to resume" in output
    assert "started" not in output


def test_verify_names_what_is_damaged(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished[0].with_name("tiny-1-baseline")
    manifest = next(run.glob("rounds/00000/network/learned-a*/MANIFEST.json"))
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-20])
    try:
        code, output = answer(["verify", str(run)], monkeypatch, capsys)
    finally:
        manifest.write_bytes(content)
    assert code == 4
    assert "rounds/00000/network/learned-a" in output


def test_dry_run_starts_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = answer(["run", str(write_config(tmp_path)), "--dry-run"], monkeypatch, capsys)
    assert code == 0
    assert "1: search the network of round 0, learn 6 epochs from initial parameters" in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault(8)
def test_a_used_run_is_refused(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["orchestrator", "resume", str(finished[0])])
    journal = finished[0] / "journal.jsonl"
    content = journal.read_bytes()
    # Without its last record the run looks interrupted.
    journal.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))
    try:
        with RunLock(finished[0]), pytest.raises(SystemExit) as ended:
            assert status_of(finished[0])["owner"]["pid"] == os.getpid()
            cli.main()
    finally:
        journal.write_bytes(content)
    assert ended.value.code == 4
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_status_tells_the_pace_of_learning_and_the_time_left(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    records = read_journal(finished[0])
    ends = [n for n, record in enumerate(records) if record.get("key") == "learn/loss" and record["round"] == 1]
    # As if epochs ended every 2 s and the fourth of 6 were the last so far, half a second ago.
    kept = [{**record, "time": 1000.0 + 2 * record.get("step", 0)} for record in records[: ends[3] + 1]]
    monkeypatch.setattr("orchestrator.status.read_journal", lambda _: kept)
    monkeypatch.setattr("orchestrator.status.time.time", lambda: 1008.5)
    with RunLock(finished[0]):
        found = status_of(finished[0])
    assert (found["phase"], found["epoch"], found["epochs"]) == ("learn", 4, 6)
    assert found["examples_per_second"] == pytest.approx(100)
    assert found["seconds_left"] == pytest.approx(3.5)
    kept = kept[: ends[0] + 1]
    with RunLock(finished[0]):
        assert status_of(finished[0])["examples_per_second"] is None


@pytest.mark.fault(10)
def test_non_finite_loss_ends_the_run(tmp_path: Path) -> None:
    arguments = ["run", str(write_config(tmp_path)), "--set", "learn.optimiser.lr=1e30"]
    with orchestrator(*arguments, folder=tmp_path) as process:
        assert process.wait() == 7
        assert "finite" in process.text()
    assert status_of(tmp_path / "runs/tiny-1")["state"] == "failed"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[list[DaemonProcess], DaemonProcess]]:
    """Two searchers and a learner that serve the folder of the runs."""
    root = tmp_path / "runs"
    options = ("--device", "cpu", "--threads", "1")
    with (
        daemon(root, *options, module="searcher") as one,
        daemon(root, *options, module="searcher") as two,
        daemon(root, *options, module="learner", service="learner") as learner,
    ):
        yield [one, two], learner


def test_daemons_at_addresses_one_of_which_dies(
    tmp_path: Path, finished: tuple[Path, str], fleet: tuple[list[DaemonProcess], DaemonProcess]
) -> None:
    searchers, learner = fleet
    addresses = json.dumps([searcher.address for searcher in searchers])
    arguments = ["run", str(write_config(tmp_path)), "--name", "two", "--set", "searcher.shard_examples=16"]
    arguments += ["--set", f"searcher.addresses={addresses}", "--set", f"learner.address={learner.address}"]
    with orchestrator(*arguments, folder=tmp_path) as process:
        process.await_file(tmp_path / "runs/two", "rounds/00000/search/*/MANIFEST.json")
        searchers[0].signal(signal.SIGKILL)
        assert process.wait() == 0, process.text()
        assert "started" not in process.text()
    # Neither the shards' size nor the daemon that searches them changes a bit.
    assert learned(tmp_path / "runs/two") == learned(finished[0])
    assert learner.process.poll() is None
