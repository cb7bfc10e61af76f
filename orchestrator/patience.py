"""Waiting for a daemon when none is left: said when it begins, bounded, and ended at once where it is hopeless."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from orchestrator import interrupts
from orchestrator.attempts import Daemon
from orchestrator.oversight import Oversight, Wait
from repsearch.errors import JobError

TICK_S = 0.25
"""Longest time between two looks at what stands still."""


@dataclass
class Patience:
    """Waits for one of `daemons` of `service`, all of which are lost, since `since` (monotonic); None while one is there."""

    oversight: Oversight
    service: str
    daemons: Sequence[Daemon]
    tell: Callable[[str, str], None]
    since: float | None = None

    def over(self) -> None:
        """Take note that one is there."""
        self.since = None

    def require(self, undone: str) -> None:
        """Return if it is worth waiting for; raises `JobError`, naming what is undone and each daemon's reason, if not."""
        lost, now, wait_s = self.oversight.roster.lost(self.daemons), time.monotonic(), self.oversight.bounds.wait_s
        if len(lost) < len(self.daemons):
            return  # one is back, and we are about to hear of it
        hopeless = all(one.for_good for one in lost)
        if self.since is None:
            self.since = now
            if wait_s and not hopeless:
                self.tell("waiting", f"no {self.service} daemon is left for {undone}; waiting {wait_s:g} s for one to return")
        if hopeless or now - self.since >= wait_s:
            reasons = "".join(f"\n  {one.why}" for one in lost)
            raise JobError(f"no {self.service} daemon is left for {undone}:{reasons}")

    def waits(self, undone: str) -> list[Wait]:
        """Return what is waited for: every lost daemon, and any one of them where none is left."""
        until = None if self.since is None else self.since + self.oversight.bounds.wait_s
        waits = [
            Wait(
                who="orchestrator", what=f"{self.service} at {one.daemon.address} to come back", since=one.since, until=until, note=one.why
            )
            for one in self.oversight.roster.lost(self.daemons)
        ]
        if self.since is not None:
            waits.append(Wait(who=undone, what=f"a {self.service} daemon", since=self.since, until=until))
        return waits


def await_back(daemon: Daemon, patience: Patience, undone: str) -> None:
    """Return when a lost daemon is back; raises `JobError` when that takes too long."""
    back: SimpleQueue[None] = SimpleQueue()
    while patience.oversight.roster.is_lost(daemon):
        if patience.oversight.wanted() != "pause":
            patience.require(undone)
        patience.oversight.waits(patience.waits(undone))
        with interrupts.waiting(), suppress(Empty):
            back.get(timeout=TICK_S)
