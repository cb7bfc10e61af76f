"""A stream job on a daemon: started, its events read by a thread into a queue, its items pushed by the calling thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.attempts import Daemon
from repsearch.errors import RepSearchError
from repsearch.failpoints import reach
from repsearch.rpc.v1 import jobs_pb2


class StreamDaemon(Daemon, Protocol):
    """A daemon that takes items."""

    def push(self, job_id: str, term: int, sequence: int, item: jobs_pb2.Item) -> jobs_pb2.Job:
        """Give a stream job its item number `sequence`, from 1; repeating it does nothing."""
        ...


@dataclass(frozen=True)
class News:
    """What a thread read of a feed: an event, the job's end (`final`), or what ended the watch (`error`); or a daemon that is back.

    time: when (monotonic).
    """

    feed: Feed | None
    time: float
    event: jobs_pb2.Event | None = None
    final: jobs_pb2.Job | None = None
    error: BaseException | None = None
    back: Daemon | None = None


class Feed:
    """The stream job of `request` on `daemon`. given: what the item of each sequence number is for, until it is done.

    advanced: when it last advanced, or got something to do (monotonic). queued: it waits on its daemon. leaving: why we cancelled it
    ("" otherwise), at `left`.
    """

    def __init__(self, daemon: StreamDaemon, request: jobs_pb2.StartRequest, news: queue.SimpleQueue[News]) -> None:
        self.daemon, self.term = daemon, request.term
        self.given: dict[int, Any] = {}
        self.advanced, self.counter, self.reported = time.monotonic(), 0, False
        self.queued, self.leaving, self.left = True, "", 0.0
        self._news, self._pushed = news, 0
        reach("job.start.before")
        self.job_id = daemon.start(request).job_id
        reach("job.start.after")
        threading.Thread(target=self._follow, name=f"stream {daemon.address}", daemon=True).start()

    def push(self, item: jobs_pb2.Item, purpose: Any) -> None:
        """Give the job its next item."""
        if not self.given:
            self.advanced = time.monotonic()
        self._pushed += 1
        self.given[self._pushed] = purpose
        reach("stream.push.before")
        self.daemon.push(self.job_id, self.term, self._pushed, item)
        reach("stream.push.after")

    def finish(self) -> None:
        """Tell the job that no item comes any more."""
        self.push(jobs_pb2.Item(end=jobs_pb2.End()), None)

    def cancel(self) -> None:
        """Cancel the job; a daemon that is gone is none of our business any more."""
        with contextlib.suppress(RepSearchError):
            self.daemon.cancel(self.job_id, self.term)

    def leave(self, why: str) -> None:
        """Cancel the job, without waiting: its daemon may not answer."""
        self.leaving, self.left = why, time.monotonic()
        threading.Thread(target=self.cancel, name=f"cancel {self.daemon.address}", daemon=True).start()

    def _follow(self) -> None:
        final = None
        try:
            for event in self.daemon.watch(self.job_id):
                if event.WhichOneof("kind") == "state":
                    final = event.state
                    self.queued, self.advanced = final.state == jobs_pb2.JOB_STATE_QUEUED, time.monotonic()
                elif event.WhichOneof("kind") == "heartbeat":
                    if event.heartbeat.counter != self.counter:
                        self.counter, self.advanced = event.heartbeat.counter, time.monotonic()
                elif event.WhichOneof("kind") == "item_done":
                    self.advanced = time.monotonic()
                    self._news.put(News(self, time.monotonic(), event=event))
            self._news.put(News(self, time.monotonic(), final=final))
        except BaseException as error:
            # Raised again, or acted on, in the calling thread.
            self._news.put(News(self, time.monotonic(), error=error))
