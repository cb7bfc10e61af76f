"""The searchers of streamed rounds: windows to those that are free, results in the order of rounds, and nothing lost with a searcher."""

from __future__ import annotations

import collections
import queue
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

from orchestrator.attempts import TakenOverError, failure_of
from orchestrator.oversight import Wait
from orchestrator.patience import Patience
from orchestrator.scheduling import MAX_FAILURES
from orchestrator.streaming.feeds import Feed, News, StreamDaemon
from orchestrator.streaming.rounds import Given, Searched
from orchestrator.streaming.schedule import Schedule
from orchestrator.streaming.tending import behind, look, waits
from orchestrator.work import Work, as_message
from repsearch.errors import DaemonError, JobError, RepSearchError
from repsearch.rpc.v1 import jobs_pb2
from store import layout

SUPERSEDED = "another searcher was first"
TOOK = 32
"""Windows whose time says what is usual."""


class Searchers:
    """Feeds of windows, one per searcher daemon; `attempt` numbers what is written, one more after every loss.

    given: says what is searched, on which network, when a window is handed out. tell: of an incident, by its event and in words.
    """

    def __init__(
        self,
        work: Work,
        schedule: Schedule,
        attempt: int,
        given: Callable[[int, int], Given],
        news: queue.SimpleQueue[News],
        tell: Callable[[str, str], None],
    ) -> None:
        self.attempt = attempt
        self._work, self._schedule, self._given, self._news, self._tell = work, schedule, given, news, tell
        self._next = schedule.next
        self._feeds: list[Feed] = []
        self._found: dict[int, Searched] = {}
        self._oversight = work.oversight("searcher")
        self._patience = Patience(self._oversight, "searcher", work.fleet.searchers, tell)
        self._failures: collections.Counter[int] = collections.Counter()
        self._took: collections.deque[float] = collections.deque(maxlen=TOOK)

    def __contains__(self, feed: Feed) -> bool:
        return feed in self._feeds

    def __bool__(self) -> bool:
        """Whether there is a searcher."""
        return bool(self._feeds)

    @property
    def busy(self) -> bool:
        """Whether a window is under way, or waits for its turn."""
        return bool(self._found) or any(feed.given for feed in self._feeds)

    @property
    def feeds(self) -> Sequence[Feed]:
        """The feeds of searchers that are there."""
        return self._feeds

    def start(self) -> None:
        """Start a job on every searcher that is not lost."""
        for daemon in self._work.fleet.searchers:
            if not self._oversight.roster.is_lost(daemon):
                self._start(cast(StreamDaemon, daemon))

    def back(self, daemon: StreamDaemon) -> None:
        """Start a job on a searcher that is back."""
        if all(feed.daemon is not daemon for feed in self._feeds):
            self._start(daemon)

    def hand_out(self, most: int = sys.maxsize) -> None:
        """Give every searcher that is free a window, if one may be searched now; `most` windows in all."""
        for feed in [feed for feed in self._feeds if not feed.given and not feed.leaving][:most]:
            round = self._schedule.take()
            if round is None:
                return
            self._push(feed, self._given(round, self.attempt))

    def require(self) -> None:
        """Wait within bounds for a searcher if none is left; raises `JobError` past them."""
        if self._feeds:
            self._patience.over()
        else:
            again = self._schedule.again
            self._patience.require(f"the window of round {again[0]}" if again else "the windows to come")

    def held(self) -> None:
        """Forget how long a searcher has been waited for, since people want no window handed out."""
        self._patience.over()

    def look(self) -> None:
        """Report and cancel what stands still, and try what is slow elsewhere."""
        for feed, error in look(self._feeds, self._oversight.bounds, what, self._tell):
            self.lose(feed, error)
        self._hedge()

    def waits(self) -> list[Wait]:
        """Return what is waited for."""
        return [*waits(self._feeds, self._oversight.bounds, what), *self._patience.waits("the windows to come")]

    def searched(self, feed: Feed, done: jobs_pb2.ItemDone, now: float) -> None:
        """Take the result of a window; the first of two attempts counts."""
        given: Given = feed.given.pop(done.sequence)
        self._took.append(now - given.time)
        if self._is_searched(given.round):
            self._work.store.delete(done.result.path)
            return
        for other in self._feeds:
            if any(theirs is not None and theirs.round == given.round for theirs in other.given.values()):
                other.leave(SUPERSEDED)
        self._found[given.round] = Searched(given=given, done=done, relay_s=now - given.time - done.inside)

    def in_order(self) -> Iterator[Searched]:
        """Yield the windows whose turn it is to be learned, each once."""
        while (searched := self._found.pop(self._next, None)) is not None:
            self._next += 1
            yield searched

    def ended(self, news: News) -> None:
        """Act on the end of a searcher's job; raises its error where searching again does not help."""
        assert news.feed is not None
        if isinstance(news.error, DaemonError):
            self.lose(news.feed, news.error)
            return
        if news.error is not None:
            raise news.error
        assert news.final is not None
        error = failure(what(news.feed), news)
        if news.feed.leaving != SUPERSEDED:
            rounds = [given.round for given in self._owed(news.feed)] or [-1]
            self._failures.update(rounds)
            if type(error) is not JobError or max(self._failures[round] for round in rounds) >= MAX_FAILURES:
                raise error
        self._take_back(news.feed, str(error))
        # One that is stopping, or is another orchestrator's by now, refuses and is lost.
        self._start(news.feed.daemon)

    def lose(self, feed: Feed, error: DaemonError) -> None:
        """Give up a searcher that does not answer; raises `JobError` if another orchestrator has the run."""
        if isinstance(error, TakenOverError):
            raise JobError(str(error))
        self._oversight.roster.lose(feed.daemon, str(error))
        self._take_back(feed, str(error))

    def close(self, *, cancel: bool) -> None:
        """End all jobs, or cancel what is under way; one that does not answer any more owes us nothing."""
        for feed in self._feeds:
            with suppress(DaemonError):
                feed.cancel() if cancel else feed.finish()

    def _start(self, daemon: StreamDaemon) -> None:
        spec = jobs_pb2.StreamSearchSpec()
        request = self._work.request(daemon, "stream", self._next, self.attempt, stream_search=spec)
        try:
            self._feeds.append(Feed(daemon, request, self._news))
        except DaemonError as error:
            self._oversight.roster.lose(daemon, str(error))

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
            self.lose(feed, error)

    def _hedge(self) -> None:
        """Give the window that is far behind to a searcher that has nothing to do, on the same network: the first result counts."""
        idle = [feed for feed in self._feeds if not feed.given and not feed.leaving and not feed.queued]
        if not (self._oversight.bounds.hedge and idle and self._took) or self._oversight.wanted():
            return
        given = behind(self._feeds, statistics.median(self._took))
        if given is not None:
            self.attempt += 1
            self._tell("hedged", f"the window of round {given.round} is slow: {idle[0].daemon.address} tries it too")
            self._push(idle[0], replace(given, attempt=self.attempt, time=time.monotonic()))

    def _is_searched(self, round: int) -> bool:
        return round < self._next or round in self._found

    def _owed(self, feed: Feed) -> list[Given]:
        """Return the windows that a feed was given, and that nobody has searched yet, or is searching too."""
        elsewhere = {given.round for other in self._feeds if other is not feed for given in other.given.values() if given is not None}
        return [g for g in feed.given.values() if g is not None and not self._is_searched(g.round) and g.round not in elsewhere]

    def _take_back(self, feed: Feed, why: str) -> None:
        """Give the windows of a feed that is no more to others; what it may still write has another number."""
        owed = self._owed(feed)
        self._feeds.remove(feed)
        self.attempt += 1
        for given in owed:
            self._schedule.give_back(given.round)
        if owed:
            self._work.display.message(f"{what(feed)}: {why}; searching it again")


def what(feed: Feed) -> str:
    """Return what a searcher has to do, in words."""
    rounds: Sequence[Given] = [given for given in feed.given.values() if given is not None]
    return f"the window of round {rounds[0].round}" if rounds else "the windows to come"


def failure(title: str, news: News) -> RepSearchError:
    """Return the error of a job that ended, `title` being what it had to do."""
    assert news.feed is not None and news.final is not None
    if news.feed.leaving:
        return JobError(f"{title}, on {news.feed.daemon.address}: {news.feed.leaving}")
    return failure_of(title, news.feed.daemon, news.final)
