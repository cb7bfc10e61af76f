"""What the commands print."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from orchestrator.execution import Finished

CHANGES_LENGTH = 120
"""Characters of a round's changes that a dry run prints."""


ROUNDS_SHOWN = 20
"""Rounds of a plan that are printed, the first and the last ones."""


def mlflow_command(uri: str) -> str:
    """Return the command that opens MLflow on `uri`, with the path of `mlflow` where a shell would not find it."""
    installed = Path(sysconfig.get_path("scripts")) / "mlflow"
    program = "mlflow" if shutil.which("mlflow") or not installed.exists() else str(installed)
    return shlex.join([program, "ui", "--backend-store-uri", uri])


def print_plan(console: Console, name: str, preflight: Any) -> None:
    """Print what a run would do, for a dry run."""
    from orchestrator.runs import run_root
    from orchestrator.tables import fields_table, print_table

    config, dataset, shards = preflight.config, preflight.dataset, preflight.shards()
    splits = ", ".join(f"{dataset[split]} {split}" for split in ("train", "validation", "test", "fitness") if split in dataset)
    shape = "x".join(map(str, dataset["input_shape"]))
    rounds = [
        f"{plan.round}: "
        + (f"search the {_source(plan.searched_round)}, " if plan.search else "")
        + f"learn {plan.epochs} epochs from {_start(plan.warm_round)}"
        + _changed(preflight, plan)
        for plan in preflight.plans()
    ]
    if len(rounds) > ROUNDS_SHOWN:
        rounds = [*rounds[: ROUNDS_SHOWN // 2], f"... {len(rounds) - ROUNDS_SHOWN} more", *rounds[-ROUNDS_SHOWN // 2 :]]
    fields = {
        "run": run_root(config) / name,
        "dataset": f"{dataset['name']}: {splits} images of {shape}",
        "policy": config.rounds.policy["name"],
        "rounds": "\n".join(rounds),
        "baseline": "yes" if config.run.baseline else "no",
    }
    if preflight.searches:
        fields["strategy"] = config.search.strategy["name"]
        fields["search layers"] = "\n".join(f"{layer} {'x'.join(map(str, size))}" for layer, size in preflight.layers.items())
        if config.rounds.examples_per_round is not None:
            fields["window"] = f"{config.rounds.examples_per_round} images a round"
        size = config.searcher.shard_examples
        fields["shards per round"] = "of about 30 s each" if size == "auto" else f"{len(shards)} of up to {size} images"
        fields["evaluations per image"] = preflight.evaluations if preflight.evaluations is not None else "not stated by the strategy"
    print_table(console, fields_table(fields))
    console.print("dry run: nothing was started or written")


def _changed(preflight: Any, plan: Any) -> str:
    if not plan.changes:
        return ""
    text = json.dumps(plan.changes)
    text = text if len(text) <= CHANGES_LENGTH else text[:CHANGES_LENGTH] + " ..."
    return f", with search {text}: {preflight.evaluations_of(plan)} evaluations per image"


def _source(round: int | None) -> str:
    return "untrained network" if round is None else f"network of round {round}"


def _start(round: int | None) -> str:
    return "initial parameters" if round is None else f"round {round}"


def print_result(console: Console, finished: Finished) -> None:
    """Print the rounds of a run, and where it and its figures are."""
    from orchestrator.tables import print_table, rounds_table
    from orchestrator.tracking import tracking_uri

    print_table(console, rounds_table(finished.reports, finished.baseline))
    if finished.reports and finished.reports[-1].ended:
        print(f"ended: {finished.reports[-1].ended}")
    print(f"run: {finished.run.folder}")
    tracking = finished.run.config.tracking
    if tracking.enabled:
        uri = tracking_uri(tracking.uri, root=finished.run.folder.parent)
        print(f"MLflow: {f'open {uri}' if uri.startswith('http') else mlflow_command(uri)}")


def print_study(console: Console, folder: Path) -> None:
    """Print the table of a study, and where its files are."""
    from orchestrator.runs import open_run
    from orchestrator.tracking import tracking_uri

    run = open_run(folder)
    if run.study["name"] == "ensemble":
        _print_csv(console, folder / "analysis/ensemble.csv")
    for path in sorted((folder / "analysis").iterdir()):
        print(path)
    print(f"study: {folder}")
    tracking = run.config.tracking
    if tracking.enabled:
        print(f"MLflow: {mlflow_command(tracking_uri(tracking.uri, root=folder.parent))}")


def print_sweep(console: Console, prepared: Any) -> None:
    """Print what a sweep would try, for a dry run."""
    from orchestrator.sweeps.space import Range
    from orchestrator.tables import fields_table, print_table

    def text(part: Any) -> str:
        if isinstance(part, Range):
            return f"{part.low:g} to {part.high:g}{', by logarithm' if part.log else ''}"
        return ", ".join(part.texts())

    fields = {"sweep": prepared.folder, "sampler": prepared.sweep.settings.sampler, "trials": prepared.sweep.trials}
    print_table(console, fields_table({**fields, **{key: text(part) for key, part in prepared.sweep.space.items()}}))
    console.print("dry run: nothing was started or written")


def print_best(folder: Path, sweep: Any, best: Any) -> None:
    """Print the best values of a sweep, and how to run them."""
    from orchestrator.sweeps import running

    print("\n".join(running.best_lines(best, sweep)))
    print(f"run it: orchestrator run {folder / running.BEST_FILE}")


def _print_csv(console: Console, path: Path) -> None:
    from orchestrator.tables import print_table, rows_table

    def value(text: str) -> str | float:
        return float(text) if "." in text else text

    with path.open() as file:
        print_table(console, rows_table([{name: value(text) for name, text in row.items()} for row in csv.DictReader(file)]))
