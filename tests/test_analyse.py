"""`orchestrator analyse`: a real run and its baseline, analysed end to end, and what is refused."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import cli
from orchestrator.analysing import command
from orchestrator.analysing.subjects import Moment, case_of, targets_of, thinned
from orchestrator.execution import is_finished
from orchestrator.journal import read_journal
from orchestrator.runs import open_run, save_run
from orchestrator.status import state_of
from orchestrator.verify import verify
from repsearch.errors import DaemonError
from store import open_store
from tests.orchestrator_runs import complete, write_config

SETTINGS = ("run.baseline=true", "rounds.count=1", "learn.epochs=5", "learn.snapshots=2", "search.searches_per_example=2")
FILES = {
    *(f"{name}.csv" for name in ("agreement", "classes", "curves", "probes", "reliability", "scores")),
    *(f"{name}.png" for name in ("agreement", "classes", "collision-entropy", "probes", "reliability", "target-distance")),
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def call(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(str(ended.value.code))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a baseline."""
    folder = tmp_path_factory.mktemp("analyse")
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    complete("run", str(write_config(folder)), "--name", "tiny", *overrides, folder=folder)
    return folder / "runs/tiny"


@pytest.fixture(scope="module")
def analysed(finished: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the run's analysis, and what the command printed."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        assert call(["analyse", str(finished), "--examples", "100", "--json"], patch) == 0
    return finished / "analysis", json.loads(output.getvalue())


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same run, to be spoilt."""
    for name in ("tiny", "tiny-baseline"):
        shutil.copytree(finished.with_name(name), tmp_path / name)
    return tmp_path / "tiny"


def test_a_run_is_analysed_beside_its_baseline(finished: Path, analysed: tuple[Path, dict[str, Any]]) -> None:
    analysis, printed = analysed
    assert {path.name for path in analysis.iterdir()} == FILES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in analysis.glob("*.png"))

    curves = rows(analysis / "curves.csv")
    assert [int(row["epoch"]) for row in curves if row["run"] == "tiny" and row["layer"] == "block1"] == [0, 2, 4, 5]
    assert {row["run"] for row in curves} == {"targets", "tiny", "tiny-baseline"}
    distance = {(row["run"], row["epoch"]): float(row["target_distance"]) for row in curves if row["layer"] == "block1" and row["epoch"]}
    # The initial parameters are those of both; learning the targets brings the outputs nearer to them than learning the labels.
    assert distance["tiny", "0"] == distance["tiny-baseline", "0"]
    assert distance["tiny", "5"] < distance["tiny", "0"] - 0.1
    assert distance["tiny", "5"] < distance["tiny-baseline", "5"] - 0.1

    report = open_store(finished).read_document("rounds/00000/report.json")["report"]["metrics"]
    scores = {row["run"]: row for row in printed["scores"]}
    assert scores["tiny"]["accuracy"] == pytest.approx(report["validation/accuracy"])
    assert scores["tiny"]["cross_entropy"] == pytest.approx(report["validation/cross_entropy"], rel=1e-5)
    assert sum(int(row["images"]) for row in rows(analysis / "reliability.csv") if row["run"] == "tiny") == 50
    by_class = [row for row in rows(analysis / "classes.csv") if row["run"] == "tiny"]
    right = sum(int(row["images"]) * float(row["accuracy"] or 0) for row in by_class)
    assert right / 50 == pytest.approx(scores["tiny"]["accuracy"], abs=1e-4)
    assert [(row["run"], row["other"]) for row in printed["agreement"]] == [("tiny", "tiny-baseline")]
    assert len(rows(analysis / "probes.csv")) == 2 * 2 * 3

    # The folder is whole and finished as before.
    assert verify(finished) == []
    assert is_finished(finished)
    assert state_of(finished) == "finished"
    assert [record["kind"] for record in read_journal(finished)[-2:]] == ["run_finished", "analysis_ready"]


def test_an_analysis_repeats_to_the_digit_and_goes_to_mlflow_if_that_answers(
    copy: Path, analysed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(copy)
    save_run(replace(run, config=run.config.model_copy(update={"tracking": run.config.tracking.model_copy(update={"enabled": True})})))
    synced: list[Path] = []

    def sync(folder: Path) -> None:
        assert read_journal(folder)[-1]["kind"] == "analysis_ready"
        synced.append(folder)
        raise DaemonError("MLflow at nowhere: it does not answer")

    monkeypatch.setattr(command, "sync", sync)
    # MLflow being away takes nothing from the analysis.
    assert call(["analyse", str(copy), "--examples", "100"], monkeypatch) == 0
    assert synced == [copy]
    assert f"`orchestrator sync {copy}` takes it to MLflow" in capsys.readouterr().out.replace("\n", " ")
    for path in analysed[0].glob("*.csv"):
        assert (copy / "analysis" / path.name).read_text() == path.read_text()


def test_a_baseline_named_as_a_run_is_analysed_as_one(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = copy.with_name("tiny-baseline")
    assert call(["analyse", str(copy), str(baseline), "--examples", "20", "--test", "--points", "2"], monkeypatch) == 0
    assert [row["split"] for row in rows(copy / "analysis/scores.csv")] == ["test", "test"]
    assert {row["epoch"] for row in rows(copy / "analysis/curves.csv") if row["run"] == "tiny"} == {"0", "5"}
    # Compared once, and the same in both folders.
    assert len(rows(copy / "analysis/agreement.csv")) == 1
    assert (baseline / "analysis/agreement.csv").read_text() == (copy / "analysis/agreement.csv").read_text()
    assert not (baseline / "analysis/target-distance.png").exists()
    assert "tiny-baseline: round 0 searched nothing" in capsys.readouterr().out


def test_the_targets_are_those_that_are_learned_from(copy: Path) -> None:
    subject = case_of(copy, None, 30).main
    assert subject.search is not None
    first, *_ = subject.search.references()
    stored, fitness = subject.store.read(first, "block0"), subject.store.read(first, "fitness_after")
    best = targets_of(subject, "block0", 70)
    assert best.shape == (70, 1, stored[0, 0].size)
    assert np.array_equal(best[:64, 0], stored[np.arange(64), fitness.mean(axis=2).argmax(axis=1)].reshape(64, -1))

    def picked(targets: str | int) -> Any:
        learn = subject.run.config.learn.model_copy(update={"targets": targets})
        return targets_of(
            replace(subject, run=replace(subject.run, config=subject.run.config.model_copy(update={"learn": learn}))), "block0", 9
        )

    assert np.array_equal(picked(1)[:, 0], stored[:9, 1].reshape(9, -1))
    assert np.array_equal(picked("random"), stored[:9].reshape(9, 2, -1))


def test_thinned_curves_keep_both_ends() -> None:
    moments = [Moment(epoch, None) for epoch in range(91)]
    assert [moment.epoch for moment in thinned(moments, 4)] == [0, 30, 60, 90]
    assert thinned(moments[:3], 30) == moments[:3]


def unfinished(run: Path) -> None:
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[: next(n for n, line in enumerate(lines) if '"run_finished"' in line)]))


def unfinished_baseline(run: Path) -> None:
    unfinished(run.with_name("tiny-baseline"))


def study(run: Path) -> None:
    save_run(replace(open_run(run), study={"name": "scaling"}))


def other_data(run: Path) -> None:
    baseline = open_run(run.with_name("tiny-baseline"))
    save_run(replace(baseline, dataset={**baseline.dataset, "digest": "0" * 64}))


def damaged(run: Path) -> None:
    files = [path for path in (run / "rounds/00000/epochs/a01-e0002").rglob("*") if path.is_file()]
    chunk = max(files, key=lambda path: path.stat().st_size)
    chunk.write_bytes(bytes(byte ^ 1 for byte in chunk.read_bytes()))


REFUSED: dict[str, tuple[Any, list[str], int, str]] = {
    "unfinished": (unfinished, [], 4, "the run is not finished (interrupted); resume it: orchestrator resume"),
    "unfinished baseline": (unfinished_baseline, [], 4, "tiny-baseline: the run is not finished"),
    "a study": (study, [], 2, "a study (scaling), which has no rounds to analyse"),
    "other data": (other_data, [], 2, "predictions cannot be compared"),
    "damaged network": (damaged, [], 4, "a01-e0002"),
    "round that is not there": (lambda run: None, ["--round", "3"], 2, "--round 3:"),
    "too few examples": (lambda run: None, ["--examples", "19"], 2, "--examples 19: too few to compare 10 classes; give 20"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_analysed_writes_nothing(
    case: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, options, code, message = REFUSED[case]
    shutil.rmtree(copy / "analysis", ignore_errors=True)
    spoil(copy)
    assert call(["analyse", str(copy), *options], monkeypatch) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (copy / "analysis").exists()
