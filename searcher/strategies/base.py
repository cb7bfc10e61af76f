"""What a search strategy is given and what it must do.

Shapes: B examples of a tile; S starting candidates, P proposed candidates, K kept ones, per example; G x M a representation as G groups
of M values: the channels of a feature map and its H * W positions, or one group for the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from repsearch.networks.base import Shape

StateT = TypeVar("StateT")


@dataclass(frozen=True, kw_only=True)
class SearchLayer:
    """One layer as a strategy sees it.

    position: index in the configured list of search layers, from 0.
    kind: "block" (a feature map or vector of the body) or "logits".
    shape: shape of a representation, without the example axis.
    seed: seed of tables that all examples share; per-example randomness comes from keys.
    """

    position: int
    kind: Literal["block", "logits"]
    shape: Shape
    seed: int
    device: torch.device

    @property
    def is_map(self) -> bool:
        """Whether a representation has channels of several positions; a 1x1 map has no spread within a channel, so it is a vector."""
        return len(self.shape) == 3 and self.shape[1] * self.shape[2] > 1

    @property
    def groups(self) -> tuple[int, int]:
        """(G, M): channels and positions of a feature map; (1, size) of a vector or of logits."""
        return (self.shape[0], self.shape[1] * self.shape[2]) if self.is_map else (1, self.shape[0])


class SearchStrategy(Protocol[StateT]):
    """Hyperparameters of a strategy; its evolving state is a value passed in and returned.

    Results for an example may depend on its own rows and key only. Fitness is maximised.
    """

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless the schedule fits the search layers (block numbers, `"logits"`) and their shapes."""
        ...

    def generations_at(self, position: int) -> int:
        """Return the number of generations at the `position`-th search layer, after the initial population."""
        ...

    def evaluations(self, position: int) -> int:
        """Return the candidate evaluations per example at the `position`-th search layer, the initial population included."""
        ...

    def starts(self, position: int) -> int:
        """Return how many starting candidates `init` can use."""
        ...

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, keys_B: Tensor) -> StateT:
        """Return the state before the first proposal, from one or more starting candidates per example."""
        ...

    def ask(self, state: StateT) -> Tensor:
        """Return candidates (B, P, G, M) to evaluate: the initial population first, then one generation per call."""
        ...

    def tell(self, state: StateT, candidates_BPGM: Tensor, fitness_BP: Tensor) -> StateT:
        """Return the state after selection among `candidates_BPGM` and what the state kept."""
        ...

    def best(self, state: StateT) -> tuple[Tensor, Tensor]:
        """Return each example's elite (B, G, M) and its fitness (B,)."""
        ...
