"""Round 0 searches the untrained network; round k searches the network that round k - 1 learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.policies.base import RoundPlan, warm_round
from repsearch.config import RunConfig

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Search and learning alternate for `rounds.count` rounds."""

    searches: ClassVar[bool] = True

    def check(self, config: RunConfig) -> None:
        """Fits every configuration whose objective uses targets."""

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the plan of the next round; see `RoundPolicy.next`."""
        number = len(history)
        if number >= config.rounds.count:
            return None
        return RoundPlan(
            round=number,
            search=True,
            searched_round=number - 1 if number > 0 else None,
            warm_round=warm_round(number, config),
            epochs=config.learn.epochs,
        )
