"""What a search strategy is given and what it must do.

Shapes: B examples of a tile; S starting candidates, P proposed candidates, K kept ones, R results, per example; G x M a representation
as G groups of M values: the channels of a feature map and its H * W positions, or one group for a vector or the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from repsearch.footprint import Footprint
from repsearch.networks.base import Shape

StateT = TypeVar("StateT")


@dataclass(frozen=True, kw_only=True)
class SearchLayer:
    """One layer as a strategy sees it.

    position: index in the configured list of search layers, from 0.
    kind: "block" (a feature map or vector of the body) or "logits".
    shape: shape of a representation, without the example axis.
    seed: seed of tables that all examples share, a function of the run's seed and the layer, not of the round; per-example randomness
        comes from keys.
    classes: classes of the dataset; labels are below it.
    results: results wanted per example; 1 unless the strategy's traits say `several`.
    """

    position: int
    kind: Literal["block", "logits"]
    shape: Shape
    seed: int
    device: torch.device
    classes: int = 1
    results: int = 1

    @property
    def is_map(self) -> bool:
        """Whether a representation has channels of several positions; a 1x1 map has no spread within a channel, so it is a vector."""
        return len(self.shape) == 3 and self.shape[1] * self.shape[2] > 1

    @property
    def groups(self) -> tuple[int, int]:
        """(G, M): channels and positions of a feature map; (1, size) of a vector or of logits."""
        return (self.shape[0], self.shape[1] * self.shape[2]) if self.is_map else (1, self.shape[0])


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a strategy needs, and what it lacks.

    chooses: fitness decides something. Where it does not, the one candidate's fitness is measured for the record and is no evaluation.
    needs_gradient: `tell` wants the gradient of the candidates' fitness.
    several: one search gives as many results per example as `SearchLayer.results` asks for.
    monotone: the fitness of `best` never falls from one generation to the next.
    measured: what `best` returns has been evaluated. Where not, the loop evaluates it at the end.
    stops: examples may finish early; `Best.finished_B` says which.
    elites: the most candidates that `Best.elites_BKGM` has, and that an example can have among its starting candidates, beside the first.
    one_key: an example has one key, in all rounds, layers and independent searches.
    depends_on: what results depend on besides images, labels and network: the run's `seed`, the `round`.
    """

    chooses: bool = True
    needs_gradient: bool = False
    several: bool = False
    monotone: bool = True
    measured: bool = True
    stops: bool = False
    elites: int = 0
    one_key: bool = False
    depends_on: frozenset[Literal["seed", "round"]] = frozenset({"seed", "round"})


@dataclass(frozen=True, kw_only=True)
class Best:
    """What a strategy has found so far.

    targets_BRGM, fitness_BR: the results, the first one first in rank. seeds_BSGM: what the next layer starts from; the first is the
    first result. finished_B: examples that need no further generation; None: all of them go on to the end. elites_BKGM: the fittest
    candidates of the last population, fittest first; None: the strategy keeps none.
    """

    targets_BRGM: Tensor
    fitness_BR: Tensor
    seeds_BSGM: Tensor
    finished_B: Tensor | None = None
    elites_BKGM: Tensor | None = None


class SearchStrategy(Protocol[StateT]):
    """Hyperparameters of a strategy; its evolving state is a dataclass, passed in and returned.

    Results for an example may depend on its own rows and key only. Fitness is maximised. Every tensor among the state's fields has the
    examples as its first axis, and the other fields are equal for all examples of a generation, so that the loop can take rows of
    several states together; what examples share (tables, codes) is wrapped in an object.
    """

    @property
    def traits(self) -> Traits:
        """What the strategy needs and lacks; may depend on its fields."""
        ...

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless the schedule fits the search layers (block numbers, `"logits"`) and their shapes, one per layer."""
        ...

    def generations_at(self, position: int) -> int:
        """Return the number of generations at the `position`-th search layer, after the initial population."""
        ...

    def evaluations(self, position: int) -> int:
        """Return the most candidate evaluations per search of an example at the `position`-th layer, the initial population included."""
        ...

    def starts(self, position: int) -> int:
        """Return how many starting candidates `init` can use."""
        ...

    def wider(self, factor: float) -> Mapping[str, Any]:
        """Return the fields of a search with `factor` times as many candidates; optional, for `rounds.at_plateau`."""
        ...

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds in memory at the `position`-th layer; optional (`repsearch.footprint.footprint_of` guesses).

        A function of its arguments and of the strategy's fields: the number of images searched together follows from it.
        """
        ...

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> StateT:
        """Return the state before the first proposal.

        `start_BSGM`: one or more starting candidates per example, the first of them the network's own representation, above what was
        found at the layer before. `labels_B`: classes, int64.
        """
        ...

    def ask(self, state: StateT) -> Tensor:
        """Return candidates (B, P, G, M) to evaluate: the initial population first, then one generation per call."""
        ...

    def tell(self, state: StateT, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None) -> StateT:
        """Return the state after selection among `candidates_BPGM` and what the state kept.

        `gradient_BPGM`: of each candidate's fitness with respect to it, if the traits say `needs_gradient`.
        """
        ...

    def best(self, state: StateT) -> Best:
        """Return what has been found; valid after the first `tell`."""
        ...
