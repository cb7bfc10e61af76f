"""How the jobs of a run are watched over: the bounds in time, the daemons that are lost, what people asked for, and whom to tell.

Nobody waits in silence: whatever the orchestrator waits for has a name, a beginning and, wherever there is a bound, an end (`Wait`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.roster import Roster
from repsearch.config import LearnerConfig, SearcherConfig

REPORT_S = 60.0
"""Seconds without progress after which a job is reported, or half its bound if that is less."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long to be patient. Seconds, of the monotonic clock.

    stall_s: without progress, after which a job is cancelled. wait_s: for a daemon to come back when none is left. hedge: give the
    slowest task to a second daemon when others are idle.
    """

    stall_s: float = float("inf")
    wait_s: float = 0.0
    hedge: bool = False

    @property
    def report_s(self) -> float:
        """Seconds without progress after which a job is reported."""
        return min(REPORT_S, self.stall_s / 2)


def bounds_of(section: SearcherConfig | LearnerConfig) -> Bounds:
    """Return the bounds that a section of the configuration sets."""
    return Bounds(stall_s=section.stall_seconds, wait_s=section.wait_seconds, hedge=isinstance(section, SearcherConfig) and section.hedge)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Who waits for what, since when and until when (monotonic; None: without a bound), and what is known of it."""

    who: str
    what: str
    since: float
    until: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Oversight:
    """What watches over jobs.

    tell: an event of the journal's `incident` records and a line for people. waits: what is waited for now.
    wanted: what people asked for, see `control.Control.wanted`.
    """

    bounds: Bounds = Bounds()
    roster: Roster = field(default_factory=Roster)
    tell: Callable[[str, str], None] = lambda event, text: None
    waits: Callable[[Sequence[Wait]], None] = lambda waits: None
    wanted: Callable[[], str] = lambda: ""
