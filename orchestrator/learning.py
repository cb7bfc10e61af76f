"""The learning phase of a round: one job on the learner, whose committed network says what it reached."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.attempts import Daemon, Task
from orchestrator.journal import Point
from orchestrator.policies import RoundPlan
from orchestrator.scheduling import Hooks, Points, run_tasks
from orchestrator.searching import SearchRecord, written
from orchestrator.shards import next_attempt
from orchestrator.work import Work, as_message
from repsearch.config import json_digest
from repsearch.errors import RepSearchError
from repsearch.rpc.v1 import jobs_pb2
from store import Reference, layout, reference_at
from store.verification import verify_group

_LEARNED = re.compile(r"learned-a(\d+)")


@dataclass(frozen=True, kw_only=True)
class LearnRecord:
    """A committed learned network: its reference, the manifest's attributes, the attempt, and the wall time of learning it."""

    network: Reference
    attributes: Mapping[str, Any]
    attempt: int
    seconds: float

    def points(self) -> list[Point]:
        """The epoch history as points by epoch."""
        return [
            (f"learn/{name}", int(epoch["epoch"]), float(value))
            for epoch in self.attributes["epochs"]
            for name, value in epoch.items()
            if name != "epoch"
        ]


def learn_round(work: Work, plan: RoundPlan, search: SearchRecord, warm: Reference | None) -> LearnRecord:
    """Return what the round learned from `search`, from initial parameters or going on from `warm`; learns it if it is not there yet."""
    record = learn_network(work, plan, search, warm, drawn_as=plan.round if plan.drawn_as is None else plan.drawn_as)
    work.log.once("network_ready", plan.round, path=record.network.path, digest=record.network.digest)
    return record


def learn_network(work: Work, plan: RoundPlan, search: SearchRecord, warm: Reference | None, *, drawn_as: int) -> LearnRecord:
    """Return what is learned from `search` with the random numbers of round `drawn_as`, and stored as the plan's round."""
    digest = learning_digest(work, plan, search, warm, drawn_as=drawn_as)
    attempts = _attempts(work, plan.round)
    record = _committed(work, plan.round, digest, attempts) or _learn(work, plan, search, warm, digest, attempts, drawn_as)
    work.log.points(plan.round, record.points())
    return record


def learning_digest(work: Work, plan: RoundPlan, search: SearchRecord, warm: Reference | None, *, drawn_as: int) -> str:
    """Return the digest of everything that determines the learned network."""
    facts = {
        "learn": work.digest(plan, "learn"),
        "dataset": work.run.dataset["digest"],
        "round": drawn_as,
        "epochs": plan.epochs,
        "shards": [reference.digest for reference in search.references()],
        "initial": warm.digest if warm is not None else "",
    }
    if work.run.config.rounds.examples_per_round is not None:
        window = work.windows.of(plan.round)
        facts["window"] = [window.first, window.count]
    if work.run.config.learn.start == "continue":
        facts["rounds"] = work.run.config.rounds.count
    return json_digest(facts)


def _learn(
    work: Work, plan: RoundPlan, search: SearchRecord, warm: Reference | None, digest: str, attempts: Sequence[int], drawn_as: int
) -> LearnRecord:
    goes_on, window = work.run.config.learn.start == "continue", work.windows.of(plan.round)

    def request(attempt: int, daemon: Daemon) -> jobs_pb2.StartRequest:
        spec = jobs_pb2.LearnSpec(
            round=drawn_as,
            attempt=attempt,
            shards=[as_message(reference) for reference in search.references()],
            initial_network=as_message(warm) if warm is not None and not goes_on else None,
            output_path=layout.learned_network_path(plan.round, attempt),
            checkpoint_path=layout.checkpoint_folder(plan.round),
            epochs=plan.epochs,
            digest=digest,
            searched_network=search.network["digest"] if search.network is not None else "",
            first=window.first,
            count=window.count,
            state=as_message(_state_of(work, warm)) if warm is not None and goes_on else None,
            state_path=layout.state_path(plan.round, attempt) if goes_on else "",
            unevaluated=not work.evaluated(plan.round),
            fitness_alone=plan.fitness_alone,
        )
        return work.request(daemon, "learn", plan.round, attempt, plan=plan, learn=spec)

    task = Task(
        key=0,
        what=f"learning of round {plan.round}",
        weight=plan.epochs,
        attempt=next_attempt(work, attempts),
        request=request,
        keeps=True,
    )
    work.display.begin(f"round {plan.round}: learn", plan.epochs, "epochs")
    start = time.monotonic()
    oversight = work.oversight("learner")
    outcome = run_tasks([task], [work.fleet.learner], _hooks(work, plan.round), service="learner", oversight=oversight)[0]
    seconds = work.stopwatch.stop(start)
    network = written(work, outcome.job)
    attributes = work.store.manifest(network).attributes
    split = next((split for split in ("test", "fitness") if f"{split}_accuracy" in attributes), None)
    found = f"{split} accuracy {attributes[f'{split}_accuracy']:.2%} after " if split else ""
    work.display.end(f"{found}{len(attributes['epochs'])} epochs in {seconds:.1f} s")
    return LearnRecord(network=network, attributes=attributes, attempt=outcome.attempt, seconds=seconds)


def _state_of(work: Work, network: Reference) -> Reference:
    """Return the learner's state beside a learned `network`."""
    state = work.store.manifest(network).attributes["state"]
    return Reference(state["path"], state["digest"])


def _hooks(work: Work, round: int) -> Hooks:
    def points(points: Points) -> None:
        work.log.points(round, points)

    return Hooks(progress=work.display.update, points=points, message=work.display.message)


def _attempts(work: Work, round: int) -> list[int]:
    matches = (_LEARNED.fullmatch(name) for name in work.store.committed(layout.network_folder(round)))
    return [int(match[1]) for match in matches if match]


def _committed(work: Work, round: int, digest: str, attempts: Sequence[int]) -> LearnRecord | None:
    """The network that an earlier opening of the run learned, if a whole one fits."""
    for attempt in sorted(attempts, reverse=True):
        try:
            network = reference_at(work.store, layout.learned_network_path(round, attempt))
            attributes = work.store.manifest(network).attributes
            if attributes.get("learn_digest") == digest:
                verify_group(work.store, network)
                return LearnRecord(network=network, attributes=attributes, attempt=attempt, seconds=float(attributes["seconds"]))
        except RepSearchError as error:
            work.display.message(f"learning of round {round}: attempt {attempt} is not used: {error}")
    return None
