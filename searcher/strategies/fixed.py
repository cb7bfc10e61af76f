"""Strategies that know their target from the start: their state, and what they have in common."""

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


class FixedStrategy:
    """A strategy whose `init` knows the target: one candidate, measured for the record, and no evaluations (see `Traits.chooses`)."""

    def generations_at(self, position: int) -> int:
        """Return 0."""
        return 0

    def evaluations(self, position: int) -> int:
        """Return 0."""
        return 0

    def starts(self, position: int) -> int:
        """Return 1: the network's own representation."""
        return 1

    def ask(self, state: FixedTarget) -> Tensor:
        """Return the target (B, 1, G, M)."""
        return state.target_B1GM

    def tell(self, state: FixedTarget, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None) -> FixedTarget:
        """Return the state with the target's fitness."""
        return state.measured(fitness_BP)

    def best(self, state: FixedTarget) -> Best:
        """Return the target."""
        return state.best()
