"""Random search: the fittest of independent noisy variants of the network's own representation.

The control for every strategy that selects and proposes again: as many evaluations, without memory. A draw is the own representation
plus smoothed Gaussian noise of standard deviation strength * sigma_c, sigma_c its standard deviation per channel, then normalised
(blocks) or recentred (logits): evolution's mutation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from repsearch.footprint import Footprint, table_bytes
from repsearch.networks.base import Shape
from searcher.strategies.base import Best, SearchLayer, Traits
from searcher.strategies.evolution import deviations, finish
from searcher.strategies.moves import directions, offsets
from searcher.strategies.schedules import check_blur, check_lengths, passes_bound


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """The best of population * (generations + 1) candidates: the own representation, and independent draws around it.

    population: candidates evaluated together.
    generations: further lots of candidates, per search layer.
    strength: standard deviation of the noise, in standard deviations of the channel, per search layer.
    blur_passes: passes of 3x3 average pooling that smooth the noise, per search layer (feature maps only); its size stays.
    noise_rows: maps in the table that noise is drawn from.
    stop_probability: an image stops once its best candidate gives its class a greater probability than this; none: never.
    """

    population: Annotated[int, Field(ge=2)] = 24
    generations: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [24, 24, 24, 5])
    strength: list[Annotated[float, Field(gt=0)]] = field(default_factory=lambda: [0.3, 0.3, 0.2, 0.1])
    blur_passes: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [5, 1, 1, 0])
    noise_rows: Annotated[int, Field(ge=64)] = 16384
    stop_probability: Annotated[float, Field(gt=0, lt=1)] | None = None

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(stops=self.stop_probability is not None)

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless every schedule has one value per search layer, and the blur fits the layers' maps."""
        check_lengths({name: getattr(self, name) for name in ("generations", "strength", "blur_passes")}, layers)
        check_blur(self.blur_passes, layers, shapes)

    def generations_at(self, position: int) -> int:
        """Return the number of lots after the first at the `position`-th search layer."""
        return self.generations[position]

    def evaluations(self, position: int) -> int:
        """Return population * (generations + 1)."""
        return self.population * (self.generations[position] + 1)

    def wider(self, factor: float) -> dict[str, int]:
        """Return the population times `factor`, rounded up."""
        return {"population": math.ceil(self.population * factor)}

    def starts(self, position: int) -> int:
        """Return 1: the network's own representation."""
        return 1

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`."""
        shared = table_bytes(shape, self.noise_rows)
        return Footprint(candidates=self.population, held=2, working=3 * self.population, shared=shared)

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> RandomState:
        """Return the state around the own representation."""
        own_B1GM = start_BSGM[:, :1]
        return RandomState(
            layer=layer,
            generation=0,
            keys_B=keys_B,
            own_B1GM=own_B1GM,
            best_B1GM=own_B1GM,
            fitness_B1=own_B1GM.new_full((len(own_B1GM), 1), float("-inf")),
        )

    def ask(self, state: RandomState) -> Tensor:
        """Return draws (B, population, G, M); the first of all is the own representation."""
        layer = state.layer
        drawn_BP = offsets(state.keys_B, state.generation, self.population)
        passes, strength = self.blur_passes[layer.position], self.strength[layer.position]
        noise_BPGM = directions(layer, "pixel", drawn_BP, passes=passes, rows=self.noise_rows)
        draws = finish(torch.addcmul(state.own_B1GM, noise_BPGM, deviations(state.own_B1GM)[..., None], value=strength), layer)
        return draws if state.generation else torch.cat([state.own_B1GM, draws[:, 1:]], dim=1)

    def tell(self, state: RandomState, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None) -> RandomState:
        """Return the state with the fittest candidate so far; of equal ones the earlier stays."""
        best_B1GM, fitness_B1 = better(state.best_B1GM, state.fitness_B1, candidates_BPGM, fitness_BP)
        return replace(state, generation=state.generation + 1, best_B1GM=best_B1GM, fitness_B1=fitness_B1)

    def best(self, state: RandomState) -> Best:
        """Return the fittest candidate so far."""
        finished_B = passes_bound(state.fitness_B1[:, 0], self.stop_probability)
        return Best(targets_BRGM=state.best_B1GM, fitness_BR=state.fitness_B1, seeds_BSGM=state.best_B1GM, finished_B=finished_B)


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """Where draws are made, and the fittest one."""

    layer: SearchLayer
    generation: int
    keys_B: Tensor
    own_B1GM: Tensor
    best_B1GM: Tensor
    fitness_B1: Tensor


def better(best_B1GM: Tensor, best_B1: Tensor, candidates_BPGM: Tensor, fitness_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fittest of what was best and the candidates, with its fitness (B, 1); of equal ones the earlier."""
    place_B1 = fitness_BP.argsort(dim=1, descending=True, stable=True)[:, :1]
    rows_B1 = torch.arange(len(place_B1), device=place_B1.device)[:, None]
    fitness_B1 = fitness_BP.gather(1, place_B1)
    wins_B1 = fitness_B1 > best_B1
    found = torch.where(wins_B1[..., None, None], candidates_BPGM[rows_B1, place_B1], best_B1GM)
    return found, torch.where(wins_B1, fitness_B1, best_B1)
