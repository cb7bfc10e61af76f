"""Looks after stream jobs: says what they are waited for, reports those that stand still, and cancels them after a bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from orchestrator.oversight import Bounds, Wait
from orchestrator.scheduling import CANCEL_S
from orchestrator.streaming.feeds import Feed
from repsearch.errors import DaemonError


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
        elif not feed.given:
            continue
        elif still > bounds.stall_s:
            tell("stalled", f"{what(feed)}, on {feed.daemon.address}: no progress for {still:.0f} s: cancelled")
            feed.leave()
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
            until=feed.advanced + bounds.stall_s if bounds.stall_s < math.inf else None,
            note="cancelled" if feed.leaving else "no progress" if feed.reported else "",
        )
        for feed in feeds
        if feed.given
    ]
