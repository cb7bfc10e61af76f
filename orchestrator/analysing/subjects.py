"""What is analysed: one round of a finished run, the networks that are kept of it, and the targets that it learned from.

Shapes: N training examples; K results of an example; D values of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.execution import is_finished, resume_command
from orchestrator.journal import read_journal
from orchestrator.remote import store_of
from orchestrator.report import RoundReport
from orchestrator.rounds import learned_by, load_reports
from orchestrator.runs import BASELINE, Run, open_run
from orchestrator.searching import SearchRecord, load_search
from orchestrator.status import state_of
from repsearch.errors import ConfigError, StoreError
from store import Reference, Store


@dataclass(frozen=True)
class Moment:
    """A network of a round: after `epoch` epochs; without a reference the initial parameters, which the seed gives again."""

    epoch: int
    network: Reference | None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A round of a run.

    label: what figures and tables call it. moments: its networks by epoch, the first before learning. learned: the one that the round
    ended with. search: the round's targets, None where it searched nothing.
    """

    label: str
    run: Run
    store: Store
    round: int
    moments: Sequence[Moment]
    learned: Moment
    search: SearchRecord | None

    @property
    def sparse(self) -> bool:
        """Whether nothing is kept between the first network and the last."""
        return len(self.moments) <= 2 < self.learned.epoch + 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run that the user named, and the baseline that was run with it (None without one)."""

    main: Subject
    baseline: Subject | None

    def subjects(self) -> list[Subject]:
        """Return both, or the run alone."""
        return [self.main] if self.baseline is None else [self.main, self.baseline]


def case_of(folder: Path, round: int | None, points: int) -> Case:
    """Return the run in `folder` and its baseline, as analysed in `round` (None: the last), with at most `points` networks each.

    Raises `ConfigError` for a study or a round that is not there, `StoreError` for a run that is not finished.
    """
    run = open_run(folder)
    if run.study:
        raise ConfigError(
            f"{folder}: a study ({run.study['name']}), which has no rounds to analyse; its figures and tables are in {folder}/analysis"
        )
    baseline = folder.with_name(folder.name + BASELINE)
    main = _subject(run, round, points)
    return Case(main=main, baseline=_subject(open_run(baseline), None, points) if run.config.run.baseline else None)


def check_same_dataset(subjects: Sequence[Subject]) -> None:
    """Raise `ConfigError` unless all have the same images in the same splits."""
    first = subjects[0].run
    for other in (subject.run for subject in subjects):
        if other.dataset["digest"] != first.dataset["digest"]:
            raise ConfigError(
                f"{other.folder}: its data ({other.dataset['name']}, digest {other.dataset['digest'][:12]}) are not those of "
                f"{first.folder} ({first.dataset['name']}, digest {first.dataset['digest'][:12]}), so predictions cannot be compared; "
                "analyse the runs one by one. Runs of one split that differ in the seed of learning: keep run.seed, set learn.seed"
            )


def targets_of(subject: Subject, layer: str, examples: int) -> NDArray[np.float32]:
    """Return the targets (N, K, D) of the first `examples` at `layer`: the one that is learned from, or all where one is drawn."""
    assert subject.search is not None
    parts, left = [], examples
    for reference in subject.search.references():
        if left == 0:
            break
        rows = slice(0, min(left, int(subject.store.manifest(reference).attributes["count"])))
        parts.append(_picked(subject, reference, layer, rows))
        left -= len(parts[-1])
    return np.concatenate(parts)


def _picked(subject: Subject, reference: Reference, layer: str, rows: slice) -> NDArray[np.float32]:
    values = subject.store.read(reference, layer, rows).astype(np.float32)
    pick = subject.run.config.learn.targets
    if subject.run.config.search.searches_per_example == 1:
        return values.reshape(len(values), 1, -1)
    values_NKD = values.reshape(*values.shape[:2], -1)
    if pick == "random":
        return values_NKD
    if pick == "best":
        chosen_N = subject.store.read(reference, "fitness_after", rows).mean(axis=2).argmax(axis=1)
    else:
        chosen_N = np.full(len(values), pick)
    return np.asarray(values_NKD[np.arange(len(values)), chosen_N][:, None])


def _subject(run: Run, round: int | None, points: int) -> Subject:
    if not is_finished(run.folder):
        main = run.folder.with_name(run.baseline_of) if run.baseline_of else run.folder
        raise StoreError(f"{run.folder}: the run is not finished ({state_of(run.folder)}); resume it: {resume_command(main)}")
    store = store_of(run.folder)
    reports = load_reports(store)
    number = len(reports) - 1 if round is None else round
    if not 0 <= number < len(reports):
        raise ConfigError(f"--round {number}: {run.folder} has rounds 0 to {len(reports) - 1}")
    learned, moments = _moments(run, store, reports, number)
    search = load_search(store, number)
    return Subject(
        label=run.name,
        run=run,
        store=store,
        round=number,
        moments=thinned(moments, points),
        learned=learned,
        # Targets of a window are of other images than those that are analysed.
        search=search if search.shards and search.examples == run.dataset["train"] else None,
    )


def _moments(run: Run, store: Store, reports: Sequence[RoundReport], number: int) -> tuple[Moment, list[Moment]]:
    """Return the round's network and all that are kept, by epoch."""
    reference = learned_by(reports[number])
    attributes = store.manifest(reference).attributes
    # Networks of earlier versions record neither; they kept the last epoch, and no snapshots.
    learned = Moment(int(attributes.get("kept_epoch", len(attributes["epochs"]))), reference)
    warm = _warm_round(run, number)
    start = Moment(0, None if warm is None else learned_by(reports[warm]))
    snapshots = [Moment(int(entry["epoch"]), Reference(entry["path"], entry["digest"])) for entry in attributes.get("snapshots", ())]
    by_epoch = {moment.epoch: moment for moment in (start, *snapshots, learned)}
    return learned, [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _warm_round(run: Run, number: int) -> int | None:
    """Return the round that round `number` went on learning from, by its plan."""
    plans = [record["plan"] for record in read_journal(run.folder) if record["kind"] == "round_started" and record["round"] == number]
    if plans:
        return None if plans[0]["warm_round"] is None else int(plans[0]["warm_round"])
    return number - 1 if number > 0 and run.config.learn.start != "fresh" else None


def thinned(moments: Sequence[Moment], points: int) -> list[Moment]:
    """Return at most `points` of `moments`, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(moments) - 1, min(points, len(moments))).round().astype(int)
    return [moments[place] for place in places]
