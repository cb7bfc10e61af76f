"""Rows of a table, several at a time: settings chosen on validation, then runs over seeds; what is done is never done again.

ROOT/table1-mnist-3000/class-code-1f3a9c2b/sweep/             the trials
                                           seed-0-5ad0a1c7/   a final run with the values of that digest, with `result.json`; targets and
                                                              networks are deleted
"""

from __future__ import annotations

import shlex
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.evidence.given import given
from orchestrator.evidence.results import Record, Results, commit, hardware, joined, means_by_epoch, over_seeds
from orchestrator.evidence.rows import Row, file_name
from orchestrator.evidence.scales import Scale, find_scale
from orchestrator.evidence.tables import EvidenceTable, find_table
from orchestrator.preflight import check_run
from orchestrator.sweeps.pool import Workers
from orchestrator.sweeps.running import Best, at_once, choose, config_toml, create, perform_trials
from orchestrator.sweeps.settings import Sweep
from orchestrator.sweeps.space import overrides
from orchestrator.sweeps.worker import Request, Result, read_result
from repsearch.config import json_digest, parse_config, with_overrides
from repsearch.datasets import cached_data
from repsearch.errors import ConfigError, JobError, RepSearchError
from repsearch.families import nearest

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to make.

    data: folder of all datasets, see `Scale.root`. root: folder for the runs. out: folder for results and pages.
    only: titles of rows to make; none: all of them.
    values_from: a result file whose chosen values are taken instead of choosing by trials.
    equal_seconds: title of a row of that file; every row is made as long as it took there.
    epochs: passes over the data in place of the scale's, for rows that do not set their own.
    """

    table: str
    dataset: str
    images: int | None
    scale: str
    seeds: int
    trials: int
    jobs: int
    data: Path
    root: Path
    out: Path
    only: tuple[str, ...] = ()
    values_from: Path | None = None
    equal_seconds: str = ""
    epochs: int | None = None

    def command(self, images: int) -> str:
        """Return the command that makes the table; where files lie is left to the reader."""
        options = {"dataset": self.dataset, "images": images, "scale": self.scale, "seeds": self.seeds, "trials": self.trials}
        if self.values_from is not None:
            options |= {"values-from": self.values_from.name}
            del options["trials"]
        if self.equal_seconds:
            options["equal-seconds"] = self.equal_seconds
        if self.epochs is not None:
            options["epochs"] = self.epochs
        words = [f"--{name}={value}" for name, value in options.items()] + [f"--row={title}" for title in self.only]
        return shlex.join(["orchestrator", "reproduce", self.table, *words])


class Plan:
    """A table about to be made: fully checked rows, where they go, and what is there already."""

    def __init__(self, order: Order) -> None:
        self.order = order
        for name in ("seeds", "trials", "jobs", "epochs"):
            if (value := getattr(order, name)) is not None and value < 1:
                raise ConfigError(f"--{name}: {value}; give 1 or more")
        self.table: EvidenceTable = find_table(order.table)
        self.scale: Scale = self.table.scaled(find_scale(order.scale, order.dataset))
        if order.epochs is not None:
            self.scale = replace(self.scale, base={**self.scale.base, "learn": {**self.scale.base["learn"], "epochs": order.epochs}})
        self.images = self.scale.images[0] if order.images is None else order.images
        self.all_rows = list(self.table.rows(self.scale, self.images))
        self.rows = _chosen(self.all_rows, order.only)
        stem = f"{order.table}-{order.dataset}-{self.images}" + ("" if order.scale == "cpu" else f"-{order.scale}")
        stem += "-equal-seconds" if order.equal_seconds else ""
        stem += f"-{order.epochs}-epochs" if order.epochs is not None else ""
        self.folder = order.root.expanduser().absolute() / stem
        head = {
            "table": order.table,
            "title": self.table.title,
            "dataset": order.dataset,
            "images": self.images,
            "scale": order.scale,
            "equal_seconds": order.equal_seconds,
            **({} if order.epochs is None else {"epochs": order.epochs}),
        }
        self.results = Results(order.out / f"{stem}.json", head)
        if order.equal_seconds and order.values_from is None:
            raise ConfigError("--equal-seconds: needs the table that says how long rows take; give it by --values-from")
        self._given = None if order.values_from is None else given(order.values_from, order.equal_seconds)
        for row in self.rows:
            self.given(row)

    def given(self, row: Row) -> dict[str, Any] | None:
        """Return the values that another table chose for the row's method, or None where trials choose; raises `ConfigError`."""
        return None if self._given is None else self._given.values(row, list(self.sweep(row).space), self.base)

    @cached_property
    def base(self) -> dict[str, Any]:
        """Configuration of every row."""
        return self.scale.table(images=self.images, data=self.order.data.expanduser().absolute())

    def sweep(self, row: Row) -> Sweep:
        """Return what is chosen for `row`."""
        return row.sweep(self.scale, self.base, self.order.trials)

    def digest(self, row: Row) -> str:
        """Return the digest of what the row is: its settings as written, so that a field that is added later changes no row.

        The number of trials is no part of it: more of them go on from those that are there.
        """
        sweep, given = self.sweep(row), self.given(row)
        table = {section: dict(fields) for section, fields in sweep.table.items() if section not in ("tracking", "run")}
        # Neither changes a figure: where the data lies, and how often rounds are measured in between.
        table["dataset"].pop("root", None)
        table["rounds"].pop("evaluate_every", None)
        return json_digest([table, sweep.settings.model_dump(exclude={"trials"}) if given is None else given])[:8]

    def row_folder(self, row: Row) -> Path:
        """Return the folder of the row's runs."""
        return self.folder / f"{file_name(row.title)}-{self.digest(row)}"

    def final(self, row: Row, values: Any, seed: int) -> Request:
        """Return the run of `row` with the chosen `values` and a seed."""
        settings = ["run.baseline=false", *overrides(values), f"run.seed={seed}"]
        table = parse_config(with_overrides(self.sweep(row).table, settings)).model_dump(mode="json")
        folder = self.row_folder(row)
        table["run"]["root"] = str(folder)
        name = f"seed-{seed}-{json_digest(dict(values))[:8]}"
        return Request(folder=str(folder / name), config=table, toml=config_toml(table), prune=True)

    def done(self, row: Row) -> bool:
        """Return whether the results have the row, over as many seeds and trials."""
        record = self.known(row)
        return record is not None and record["seeds"] >= self.order.seeds

    def known(self, row: Row) -> Record | None:
        """Return the row's record if its values were chosen of as many trials, over however many seeds, or None."""
        record = self.results.find(row, self.digest(row))
        trials = self.order.trials if self.order.values_from is None else 0
        return record if record is not None and record["trials"] >= trials else None

    def check(self, tell: Tell) -> None:
        """Check every row that is not made yet as a run is checked, and every value that it may choose as a configuration."""
        for number, row in enumerate(self.rows):
            if number == 0:
                tell(f"{self.table.title}: {self.order.dataset}, {self.images} images, {len(self.rows)} rows of {self.runs} runs")
            if not self.done(row):
                _check(self.sweep(row))

    @property
    def runs(self) -> int:
        """Runs per row."""
        return self.order.seeds + (self.order.trials if self.order.values_from is None else 0)

    def timed(self, row: Row) -> list[float]:
        """Return the wall times of the row's runs so far that were not cut."""
        folder = self.row_folder(row)
        paths = [*folder.glob("sweep/trial-*"), *folder.glob("seed-*")]
        return [result.wall_s for path in paths if (result := read_result(path)) is not None and not result.resumed]


def make(plan: Plan, tell: Tell) -> list[str]:
    """Make every row that the results lack; return the titles of the rows that failed, after all others are made."""
    rows = [row for row in plan.rows if not plan.done(row)]
    failed: list[str] = []
    command, lock, left = plan.order.command(plan.images), threading.Lock(), list(rows)
    device = parse_config(plan.base).learner.device

    def loop(workers: Workers) -> None:
        while True:
            with lock:
                if not left:
                    return
                row = left.pop(0)
            try:
                record = make_row(plan, row, workers, tell)
            except RepSearchError as error:
                if workers.stopped:
                    raise
                with lock:
                    failed.append(row.title)
                tell(f"{row.title}: failed: {error}")
                continue
            made = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "hardware": hardware(device), "jobs": plan.order.jobs}
            with lock:
                plan.results.put({**record, **made, "command": command}, plan.all_rows)
            tell(f"{row.title}: test {record['mean']:.2%} +- {record['std']:.2%} over {record['seeds']} seeds")

    if rows:
        with Workers(min(plan.order.jobs, len(rows)), plan.folder) as workers:
            at_once(workers, [lambda: loop(workers)] * min(plan.order.jobs, len(rows)))
    return failed


def make_row(plan: Plan, row: Row, workers: Workers, tell: Tell) -> Record:
    """Return a row's record: a sweep, then a run per seed. Of a row that the results have over fewer seeds, the missing seeds alone."""
    known, best = plan.known(row), None
    values = known["chosen"] if known is not None else plan.given(row)
    if values is None:
        best = choose(opened(plan, row) / "sweep", plan.sweep(row), workers, _telling(tell, row))
        values = best.values
    found = []
    for seed in range(known["seeds"] if known is not None else 0, plan.order.seeds):
        found.append(workers.run(plan.final(row, values, seed)))
        tell(f"{row.title}: seed {seed}: test {found[-1].metrics['test/accuracy']:.2%} in {found[-1].seconds:.0f} s")
    record = record_of(plan, row, values, best, found)
    return record if known is None else joined(known, record)


def time_rows(plan: Plan, tell: Tell) -> None:
    """Perform the first trial of every row that has no run yet, so that the time of all can be estimated."""
    if plan.order.values_from is not None:
        raise ConfigError("--time: performs trials, and --values-from needs none; leave one of them out")
    rows = [row for row in plan.rows if not plan.done(row) and not plan.timed(row)]
    lock = threading.Lock()

    def loop(workers: Workers) -> None:
        while True:
            with lock:
                if not rows:
                    return
                row = rows.pop(0)
            perform_trials(opened(plan, row) / "sweep", plan.sweep(row), workers, _telling(tell, row), most=1)

    if rows:
        with Workers(plan.order.jobs, plan.folder) as workers:
            at_once(workers, [lambda: loop(workers)] * plan.order.jobs)


def opened(plan: Plan, row: Row) -> Path:
    """Return the row's folder, made if it is not there."""
    folder = plan.row_folder(row)
    (folder / "sweep").mkdir(parents=True, exist_ok=True)
    create(folder / "sweep", plan.sweep(row))
    return folder


def record_of(plan: Plan, row: Row, values: Mapping[str, Any], best: Best | None, found: Sequence[Result]) -> Record:
    """Return the record of a row: settings as given and as chosen, accuracies by seed, and what they cost."""
    test = [result.metrics["test/accuracy"] for result in found]
    # The times of a run that was cut lack what came before.
    whole = [result for result in found if not result.resumed] or found
    return {
        "row": row.title,
        "group": row.group,
        "name": row.name,
        "x": row.x,
        "digest": plan.digest(row),
        "settings": dict(row.settings),
        "chosen": dict(values),
        "chosen_from": plan.order.values_from.stem if plan.order.values_from is not None else "",
        "validation": best.accuracy if best is not None else None,
        "trials": plan.order.trials if best is not None else 0,
        **over_seeds(test),
        "evaluations": statistics.mean(result.evaluations for result in found),
        "seconds": statistics.mean(result.seconds for result in whole),
        "search_s": statistics.mean(result.search_s for result in whole),
        "learn_s": statistics.mean(result.learn_s for result in whole),
        "core_s": statistics.mean(result.core_s for result in whole),
        **curves_of(row, found),
    }


def curves_of(row: Row, found: Sequence[Result]) -> Record:
    """Return the field of a record that keeps the row's curves, means over runs by epoch; nothing where a run has none."""
    if not row.curves or not all(name in result.curves for name in row.curves for result in found):
        return {}
    return {"curves": {name: means_by_epoch([result.curves[name] for result in found]) for name in row.curves}}


def estimate(plan: Plan) -> list[tuple[str, str, str]]:
    """Return a line per row, and one for all: row, seconds per run so far, and time left."""
    lines, total, unknown = [], 0.0, 0
    for row in plan.rows:
        times, known = plan.timed(row), plan.known(row)
        each = f"{statistics.mean(times):.1f}" if times else "-"
        if plan.done(row):
            lines.append((row.title, each, "done"))
        elif times:
            runs = plan.runs - len(times) if known is None else plan.order.seeds - known["seeds"]
            left = statistics.mean(times) * max(0, runs)
            total += left
            lines.append((row.title, each, _minutes(left / plan.order.jobs)))
        else:
            unknown += 1
            lines.append((row.title, each, "not timed"))
    more = f" and {unknown} rows that are not timed" if unknown else ""
    lines.append((f"all, {plan.order.jobs} at a time", "", _minutes(total / plan.order.jobs) + more))
    return lines


def _check(sweep: Sweep) -> None:
    config = sweep.config({})
    check_run(config, cached_data(config.dataset, seed=config.run.seed))
    # Not as runs: their networks would be built for each, minutes for a table. A row that fails does not stop the others.
    for key, part in sweep.space.items():
        for value in part.ends():
            sweep.config({key: value})


def _telling(tell: Tell, row: Row) -> Tell:
    return lambda text: tell(f"{row.title}: {text}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    titles = [row.title for row in rows]
    for title in only:
        if title not in titles:
            raise ConfigError(f"--row {title!r}{nearest(title, titles)}; the table has {'; '.join(titles)}")
    return [row for row in rows if not only or row.title in only]


def check_made(failed: Sequence[str]) -> None:
    """Raise `JobError` if rows failed."""
    if failed:
        raise JobError(f"{len(failed)} rows failed: {'; '.join(failed)}; the others are made; run the command again to try these")
