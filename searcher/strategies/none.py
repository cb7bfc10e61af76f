"""No search: the network's own representation is the target. The control that says what searching adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from repsearch.networks.base import Shape
from searcher.strategies.base import Best, SearchLayer, Traits
from searcher.strategies.fixed import FixedTarget


@dataclass(frozen=True, kw_only=True)
class OwnRepresentation:
    """The network's own representation, 0 evaluations; its fitness is measured for the record."""

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(chooses=False, depends_on=frozenset())

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Accept every layer."""

    def generations_at(self, position: int) -> int:
        """Return 0."""
        return 0

    def evaluations(self, position: int) -> int:
        """Return 0."""
        return 0

    def starts(self, position: int) -> int:
        """Return 1: the network's own representation."""
        return 1

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> FixedTarget:
        """Return the state that holds the own representation."""
        return FixedTarget.of(start_BSGM[:, :1])

    def ask(self, state: FixedTarget) -> Tensor:
        """Return the own representation (B, 1, G, M)."""
        return state.target_B1GM

    def tell(self, state: FixedTarget, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None) -> FixedTarget:
        """Return the state with the target's fitness."""
        return state.measured(fitness_BP)

    def best(self, state: FixedTarget) -> Best:
        """Return the target."""
        return state.best()
