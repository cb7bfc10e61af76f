"""The state of strategies that know their target from the start."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from searcher.strategies.base import Best


@dataclass(frozen=True, kw_only=True)
class FixedTarget:
    """One target per example, and its fitness (nan until it is measured)."""

    target_B1GM: Tensor
    fitness_B1: Tensor

    @classmethod
    def of(cls, target_B1GM: Tensor) -> FixedTarget:
        """Return the state of an unmeasured target."""
        return cls(target_B1GM=target_B1GM, fitness_B1=target_B1GM.new_full((len(target_B1GM), 1), float("nan")))

    def measured(self, fitness_B1: Tensor) -> FixedTarget:
        """Return the state with the target's fitness."""
        return replace(self, fitness_B1=fitness_B1)

    def best(self) -> Best:
        """Return the target."""
        return Best(targets_BRGM=self.target_B1GM, fitness_BR=self.fitness_B1, seeds_BSGM=self.target_B1GM)
