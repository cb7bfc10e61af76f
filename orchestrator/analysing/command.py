"""From folders of runs to figures and tables, in each run's folder, its journal and MLflow.

Every run is measured beside its baseline; all of them together are compared in their predictions. Nothing is drawn at random but the
projection of linear probes, which the run's seed fixes, so that an analysis gives the same numbers again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysing import tables
from orchestrator.analysing.subjects import Case, Subject, case_of, check_same_dataset, targets_of
from orchestrator.analysing.tables import Row
from orchestrator.analysis.calibration import calibration, softmax
from orchestrator.analysis.collision import centred
from orchestrator.analysis.probes import probe_accuracy
from orchestrator.journal import Journal
from orchestrator.progress import Display
from orchestrator.runs import RunLock
from orchestrator.studies.base import ANALYSIS, Findings, write_findings
from orchestrator.tracking import sync
from repsearch.errors import ConfigError, DaemonError, DatasetError

if TYPE_CHECKING:
    from repsearch.datasets.base import Data, Split

EXAMPLES, POINTS = 1000, 30


@dataclass(frozen=True, kw_only=True)
class Options:
    """examples: training images that representations are measured on, the first ones. points: networks per curve, at most.
    round: the round to analyse, None for the last. test: whether held-out images are those of the test split, not of validation.
    """

    examples: int = EXAMPLES
    points: int = POINTS
    round: int | None = None
    test: bool = False

    @property
    def split(self) -> str:
        """Name of the split of held-out images."""
        return "test" if self.test else "validation"


@dataclass
class Measured:
    """Rows of a run and its baseline, by table."""

    curves: list[Row] = field(default_factory=list)
    probes: list[Row] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    reliability: list[Row] = field(default_factory=list)
    classes: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Analysis:
    """What was written: the folder of each run given, its rows of scores, and the rows of agreement, the same for all."""

    folders: Sequence[Path]
    scores: Sequence[Row]
    agreement: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values; what could not be measured is null."""

        def plain(rows: Sequence[Row]) -> list[Row]:
            return [{name: None if value != value else value for name, value in row.items()} for row in rows]

        folders = [str(folder) for folder in self.folders]
        return {"folders": folders, "scores": plain(self.scores), "agreement": plain(self.agreement)}


def analyse(folders: Sequence[Path], options: Options, display: Display) -> Analysis:
    """Write figures and tables of the runs in `folders`, and return what they say.

    Raises the error of the first run that cannot be analysed, before anything is written.
    """
    cases = _labelled([case_of(folder, options.round, options.points) for folder in dict.fromkeys(folders)])
    # A baseline may be named as a run too; its predictions count once.
    subjects = list({subject.run.folder: subject for case in cases for subject in case.subjects()}.values())
    check_same_dataset(subjects)
    data = _load(subjects[0], options)
    predicted: dict[Path, NDArray[np.int64]] = {}
    written: list[tuple[Case, Measured]] = []
    for case in cases:
        written.append((case, _measure(case, data, options, predicted, display)))
    labels_N = np.asarray(_held(data, options).labels.numpy())
    predictions_MN = np.stack([predicted[subject.run.folder] for subject in subjects])
    agreement = tables.agreement_rows([subject.label for subject in subjects], predictions_MN, labels_N)
    for case, measured in written:
        _write(case, measured, agreement, options, display)
    scores = {row["run"]: row for _, measured in written for row in measured.scores}
    return Analysis([case.main.run.folder / ANALYSIS for case in cases], list(scores.values()), agreement)


def _labelled(cases: Sequence[Case]) -> list[Case]:
    """Return the cases with labels that differ: names of runs, or their folders where names repeat."""
    runs = {subject.run.folder: subject.label for case in cases for subject in case.subjects()}
    if len(set(runs.values())) == len(runs):
        return list(cases)

    def labelled(subject: Subject) -> Subject:
        return replace(subject, label=str(subject.run.folder))

    return [Case(main=labelled(case.main), baseline=labelled(case.baseline) if case.baseline else None) for case in cases]


def _load(subject: Subject, options: Options) -> Data:
    from repsearch.datasets import load_data

    run = subject.run
    data = load_data(run.config.dataset, seed=run.config.run.seed)
    if data.digest != run.dataset["digest"]:
        raise DatasetError(
            f"dataset {data.name}: the data have digest {data.digest[:12]}, the run {run.folder} was started with "
            f"{run.dataset['digest'][:12]}; put the files back as they were"
        )
    least, there = 2 * len(data.classes), len(data.train)
    if options.examples < min(least, there):
        raise ConfigError(f"--examples {options.examples}: too few to compare {len(data.classes)} classes; give {least} or more")
    return data


def _held(data: Data, options: Options) -> Split:
    return data.test if options.test else data.validation


def _measure(case: Case, data: Data, options: Options, predicted: dict[Path, NDArray[np.int64]], display: Display) -> Measured:
    count = min(options.examples, len(data.train))
    labels_N = np.asarray(data.train.labels[:count].numpy())
    targets = _targets(case.main, count)
    measured = Measured(curves=[tables.targets_row(layer, values, labels_N) for layer, values in targets.items()])
    total = sum(len(subject.moments) for subject in case.subjects())
    display.begin(f"analyse {case.main.label}", total, "networks")
    done = 0
    for subject in case.subjects():
        for row in _curves(subject, data, count, targets):
            measured.curves.append(row)
            if row["layer"] == "logits":
                done += 1
                display.update(done, f"{subject.label}, epoch {row['epoch']}")
        measured.probes += _probes(subject, data, count, options)
        _score(subject, data, options, measured, predicted)
    display.end(f"{total} networks on {count} training images")
    return measured


def _targets(subject: Subject, count: int) -> dict[str, NDArray[np.float32]]:
    if subject.search is None:
        return {}
    found = {}
    for layer in subject.search.after:
        values_NKD = targets_of(subject, layer, count)
        found[layer] = centred(values_NKD.reshape(-1, values_NKD.shape[-1])).astype(np.float32).reshape(values_NKD.shape)
    return found


def _curves(subject: Subject, data: Data, count: int, targets: Mapping[str, NDArray[np.float32]]) -> Iterator[Row]:
    from orchestrator.analysing.outputs import network_at, representations

    labels_N = np.asarray(data.train.labels[:count].numpy())
    for moment in subject.moments:
        found = representations(network_at(subject, moment, data), data.train.images[:count])
        for layer, values_ND in found.items():
            yield tables.curve_row(subject.label, moment.epoch, layer, values_ND, labels_N, targets.get(layer))


def _probes(subject: Subject, data: Data, count: int, options: Options) -> Iterator[Row]:
    from orchestrator.analysing.outputs import network_at, representations

    held = _held(data, options)
    held_count = min(options.examples, len(held))
    train_labels_N, held_labels_N = (np.asarray(part.numpy()) for part in (data.train.labels[:count], held.labels[:held_count]))
    for name, moment in (("initial", subject.moments[0]), ("learned", subject.learned)):
        network = network_at(subject, moment, data)
        train, held_out = (representations(network, images) for images in (data.train.images[:count], held.images[:held_count]))
        for layer in train:
            seed = subject.run.config.run.seed
            accuracy = probe_accuracy(train[layer], train_labels_N, held_out[layer], held_labels_N, seed=seed)
            row = {"run": subject.label, "network": name, "layer": layer, "values": train[layer].shape[1], "split": options.split}
            yield {**row, "training_images": count, "images": held_count, "accuracy": accuracy}


def _score(subject: Subject, data: Data, options: Options, measured: Measured, predicted: dict[Path, NDArray[np.int64]]) -> None:
    from orchestrator.analysing.outputs import logits, network_at

    held = _held(data, options)
    labels_N = np.asarray(held.labels.numpy())
    probabilities_NC = softmax(logits(network_at(subject, subject.learned, data), held.images))
    predicted[subject.run.folder] = probabilities_NC.argmax(axis=1)
    measured.scores.append(tables.score_row(subject.label, options.split, probabilities_NC, labels_N))
    measured.reliability += tables.reliability_rows(subject.label, calibration(probabilities_NC, labels_N))
    measured.classes += tables.class_rows(subject.label, predicted[subject.run.folder], labels_N, data.classes)


def _findings(case: Case, measured: Measured, agreement: Sequence[Row], options: Options) -> Findings:
    # Imported when needed: matplotlib takes half a second.
    from orchestrator.analysing import figures

    curves = f"{case.main.label}, round {case.main.round}, {measured.curves[0]['images']} training images"
    held = f"{case.main.label}, {measured.scores[0]['images']} {options.split} images"
    drawn = {
        "collision-entropy": figures.collision_entropy(measured.curves, curves),
        "probes": figures.probes(measured.probes, f"{case.main.label}, {measured.probes[0]['training_images']} training images"),
        "reliability": figures.reliability(measured.reliability, measured.scores, held),
        "classes": figures.classes(measured.classes, held),
    }
    searched = {row["layer"] for row in measured.curves if row["run"] == tables.TARGETS}
    if searched:
        rows = [row for row in measured.curves if row["layer"] in searched]
        drawn["target-distance"] = figures.target_distance(rows, curves)
    if agreement:
        drawn["agreement"] = figures.agreement(agreement, f"{measured.scores[0]['images']} {options.split} images")
    rows_of = {name: rows for name, rows in vars(measured).items() if rows} | ({"agreement": agreement} if agreement else {})
    return Findings(figures=drawn, tables=rows_of)


def _write(case: Case, measured: Measured, agreement: Sequence[Row], options: Options, display: Display) -> None:
    run = case.main.run
    for subject in case.subjects():
        if subject.sparse:
            display.message(
                f"{subject.label}: no network is kept between epoch 0 and {subject.learned.epoch}, so curves have these two points; "
                "a run with learn.snapshots = 1 keeps every epoch's"
            )
    if case.main.search is None:
        display.message(f"{case.main.label}: round {case.main.round} searched nothing, so there is no distance to targets")
    findings = _findings(case, measured, agreement, options)
    with RunLock(run.folder), Journal(run.folder) as journal:
        write_findings(run.folder / ANALYSIS, findings)
        journal.append("analysis_ready", path=ANALYSIS)
    if run.config.tracking.enabled:
        try:
            sync(run.folder)
        except DaemonError as error:
            display.message(f"{error}\nthe analysis is in {run.folder / ANALYSIS}; `orchestrator sync {run.folder}` takes it to MLflow")
