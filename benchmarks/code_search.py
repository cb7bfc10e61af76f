"""Searched class codes against random ones at equal cost: does the loop's only signal earn what it costs?

    python benchmarks/code_search.py [--config mnist-code-search] [--seeds 5] [--set a.b=v ...] [--row NAME ...] [--json FILE]

Rows, each over the same seeds, data and settings:
  search       policy code_search as the configuration has it, method evolution_strategy
  genetic      the same with method genetic
  random       the control: as many codes, drawn at random; the best by fitness is learned as the searched one is
  one code     a single random code, all examples that `search` learns from spent on learning it (rounded up to whole epochs)
  more images  as `one code`, and the images set apart for fitness are trained on too
  plain        a single random code, learned as long as the last round of `search`: what the cost of searching brings
Killed, it goes on where it was: a finished run is read, an unfinished one resumed. Runs are named by what they were run with.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, mean_and_spread, run_or_resume, write_json
from orchestrator.policies.code_search import CodeSearch
from orchestrator.report import RoundReport
from orchestrator.rounds import load_reports
from repsearch.config import RunConfig, json_digest, load_config
from repsearch.families import POLICIES
from store import open_store

ROWS = ("search", "genetic", "random", "one code", "more images", "plain")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run: figures of its last network, and what all of its rounds cost.

    curve: per generation the mean and the best fitness of its candidates, and the best so far; empty without candidates.
    """

    name: str
    seed: int
    run: str
    test_accuracy: float
    validation_accuracy: float
    fitness_accuracy: float | None
    learn_examples: float
    evaluations_per_example: float
    seconds: float
    rounds: int
    curve: list[dict[str, float]]


def main() -> None:
    """Run what is missing, print a line per run, the curves, then means over seeds."""
    options = _options()
    root = options.root.resolve()
    config = f"{options.config}.toml"
    outcomes: list[Outcome] = []
    print(f"{'row':12} seed  test %  validation %  fitness %  images learned   seconds")
    for seed in range(options.seeds):
        for name in options.row or ROWS:
            overrides = [*options.set, f"dataset.root={options.data.resolve()}", "tracking.enabled=false", f"run.seed={seed}"]
            overrides += settings_of(name, load_config(ROOT / "configs" / config, overrides))
            outcome = perform(name, seed, options.config, root, overrides)
            outcomes.append(outcome)
            print(line(outcome), flush=True)
            write_json(options.json, [asdict(each) for each in outcomes])
    summarise(outcomes)


def settings_of(name: str, config: RunConfig) -> list[str]:
    """Return the overrides that make a row of `config`, whose policy is code_search."""
    policy: CodeSearch = POLICIES.build(config.rounds.policy, at="rounds.policy")
    if name in ("search", "genetic", "random"):
        return [f"rounds.policy.method={'evolution_strategy' if name == 'search' else name}"]
    single = ["rounds.policy.name=closed_loop", "rounds.count=1"]
    if name == "plain":
        return single
    train, fitness = int(config.dataset["train"]), int(config.dataset["fitness"])
    candidates = config.rounds.count - 1 - (policy.warm_epochs > 0)
    epochs = policy.warm_epochs + candidates * policy.epochs + config.learn.epochs
    if name == "one code":
        return [*single, f"learn.epochs={epochs}"]
    images = train + fitness
    return [*single, "dataset.fitness=0", f"dataset.train={images}", f"learn.epochs={-(-epochs * train // images)}"]


def perform(name: str, seed: int, config: str, root: Path, overrides: Sequence[str]) -> Outcome:
    """Return the outcome of a run, done now, gone on with, or found done."""
    digest = json_digest([config, *overrides])[:8]
    run = f"{name.replace(' ', '-')}-seed{seed}-{digest}"
    run_or_resume(config, root=root, name=run, overrides=overrides)
    reports = load_reports(open_store(root / run))
    table = load_config(ROOT / "configs" / f"{config}.toml", overrides)
    last = reports[-1].metrics
    return Outcome(
        name=name,
        seed=seed,
        run=run,
        test_accuracy=last["test/accuracy"],
        validation_accuracy=last["validation/accuracy"],
        fitness_accuracy=last.get("fitness/accuracy"),
        learn_examples=sum(report.metrics["learn/examples"] for report in reports),
        evaluations_per_example=sum(report.metrics["search/evaluations_per_example"] for report in reports),
        seconds=sum(report.metrics["seconds/round"] for report in reports),
        rounds=len(reports),
        curve=curve(reports, table),
    )


def curve(reports: Sequence[RoundReport], config: RunConfig) -> list[dict[str, float]]:
    """Return mean, best and best-so-far fitness of every generation."""
    policy = POLICIES.build(config.rounds.policy, at="rounds.policy")
    if not isinstance(policy, CodeSearch):
        return []
    first = 1 if policy.warm_epochs else 0
    fitness = [policy.fitness_of(report) for report in reports[first : config.rounds.count - 1]]
    found, best = [], float("-inf")
    for start in range(0, len(fitness) - policy.population + 1, policy.population):
        values = fitness[start : start + policy.population]
        best = max(best, *values)
        found.append({"generation": start // policy.population, "mean": statistics.mean(values), "best": max(values), "best_so_far": best})
    return found


def line(outcome: Outcome) -> str:
    """Return a run's line of the table, and its curve below."""
    fitness = "-" if outcome.fitness_accuracy is None else f"{100 * outcome.fitness_accuracy:.2f}"
    text = (
        f"{outcome.name:12} {outcome.seed:4}  {100 * outcome.test_accuracy:6.2f}  {100 * outcome.validation_accuracy:12.2f}  {fitness:>9}"
        f"  {outcome.learn_examples:14,.0f}  {outcome.seconds:8.0f}"
    )
    if outcome.curve:
        means, bests = (" ".join(f"{point[key]:.3f}" for point in outcome.curve) for key in ("mean", "best_so_far"))
        text += f"\n    fitness by generation: mean {means}; best so far {bests}"
    return text


def summarise(outcomes: Sequence[Outcome]) -> None:
    """Print test accuracy of every row over seeds, and how far `search` is above each, seed by seed."""
    by_row: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        by_row.setdefault(outcome.name, {})[outcome.seed] = outcome.test_accuracy
    for name, accuracies in by_row.items():
        text = f"{name:12} {mean_and_spread(list(accuracies.values()))} % over {len(accuracies)} seeds"
        if name != "search" and "search" in by_row:
            text += f"; search is {mean_and_spread([by_row['search'][seed] - value for seed, value in accuracies.items()])} above it"
        print(text)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mnist-code-search", help="name of a configuration in configs/ with the policy code_search")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", help="set one value for all rows; repeatable")
    parser.add_argument("--row", action="append", choices=ROWS, help="make this row alone; repeatable")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--root", type=Path, default=Path("runs/code-search"), help="folder for the runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the datasets (torchvision's `root`)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
