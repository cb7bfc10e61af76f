"""Search the untrained network once, then learn: the source paper (Vegesna & Dahal 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.policies.base import RoundPlan
from repsearch.config import RunConfig
from repsearch.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """A single round."""

    searches: ClassVar[bool] = True

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` for more than one round, or a part of the examples."""
        if config.rounds.count != 1:
            raise ConfigError(
                f"rounds.count: {config.rounds.count} rounds, but the policy one_shot searches once; "
                "set rounds.count = 1, or choose the policy closed_loop"
            )
        if config.rounds.examples_per_round is not None:
            raise ConfigError(
                f"rounds.examples_per_round: {config.rounds.examples_per_round}, but the policy one_shot searches all training examples; "
                "leave it out, or choose the policy closed_loop"
            )

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the plan of round 0; see `RoundPolicy.next`."""
        if history:
            return None
        return RoundPlan(round=0, search=True, searched_round=None, warm_round=None, epochs=config.learn.epochs)
