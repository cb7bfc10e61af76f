"""Looks after stream jobs: says what they are waited for, reports those that stand still, and cancels them after a bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from orchestrator.oversight import Bounds, Wait
from orchestrator.scheduling import CANCEL_S
from orchestrator.streaming.feeds import Feed
from orchestrator.streaming.rounds import Given
from repsearch.errors import DaemonError

HEDGE_LEAST_S = 1.0
HEDGE_FACTOR = 3.0
"""A window is far behind when it has taken that many times as long as is usual, and at least `HEDGE_LEAST_S` seconds."""


def look(
    feeds: Iterable[Feed], bounds: Bounds, what: Callable[[Feed], str], tell: Callable[[str, str], None]
) -> list[tuple[Feed, DaemonError]]:
    """Report and cancel what stands still; return the feeds whose daemons do not even end what was cancelled, with the reason."""
    given_up = []
    for feed in feeds:
        still = time.monotonic() - feed.advanced
        if feed.leaving:
            if time.monotonic() - feed.left > CANCEL_S:
                given_up.append((feed, DaemonError(f"{feed.daemon.address}: it did not end a cancelled job within {CANCEL_S:g} s")))
        elif not feed.given or feed.queued:
            continue
        elif still > bounds.stall_s:
            tell("stalled", f"{what(feed)}, on {feed.daemon.address}: no progress for {still:.0f} s: cancelled")
            feed.leave(f"no progress for {bounds.stall_s:g} s")
        elif feed.reported != (still > bounds.report_s):
            feed.reported = not feed.reported
            how = f"alive, but no progress for {still:.0f} s; cancelled after {bounds.stall_s:g} s" if feed.reported else "it goes on"
            tell("still" if feed.reported else "goes_on", f"{what(feed)}, on {feed.daemon.address}: {how}")
    return given_up


def waits(feeds: Iterable[Feed], bounds: Bounds, what: Callable[[Feed], str]) -> list[Wait]:
    """Return what is waited for of jobs that have something to do."""
    return [
        Wait(
            who="orchestrator",
            what=f"{what(feed)}, on {feed.daemon.address}",
            since=feed.advanced,
            until=feed.advanced + bounds.stall_s if bounds.stall_s < math.inf and not feed.queued else None,
            note=_note(feed),
        )
        for feed in feeds
        if feed.given
    ]


def _note(feed: Feed) -> str:
    if feed.leaving:
        return f"cancelled: {feed.leaving}"
    return "it waits for another job there, or for its process" if feed.queued else "no progress" if feed.reported else ""


def behind(feeds: Sequence[Feed], usual_s: float) -> Given | None:
    """Return the window that has been out for longest, if it is far behind what is usual and nobody else has it."""
    out = [given for feed in feeds if not feed.leaving for given in feed.given.values() if given is not None]
    rounds = [given.round for given in out]
    oldest = min((given for given in out if rounds.count(given.round) == 1), key=lambda given: given.time, default=None)
    return oldest if oldest is not None and time.monotonic() - oldest.time > max(HEDGE_LEAST_S, HEDGE_FACTOR * usual_s) else None
