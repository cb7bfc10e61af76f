"""The searching phase of a round: every shard of the training set searched once, accepted, and committed by `round.json`.

N examples of a shard, L search layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from orchestrator.attempts import Daemon, Task
from orchestrator.journal import Point
from orchestrator.live import LiveSearch, fields_of
from orchestrator.policies import RoundPlan
from orchestrator.preflight import shards_of
from orchestrator.scheduling import Hooks, run_tasks
from orchestrator.segments import streamed_search
from orchestrator.sharding import AutoShards
from orchestrator.shards import Shards, Sized, span_of
from orchestrator.work import Work, as_document, document_there
from repsearch.errors import StoreError
from repsearch.failpoints import reach
from repsearch.rpc.v1 import jobs_pb2
from store import Reference, Store, layout, reference_at


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What `round.json` says: the shard attempts that count, and their figures.

    network: reference of the network searched (None without search).
    shards: per shard its reference, number, attempt, first example and number of examples, in order of examples.
    evaluations: candidate evaluations of all examples; examples: how many they are.
    curves: per layer the mean best cross-entropy, of the initial population and after each generation.
    before, after: per layer the mean cross-entropy of the initial population's best and of the results.
    solved: per layer the share of results with p(correct) > 0.5.
    changes: what the round changed of the section `search`; see `RoundPlan`.
    seconds: wall time of the phase.
    """

    round: int
    run_id: str
    search_digest: str
    dataset_digest: str
    network: Mapping[str, str] | None
    shards: Sequence[Mapping[str, Any]]
    evaluations: int
    examples: int
    curves: Mapping[str, Sequence[float]]
    before: Mapping[str, float]
    after: Mapping[str, float]
    seconds: float
    solved: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    def references(self) -> list[Reference]:
        """References of the shards."""
        return [Reference(shard["path"], shard["digest"]) for shard in self.shards]

    def points(self) -> list[Point]:
        """The curves as points by generation."""
        return [(f"search/{layer}/cross_entropy", step, value) for layer, curve in self.curves.items() for step, value in enumerate(curve)]


def initial_network(work: Work) -> Reference:
    """Return the untrained network that round 0 searches, made by the learner if it is not there yet."""
    path = layout.initial_network_path()
    folder, _, name = path.rpartition("/")
    if name not in work.store.committed(folder):
        spec = jobs_pb2.InitialiseSpec(output_path=path)
        task = Task(
            key=0,
            what="the initial network",
            weight=1,
            attempt=1,
            request=lambda attempt, daemon: work.request(daemon, "initialise", attempt, initialise=spec),
        )
        hooks = Hooks(message=work.display.message)
        outcome = run_tasks([task], [work.fleet.learner], hooks, service="learner", oversight=work.oversight("learner"))[0]
        return written(work, outcome.job)
    return reference_at(work.store, path)


def search_round(work: Work, plan: RoundPlan, network: Reference | None) -> SearchRecord:
    """Return the round's committed search, searching whatever of it is missing; `network` is the one searched, None without search."""
    path = layout.round_document(plan.round)
    if document_there(work.store, path):
        record = load_search(work.store, plan.round)
        if record.run_id != work.run.run_id:
            raise StoreError(
                f"{path}: is of another run ({record.run_id}, this one is {work.run.run_id}); remove {layout.round_folder(plan.round)}, "
                "which somebody put there, and resume"
            )
    else:
        record = _search(work, plan, network)
        reach("round.search.before")
        work.store.write_document(path, asdict(record), create=True)
        reach("round.search.after")
    work.log.points(plan.round, record.points())
    return record


def load_search(store: Store, round: int) -> SearchRecord:
    """Return the committed search of `round`; raises `StoreError` if there is none."""
    document = streamed_search(store, round) or store.read_document(layout.round_document(round))
    return SearchRecord(**{name: document[name] for name in SearchRecord.__dataclass_fields__ if name in document})


def _search(work: Work, plan: RoundPlan, network: Reference | None) -> SearchRecord:
    if network is None:
        return _record(work, plan, None, {}, 0.0)
    window, size, searchers = work.windows.of(plan.round), work.run.config.searcher.shard_examples, len(work.fleet.searchers)
    fixed = None if size == "auto" else shards_of(window, size)
    shards = Shards(work, plan, network, _elites(work, plan))
    attempts = shards.attempts()
    accepted = shards.accepted(fixed, attempts)
    tasks: list[Task] = []
    sized: Sized | None = None
    spans = [span_of(work, reference) for reference in accepted.values()]
    if fixed is None:
        auto = AutoShards(window.first, window.first + window.count, spans, pace=work.log.shard_pace, searchers=searchers)
        sized = Sized(shards, auto, max(attempts, default=-1))
    else:
        missing = [shard for shard in range(len(fixed)) if shard not in accepted]
        tasks = [shards.task(shard, *fixed[shard], attempts.get(shard, [])) for shard in missing]
    # What an earlier opening of the run searched counts with its searchers' own clocks.
    seconds = sum(float(work.store.manifest(reference).attributes["seconds"]) for reference in accepted.values())
    seconds /= max(1, searchers)
    if sum(count for _, count in spans) < window.count:
        seconds += _run(work, plan, window.count, tasks, sized, accepted)
    return _record(work, plan, network, accepted, seconds)


def _elites(work: Work, plan: RoundPlan) -> list[tuple[Reference, int, int]]:
    """Return the shards of the pass before whose elites the search starts from, with first and end.

    None without `search.archive`, in the first pass, and on the untrained network.
    """
    before = work.windows.before(plan.round)
    if before is None or plan.searched_round is None or not work.config(plan).search.archive:
        return []
    return [(Reference(s["path"], s["digest"]), s["first"], s["first"] + s["count"]) for s in load_search(work.store, before).shards]


def _run(work: Work, plan: RoundPlan, total: int, tasks: Sequence[Task], sized: Sized | None, accepted: dict[int, Reference]) -> float:
    """Run what is missing, add what it wrote to `accepted`, and return the wall time from the first start to the last result."""
    before = sum(span_of(work, reference)[1] for reference in accepted.values())
    work.display.begin(f"round {plan.round}: search", total, "images")
    live = LiveSearch(
        total,
        [work.store.manifest(reference).attributes for reference in accepted.values()],
        record=lambda state: work.log.append("search_progress", round=plan.round, **fields_of(state)),
        points=lambda points: work.log.points(plan.round, points),
    )

    hooks = Hooks(
        progress=lambda done, text: work.display.update(before + done, live.text()),
        heard=live.heard,
        message=work.display.message,
    )
    more: Callable[[Daemon], Task | None] = lambda daemon: None  # noqa: E731
    if sized is not None:
        hooks, more = replace(hooks, took=sized.took), sized.more
    start = time.monotonic()
    outcomes = run_tasks(tasks, work.fleet.searchers, hooks, service="searcher", oversight=work.oversight("searcher"), more=more)
    seconds = work.stopwatch.stop(start)
    live.end()
    accepted.update({shard: written(work, outcome.job) for shard, outcome in outcomes.items()})
    work.display.end(f"{total} images in {seconds:.1f} s")
    return seconds


def written(work: Work, job: jobs_pb2.Job) -> Reference:
    """Return the reference that `job` gave as its result, which must be in the run's folder."""
    reference = Reference(job.result.path, job.result.digest)
    try:
        work.store.manifest(reference)
    except StoreError as error:
        raise StoreError(
            f"{error}\na daemon says that it wrote this to the run's store, {work.run.location}; "
            "is its --store the same folder (or the same share) as this orchestrator's run.root?"
        ) from None
    return reference


def _record(work: Work, plan: RoundPlan, network: Reference | None, accepted: Mapping[int, Reference], seconds: float) -> SearchRecord:
    manifests = {shard: work.store.manifest(reference) for shard, reference in accepted.items()}
    accepted = {shard: accepted[shard] for shard in sorted(accepted, key=lambda shard: manifests[shard].attributes["first"])}
    found = [manifests[shard].attributes for shard in accepted]
    layers = work.layers_of(plan) if network is not None else []
    return SearchRecord(
        round=plan.round,
        run_id=work.run.run_id,
        search_digest=work.digest(plan, "search"),
        dataset_digest=work.run.dataset["digest"],
        network=as_document(network) if network is not None else None,
        shards=[
            {
                **as_document(accepted[shard]),
                "shard": shard,
                **{name: manifests[shard].attributes[name] for name in ("attempt", "first", "count")},
            }
            for shard in accepted
        ],
        evaluations=sum(int(attributes["evaluations"]) for attributes in found),
        examples=sum(int(attributes["count"]) for attributes in found),
        curves={layer: _mean([a["curves"][layer] for a in found], [a["count"] for a in found]) for layer in layers},
        before=_cross_entropy(work, accepted, layers, "fitness_before"),
        after=_cross_entropy(work, accepted, layers, "fitness_after"),
        solved=_solved(work, accepted, layers),
        seconds=seconds,
        changes=plan.changes,
    )


def _mean(curves: Sequence[Sequence[float]], weights: Sequence[int]) -> list[float]:
    """Mean of the shards' curves, weighted by their examples."""
    return [float(value) for value in np.average(np.array(curves, dtype=np.float64), axis=0, weights=weights)]


def _fitness(work: Work, accepted: Mapping[int, Reference], array: str) -> np.ndarray:
    """Fitness of every result, (results of all examples, layers)."""
    parts = [work.store.read(accepted[shard], array) for shard in accepted]
    # Where images have several results, they are an axis between examples and layers.
    return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


def _cross_entropy(work: Work, accepted: Mapping[int, Reference], layers: Sequence[str], array: str) -> dict[str, float]:
    """Mean over all examples, per layer; fitness is negative cross-entropy."""
    if not layers:
        return {}
    means_L = -_fitness(work, accepted, array).mean(axis=0, dtype=np.float64)
    return {layer: float(mean) for layer, mean in zip(layers, means_L, strict=True)}


def _solved(work: Work, accepted: Mapping[int, Reference], layers: Sequence[str]) -> dict[str, float]:
    """Share of results whose fitness, log p(correct), exceeds log 0.5, per layer."""
    if not layers:
        return {}
    shares_L = (_fitness(work, accepted, "fitness_after") > np.log(0.5)).mean(axis=0)
    return {layer: float(share) for layer, share in zip(layers, shares_L, strict=True)}
