"""What the items of a round become: its report, and the record of its search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.report import EVALUATION_METRICS, FITNESS_METRICS, PASS_METRICS, RoundReport, search_metric, solved_metric
from orchestrator.searching import SearchRecord
from orchestrator.work import Work, as_document
from repsearch.rpc.v1 import jobs_pb2
from repsearch.windows import Window
from store import Reference


@dataclass(frozen=True, kw_only=True)
class Given:
    """A window handed to a searcher: when (monotonic), the round whose network is searched (-1: untrained), that network, and elites."""

    round: int
    window: Window
    attempt: int
    time: float
    network_round: int
    network: Reference
    archive: Sequence[jobs_pb2.Reference] = ()

    @property
    def staleness(self) -> int:
        """Rounds by which the network lags behind that of the round before."""
        return self.round - 1 - self.network_round


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A window whose targets are there; relay_s: time that messages took."""

    given: Given
    done: jobs_pb2.ItemDone
    relay_s: float


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A round that is learned; wall_s: since the round before was."""

    searched: Searched
    done: jobs_pb2.ItemDone
    relay_s: float
    wall_s: float

    @property
    def network(self) -> Reference:
        """The network learned."""
        return reference_of(self.done.result)


def reference_of(message: jobs_pb2.Reference) -> Reference:
    """Return the reference in a message."""
    return Reference(message.path, message.digest)


def entry_of(work: Work, learned: Learned, report: RoundReport) -> dict[str, Any]:
    """Return what a segment says of a round."""
    steps = {"search": _steps(learned.searched.done, learned.searched.relay_s), "learn": _steps(learned.done, learned.relay_s)}
    return {"report": report.to_dict(), "search": asdict(_search_record(work, learned.searched)), "steps": steps}


def _steps(done: jobs_pb2.ItemDone, relay_s: float) -> dict[str, float]:
    """Return the seconds of each step of an item; messages: from its push to the news of its end, less what the daemon had it."""
    rest = done.inside - done.read - done.work - done.write
    return {"waited": done.waited, "read": done.read, "work": done.work, "write": done.write, "messages": relay_s, "rest": rest}


def report_of(work: Work, learned: Learned) -> RoundReport:
    """Return the report of a round.

    Overhead is what reading, writing and messages took on both sides; of rounds that overlap the parts add up to more than the round.
    """
    config, searched, given = work.run.config, learned.searched, learned.searched.given
    search, learn = searched.done, learned.done
    figures, measured = dict(learn.figures), (*EVALUATION_METRICS, *FITNESS_METRICS)
    overhead_s = sum(done.read + done.write for done in (search, learn)) + searched.relay_s + learned.relay_s
    metrics = {
        **{name: figures[name.replace("/", "_")] for name in measured if name.replace("/", "_") in figures},
        **{search_metric(layer.name, "before"): layer.cross_entropy[0] for layer in search.layers},
        **{search_metric(layer.name, "after"): layer.cross_entropy[-1] for layer in search.layers},
        **{solved_metric(layer.name): layer.solved for layer in search.layers},
        "search/evaluations": search.evaluations,
        "search/evaluations_per_example": search.evaluations / given.window.count,
        "learn/examples": figures["examples"],
        **{name: figures[name.removeprefix("learn/")] for name in PASS_METRICS if name.removeprefix("learn/") in figures},
        "seconds/search": search.work,
        "seconds/learn": learn.work,
        "seconds/overhead": overhead_s,
        "seconds/round": learned.wall_s,
        "stream/staleness": given.staleness,
        "seconds/searcher_waited": search.waited,
        "seconds/learner_waited": learn.waited,
    }
    return RoundReport(
        round=given.round,
        policy=config.rounds.policy["name"],
        strategy=config.search.strategy["name"],
        objective=config.learn.objective["name"],
        metrics={name: float(value) for name, value in metrics.items()},
        searched=as_document(given.network),
        learned=as_document(learned.network),
        shards=(as_document(reference_of(search.result)),),
        attempts={"search": given.attempt, "learn": given.attempt},
        share=given.window.count / work.windows.examples,
    )


def _search_record(work: Work, searched: Searched) -> SearchRecord:
    given, done = searched.given, searched.done
    window = {"first": given.window.first, "count": given.window.count}
    return SearchRecord(
        round=given.round,
        run_id=work.run.run_id,
        search_digest=work.run.digests["search"],
        dataset_digest=work.run.dataset["digest"],
        network=as_document(given.network),
        shards=[{**as_document(reference_of(done.result)), "shard": 0, "attempt": given.attempt, **window}],
        evaluations=done.evaluations,
        examples=given.window.count,
        curves={layer.name: list(layer.cross_entropy) for layer in done.layers},
        before={layer.name: layer.cross_entropy[0] for layer in done.layers},
        after={layer.name: layer.cross_entropy[-1] for layer in done.layers},
        seconds=done.work,
        solved={layer.name: layer.solved for layer in done.layers},
    )
