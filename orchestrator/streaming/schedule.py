"""Which window may be searched now, and how stale the network is that it is searched on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Schedule:
    """The windows of rounds up to `end`, of which those before `next` were handed out; `learned`: the newest round learned, -1 for none.

    again: windows handed out that come back, because their searcher is lost.
    """

    next: int
    end: int
    learned: int
    max_staleness: int
    again: deque[int] = field(default_factory=deque)

    def take(self) -> int | None:
        """Hand out the next window that may be searched on the newest network; None if searchers must wait for the learner."""
        if self.again:
            return self.again.popleft()
        if self.next < self.end and self.staleness(self.next) <= self.max_staleness:
            self.next += 1
            return self.next - 1
        return None

    def staleness(self, round: int) -> int:
        """Return by how many rounds the newest network lags behind the one before `round`."""
        return round - 1 - self.learned

    def give_back(self, round: int) -> None:
        """Take a window back that was not searched; the earliest goes out first."""
        self.again = deque(sorted([*self.again, round]))
