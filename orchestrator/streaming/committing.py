"""What makes streamed rounds count: flushed to the disk, named by a segment document, told to the journal; then what may go is removed.

Daemons write without waiting for the disk, so a commit flushes first. It runs on a thread of its own, while rounds go on.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from orchestrator.report import RoundReport
from orchestrator.segments import pruned_before, segments
from orchestrator.streaming.rounds import Learned, entry_of, reference_of
from orchestrator.work import Work, as_document
from repsearch.failpoints import reach
from store import Reference, layout

PACE_SEGMENTS = 5
"""Segments that the pace is measured over."""


class Committer:
    """Commits rounds in order; a context, whose end waits for what was begun. `reports`: of the rounds that are committed."""

    def __init__(self, work: Work, *, least_kept: int) -> None:
        self._work, self._store = work, work.store.relaxed()
        self._keep = max(least_kept, work.run.config.rounds.keep.rounds or 0) if work.run.config.rounds.keep.rounds else None
        self._pruned = pruned_before(work.store)
        self._pending: list[tuple[Learned, RoundReport]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._future: Future[None] | None = None
        self._begun = time.monotonic()
        self._tally = Tally()
        self.reports: list[RoundReport] = []
        self.network: Reference | None = None
        self.state: Reference | None = None
        for segment in segments(work.store):
            self._took(segment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.shutdown()
        if error is None:
            self.check()

    @property
    def busy(self) -> bool:
        """Whether a commit is going on."""
        return self._future is not None and not self._future.done()

    def check(self) -> None:
        """Raise what a commit that is over raised."""
        if self._future is not None and self._future.done():
            self._future.result()

    def wait(self) -> None:
        """Wait for the commit that is going on; raises what it raises."""
        if self._future is not None:
            self._future.result()

    def add(self, learned: Learned, report: RoundReport) -> None:
        """Take a round that is learned; it is committed with the next that has a state."""
        self._pending.append((learned, report))
        if learned.done.HasField("state"):
            self.wait()
            self._future = self._thread.submit(self._commit, self._pending, reference_of(learned.done.state))
            self._pending = []

    def forget(self) -> None:
        """Drop what is not committed, and the groups that are left of it; the newest segment is what learning goes on from."""
        self.wait()
        self._pending = []
        reach("stream.forget.before")
        for folder in layout.STREAM_FOLDERS:
            for name in self._store.committed(folder):
                path = f"{folder}/{name}"
                round = layout.streamed_round(path)
                if round is not None and (round >= len(self.reports) or self._superseded(path)):
                    self._store.delete(path)
        reach("stream.forget.after")

    def replay(self) -> None:
        """Bring into the journal what a crash kept out of it."""
        self._tell(self.reports)

    def _superseded(self, path: str) -> bool:
        return path.startswith(f"{layout.STATES_FOLDER}/") and (self.state is None or path != self.state.path)

    def _commit(self, entries: Sequence[tuple[Learned, RoundReport]], state: Reference) -> None:
        rounds = [learned for learned, _ in entries]
        first, end = rounds[0].searched.given.round, rounds[-1].searched.given.round + 1
        kept = [learned for learned in rounds if self._keep is None or learned.searched.given.round >= end - self._keep]
        groups = [reference_of(learned.searched.done.result) for learned in kept] + [learned.network for learned in kept]
        self._store.settle([state.path, *(group.path for group in groups)])
        now = time.monotonic()
        document = {
            "first": first,
            "rounds": [entry_of(self._work, learned, report) for learned, report in entries],
            "network": as_document(rounds[-1].network),
            "state": as_document(state),
            "seconds": now - self._begun,
        }
        self._begun = now
        reach("segment.commit.before")
        self._work.store.write_document(layout.segment_document(first), document, create=True)
        reach("segment.commit.after")
        before = self.state
        self._tell(self._took(document))
        if before is not None:
            self._store.delete(before.path)
        if self._keep is not None:
            self._prune(end - self._keep)

    def _took(self, segment: dict[str, Any]) -> list[RoundReport]:
        reports = [RoundReport.from_dict(entry["report"]) for entry in segment["rounds"]]
        self.reports += reports
        self.network = Reference(segment["network"]["path"], segment["network"]["digest"])
        self.state = Reference(segment["state"]["path"], segment["state"]["digest"])
        self._tally.add(reports, float(segment["seconds"]))
        return reports

    def _tell(self, reports: Sequence[RoundReport]) -> None:
        log = self._work.log
        log.once_each("round_finished", {report.round: {"report": report.to_dict()} for report in reports})
        if reports:
            assert self.network is not None
            last = reports[-1].round
            log.once("network_ready", last, path=self.network.path, digest=self.network.digest)
            log.once("stream_progress", last, **self._tally.fields(self._work.run.config.rounds.count))

    def _prune(self, before: int) -> None:
        """Remove the targets and networks of rounds below `before`; said first, so that nobody misses them."""
        if before <= self._pruned:
            return
        reach("round.prune.before")
        self._work.store.write_document(layout.PRUNED_DOCUMENT, {"before": before}, create=False)
        reach("round.prune.said")
        for report in self.reports[self._pruned : before]:
            for reference in (*report.shards, report.learned):
                assert reference is not None
                self._store.delete(reference["path"])
        self._pruned = before
        reach("round.prune.after")


class Tally:
    """Who waited for whom, and how stale the networks searched were, over the rounds that are committed."""

    def __init__(self) -> None:
        self._staleness: collections.Counter[int] = collections.Counter()
        self._searcher_s = self._learner_s = 0.0
        self._recent = collections.deque[tuple[int, float]](maxlen=PACE_SEGMENTS)

    def add(self, reports: Sequence[RoundReport], seconds: float) -> None:
        """Count the rounds of a segment that took `seconds`."""
        self._staleness.update(int(report.metrics["stream/staleness"]) for report in reports)
        self._searcher_s += sum(report.metrics["seconds/searcher_waited"] for report in reports)
        self._learner_s += sum(report.metrics["seconds/learner_waited"] for report in reports)
        self._recent.append((len(reports), seconds))

    def fields(self, count: int) -> dict[str, Any]:
        """Return the fields of a `stream_progress` record of a run of `count` rounds."""
        done = sum(self._staleness.values())
        pace = sum(rounds for rounds, _ in self._recent) / max(sum(seconds for _, seconds in self._recent), 1e-9)
        return {
            "rounds": done,
            "staleness": {str(rounds): self._staleness[rounds] for rounds in sorted(self._staleness)},
            "searcher_waited_s": self._searcher_s,
            "learner_waited_s": self._learner_s,
            "rounds_per_s": pace,
            "seconds_left": (count - done) / pace if pace else None,
        }
