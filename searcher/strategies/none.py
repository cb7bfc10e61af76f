"""No search: the network's own representation is the target. The control that says what searching adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from repsearch.footprint import Footprint
from repsearch.networks.base import Shape
from searcher.strategies.base import SearchLayer, Traits
from searcher.strategies.fixed import FixedStrategy, FixedTarget


@dataclass(frozen=True, kw_only=True)
class OwnRepresentation(FixedStrategy):
    """The network's own representation, 0 evaluations; its fitness is measured for the record."""

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(chooses=False, depends_on=frozenset())

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Accept every layer."""

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`."""
        return Footprint(candidates=1, held=1, working=1)

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> FixedTarget:
        """Return the state that holds the own representation."""
        return FixedTarget.of(start_BSGM[:, :1])
