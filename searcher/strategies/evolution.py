"""Evolution of an example's representation: the source paper's strategy.

Per generation and example: the K fittest candidates stay as parents; explorers (mutation strength alpha * boost) come from parents;
refiners (strength alpha) from parents and explorers. A child is the mean of two randomly drawn members of its pool (crossover), plus
smoothed Gaussian noise of standard deviation alpha * sigma_c, sigma_c the mean of the two members' per-channel standard deviation,
then normalised to zero mean and unit variance (block outputs) or recentred (logits). A 1x1 map has no spread within a channel; it is
mutated as a vector, sigma taken over its channels. Vegesna & Dahal 2025, section 2.

Shapes: see `searcher.strategies.base`; K parents, E explorers, R refiners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from repsearch.footprint import Footprint, table_bytes
from repsearch.networks.base import Shape
from repsearch.seeding import draw
from searcher.children import NORMALISE_EPS, Moments, breed
from searcher.noise import NoiseTable, noise_table, smooth
from searcher.strategies.base import Best, SearchLayer, Traits
from searcher.strategies.schedules import check_blur, check_lengths, passes_bound
from searcher.strategies.step_sizes import StepSize, adapted

_COUNTERS_PER_CHILD = 3  # two pool members and one noise offset


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Hyperparameters of evolution; lists hold one value per search layer, in the order of `search.layers`.

    population: candidates per example: parents + explorers + refiners.
    parents: fittest candidates that stay, unchanged.
    explorers: children of parents, at strength times boost.
    refiners: children of parents and explorers, at strength.
    generations: generations after the initial population.
    strength: alpha, the mutation's standard deviation in standard deviations of the channel.
    boost: factor on the strength of explorers and of the initial population.
    blur_passes: passes of 3x3 average pooling (block outputs only).
    blur: what is smoothed: the mutation alone, the whole candidate, or nothing.
    rescale: bring a smoothed mutation back to the standard deviation strength * sigma_c; without it smoothing also shrinks it.
    noise_rows: maps in the table that mutations are drawn from.
    strength_decay: factor on the strength per generation.
    step_size: what the strength is measured in: standard deviations of the channel (`relative`); units of the representation, which in a
        block has a standard deviation of 1 (`absolute`); or standard deviations of the channel, times a factor per image that grows while
        more than a fifth of its children are fitter than its elite, and shrinks while fewer are (`adapted`).
    seeding: what the next layer's population starts from: the result alone, or with it the other parents.
    target: the result: the fittest candidate, or the mean of the parents (evaluated once at the end).
    stop_probability: an image whose elite gives its class a greater probability than this searches the layer no further; none: every
        image runs the whole schedule.
    """

    population: Annotated[int, Field(ge=2)] = 24
    parents: Annotated[int, Field(ge=1)] = 4
    explorers: Annotated[int, Field(ge=0)] = 8
    refiners: Annotated[int, Field(ge=0)] = 12
    generations: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [24, 24, 24, 5])
    strength: list[Annotated[float, Field(gt=0)]] = field(default_factory=lambda: [0.3, 0.3, 0.2, 0.1])
    boost: list[Annotated[float, Field(gt=0)]] = field(default_factory=lambda: [5.0, 3.0, 3.0, 1.0])
    blur_passes: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [5, 1, 1, 0])
    blur: Literal["mutation", "candidate", "none"] = "mutation"
    rescale: bool = True
    noise_rows: Annotated[int, Field(ge=64)] = 16384
    strength_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    step_size: StepSize = "relative"
    seeding: Literal["elite", "parents"] = "elite"
    target: Literal["best", "elite_mean"] = "best"
    stop_probability: Annotated[float, Field(gt=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        if self.population < self.parents + 1:
            least = f"parents + 1 = {self.parents + 1}"
            raise ValueError(f"population {self.population} is smaller than {least}; raise it, or lower parents")
        total = self.parents + self.explorers + self.refiners
        if total != self.population:
            parts = f"parents {self.parents} + explorers {self.explorers} + refiners {self.refiners} = {total}"
            raise ValueError(f"{parts}, but population is {self.population}; make the parts add up to it")

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        best = self.target == "best"
        return Traits(monotone=best, measured=best, stops=self.stop_probability is not None, elites=self.parents)

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless every schedule has one value per search layer, and the blur fits the layers' maps."""
        names = ("generations", "strength", "boost", "blur_passes")
        check_lengths({name: getattr(self, name) for name in names}, layers)
        if self.blur != "none":
            check_blur(self.blur_passes, layers, shapes)

    def evaluations(self, position: int) -> int:
        """Return evaluations per example: the initial population, the children of every generation, and the mean of the parents."""
        children = self.generations[position] * (self.population - self.parents)
        return self.population + children + (self.target == "elite_mean")

    def wider(self, factor: float) -> dict[str, int]:
        """Return parents, explorers and refiners times `factor`, rounded up, and the population that they make."""
        parts = {name: math.ceil(getattr(self, name) * factor) for name in ("parents", "explorers", "refiners")}
        return {"population": sum(parts.values()), **parts}

    def starts(self, position: int) -> int:
        """Return the size of the initial population."""
        return self.population

    def generations_at(self, position: int) -> int:
        """Return the number of generations at the `position`-th search layer."""
        return self.generations[position]

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`."""
        smoothed = self.population if self.blur == "candidate" else 0
        return Footprint(
            candidates=self.population,
            held=self.parents,
            working=2 * self.population + 4 * self.parents + 2 * smoothed,
            seeds=self.parents if self.seeding == "parents" else 1,
            shared=table_bytes(shape, self.noise_rows),
        )

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> EvolutionState:
        """Return the state whose first proposal is `start_BSGM`, filled up to the population by mutations of it."""
        passes = self.blur_passes[layer.position] if layer.is_map and self.blur == "mutation" else 0
        table = noise_table(
            layer.shape if layer.is_map else layer.shape[:1], self.noise_rows, passes, self.rescale, layer.seed, layer.device
        )
        empty_B0 = start_BSGM.new_empty(len(start_BSGM), 0)
        return EvolutionState(
            layer=layer,
            noise=table,
            keys_B=keys_B,
            generation=0,
            parents_BKGM=start_BSGM[:, : self.population],
            fitness_BK=empty_B0,
            factor_B=start_BSGM.new_ones(len(start_BSGM)) if self.step_size == "adapted" else None,
        )

    def ask(self, state: EvolutionState) -> Tensor:
        """Return the initial population (B, population, G, M), then explorers and refiners (B, E + R, G, M)."""
        position, parents = state.layer.position, state.parents_BKGM
        alpha, boost = self.strength[position] * self.strength_decay**state.generation, self.boost[position]
        B, K, G, M = parents.shape
        first, second = (self.population - K, 0) if state.generation == 0 else (self.explorers, self.refiners)
        if first + second == 0:
            return parents
        drawn_B3P = self._draws(state, K, first, second)
        pool_BQGM = state.noise.room(B, K + (first if second else 0))
        pool_BQGM[:, :K] = parents
        moments = Moments.of(parents)
        children_BPGM = parents.new_empty(B, first + second, G, M)
        if first:
            more = self._breed(state, pool_BQGM[:, :K], moments, drawn_B3P[..., :first], alpha * boost, children_BPGM[:, :first])
            if second:
                pool_BQGM[:, K:] = children_BPGM[:, :first]
                moments = moments.and_then(more)
        if second:
            self._breed(state, pool_BQGM, moments, drawn_B3P[..., first:], alpha, children_BPGM[:, first:])
        return torch.cat([parents, children_BPGM], dim=1) if state.generation == 0 else children_BPGM

    def tell(
        self, state: EvolutionState, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None
    ) -> EvolutionState:
        """Return the state with the K fittest of parents and candidates; of equal ones the earlier stays."""
        kept = state.fitness_BK.shape[1]
        order_BP = torch.cat([state.fitness_BK, fitness_BP], dim=1).argsort(dim=1, descending=True, stable=True)
        order_BK = order_BP[:, : self.parents]
        parents_BKGM = take(candidates_BPGM, (order_BK - kept).clamp_min(0))
        if kept:
            # Those that stay are copied from the state: joining parents and candidates to choose among them would copy all of them.
            stays = (order_BK < kept).flatten().nonzero()[:, 0]
            stayed_BKGM = take(state.parents_BKGM, order_BK.clamp_max(kept - 1))
            parents_BKGM.flatten(0, 1).index_copy_(0, stays, stayed_BKGM.flatten(0, 1).index_select(0, stays))
        factor_B = state.factor_B
        if kept and factor_B is not None:
            factor_B = adapted(factor_B, (fitness_BP > state.fitness_BK[:, :1]).float().mean(dim=1))
        return replace(
            state,
            generation=state.generation + 1,
            parents_BKGM=parents_BKGM,
            fitness_BK=torch.cat([state.fitness_BK, fitness_BP], dim=1).gather(1, order_BK),
            factor_B=factor_B,
        )

    def best(self, state: EvolutionState) -> Best:
        """Return the fittest parent and its fitness, or the mean of the parents (with the fittest one's fitness until it is measured)."""
        elite_B1GM = state.parents_BKGM[:, :1]
        target_B1GM = elite_B1GM
        if self.target == "elite_mean":
            target_B1GM = finish(state.parents_BKGM.mean(dim=1, keepdim=True), state.layer)
        # The layer is frozen at its result, which therefore is the first seed.
        others_BSGM = state.parents_BKGM[:, 1:] if self.seeding == "parents" else elite_B1GM[:, :0]
        return Best(
            targets_BRGM=target_B1GM,
            fitness_BR=state.fitness_BK[:, :1],
            seeds_BSGM=torch.cat([target_B1GM, others_BSGM], dim=1),
            finished_B=passes_bound(state.fitness_BK[:, 0], self.stop_probability),
            elites_BKGM=state.parents_BKGM,
        )

    def _draws(self, state: EvolutionState, parents: int, first: int, second: int) -> Tensor:
        """Return two pool members and a draw of noise per child (B, 3, first + second), all from one hash."""
        device = state.keys_B.device
        child_P = torch.arange(first + second, device=device) + state.generation * self.population
        counter_3P = child_P * _COUNTERS_PER_CHILD + torch.arange(_COUNTERS_PER_CHILD, device=device)[:, None]
        bound_3P = torch.full_like(counter_3P, parents)
        bound_3P[:2, first:] = parents + first
        bound_3P[2] = state.noise.draws
        return draw(state.keys_B[:, None, None], counter_3P, bound_3P)

    def _breed(
        self, state: EvolutionState, pool_BQGM: Tensor, moments: Moments, drawn_B3P: Tensor, strength: float, out_BPGM: Tensor
    ) -> Moments:
        """Write children of a pool into `out_BPGM`, and return their moments."""
        layer = state.layer
        passes = self.blur_passes[layer.position] if self.blur == "candidate" and layer.is_map else 0
        unit = layer.kind == "block" and not passes
        lengths = strength if state.factor_B is None else strength * state.factor_B[:, None, None]
        absolute = self.step_size == "absolute"
        found = breed(state.noise, pool_BQGM, moments, drawn_B3P, lengths, unit=unit, absolute=absolute, out_BPGM=out_BPGM)
        if not passes:
            return found
        maps = smooth(out_BPGM.reshape(-1, *layer.shape[1:]), passes).view(out_BPGM.shape)
        out_BPGM.copy_(finish(maps, layer))
        return Moments.of(out_BPGM)


@dataclass(frozen=True, kw_only=True)
class EvolutionState:
    """A tile's parents, their fitness (empty before the initial population is evaluated), and what its draws depend on.

    factor_B: on the strength, where it adapts.
    """

    layer: SearchLayer
    noise: NoiseTable
    keys_B: Tensor
    generation: int
    parents_BKGM: Tensor
    fitness_BK: Tensor
    factor_B: Tensor | None = None


def take(candidates_BPGM: Tensor, index_BK: Tensor) -> Tensor:
    """Return candidates (B, K, G, M) by their numbers; whole candidates are copied, which indexing by two axes does slowly."""
    B, P, G, M = candidates_BPGM.shape
    rows_BK = index_BK + torch.arange(B, device=index_BK.device)[:, None] * P
    return candidates_BPGM.reshape(B * P, G * M).index_select(0, rows_BK.flatten()).view(B, -1, G, M)


def deviations(maps_BPGM: Tensor) -> Tensor:
    """Return the standard deviation over positions (B, P, G)."""
    return Moments.of(maps_BPGM).deviation_BPG


def finish(candidates_BPGM: Tensor, layer: SearchLayer) -> Tensor:
    """Return candidates in the form of the layer: blocks normalised, logits recentred."""
    if layer.kind == "logits":
        return candidates_BPGM - candidates_BPGM.mean(dim=-1, keepdim=True)
    return normalise_groups(candidates_BPGM)


def normalise_groups(maps_BPGM: Tensor) -> Tensor:
    """Return each candidate with zero mean and unit variance over (G, M), eps 1e-5; equals `layer_norm` to rounding, twice as fast."""
    B, P, G, M = maps_BPGM.shape
    return F.group_norm(maps_BPGM.reshape(B * P, G, M), 1, eps=NORMALISE_EPS).view(B, P, G, M)
