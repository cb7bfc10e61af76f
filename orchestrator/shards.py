"""The shards of a round's search: what an earlier opening of the run left of them, and the tasks for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.attempts import Daemon, Task
from orchestrator.policies import RoundPlan
from orchestrator.sharding import AutoShards, without_overlap
from orchestrator.work import Work, as_document, as_message
from repsearch.errors import RepSearchError
from repsearch.rpc.v1 import jobs_pb2
from store import Manifest, Reference, layout, reference_at
from store.verification import verify_group


@dataclass(frozen=True)
class Shards:
    """The shards of the search of `network` in a round. elites: shards of the pass before, from which it starts, with first and end."""

    work: Work
    plan: RoundPlan
    network: Reference
    elites: Sequence[tuple[Reference, int, int]]

    def task(self, shard: int, first: int, count: int, attempts: Sequence[int]) -> Task:
        """Return the task of searching `count` examples from `first` on, after `attempts` that are there."""
        work, plan = self.work, self.plan

        def request(attempt: int, daemon: Daemon) -> jobs_pb2.StartRequest:
            spec = jobs_pb2.SearchSpec(
                round=plan.round,
                shard=shard,
                attempt=attempt,
                first=first,
                count=count,
                network=as_message(self.network),
                trained=plan.searched_round is not None,
                output_path=layout.shard_path(plan.round, shard, attempt),
                archive=[as_message(reference) for reference in self._archive(first, count)],
            )
            return work.request(daemon, "search", plan.round, shard, attempt, plan=plan, search=spec)

        return Task(
            key=shard,
            what=f"shard {shard} of round {plan.round}",
            weight=count,
            attempt=next_attempt(work, attempts),
            request=request,
            found=lambda attempt: self._found(shard, attempt, (first, count)),
        )

    def attempts(self) -> dict[int, list[int]]:
        """Return the committed attempts of each shard of the round."""
        attempts: dict[int, list[int]] = {}
        for name in self.work.store.committed(layout.search_folder(self.plan.round)):
            shard, attempt = layout.parse_shard_name(name)
            attempts.setdefault(shard, []).append(attempt)
        return attempts

    def accepted(self, fixed: Sequence[tuple[int, int]] | None, attempts: Mapping[int, Sequence[int]]) -> dict[int, Reference]:
        """Return the committed attempts that an earlier opening of the run left, the newest whole one that fits of each shard.

        fixed: first and count of each shard; None: of any size within the window, as long as they do not overlap.
        """
        there = {shard: reference for shard in attempts if (reference := self._newest(shard, fixed, attempts[shard])) is not None}
        if fixed is not None:
            return there
        used = without_overlap((*span_of(self.work, reference), shard) for shard, reference in there.items())
        return {shard: there[shard] for shard in used}

    def _newest(self, shard: int, fixed: Sequence[tuple[int, int]] | None, attempts: Sequence[int]) -> Reference | None:
        if fixed is not None and shard >= len(fixed):
            return None
        span = None if fixed is None else fixed[shard]
        whole = (self._whole(shard, attempt, span) for attempt in sorted(attempts, reverse=True))
        return next((reference for reference in whole if reference is not None), None)

    def _found(self, shard: int, attempt: int, span: tuple[int, int]) -> jobs_pb2.Reference | None:
        """Return what an attempt committed whose end was not heard; None if it did not come to that."""
        there = attempt in self.attempts().get(shard, [])
        reference = self._whole(shard, attempt, span) if there else None
        return None if reference is None else as_message(reference)

    def _whole(self, shard: int, attempt: int, span: tuple[int, int] | None) -> Reference | None:
        """Return a committed attempt if all of it is there and it fits; `span`: first and count that it has to have, if they are known."""
        store = self.work.store
        try:
            reference = reference_at(store, layout.shard_path(self.plan.round, shard, attempt))
            if self._fits(store.manifest(reference), *(span or span_of(self.work, reference))):
                verify_group(store, reference)
                return reference
        except RepSearchError as error:
            self.work.display.message(f"shard {shard} of round {self.plan.round}: attempt {attempt} is not used: {error}")
        return None

    def _fits(self, found: Manifest, first: int, count: int) -> bool:
        window = self.work.windows.of(self.plan.round)
        expected = {
            "run_id": self.work.run.run_id,
            "search_digest": self.work.digest(self.plan, "search"),
            "dataset_digest": self.work.run.dataset["digest"],
            "network_digest": self.network.digest,
            "first": first,
            "count": count,
        }
        within = window.first <= first and first + count <= window.first + window.count
        same = found.attributes.get("archive", []) == [as_document(reference) for reference in self._archive(first, count)]
        return within and same and all(found.attributes.get(name) == value for name, value in expected.items())

    def _archive(self, first: int, count: int) -> list[Reference]:
        return [reference for reference, begin, end in self.elites if begin < first + count and first < end]


@dataclass
class Sized:
    """Makes the tasks of shards whose size follows from the speed; `number`: of the newest shard."""

    shards: Shards
    auto: AutoShards
    number: int
    _told: float | None = field(default=None, init=False)

    def more(self, daemon: Daemon) -> Task | None:
        """Return the next shard, for `daemon`."""
        span = self.auto.next(daemon.address)
        if span is None:
            return None
        self.number += 1
        return self.shards.task(self.number, *span, [])

    def took(self, task: Task, daemon: Daemon, seconds: float) -> None:
        """Take note of how long a shard took; the journal gets the pace whenever it is another one."""
        count = int(task.weight)
        pace = self.auto.took(daemon.address, count, seconds)
        if self._told is None or not 0.5 < pace / self._told < 2:
            self._told = pace
            self.shards.work.log.shard_size(self.shards.plan.round, count, pace)


def span_of(work: Work, reference: Reference) -> tuple[int, int]:
    """Return first and count of the examples of a shard."""
    attributes = work.store.manifest(reference).attributes
    return int(attributes["first"]), int(attributes["count"])


def next_attempt(work: Work, attempts: Sequence[int]) -> int:
    """Return the number of a new attempt, above all of `attempts` that are there.

    At least the term: an attempt of an earlier term may still be on its way, on a daemon that this orchestrator cannot reach.
    """
    return max(work.run.term, max(attempts, default=0) + 1)
