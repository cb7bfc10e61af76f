"""The rounds of a run, each: search -> `round.json` (the targets count) -> learn -> `report.json` (the round is done).

Every step finds what an earlier opening of the run left and does what is missing, so that resuming is running again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.learning import LearnRecord, learn_round
from orchestrator.policies import RoundPlan, RoundPolicy, make_policy, reason_of
from orchestrator.report import EVALUATION_METRICS, FITNESS_METRICS, PASS_METRICS, RoundReport, search_metric, solved_metric
from orchestrator.searching import SearchRecord, initial_network, search_round
from orchestrator.segments import pruned_before, streamed_reports
from orchestrator.streaming import stream_rounds
from orchestrator.work import Work, document_there
from repsearch.archives import archive_reach
from repsearch.failpoints import reach
from store import Reference, Store, layout
from store.verification import named_groups


def run_rounds(work: Work) -> list[RoundReport]:
    """Return the reports of all rounds that the policy plans, done now or before; what killed writers left is removed."""
    if work.run.term > 1:
        _sweep(work)
    reports = _run_rounds(work)
    _sweep(work)
    return reports


def _sweep(work: Work) -> None:
    # A writer of an earlier term that is still at work fails then; nobody waits for what it writes.
    work.store.sweep(lambda: named_groups(work.store))


def _run_rounds(work: Work) -> list[RoundReport]:
    policy, reports = make_policy(work.run.config), list[RoundReport]()
    initial: Reference | None = None
    while (plan := policy.next(reports, work.run.config)) is not None:
        if plan.stream is not None:
            return stream_rounds(work, policy, plan)
        report = load_report(work.store, plan.round)
        if report is not None:
            _replay(work, plan, report)
        else:
            if plan.search and plan.searched_round is None and initial is None:
                initial = initial_network(work)
            report = _run_round(work, policy, plan, reports, initial)
        _prune(work, plan)
        reports.append(report)
    return reports


def load_reports(store: Store) -> list[RoundReport]:
    """Return the reports of the rounds that are done, in order."""
    reports = streamed_reports(store)
    while (report := load_report(store, len(reports))) is not None:
        reports.append(report)
    return reports


def load_report(store: Store, round: int) -> RoundReport | None:
    """Return the report of a round, or None while it is not done."""
    path = layout.report_document(round)
    return RoundReport.from_dict(store.read_document(path)["report"]) if document_there(store, path) else None


def _run_round(work: Work, policy: RoundPolicy, plan: RoundPlan, reports: Sequence[RoundReport], initial: Reference | None) -> RoundReport:
    start, phases_s = time.monotonic(), work.stopwatch.seconds
    work.log.once("round_started", plan.round, plan=plan.to_dict())
    network = (initial if plan.searched_round is None else learned_by(reports[plan.searched_round])) if plan.search else None
    search = search_round(work, plan, network)
    warm = learned_by(reports[plan.warm_round]) if plan.warm_round is not None else None
    learn = learn_round(work, plan, search, warm)
    overhead_s = time.monotonic() - start - (work.stopwatch.seconds - phases_s)
    report = make_report(work, plan, search, learn, overhead_s)
    report = replace(report, ended=reason_of(policy, [*reports, report], work.run.config))
    reach("round.report.before")
    work.store.write_document(layout.report_document(plan.round), {"report": report.to_dict()}, create=True)
    reach("round.report.after")
    work.log.once("round_finished", plan.round, report=report.to_dict())
    return report


def learned_by(report: RoundReport) -> Reference:
    """Return the network that a round learned."""
    assert report.learned is not None
    return Reference(report.learned["path"], report.learned["digest"])


def make_report(work: Work, plan: RoundPlan, search: SearchRecord, learn: LearnRecord, overhead_s: float) -> RoundReport:
    """Return the report of a round; `overhead_s`: wall time of the round that was neither search nor learning."""
    config, found = work.config(plan), learn.attributes
    metrics = {
        **{name: found[name.replace("/", "_")] for name in (*EVALUATION_METRICS, *FITNESS_METRICS) if name.replace("/", "_") in found},
        **{search_metric(layer, "before"): value for layer, value in search.before.items()},
        **{search_metric(layer, "after"): value for layer, value in search.after.items()},
        **{solved_metric(layer): value for layer, value in search.solved.items()},
        "search/evaluations": search.evaluations,
        "search/evaluations_per_example": search.evaluations / max(1, search.examples),
        "learn/examples": found["examples"],
        **{name: found[name.removeprefix("learn/")] for name in PASS_METRICS if name.removeprefix("learn/") in found},
        "seconds/search": search.seconds,
        "seconds/learn": learn.seconds,
        "seconds/overhead": overhead_s,
        "seconds/round": search.seconds + learn.seconds + overhead_s,
    }
    return RoundReport(
        round=search.round,
        policy=config.rounds.policy["name"],
        strategy=config.search.strategy["name"] if search.network is not None else "none",
        objective=config.learn.objective["name"],
        metrics={name: float(value) for name, value in metrics.items()},
        searched=search.network,
        learned={"path": learn.network.path, "digest": learn.network.digest},
        shards=tuple({"path": shard["path"], "digest": shard["digest"]} for shard in search.shards),
        changes=plan.changes,
        share=work.windows.of(plan.round).count / work.windows.examples,
        attempts={"search": sum(shard["attempt"] for shard in search.shards), "learn": learn.attempt},
    )


def _replay(work: Work, plan: RoundPlan, report: RoundReport) -> None:
    """Bring into the journal what a crash kept out of it."""
    search = search_round(work, plan, None)
    learned = learned_by(report)
    there = plan.round >= pruned_before(work.store)
    attributes = work.store.manifest(learned).attributes if there else {"epochs": []}
    learn = LearnRecord(network=learned, attributes=attributes, attempt=0, seconds=0.0)
    work.log.once("round_started", plan.round, plan=plan.to_dict())
    work.log.points(plan.round, [*search.points(), *learn.points()])
    work.log.once("network_ready", plan.round, path=learned.path, digest=learned.digest)
    work.log.once("round_finished", plan.round, report=report.to_dict())


def _prune(work: Work, plan: RoundPlan) -> None:
    """Delete what no round goes on from any more: checkpoints, the learner's state before the round, and old rounds (`rounds.keep`)."""
    store, round = work.store, plan.round
    folders = [layout.checkpoint_folder(round)]
    if round and work.run.config.learn.start == "continue":
        folders.append(layout.state_folder(round - 1))
    keep = work.run.config.rounds.keep.rounds
    if keep is not None:
        used = (plan.searched_round, plan.warm_round, round, round + 1 - archive_reach(work.run.config, work.windows))
        folders += _old(work, min(round + 1 - keep, *(number for number in used if number is not None)))
    reach("round.prune.before")
    for folder in folders:
        for name in store.committed(folder):
            if layout.removable_round(f"{folder}/{name}") is not None or not folder.endswith("/network"):
                store.delete(f"{folder}/{name}")
    reach("round.prune.after")


def _old(work: Work, before: int) -> list[str]:
    """Return the folders of the rounds below `before` that are still there, after noting that they go."""
    there = pruned_before(work.store)
    if before <= there:
        return []
    work.store.write_document(layout.PRUNED_DOCUMENT, {"before": before}, create=False)
    reach("round.prune.said")
    return [f"{layout.round_folder(round)}/{kind}" for round in range(there, before) for kind in ("search", "epochs", "network")]
