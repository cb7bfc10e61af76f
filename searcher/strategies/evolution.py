"""Evolution of an example's representation: the source paper's strategy.

Per generation and example: the K fittest candidates stay as parents; explorers (mutation strength alpha * boost) come from parents;
refiners (strength alpha) from parents and explorers. A child is the mean of two randomly drawn members of its pool (crossover), plus
smoothed Gaussian noise of standard deviation alpha * sigma_c, sigma_c the mean of the two members' per-channel standard deviation,
then normalised to zero mean and unit variance (block outputs) or recentred (logits). A 1x1 map has no spread within a channel; it is
mutated as a vector, sigma taken over its channels. Vegesna & Dahal 2025, section 2.

Shapes: see `searcher.strategies.base`; K parents, E explorers, R refiners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from repsearch.networks.base import Shape
from repsearch.seeding import draw
from searcher.noise import NoiseTable, noise_table, smooth
from searcher.strategies.base import Best, SearchLayer, Traits
from searcher.strategies.schedules import check_blur, check_lengths, passes_bound

NORMALISE_EPS = 1e-5
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
        return Traits(monotone=best, measured=best, stops=self.stop_probability is not None)

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

    def starts(self, position: int) -> int:
        """Return the size of the initial population."""
        return self.population

    def generations_at(self, position: int) -> int:
        """Return the number of generations at the `position`-th search layer."""
        return self.generations[position]

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
        )

    def ask(self, state: EvolutionState) -> Tensor:
        """Return the initial population (B, population, G, M), then explorers and refiners (B, E + R, G, M)."""
        position = state.layer.position
        alpha, boost = self.strength[position] * self.strength_decay**state.generation, self.boost[position]
        parents = state.parents_BKGM
        if state.generation == 0:
            missing = self.population - parents.shape[1]
            if missing == 0:
                return parents
            return torch.cat([parents, self._children(state, parents, missing, alpha * boost, first=0)], dim=1)
        explorers = self._children(state, parents, self.explorers, alpha * boost, first=0)
        pool = torch.cat([parents, explorers], dim=1)
        refiners = self._children(state, pool, self.refiners, alpha, first=self.explorers)
        return torch.cat([explorers, refiners], dim=1)

    def tell(
        self, state: EvolutionState, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None
    ) -> EvolutionState:
        """Return the state with the K fittest of parents and candidates; of equal ones the earlier stays."""
        if state.generation > 0:
            fitness_BP = torch.cat([state.fitness_BK, fitness_BP], dim=1)
            candidates_BPGM = torch.cat([state.parents_BKGM, candidates_BPGM], dim=1)
        order_BK = fitness_BP.argsort(dim=1, descending=True, stable=True)[:, : self.parents]
        rows_B1 = torch.arange(len(order_BK), device=order_BK.device)[:, None]
        return replace(
            state,
            generation=state.generation + 1,
            parents_BKGM=candidates_BPGM[rows_B1, order_BK],
            fitness_BK=fitness_BP.gather(1, order_BK),
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
        )

    def _children(self, state: EvolutionState, pool_BQGM: Tensor, count: int, strength: float, *, first: int) -> Tensor:
        """Return `count` children (B, count, G, M) of `pool_BQGM`; `first` numbers them within the generation's draws."""
        B, Q, G, M = pool_BQGM.shape
        counter_P = torch.arange(first, first + count, device=pool_BQGM.device) * _COUNTERS_PER_CHILD
        counter_P = counter_P + state.generation * self.population * _COUNTERS_PER_CHILD
        keys_B1 = state.keys_B[:, None]
        one_BP = draw(keys_B1, counter_P, Q)
        two_BP = draw(keys_B1, counter_P + 1, Q)
        noise_BPGM = state.noise.take(draw(keys_B1, counter_P + 2, state.noise.draws))
        # Crossover as a product with one-hot halves: a gather of both members would move three times the memory.
        weights_BPQ = pool_BQGM.new_zeros(B, count, Q)
        halves = pool_BQGM.new_full((B, count, 1), 0.5)
        weights_BPQ.scatter_add_(2, one_BP[..., None], halves).scatter_add_(2, two_BP[..., None], halves)
        means_BPGM = torch.bmm(weights_BPQ, pool_BQGM.flatten(2)).view(B, count, G, M)
        deviation_BPG = torch.bmm(weights_BPQ, deviations(pool_BQGM))
        children = torch.addcmul(means_BPGM, noise_BPGM, deviation_BPG[..., None], value=strength)
        return self._finish(children, state.layer)

    def _finish(self, children_BPGM: Tensor, layer: SearchLayer) -> Tensor:
        passes = self.blur_passes[layer.position] if self.blur == "candidate" and layer.is_map else 0
        if passes:
            maps = children_BPGM.reshape(-1, *layer.shape[1:])
            children_BPGM = smooth(maps, passes).reshape(children_BPGM.shape)
        return finish(children_BPGM, layer)


@dataclass(frozen=True, kw_only=True)
class EvolutionState:
    """A tile's parents, their fitness (empty before the initial population is evaluated), and what its draws depend on."""

    layer: SearchLayer
    noise: NoiseTable
    keys_B: Tensor
    generation: int
    parents_BKGM: Tensor
    fitness_BK: Tensor


def deviations(maps_BPGM: Tensor) -> Tensor:
    """Return the standard deviation over positions (B, P, G), as sqrt(E[x^2] - m^2): `torch.std` is 70 times slower on CPU."""
    mean_BPG = maps_BPGM.mean(dim=-1)
    square_BPG = torch.linalg.vector_norm(maps_BPGM, dim=-1).square() / maps_BPGM.shape[-1]
    variance_BPG: Tensor = square_BPG - mean_BPG.square()
    return variance_BPG.clamp_min(0).sqrt()


def finish(candidates_BPGM: Tensor, layer: SearchLayer) -> Tensor:
    """Return candidates in the form of the layer: blocks normalised, logits recentred."""
    if layer.kind == "logits":
        return candidates_BPGM - candidates_BPGM.mean(dim=-1, keepdim=True)
    return normalise_groups(candidates_BPGM)


def normalise_groups(maps_BPGM: Tensor) -> Tensor:
    """Return each candidate with zero mean and unit variance over (G, M), eps 1e-5; equals `layer_norm` to rounding, 4 times faster."""
    flat_BPX = maps_BPGM.flatten(2)
    mean_BP1 = flat_BPX.mean(dim=-1, keepdim=True)
    square_BP1 = torch.linalg.vector_norm(flat_BPX, dim=-1, keepdim=True).square() / flat_BPX.shape[-1]
    scale_BP1 = torch.rsqrt((square_BP1 - mean_BP1.square()).clamp_min(0) + NORMALISE_EPS)
    return torch.addcmul(-mean_BP1 * scale_BP1, flat_BPX, scale_BP1).view_as(maps_BPGM)
