"""Learning without search, for objectives that use labels alone: the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.policies.base import RoundPlan, warm_round
from repsearch.config import RunConfig

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class LearnOnly:
    """`rounds.count` rounds of learning; more than one is of use with `learn.start = "warm"`."""

    searches: ClassVar[bool] = False

    def check(self, config: RunConfig) -> None:
        """Fits every configuration whose objective needs no targets."""

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the plan of the next round; see `RoundPolicy.next`."""
        number = len(history)
        if number >= config.rounds.count:
            return None
        return RoundPlan(round=number, search=False, searched_round=None, warm_round=warm_round(number, config), epochs=config.learn.epochs)
