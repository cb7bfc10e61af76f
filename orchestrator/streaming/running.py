"""The loop of streamed rounds: windows to searchers, targets to the learner in order, commits now and then.

When the learner's process ends, what is not committed is dropped and a new one goes
on from the newest segment, as `orchestrator resume` does after a crash.
"""

from __future__ import annotations

import queue
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, cast

from orchestrator import interrupts
from orchestrator.attempts import TakenOverError
from orchestrator.control import stopped
from orchestrator.patience import TICK_S, Patience, await_back
from orchestrator.policies import RoundPlan, RoundPolicy, StreamPlan, reason_of
from orchestrator.report import RoundReport
from orchestrator.scheduling import MAX_FAILURES
from orchestrator.searching import initial_network
from orchestrator.streaming.committing import Committer
from orchestrator.streaming.feeds import Feed, News, StreamDaemon
from orchestrator.streaming.rounds import Given, Learned, Searched, report_of
from orchestrator.streaming.schedule import Schedule
from orchestrator.streaming.searchers import Searchers, failure
from orchestrator.streaming.tending import look, waits
from orchestrator.work import Work, as_message
from repsearch.archives import archive_reach
from repsearch.errors import DaemonError, JobError
from repsearch.rpc.v1 import jobs_pb2
from store import Reference, layout

ROUNDS_PER_JOB = 4096
"""Rounds after which daemons get new jobs: a daemon keeps the events of a job as long as the job."""
ATTEMPTS_PER_TERM = 1000
"""Attempts are numbered from the term on, so that no late writer of an earlier term has the same path."""
SHOW_S = 0.2
SWITCH_S = 0.0005


def stream_rounds(work: Work, policy: RoundPolicy, plan: RoundPlan) -> list[RoundReport]:
    """Return the reports of all rounds of a run whose rounds are streamed as `plan` says, done now or before."""
    assert plan.stream is not None
    count, stream = work.run.config.rounds.count, plan.stream
    attempt, failures = work.run.term * ATTEMPTS_PER_TERM + 1, 0
    # A window may be under way with a network, and an archive, from `max_staleness` rounds before the newest.
    least_kept = stream.max_staleness + 2 + archive_reach(work.run.config, work.windows)
    with Committer(work, least_kept=least_kept) as committer:
        committer.replay()
        work.display.begin("streamed rounds", count, "rounds")
        while policy.next(committer.reports, work.run.config) is not None:
            committer.forget()
            begun = len(committer.reports)
            running = Stream(work, policy, stream, plan.epochs, committer, attempt, min(count, begun + ROUNDS_PER_JOB))
            try:
                running.run()
            except LearnerFailed as failed:
                failures = failures + 1 if len(committer.reports) == begun else 1
                if failures >= MAX_FAILURES:
                    raise failed.error from None
                work.display.message(f"{failed.error}; going on from round {begun}")
                learner, oversight = work.fleet.learner, work.oversight("learner")
                await_back(learner, Patience(oversight, "learner", [learner], running.tell), f"round {begun}")
            attempt = running.attempt + 1
            committer.wait()
        committer.forget()
        work.display.end(f"{len(committer.reports)} rounds")
        return committer.reports


class LearnerFailed(Exception):  # noqa: N818 (caught here; `error` is what a user sees)
    """The learner's process ended; another may go on from what is committed."""

    def __init__(self, error: JobError) -> None:
        super().__init__(str(error))
        self.error = error


class Stream:
    """Rounds from the newest segment to `end`, by one job per daemon; `attempt` numbers what is written, one more after every loss."""

    def __init__(
        self, work: Work, policy: RoundPolicy, plan: StreamPlan, epochs: int, committer: Committer, attempt: int, end: int
    ) -> None:
        begin = len(committer.reports)
        self._reports, self._ended = list(committer.reports), False
        self._work, self._policy, self._plan, self._epochs, self._committer = work, policy, plan, epochs, committer
        self._end = end
        self._schedule = Schedule(begin, end, begin - 1, plan.max_staleness)
        self._network: Reference = committer.network or initial_network(work)
        self._state = committer.state
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._searchers = Searchers(work, self._schedule, attempt, self._given, self._news, self.tell)
        self._learner: Feed
        self._searching, self._learning = work.oversight("searcher"), work.oversight("learner")
        self._state_round = begin - 1
        self._learned_at = self._state_at = time.monotonic()
        self._shown_at = self._looked_at = 0.0
        self._accuracy = ""

    @property
    def attempt(self) -> int:
        """The number of what is written."""
        return self._searchers.attempt

    def run(self) -> None:
        """Run the rounds; whatever ends them early cancels the jobs. Raises `LearnerFailed` where another try may help."""
        self._learner = self._start_learner()
        interval = sys.getswitchinterval()
        # By default a thread that has news waits 5 ms for one that computes, such as the thread that commits.
        sys.setswitchinterval(SWITCH_S)
        try:
            with self._searching.roster.listening(lambda daemon: self._news.put(News(None, time.monotonic(), back=daemon))):
                self._searchers.start()
                while self._schedule.learned + 1 < self._end and not self._ended:
                    self._step()
            # Where a policy ends the run early, windows that nobody will learn are under way.
            self._close(cancel=self._ended)
        except BaseException:
            self._close(cancel=True)
            raise
        finally:
            sys.setswitchinterval(interval)
            self._searching.waits([])

    def _close(self, *, cancel: bool) -> None:
        self._searchers.close(cancel=cancel)
        with suppress(DaemonError):
            self._learner.cancel() if cancel else self._learner.finish()

    def tell(self, event: str, text: str) -> None:
        """Tell people and the journal what goes wrong, or is waited for."""
        self._work.display.message(text)
        self._work.log.incident(event, text)

    def _step(self) -> None:
        """Hand out what may be handed out, act on one piece of news, and look now and then at what stands still."""
        if not self._held():
            self._searchers.hand_out()
            self._searchers.require()
        with interrupts.waiting(), suppress(queue.Empty):
            self._handle(self._news.get(timeout=TICK_S))
        self._committer.check()
        if time.monotonic() - self._looked_at >= TICK_S:
            self._looked_at = time.monotonic()
            self._look()

    def _held(self) -> bool:
        """Whether no window is to be handed out because people asked for that; raises `StoppedError` when all is committed and to stop.

        What was learned since the last commit is committed with one more window, if none is under way.
        """
        wanted = self._searching.wanted()
        if not wanted:
            return False
        self._searchers.held()
        if self._learner.given or self._searchers.busy:
            return True
        if self._state_round < self._schedule.learned and self._searchers:
            self._searchers.hand_out(1)
            return True
        self._committer.wait()
        if wanted == "stop":
            raise stopped()
        return True

    def _look(self) -> None:
        self._searchers.look()
        for _, error in look([self._learner], self._learning.bounds, self._what_is_learned, self.tell):
            self._learner_lost(error)
        learner = waits([self._learner], self._learning.bounds, self._what_is_learned)
        self._searching.waits([*learner, *self._searchers.waits()])

    def _what_is_learned(self, feed: Feed) -> str:
        return f"learning of round {self._schedule.learned + 1}"

    @property
    def _may_end(self) -> bool:
        rounds = self._work.run.config.rounds
        return any(bound is not None for bound in (rounds.plateau, rounds.max_evaluations, rounds.max_seconds))

    def _start_learner(self) -> Feed:
        work = self._work
        spec = jobs_pb2.StreamLearnSpec(state=as_message(self._state) if self._state is not None else None)
        daemon = cast(StreamDaemon, work.fleet.learner)
        try:
            return Feed(daemon, work.request(daemon, "stream", self._schedule.next, self.attempt, stream_learn=spec), self._news)
        except DaemonError as error:
            self._learner_lost(error)

    def _given(self, round: int, attempt: int) -> Given:
        return Given(
            round=round,
            window=self._work.windows.of(round),
            attempt=attempt,
            time=time.monotonic(),
            network_round=self._schedule.learned,
            network=self._network,
            archive=self._archive_of(round),
        )

    def _archive_of(self, round: int) -> list[jobs_pb2.Reference]:
        """Return the targets of the newest round learned that had the window of `round`, with its elites."""
        windows, learned = self._work.windows, self._schedule.learned
        if learned < 0 or not self._work.run.config.search.archive:
            return []
        before = windows.before(round)
        while before is not None and before > learned:
            before = windows.before(before)
        return [] if before is None else [jobs_pb2.Reference(**shard) for shard in self._reports[before].shards]

    def _handle(self, news: News) -> None:
        if news.back is not None:
            if news.back is not self._learner.daemon:
                self._searchers.back(cast(StreamDaemon, news.back))
            return
        assert news.feed is not None
        if news.feed is not self._learner and news.feed not in self._searchers:
            return  # lost already
        if news.feed is self._learner:
            if news.event is not None:
                self._round_learned(news.feed.given.pop(news.event.item_done.sequence), news.event.item_done, news.time)
            else:
                self._learner_ended(news)
        elif news.event is not None:
            self._searchers.searched(news.feed, news.event.item_done, news.time)
            self._learn()
        else:
            self._searchers.ended(news)

    def _learn(self) -> None:
        for searched in self._searchers.in_order():
            try:
                self._learner.push(jobs_pb2.Item(learn=self._learn_spec(searched)), (searched, time.monotonic()))
            except DaemonError as error:
                self._learner_lost(error)

    def _learn_spec(self, searched: Searched) -> jobs_pb2.LearnSpec:
        given, round = searched.given, searched.given.round
        _, network, state = layout.stream_paths(round, self.attempt)
        due = time.monotonic() - self._state_at >= self._plan.commit_seconds and not self._committer.busy
        # A policy may end the run after any round that is measured.
        commits = due or round + 1 == self._end or (self._may_end and self._work.evaluated(round)) or bool(self._searching.wanted())
        if commits:
            self._state_round = round
            self._state_at = time.monotonic()
        return jobs_pb2.LearnSpec(
            round=round,
            attempt=self.attempt,
            shards=[searched.done.result],
            output_path=network,
            epochs=self._epochs,
            searched_network=given.network.digest,
            first=given.window.first,
            count=given.window.count,
            state_path=state if commits else "",
            unevaluated=not self._work.evaluated(round),
        )

    def _round_learned(self, given: tuple[Searched, float], done: jobs_pb2.ItemDone, now: float) -> None:
        searched, pushed_at = given
        learned = Learned(searched=searched, done=done, relay_s=now - pushed_at - done.inside, wall_s=now - self._learned_at)
        self._learned_at = now
        self._schedule.learned = searched.given.round
        self._network = learned.network
        report = report_of(self._work, learned)
        if report.evaluated:
            report = replace(report, ended=reason_of(self._policy, [*self._reports, report], self._work.run.config))
            self._ended = bool(report.ended) and report.round + 1 < self._work.run.config.rounds.count
        self._reports.append(report)
        self._committer.add(learned, report)
        if "test_accuracy" in done.figures:
            self._accuracy = f"test accuracy {done.figures['test_accuracy']:.2%}"
        if now - self._shown_at >= SHOW_S:
            self._shown_at = now
            self._work.display.update(searched.given.round + 1, self._accuracy)

    def _learner_ended(self, news: News) -> None:
        assert news.feed is not None
        if isinstance(news.error, DaemonError):
            self._learner_lost(news.error)
        if news.error is not None:
            raise news.error
        assert news.final is not None
        error = failure(f"learning of round {self._schedule.learned + 1}", news)
        # JobError stands for a crashed process or an exception in a plug-in; every other kind names a lasting cause.
        if type(error) is JobError and (news.final.state == jobs_pb2.JOB_STATE_FAILED or news.feed.leaving):
            raise LearnerFailed(error)
        raise error

    def _learner_lost(self, error: DaemonError) -> NoReturn:
        if isinstance(error, TakenOverError):
            raise JobError(str(error))
        self._learning.roster.lose(self._work.fleet.learner, str(error))
        raise LearnerFailed(JobError(f"no learner daemon is left for round {self._schedule.learned + 1}:\n  {error}"))
