"""Sweeps: what can be chosen, what is refused, which trials come, and a sweep that is killed and goes on."""

from __future__ import annotations

import math
import signal
import sqlite3
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import cli
from orchestrator.runs import open_run
from orchestrator.sweeps import running
from orchestrator.sweeps.settings import Sweep, check_sweep, parse_sweep
from orchestrator.sweeps.space import Choice, Range, overrides, parse_space
from orchestrator.sweeps.worker import Request, Result, read_result
from repsearch.config import load_config
from repsearch.errors import ConfigError, JobError, NumericalError
from tests.orchestrator_runs import DEADLINE_S, complete, gone, orchestrator

BASELINE = {
    "dataset": {"name": "digits", "train": 100, "validation": 50, "test": 50},
    "network": {"name": "convnet", "width": 8, "blocks": 2, "convolutions": 2},
    "learn": {"objective": "cross_entropy", "epochs": 1, "batch_size": 50},
    "rounds": {"policy": "learn_only", "count": 1},
    "tracking": {"enabled": False},
}
SPACE = {"learn.optimiser.lr": {"low": 1e-3, "high": 2e-2, "log": True}, "network.convolutions": [2, 4, 6]}


def sweep_of(**fields: Any) -> Sweep:
    return parse_sweep({**BASELINE, "sweep": {"space": SPACE, **fields}})


class FakeWorkers:
    """Workers whose trials are as accurate as `score` says, and that die after `most` runs."""

    def __init__(self, score: Any, most: int = 1000) -> None:
        self.score, self.most = score, most
        self.requests: list[Request] = []

    def run(self, request: Request) -> Result:
        if len(self.requests) == self.most:
            raise JobError("the worker process ended")
        self.requests.append(request)
        accuracy = self.score(request.config)
        return Result(metrics={"validation/accuracy": accuracy}, evaluations=0, search_s=0, learn_s=1, seconds=1)

    def stop(self) -> None:
        """Nothing to stop."""


def by_lr(config: Mapping[str, Any]) -> float:
    return 1 - abs(config["learn"]["optimiser"]["lr"] - 5e-3) * 10


def choose(folder: Path, sweep: Sweep, workers: FakeWorkers) -> running.Best:
    folder.mkdir(exist_ok=True)
    return running.choose(folder, sweep, workers, lambda _: None)  # type: ignore[arg-type]


def values(workers: FakeWorkers) -> list[tuple[float, int]]:
    return [(request.config["learn"]["optimiser"]["lr"], request.config["network"]["convolutions"]) for request in workers.requests]


def test_a_space_has_ranges_and_lists_and_keys_may_be_dotted() -> None:
    quoted = parse_space({"learn.optimiser.lr": {"low": 0.1, "high": 1.0, "log": True}, "network.convolutions": [2, 4]})
    dotted = parse_space({"learn": {"optimiser": {"lr": {"low": 0.1, "high": 1.0, "log": True}}}, "network": {"convolutions": [2, 4]}})
    # A table of ranges is read as dotted keys at any depth.
    assert quoted == {"learn.optimiser.lr": Range(0.1, 1.0, True), "network.convolutions": Choice((2, 4))}
    assert dotted == quoted


def test_a_value_may_be_a_list_or_a_table() -> None:
    table = {"learn.objective": [{"name": "cross_entropy"}, {"name": "cross_entropy", "label_smoothing": 0.1}]}
    sweep = parse_sweep({**BASELINE, "sweep": {"space": table}})
    assert [sweep.config({"learn.objective": value}).learn.objective["label_smoothing"] for value in table["learn.objective"]] == [0.0, 0.1]
    assert overrides({"a.b": {"c": [1, 2.5, "x"], "d": True}}) == ['a.b={c = [1, 2.5, "x"], d = true}']


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"space": {"learn.optimiser.lrr": [0.1]}}, r'sweep\.space\."learn\.optimiser\.lrr": 0\.1 is refused: .*did you mean'),
    "unknown section": ({"space": {"lern.epochs": [1]}}, "not of 'lern'; did you mean 'learn'"),
    "data": ({"space": {"dataset.train": [10]}}, "not of 'dataset'"),
    "seed": ({"space": {"run.seed": [1, 2]}}, "not of 'run'"),
    "low above high": ({"space": {"learn.optimiser.lr": {"low": 1.0, "high": 0.1}}}, r"low 1\.0 is not below high 0\.1"),
    "low equal to high": ({"space": {"learn.epochs": {"low": 3, "high": 3}}}, "low 3 is not below high 3"),
    "log of zero": ({"space": {"learn.optimiser.lr": {"low": 0.0, "high": 0.1, "log": True}}}, "has no logarithm"),
    "half a range": ({"space": {"learn.optimiser.lr": {"low": 0.1}}}, "high is required"),
    "unknown end": ({"space": {"learn.optimiser.lr": {"low": 0.1, "hihg": 1.0}}}, "unknown key 'hihg'; did you mean 'high'"),
    "text as an end": ({"space": {"learn.optimiser.lr": {"low": "0.1", "high": 1.0}}}, "finite number"),
    "no list": ({"space": {"learn.epochs": 3}}, "should be a list of values"),
    "empty list": ({"space": {"learn.epochs": []}}, "empty list"),
    "a value twice": ({"space": {"learn.epochs": [3, 3]}}, "given twice"),
    "empty space": ({"space": {}}, r"sweep\.space: is empty"),
    "no space": ({}, r"sweep\.space: .*required"),
    "no trials": ({"trials": 0, "space": SPACE}, r"sweep\.trials: .*(given: 0)"),
    "unknown field": ({"trial": 3, "space": SPACE}, "did you mean 'trials'"),
    "unknown sampler": ({"sampler": "bayes", "space": SPACE}, r"sweep\.sampler"),
    "more keys than sobol has": (
        {"sampler": "sobol", "space": {f"learn.key{key}": [1, 2] for key in range(33)}},
        r'has 33 keys; the sampler "sobol" draws at most 32',
    ),
    "a grid with ranges": ({"sampler": "grid", "space": SPACE}, r"lr\": a grid has no ranges"),
    "a value that a run refuses": ({"space": {"network.convolutions": [2, 3]}}, r"convolutions\": 3 is refused"),
    "an end that a run refuses": ({"space": {"learn.batch_size": {"low": 50, "high": 101}}}, "101 is refused: .*100 training examples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_sweep_is_refused_before_anything_starts(case: str) -> None:
    table, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        check_sweep(parse_sweep({**BASELINE, "sweep": table}))


def test_a_configuration_without_a_sweep_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "plain.toml").write_text("[run]\nseed = 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orchestrator", "sweep", "plain.toml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "has no [sweep] table" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plain.toml"]


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe"])
def test_a_sweep_that_stops_goes_on_with_the_trials_it_would_have_had(tmp_path: Path, sampler: str) -> None:
    sweep = sweep_of(trials=6, sampler=sampler)
    whole, before, after = FakeWorkers(by_lr), FakeWorkers(by_lr, most=3), FakeWorkers(by_lr)
    best = choose(tmp_path / "whole", sweep, whole)
    with pytest.raises(JobError):
        choose(tmp_path / "cut", sweep, before)
    assert choose(tmp_path / "cut", sweep, after) == best
    assert values(before) + values(after) == values(whole)
    assert len(set(values(whole))) > 4
    assert best.accuracy == max(by_lr(request.config) for request in whole.requests)
    # Another opening does nothing, and says the same.
    idle = FakeWorkers(by_lr)
    assert choose(tmp_path / "cut", sweep, idle) == best and idle.requests == []


def test_another_seed_draws_other_values(tmp_path: Path) -> None:
    first, second = FakeWorkers(by_lr), FakeWorkers(by_lr)
    choose(tmp_path / "a", sweep_of(trials=3, sampler="random"), first)
    choose(
        tmp_path / "b", parse_sweep({**BASELINE, "run": {"seed": 1}, "sweep": {"trials": 3, "sampler": "random", "space": SPACE}}), second
    )
    assert values(first) != values(second)


def test_few_sobol_trials_are_even_over_the_space(tmp_path: Path) -> None:
    space = {
        "learn.optimiser.lr": {"low": 1e-3, "high": 1.6e-2, "log": True},
        "network.convolutions": [2, 4],
        "learn.epochs": {"low": 1, "high": 4},
    }
    workers = FakeWorkers(by_lr)
    choose(tmp_path / "sobol", sweep_of(trials=4, sampler="sobol", space=space), workers)
    configs = [request.config for request in workers.requests]
    octaves = sorted(int(math.log2(config["learn"]["optimiser"]["lr"] / 1e-3)) for config in configs)
    assert octaves == [0, 1, 2, 3]
    assert sorted(config["network"]["convolutions"] for config in configs) == [2, 2, 4, 4]
    assert sorted(config["learn"]["epochs"] for config in configs) == [1, 2, 3, 4]


def test_a_grid_tries_every_combination_once(tmp_path: Path) -> None:
    space = {"learn.optimiser.lr": [1e-3, 5e-3], "network.convolutions": [2, 4, 6]}
    workers = FakeWorkers(by_lr)
    best = choose(tmp_path / "grid", sweep_of(trials=100, sampler="grid", space=space), workers)
    assert sorted(values(workers)) == sorted((lr, depth) for lr in space["learn.optimiser.lr"] for depth in (2, 4, 6))
    assert best.values["learn.optimiser.lr"] == 5e-3


def test_equal_values_run_once(tmp_path: Path) -> None:
    workers = FakeWorkers(lambda config: 0.5)
    best = choose(tmp_path / "same", sweep_of(trials=7, sampler="random", space={"network.convolutions": [2, 4]}), workers)
    assert len(workers.requests) == 2 and best.number == 0


def test_a_trial_that_diverges_counts_and_is_not_chosen(tmp_path: Path) -> None:
    def score(config: Mapping[str, Any]) -> float:
        if config["network"]["convolutions"] == 6:
            raise NumericalError("the loss is nan")
        return float(config["network"]["convolutions"])

    workers = FakeWorkers(score)
    space = {"network.convolutions": [2, 4, 6]}
    assert choose(tmp_path / "some", sweep_of(sampler="grid", space=space), workers).values == {"network.convolutions": 4}
    assert len(workers.requests) == 3
    with pytest.raises(JobError, match="none of 1 trials has a result: the loss is nan"):
        choose(tmp_path / "none", sweep_of(sampler="grid", space={"network.convolutions": [6]}), workers)


CONFIG = """
[run]
root = "runs"
[dataset]
name = "digits"
train = 100
validation = 50
test = 50
[network]
name = "convnet"
width = 8
blocks = 2
convolutions = 2
[learn]
objective = "cross_entropy"
epochs = 3
batch_size = 50
[rounds]
policy = "learn_only"
count = 1
[tracking]
enabled = false
[sweep]
trials = 3
sampler = "random"
prune = true
[sweep.space]
"learn.optimiser.lr" = {low = 1e-3, high = 2e-2, log = true}
"learn.objective.label_smoothing" = [0.0, 0.1]
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_real_runs(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    folder = tmp_path / "runs" / "tiny-sweep-1"
    with orchestrator("sweep", "tiny.toml", folder=tmp_path) as process:
        process.await_file(folder, "trial-0001/run.json")
        process.send(signal.SIGKILL)
        process.wait()
    first = read_result(folder / "trial-0000")
    assert first is not None and not (folder / "best.toml").exists()
    for pid in _pids(folder):
        assert gone(pid)
    # Daemons end when the pipe to them does, on a busy machine a moment later; what they still write would come back.
    left = [process for process in psutil.process_iter(["cmdline"]) if str(folder) in (process.info["cmdline"] or ())]
    assert not psutil.wait_procs(left, timeout=DEADLINE_S)[1]
    output = complete("resume", str(folder), folder=tmp_path)
    assert read_result(folder / "trial-0000") == first
    results = [read_result(folder / f"trial-{number:04d}") for number in range(3)]
    accuracies = [result.metrics["validation/accuracy"] for result in results if result is not None]
    assert len(accuracies) == 3
    # The learner of the killed sweep may have finished trial 1 by itself.
    assert all(0 < result.core_s < 60 for result in results if result is not None and not result.resumed)
    for result in results:
        assert result is not None and result.curves["validation_accuracy"][-1] == result.metrics["validation/accuracy"]
    with sqlite3.connect(folder / "optuna.db") as database:
        told = [value for (value,) in database.execute("select value from trial_values order by trial_id")]
    database.close()
    assert told == accuracies
    assert f"validation accuracy {max(accuracies):.4f}" in output
    trial = open_run(folder / "trial-0001")
    assert trial.sweep == {"name": "tiny-sweep-1", "trial": 1} and trial.tags()["sweep"] == "tiny-sweep-1"
    assert not (folder / "trial-0001" / "rounds").exists()
    # The best values, as a configuration that runs as it is.
    best = load_config(folder / "best.toml")
    number = accuracies.index(max(accuracies))
    assert best.learn == open_run(folder / f"trial-{number:04d}").config.learn
    assert best.run.root == "runs" and "sweep" not in tomllib.loads((folder / "best.toml").read_text())


def _pids(folder: Path) -> Sequence[int]:
    """The orchestrator's workers and daemons by the names of their logs, which hold the process id of who started them."""
    return [int(path.stem.split("-")[1]) for path in (folder / "logs").iterdir()]
