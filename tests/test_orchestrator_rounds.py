"""Rounds on daemons that write to a store in memory: what is searched, learned, accepted and done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from orchestrator.daemons import Fleet
from orchestrator.journal import Journal, read_journal
from orchestrator.progress import PlainDisplay
from orchestrator.report import RoundReport
from orchestrator.rounds import load_reports, run_rounds
from orchestrator.runs import Run
from orchestrator.tracking import NoTracker
from orchestrator.work import RunLog, Work
from repsearch.config import RunConfig, parse_config, search_digest
from repsearch.errors import JobError, StoreError
from repsearch.rpc.v1 import jobs_pb2
from store import MemoryStore, Store, layout

LAYERS = ["block0", "logits"]
EXAMPLES = 50
SCHEDULE = {name: [1, 1] for name in ("generations", "strength", "boost", "blur_passes")}


class FakeDaemon:
    """Searcher and learner in one: writes what a real one writes, with made-up figures; keeps the specs it was given."""

    def __init__(self, address: str, store: Store) -> None:
        self.address, self.store, self.failing, self.dying, self.usual = address, store, "", "", ""
        self.searches, self.learns, self.initialised = list[jobs_pb2.SearchSpec](), list[jobs_pb2.LearnSpec](), 0
        self.configs = list[RunConfig]()
        self.measures: Callable[[jobs_pb2.LearnSpec], bool] = lambda spec: True
        self._requests: dict[str, jobs_pb2.StartRequest] = {}

    def start(self, request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        self._requests[request.request_id] = request
        return jobs_pb2.Job(job_id=request.request_id, state=jobs_pb2.JOB_STATE_QUEUED)

    def watch(self, job_id: str) -> Iterator[jobs_pb2.Event]:
        request = self._requests[job_id]
        kind = request.WhichOneof("spec")
        if kind == self.failing:
            failure = jobs_pb2.Failure(kind="StoreError", message="disk full")
            yield self._end(job_id, jobs_pb2.JOB_STATE_FAILED, failure=failure)
            return
        reference = getattr(self, f"_{kind}")(request)
        if kind == self.dying:
            self.dying = ""
            yield self._end(job_id, jobs_pb2.JOB_STATE_FAILED, failure=jobs_pb2.Failure(kind="JobError", message="its process died"))
            return
        yield self._end(job_id, jobs_pb2.JOB_STATE_SUCCEEDED, result=jobs_pb2.Reference(path=reference.path, digest=reference.digest))

    def cancel(self, job_id: str, term: int) -> jobs_pb2.Job:
        return jobs_pb2.Job(job_id=job_id)

    def _end(self, job_id: str, state: int, **fields: object) -> jobs_pb2.Event:
        return jobs_pb2.Event(sequence=1, state=jobs_pb2.Job(job_id=job_id, state=state, **fields))

    def _initialise(self, request):
        self.initialised += 1
        return self.store.write(request.initialise.output_path, {"p": np.zeros(3)}, attributes={"kind": "network"})

    def _search(self, request):
        spec = request.search
        self.searches.append(spec)
        self.configs.append(RunConfig.model_validate_json(request.config_json))
        curves = {layer: [3.0 + spec.shard, 2.0 + spec.shard] for layer in LAYERS}
        layers = len(self.configs[-1].search.layers)
        fitness_NL = np.full((spec.count, layers), -2.0 - spec.shard, np.float32)
        attributes = {
            "kind": "search",
            "run_id": request.run_id,
            # As a real searcher: of the configuration that the request brings. The digest of the run's own is made up.
            "search_digest": "s"
            if request.config_json == self.usual
            else search_digest(RunConfig.model_validate_json(request.config_json)),
            **({"archive": [{"path": used.path, "digest": used.digest} for used in spec.archive]} if spec.archive else {}),
            "dataset_digest": request.dataset_digest,
            "network_digest": spec.network.digest,
            **{name: getattr(spec, name) for name in ("attempt", "first", "count")},
            "evaluations": 10 * spec.count,
            "seconds": 0.5,
            "curves": curves,
        }
        return self.store.write(spec.output_path, {"fitness_before": fitness_NL - 1, "fitness_after": fitness_NL}, attributes=attributes)

    def _learn(self, request):
        spec = request.learn
        self.learns.append(spec)
        scores = {f"{split}_{name}": 0.5 for split in ("test", "validation", "fitness") for name in ("accuracy", "cross_entropy")}
        scores = scores if self.measures(spec) else {}
        epochs = [{"epoch": epoch, "loss": 1.0 / epoch} for epoch in range(1, spec.epochs + 1)]
        attributes = {"kind": "network", "learn_digest": spec.digest, "seconds": 1.5, "examples": 100, "epochs": epochs, **scores}
        return self.store.write(spec.output_path, {"p": np.full(3, spec.round)}, attributes=attributes)


class Setting:
    """A run in memory, opened as often as wished; the journal is on disk."""

    def __init__(self, folder: Path, **rounds: object) -> None:
        self.store = MemoryStore()
        learn = {"epochs": 2, "start": rounds.pop("start", "fresh")}
        strategy = rounds.pop("strategy", {"name": "evolution", **SCHEDULE})
        table = {"search": {"layers": [0, "logits"], "strategy": strategy, "archive": rounds.pop("archive", 0)}, "learn": learn}
        table |= {"dataset": {"name": "digits", "fitness": rounds.pop("fitness", 0)}}
        config = parse_config({**table, "rounds": {"count": 2, **rounds}, "searcher": {"shard_examples": 20}})
        dataset = {"name": "made-up", "digest": "d", "classes": ["a", "b"], "train": EXAMPLES, "validation": 1, "test": 1}
        digests = {"search": "s", "learn": "l", "dataset": "d"}
        self.run = Run(
            folder=folder, run_id="r", name="n", term=1, config=config, dataset=dataset, digests=digests, versions={}, created=0.0
        )
        self.daemon = FakeDaemon("searcher:1", self.store)
        self.learner = FakeDaemon("learner:1", self.store)
        self.daemon.usual = config.model_dump_json()

    def open(self) -> list[RoundReport]:
        """Run the rounds with the next term and new daemons' counts."""
        self.daemon.searches.clear()
        self.daemon.configs.clear()
        self.learner.learns.clear()
        fleet = Fleet(searchers=[self.daemon], learner=self.learner, store_roots={"searcher:1": "/x", "learner:1": "/x"})
        with Journal(self.run.folder) as journal:
            log = RunLog(journal, NoTracker())
            display = PlainDisplay(Console(quiet=True))
            work = Work(run=self.run, store=self.store, log=log, display=display, fleet=fleet, layers=LAYERS)
            reports = run_rounds(work)
        self.run = replace(self.run, term=self.run.term + 1)
        return reports

    def forget(self, *paths: str) -> None:
        for path in paths:
            self.store.delete(path)

    def copy_without(self, *documents: str) -> None:
        """Drop documents, as if a crash had come before they were written."""
        kept = MemoryStore()
        for folder in (layout.network_folder, layout.search_folder):
            for number in (0, 1):
                for name in self.store.committed(folder(number)):
                    path = f"{folder(number)}/{name}"
                    found = self.store.manifest(path)
                    kept.write(path, {array: self.store.read(path, array) for array in found.arrays}, attributes=found.attributes)
        for number in (0, 1):
            for path in (layout.round_document(number), layout.report_document(number)):
                if path.rpartition("/")[2] in self.store.documents(layout.round_folder(number)) and path not in documents:
                    kept.write_document(path, self.store.read_document(path), create=True)
        self.store = self.daemon.store = self.learner.store = kept


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_each_round_searches_the_network_that_the_round_before_learned(setting: Setting) -> None:
    reports = setting.open()
    assert [report.round for report in reports] == [0, 1]
    assert setting.learner.initialised == 1
    assert reports[0].searched["path"] == layout.initial_network_path()
    assert reports[1].searched == reports[0].learned
    assert [(spec.first, spec.count) for spec in setting.daemon.searches[:3]] == [(0, 20), (20, 20), (40, 10)]
    assert [spec.trained for spec in setting.daemon.searches] == [False] * 3 + [True] * 3
    assert all(not spec.HasField("initial_network") for spec in setting.learner.learns)


def test_warm_learning_goes_on_from_the_round_before(tmp_path: Path) -> None:
    setting = Setting(tmp_path, start="warm")
    reports = setting.open()
    assert not setting.learner.learns[0].HasField("initial_network")
    assert setting.learner.learns[1].initial_network.path == reports[0].learned["path"]


def test_one_shot_searches_once(tmp_path: Path) -> None:
    setting = Setting(tmp_path, policy="one_shot", count=1)
    assert len(setting.open()) == 1
    assert len(setting.daemon.searches) == 3


def test_learning_alone_searches_nothing(tmp_path: Path) -> None:
    setting = Setting(tmp_path, policy="learn_only", count=1)
    (report,) = setting.open()
    assert setting.daemon.searches == []
    assert report.searched is None
    assert report.strategy == "none"
    assert report.metrics["search/evaluations"] == 0


def test_figures_are_means_over_examples(setting: Setting) -> None:
    metrics = setting.open()[0].metrics
    shard_mean = (20 * 0 + 20 * 1 + 10 * 2) / EXAMPLES
    assert metrics["search/block0/cross_entropy_before"] == pytest.approx(3 + shard_mean)
    assert metrics["search/logits/cross_entropy_after"] == pytest.approx(2 + shard_mean)
    assert metrics["search/evaluations"] == 10 * EXAMPLES
    assert metrics["search/evaluations_per_example"] == 10
    assert metrics["seconds/round"] == pytest.approx(sum(metrics[f"seconds/{part}"] for part in ("search", "learn", "overhead")))
    points = {(r["round"], r["key"], r["step"]): r["value"] for r in read_journal(setting.run.folder) if r["kind"] == "point"}
    assert points[0, "search/block0/cross_entropy", 1] == pytest.approx(2 + shard_mean)
    assert points[1, "learn/loss", 2] == 0.5


def test_a_finished_run_does_nothing_again(setting: Setting) -> None:
    reports = setting.open()
    records = len(read_journal(setting.run.folder))
    assert setting.open() == reports == load_reports(setting.store)
    assert setting.daemon.searches == []
    assert setting.learner.learns == []
    assert len(read_journal(setting.run.folder)) == records


@pytest.mark.fault(2)
def test_a_crash_before_the_report_keeps_what_was_learned(setting: Setting) -> None:
    reports = setting.open()
    setting.copy_without(layout.report_document(1))
    again = setting.open()
    assert setting.daemon.searches == setting.learner.learns == []
    assert again[1].learned["path"] == reports[1].learned["path"]
    assert again[1].metrics["seconds/learn"] == 1.5


@pytest.mark.fault(2)
def test_a_crash_before_the_commit_of_the_search_keeps_its_shards(setting: Setting) -> None:
    setting.open()
    setting.copy_without(layout.round_document(1), layout.report_document(1))
    setting.forget(layout.shard_path(1, 1, 1), layout.learned_network_path(1, 1))
    again = setting.open()
    assert [(spec.shard, spec.attempt) for spec in setting.daemon.searches] == [(1, 2)]
    assert [spec.attempt for spec in setting.learner.learns] == [2]
    assert again[1].metrics["search/evaluations"] == 10 * EXAMPLES
    assert again[1].metrics["seconds/search"] >= 1.0


@pytest.mark.fault(2)
def test_a_death_after_the_commit_of_a_shard_searches_nothing_again(setting: Setting) -> None:
    setting.daemon.dying = "search"
    reports = setting.open()
    searched = [(spec.round, spec.shard) for spec in setting.daemon.searches]
    assert len(searched) == len(set(searched)) > 2
    assert sum(report.attempts["search"] for report in reports) == len(searched), "each shard's first attempt counts"
    told = [record["text"] for record in read_journal(setting.run.folder) if record.get("event") == "found"]
    assert len(told) == 1 and "it was committed before its answer was lost" in told[0]


@pytest.mark.fault(25)
def test_shards_searched_on_other_data_or_settings_are_not_accepted(setting: Setting) -> None:
    setting.open()
    setting.copy_without(layout.round_document(1), layout.report_document(1))
    path = layout.shard_path(1, 0, 1)
    attributes = {**setting.store.manifest(path).attributes, "search_digest": "another"}
    arrays = {name: setting.store.read(path, name) for name in ("fitness_before", "fitness_after")}
    setting.forget(path)
    setting.store.write(path, arrays, attributes=attributes)
    setting.open()
    assert [(spec.shard, spec.attempt) for spec in setting.daemon.searches] == [(0, 2)]


def test_a_crash_before_the_journal_is_made_up_for(setting: Setting) -> None:
    setting.open()
    complete = {(r["kind"], r.get("round"), r.get("key"), r.get("step")) for r in read_journal(setting.run.folder)}
    (setting.run.folder / "journal.jsonl").unlink()
    setting.open()
    assert {(r["kind"], r.get("round"), r.get("key"), r.get("step")) for r in read_journal(setting.run.folder)} == complete


def test_a_failed_phase_ends_the_run_and_leaves_what_is_committed(setting: Setting) -> None:
    setting.learner.failing = "learn"
    with pytest.raises(StoreError, match="learning of round 0, on learner:1: disk full"):
        setting.open()
    setting.learner.failing = ""
    setting.open()
    assert [spec.round for spec in setting.daemon.searches] == [1, 1, 1]


def test_a_daemon_that_writes_elsewhere_is_named(setting: Setting) -> None:
    setting.daemon.store = MemoryStore()
    with pytest.raises(StoreError, match=r"is its --store the same folder"):
        setting.open()


def test_without_searchers_the_run_stops(setting: Setting) -> None:
    setting.daemon.failing = "search"
    with pytest.raises((JobError, StoreError), match="shard"):
        setting.open()


WIDE = {"strategy": {"population": 48, "parents": 8, "explorers": 16, "refiners": 24}}


def test_a_round_is_searched_with_its_own_settings(tmp_path: Path) -> None:
    setting = Setting(tmp_path, schedule=[{"from_round": 1, "epochs": 5, "search": WIDE}])
    reports = setting.open()
    assert [config.search.strategy["population"] for config in setting.daemon.configs] == [24] * 3 + [48] * 3
    assert [spec.epochs for spec in setting.learner.learns] == [2, 5]
    assert [report.changes for report in reports] == [{}, WIDE]
    rounds = [setting.store.read_document(layout.round_document(number)) for number in (0, 1)]
    assert rounds[0]["search_digest"] == "s" != rounds[1]["search_digest"]
    assert rounds[1]["changes"] == WIDE
    started = [record["plan"] for record in read_journal(tmp_path) if record["kind"] == "round_started"]
    assert [plan["changes"] for plan in started] == [{}, WIDE]


def test_a_shard_searched_with_other_settings_never_counts(tmp_path: Path) -> None:
    setting = Setting(tmp_path, schedule=[{"from_round": 1, "search": WIDE}])
    setting.open()
    setting.copy_without(layout.round_document(1), layout.report_document(1))
    path = layout.shard_path(1, 0, 1)
    # As one of the run's own settings, those of every round without changes, would have it.
    attributes = {**setting.store.manifest(path).attributes, "search_digest": "s"}
    arrays = {name: setting.store.read(path, name) for name in ("fitness_before", "fitness_after")}
    setting.forget(path)
    setting.store.write(path, arrays, attributes=attributes)
    setting.open()
    assert [(spec.shard, spec.attempt) for spec in setting.daemon.searches] == [(0, 2)]


def test_layers_of_a_round_are_reported(tmp_path: Path) -> None:
    one = {"layers": [0], "strategy": {name: [1] for name in SCHEDULE}}
    reports = Setting(tmp_path, schedule=[{"from_round": 1, "search": one}]).open()
    assert [report.layers() for report in reports] == [["block0", "logits"], ["block0"]]


def test_the_last_report_says_why_the_run_ended_and_a_resumed_run_ends_there_too(tmp_path: Path) -> None:
    setting = Setting(tmp_path, count=3, max_evaluations=20)
    for _ in range(2):
        reports = setting.open()
        assert [report.ended for report in reports] == [
            "",
            "budget: rounds.max_evaluations = 20 is spent by 20 candidate evaluations per example",
        ]
    assert not setting.daemon.searches


def test_a_crash_within_a_generation_of_codes_changes_none_of_them(tmp_path: Path) -> None:
    codes = {"name": "class_code", "blur_passes": [1, 1], "frequency": [1.0, 1.0]}
    policy = {"name": "code_search", "population": 2, "classes": 2}
    rounds = {"policy": policy, "count": 6, "strategy": codes, "fitness": 5}
    (tmp_path / "whole").mkdir()
    (tmp_path / "crashed").mkdir()
    whole, crashed = (Setting(tmp_path / name, **rounds) for name in ("whole", "crashed"))

    def fail(spec: jobs_pb2.LearnSpec) -> bool:
        # Round 4: the second of the second generation, after its search.
        crashed.learner.failing = "learn" if len(crashed.learner.learns) == 4 else ""
        return True

    crashed.learner.measures = fail
    with pytest.raises(StoreError, match="learning of round 4"):
        crashed.open()
    crashed.learner.failing, crashed.learner.measures = "", lambda spec: True
    reports, expected = crashed.open(), whole.open()
    assert [spec.round for spec in crashed.daemon.searches] == [5, 5, 5]
    assert [report.changes for report in reports] == [report.changes for report in expected]
    assert len(reports) == 6 and len({str(report.changes) for report in reports}) == 5
