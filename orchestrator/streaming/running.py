"""The loop of streamed rounds: windows to searchers that are free, targets to the learner in order, commits now and then.

A searcher that is lost gives its window to another. When the learner's process ends, what is not committed is dropped and a new one goes
on from the newest segment, as `orchestrator resume` does after a crash.
"""

from __future__ import annotations

import collections
import queue
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, cast

from orchestrator import interrupts
from orchestrator.attempts import TakenOverError, failure_of
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
from orchestrator.streaming.tending import behind, look, waits
from orchestrator.work import Work, as_message
from repsearch.archives import archive_reach
from repsearch.errors import DaemonError, JobError, RepSearchError
from repsearch.rpc.v1 import jobs_pb2
from store import Reference, layout

ROUNDS_PER_JOB = 4096
"""Rounds after which daemons get new jobs: a daemon keeps the events of a job as long as the job."""
ATTEMPTS_PER_TERM = 1000
"""Attempts are numbered from the term on, so that no late writer of an earlier term has the same path."""
SHOW_S = 0.2
SUPERSEDED = "another searcher was first"
TOOK = 32
"""Windows whose time says what is usual."""
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
        self.attempt, self._end = attempt, end
        self._schedule = Schedule(begin, end, begin - 1, plan.max_staleness)
        self._network: Reference = committer.network or initial_network(work)
        self._state = committer.state
        self._searched: dict[int, Searched] = {}
        self._to_learn = begin
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._searchers: list[Feed] = []
        self._learner: Feed
        self._searching, self._learning = work.oversight("searcher"), work.oversight("learner")
        self._patience = Patience(self._searching, "searcher", work.fleet.searchers, self.tell)
        self._state_round = begin - 1
        self._failures: collections.Counter[int] = collections.Counter()
        self._took: collections.deque[float] = collections.deque(maxlen=TOOK)
        self._learned_at = self._state_at = time.monotonic()
        self._shown_at = self._looked_at = 0.0
        self._accuracy = ""

    def run(self) -> None:
        """Run the rounds; whatever ends them early cancels the jobs. Raises `LearnerFailed` where another try may help."""
        self._learner = self._start_learner()
        interval = sys.getswitchinterval()
        # By default a thread that has news waits 5 ms for one that computes, such as the thread that commits.
        sys.setswitchinterval(SWITCH_S)
        try:
            with self._searching.roster.listening(lambda daemon: self._news.put(News(None, time.monotonic(), back=daemon))):
                for daemon in self._work.fleet.searchers:
                    if not self._searching.roster.is_lost(daemon):
                        self._start_searcher(cast(StreamDaemon, daemon))
                while self._schedule.learned + 1 < self._end and not self._ended:
                    self._step()
            for feed in (*self._searchers, self._learner):
                # Where a policy ends the run early, windows that nobody will learn are under way.
                # One that does not answer any more owes us nothing.
                with suppress(DaemonError):
                    feed.cancel() if self._ended else feed.finish()
        except BaseException:
            for feed in (*self._searchers, self._learner):
                feed.cancel()
            raise
        finally:
            sys.setswitchinterval(interval)
            self._searching.waits([])

    def tell(self, event: str, text: str) -> None:
        """Tell people and the journal what goes wrong, or is waited for."""
        self._work.display.message(text)
        self._work.log.incident(event, text)

    def _step(self) -> None:
        """Hand out what may be handed out, act on one piece of news, and look now and then at what stands still."""
        if not self._held():
            self._hand_out()
            self._require_searcher()
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
        self._patience.over()
        if self._learner.given or self._searched or any(feed.given for feed in self._searchers):
            return True
        if self._state_round < self._schedule.learned and self._searchers:
            self._hand_out(1)
            return True
        self._committer.wait()
        if wanted == "stop":
            raise stopped()
        return True

    def _look(self) -> None:
        for feed, error in look(self._searchers, self._searching.bounds, _what, self.tell):
            self._lose(feed, error)
        for _, error in look([self._learner], self._learning.bounds, self._what_is_learned, self.tell):
            self._learner_lost(error)
        self._hedge()
        waiting = [
            *waits(self._searchers, self._searching.bounds, _what),
            *waits([self._learner], self._learning.bounds, self._what_is_learned),
            *self._patience.waits("the windows to come"),
        ]
        self._searching.waits(waiting)

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
            return Feed(daemon, work.request(daemon, "stream", self._to_learn, self.attempt, stream_learn=spec), self._news)
        except DaemonError as error:
            self._learner_lost(error)

    def _start_searcher(self, daemon: StreamDaemon) -> None:
        spec = jobs_pb2.StreamSearchSpec()
        request = self._work.request(daemon, "stream", self._to_learn, self.attempt, stream_search=spec)
        try:
            self._searchers.append(Feed(daemon, request, self._news))
        except DaemonError as error:
            self._searching.roster.lose(daemon, str(error))

    def _hand_out(self, most: int = sys.maxsize) -> None:
        """Give every searcher that is free a window, if one may be searched now; `most` windows in all."""
        for feed in [feed for feed in self._searchers if not feed.given and not feed.leaving][:most]:
            round = self._schedule.take()
            if round is None:
                return
            self._give(feed, round)

    def _give(self, feed: Feed, round: int) -> None:
        given = Given(
            round=round,
            window=self._work.windows.of(round),
            attempt=self.attempt,
            time=time.monotonic(),
            network_round=self._schedule.learned,
            network=self._network,
            archive=self._archive_of(round),
        )
        self._push(feed, given)

    def _push(self, feed: Feed, given: Given) -> None:
        spec = jobs_pb2.SearchSpec(
            round=given.round,
            attempt=given.attempt,
            first=given.window.first,
            count=given.window.count,
            network=as_message(given.network),
            trained=given.network_round >= 0,
            output_path=layout.stream_paths(given.round, given.attempt)[0],
            archive=given.archive,
        )
        try:
            feed.push(jobs_pb2.Item(search=spec), given)
        except DaemonError as error:
            self._lose(feed, error)

    def _hedge(self) -> None:
        """Give the window that is far behind to a searcher that has nothing to do, on the same network: the first result counts."""
        idle = [feed for feed in self._searchers if not feed.given and not feed.leaving and not feed.queued]
        if not (self._searching.bounds.hedge and idle and self._took) or self._searching.wanted():
            return
        given = behind(self._searchers, statistics.median(self._took))
        if given is not None:
            self.attempt += 1
            self.tell("hedged", f"the window of round {given.round} is slow: {idle[0].daemon.address} tries it too")
            self._push(idle[0], replace(given, attempt=self.attempt, time=time.monotonic()))

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
            if news.back is not self._learner.daemon and all(feed.daemon is not news.back for feed in self._searchers):
                self._start_searcher(cast(StreamDaemon, news.back))
            return
        assert news.feed is not None
        if news.feed is not self._learner and news.feed not in self._searchers:
            return  # lost already
        if news.event is not None:
            given = news.feed.given.pop(news.event.item_done.sequence)
            if news.feed is self._learner:
                self._round_learned(given, news.event.item_done, news.time)
            else:
                self._window_searched(given, news.event.item_done, news.time)
        elif news.feed is self._learner:
            self._learner_ended(news)
        else:
            self._searcher_ended(news)

    def _window_searched(self, given: Given, done: jobs_pb2.ItemDone, now: float) -> None:
        self._took.append(now - given.time)
        if self._is_searched(given.round):
            # The other attempt was first.
            self._work.store.delete(done.result.path)
            return
        for feed in self._searchers:
            if any(other is not None and other.round == given.round for other in feed.given.values()):
                feed.leave(SUPERSEDED)
        self._searched[given.round] = Searched(given=given, done=done, relay_s=now - given.time - done.inside)
        while (searched := self._searched.pop(self._to_learn, None)) is not None:
            try:
                self._learner.push(jobs_pb2.Item(learn=self._learn_spec(searched)), (searched, time.monotonic()))
            except DaemonError as error:
                self._learner_lost(error)
            self._to_learn += 1

    def _is_searched(self, round: int) -> bool:
        return round < self._to_learn or round in self._searched

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
        error = self._failure(f"learning of round {self._schedule.learned + 1}", news)
        # JobError stands for a crashed process or an exception in a plug-in; every other kind names a lasting cause.
        if type(error) is JobError and (news.final.state == jobs_pb2.JOB_STATE_FAILED or news.feed.leaving):
            raise LearnerFailed(error)
        raise error

    def _failure(self, what: str, news: News) -> RepSearchError:
        assert news.feed is not None and news.final is not None
        if news.feed.leaving:
            return JobError(f"{what}, on {news.feed.daemon.address}: {news.feed.leaving}")
        return failure_of(what, news.feed.daemon, news.final)

    def _owed(self, feed: Feed) -> list[Given]:
        """Return the windows that a feed was given, and that nobody has searched yet, or is searching too."""
        elsewhere = {given.round for other in self._searchers if other is not feed for given in other.given.values() if given is not None}
        return [g for g in feed.given.values() if g is not None and not self._is_searched(g.round) and g.round not in elsewhere]

    def _learner_lost(self, error: DaemonError) -> NoReturn:
        if isinstance(error, TakenOverError):
            raise JobError(str(error))
        self._learning.roster.lose(self._work.fleet.learner, str(error))
        raise LearnerFailed(JobError(f"no learner daemon is left for round {self._schedule.learned + 1}:\n  {error}"))

    def _searcher_ended(self, news: News) -> None:
        assert news.feed is not None
        if isinstance(news.error, DaemonError):
            self._lose(news.feed, news.error)
            return
        if news.error is not None:
            raise news.error
        assert news.final is not None
        error = self._failure(_what(news.feed), news)
        if news.feed.leaving != SUPERSEDED:
            rounds = [given.round for given in self._owed(news.feed)] or [-1]
            self._failures.update(rounds)
            if type(error) is not JobError or max(self._failures[round] for round in rounds) >= MAX_FAILURES:
                raise error
        self._take_back(news.feed, str(error))
        # One that is stopping, or is another orchestrator's by now, refuses and is lost.
        self._start_searcher(news.feed.daemon)

    def _lose(self, feed: Feed, error: DaemonError) -> None:
        if isinstance(error, TakenOverError):
            raise JobError(str(error))
        self._searching.roster.lose(feed.daemon, str(error))
        self._take_back(feed, str(error))

    def _require_searcher(self) -> None:
        if self._searchers:
            self._patience.over()
        else:
            again = self._schedule.again
            self._patience.require(f"the window of round {again[0]}" if again else "the windows to come")

    def _take_back(self, feed: Feed, why: str) -> None:
        """Give the windows of a feed that is no more to others; what it may still write has another number."""
        owed = self._owed(feed)
        self._searchers.remove(feed)
        self.attempt += 1
        for given in owed:
            self._schedule.give_back(given.round)
        if owed:
            self._work.display.message(f"{_what(feed)}: {why}; searching it again")


def _what(feed: Feed) -> str:
    rounds: Sequence[Given] = [given for given in feed.given.values() if given is not None]
    return f"the window of round {rounds[0].round}" if rounds else "the windows to come"
