"""What the phases of a round share: the run, its store, its daemons, its log, and requests to daemons."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.attempts import Daemon
from orchestrator.daemons import Fleet, start_request
from orchestrator.journal import Journal, Point, read_journal
from orchestrator.oversight import Oversight, Wait, bounds_of
from orchestrator.policies import RoundPlan
from orchestrator.progress import Display
from orchestrator.roster import Roster
from orchestrator.runs import Run
from orchestrator.tracking import Tracker
from repsearch.config import LOGITS, RunConfig, learn_digest, search_digest
from repsearch.rpc.v1 import jobs_pb2
from repsearch.windows import Windows, evaluated, windows_of
from store import Reference, Store


class RunLog:
    """The journal and its mirror, for one opening of the run.

    Records of a round that are there already, from before a crash, are not repeated.
    """

    def __init__(self, journal: Journal, mirror: Tracker) -> None:
        self._journal, self._mirror = journal, mirror
        records = read_journal(journal.path.parent)
        sized = [record["seconds_per_example"] for record in records if record["kind"] == "shard_size"]
        self.shard_pace: float | None = sized[-1] if sized else None
        """Seconds per example of the newest shard whose size was chosen."""
        self._there = {(record["kind"], record["round"]) for record in records if "round" in record and record["kind"] != "point"}

    def append(self, kind: str, **fields: Any) -> None:
        """Append a record of the run."""
        self._mirror.put(self._journal.append(kind, **fields))

    def shard_size(self, round: int, examples: int, pace: float) -> None:
        """Append the size of a shard that a searcher did at `pace` seconds per example."""
        self.shard_pace = pace
        self.append("shard_size", round=round, examples=examples, seconds_per_example=pace)

    def incident(self, event: str, text: str) -> None:
        """Append what went wrong, or is waited for."""
        self.append("incident", event=event, text=text)

    def once(self, kind: str, round: int, **fields: Any) -> None:
        """Append a record of a round, unless the round has one of this kind."""
        if (kind, round) not in self._there:
            self._there.add((kind, round))
            self.append(kind, round=round, **fields)

    def once_each(self, kind: str, fields_of_rounds: Mapping[int, dict[str, Any]]) -> None:
        """Append a record of each round that has none of this kind, in one write."""
        new = {round: fields for round, fields in fields_of_rounds.items() if (kind, round) not in self._there}
        self._there.update((kind, round) for round in new)
        for record in self._journal.append_all([(kind, {"round": round, **fields}) for round, fields in new.items()]):
            self._mirror.put(record)

    def points(self, round: int, points: Iterable[Point]) -> None:
        """Append the points of a round's curves that are not there yet."""
        for record in self._journal.append_points(round, points):
            self._mirror.put(record)


@dataclass
class Stopwatch:
    """Wall time spent in phases, in seconds."""

    seconds: float = 0.0

    def stop(self, start: float) -> float:
        """Add the time since `start` (of `time.monotonic`), and return it."""
        elapsed = time.monotonic() - start
        self.seconds += elapsed
        return elapsed


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run being worked on.

    layers: names of the search layers, in order of search; none for a policy that does not search. A round may have others.
    """

    run: Run
    store: Store
    log: RunLog
    display: Display
    fleet: Fleet
    layers: Sequence[str]
    roster: Roster = field(default_factory=Roster)
    waits: Callable[[Sequence[Wait]], None] = lambda waits: None
    wanted: Callable[[], str] = lambda: ""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def oversight(self, service: str) -> Oversight:
        """Return how jobs on the daemons of `service` are watched over."""
        bounds = bounds_of(self.run.config.searcher if service == "searcher" else self.run.config.learner)
        return Oversight(bounds=bounds, roster=self.roster, tell=self.log.incident, waits=self.waits, wanted=self.wanted)

    @property
    def windows(self) -> Windows:
        """The examples of each round."""
        return windows_of(self.run.config, self.run.dataset["train"])

    def evaluated(self, round: int) -> bool:
        """Whether the network of `round` is measured on validation and test."""
        return evaluated(self.run.config, self.run.dataset["train"], round)

    def config(self, plan: RoundPlan) -> RunConfig:
        """Return the configuration of a round."""
        return plan.config(self.run.config)

    def digest(self, plan: RoundPlan, part: str) -> str:
        """Return the digest of what determines a round's `part`, "search" or "learn"."""
        if not plan.changes:
            return self.run.digests[part]
        return {"search": search_digest, "learn": learn_digest}[part](self.config(plan))

    def layers_of(self, plan: RoundPlan) -> list[str]:
        """Return the names of a round's search layers."""
        if "layers" not in plan.changes:
            return list(self.layers)
        return [layer if layer == LOGITS else f"block{layer}" for layer in self.config(plan).search.layers]

    def request(self, daemon: Daemon, *parts: str | int, plan: RoundPlan | None = None, **spec: Any) -> jobs_pb2.StartRequest:
        """Return a request for `daemon`, identified by run, term and `parts`; `spec` is one of the request's specs, by name.

        plan: of the round that the request is part of; daemons get that round's configuration.
        """
        run = self.run if plan is None or not plan.changes else replace(self.run, config=self.config(plan))
        return start_request(run, self.fleet, daemon, *parts, **spec)


def document_there(store: Store, path: str) -> bool:
    """Return whether the document `path` exists."""
    folder, _, name = path.rpartition("/")
    return name in store.documents(folder)


def as_message(reference: Reference) -> jobs_pb2.Reference:
    """Return the reference as a message."""
    return jobs_pb2.Reference(path=reference.path, digest=reference.digest)


def as_document(reference: Reference) -> dict[str, str]:
    """Return the reference as JSON values."""
    return {"path": reference.path, "digest": reference.digest}
