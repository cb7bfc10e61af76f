"""Quality diversity: MAP-Elites, an archive of distinct good representations per example.

An archive is a grid of cells over a low-dimensional descriptor: random smooth directions of the representation's space, the same for
every example of a layer. A cell keeps the fittest candidate whose descriptor falls into it. Per generation, parents are drawn from the
occupied cells with equal chance; a child is a parent plus smoothed Gaussian noise of standard deviation strength * sigma_c and a share
`line` * N(0, 1) of the way to another parent, then normalised (blocks) or recentred (logits). Results are the fittest cells, so they
differ in descriptor. Mouret & Clune 2015 (MAP-Elites); Vassiliades & Mouret 2018 (the operator). The archives of a tile are one batch
of tensors; docs/design/0006-strategies.md has the reason for code of its own.

Shapes: see `searcher.strategies.base`; C cells; D descriptor dimensions; W cells that change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from repsearch.errors import ConfigError
from repsearch.footprint import Footprint, table_bytes
from repsearch.networks.base import Shape
from repsearch.seeding import draw, seed_of
from searcher.normal import standard_normal
from searcher.strategies.base import Best, SearchLayer, Traits
from searcher.strategies.evolution import deviations, finish
from searcher.strategies.moves import blurred, directions, offsets, unit
from searcher.strategies.schedules import check_blur, check_lengths

_EMPTY = float("-inf")


@dataclass(frozen=True, kw_only=True)
class QualityDiversity:
    """Hyperparameters of MAP-Elites; lists hold one value per search layer, in the order of `search.layers`.

    population: candidates per generation.
    generations: generations after the initial population.
    strength: standard deviation of the noise, in standard deviations of the channel.
    blur_passes: passes of 3x3 average pooling that smooth the noise (feature maps only); its size stays.
    line: standard deviation of the share of the way to another parent.
    dimensions: dimensions of the descriptor.
    cells: cells along each dimension; the outermost ones are open.
    span: half the width of the grid, in standard deviations of the initial population's descriptors.
    noise_rows: maps in the table that noise is drawn from.
    """

    population: Annotated[int, Field(ge=2)] = 24
    generations: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [24, 24, 24, 5])
    strength: list[Annotated[float, Field(gt=0)]] = field(default_factory=lambda: [0.9, 0.6, 0.4, 0.1])
    blur_passes: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [5, 1, 1, 0])
    line: Annotated[float, Field(ge=0, le=10)] = 0.2
    dimensions: Annotated[int, Field(ge=1, le=4)] = 2
    cells: Annotated[int, Field(ge=2, le=64)] = 4
    span: Annotated[float, Field(gt=0)] = 2.0
    noise_rows: Annotated[int, Field(ge=64)] = 16384

    def __post_init__(self) -> None:
        if self.cells**self.dimensions > 1024:
            count = f"{self.cells} cells along {self.dimensions} dimensions are {self.cells**self.dimensions}"
            raise ValueError(f"{count}, and an archive holds at most 1024 representations per example; lower cells or dimensions")

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(several=True)

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless the schedules, the blur and the descriptor fit the layers."""
        check_lengths({name: getattr(self, name) for name in ("generations", "strength", "blur_passes")}, layers)
        check_blur(self.blur_passes, layers, shapes)
        for layer, shape in zip(layers, shapes, strict=True):
            size = torch.Size(shape).numel()
            if size <= self.dimensions:
                where = f"search.strategy.dimensions: {self.dimensions}, and layer {layer!r} has {size} values"
                raise ConfigError(f"{where}; set it to {size - 1} or less")

    def generations_at(self, position: int) -> int:
        """Return the number of generations at the `position`-th search layer."""
        return self.generations[position]

    def evaluations(self, position: int) -> int:
        """Return population * (generations + 1): one archive per example, whatever the number of results."""
        return self.population * (self.generations[position] + 1)

    def wider(self, factor: float) -> dict[str, int]:
        """Return the population times `factor`, rounded up."""
        return {"population": math.ceil(self.population * factor)}

    def starts(self, position: int) -> int:
        """Return 1: the own representation; the spread of its mutations sets the width of the grid."""
        return 1

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`."""
        cells = self.cells**self.dimensions
        return Footprint(
            candidates=self.population,
            held=cells + 1,
            working=max(6 * self.population, cells + self.population) + results,
            results=results,
            seeds=results,
            shared=table_bytes(shape, self.noise_rows),
        )

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> ArchiveState:
        """Return empty archives; the first proposal is the starting candidates, filled up by mutations of them."""
        B, _, G, M = start_BSGM.shape
        cells = self.cells**self.dimensions
        state = ArchiveState(
            layer=layer,
            generation=0,
            keys_B=keys_B,
            axes=Axes(self._axes(layer)),
            start_BSGM=start_BSGM[:, : self.population],
            centre_BD=start_BSGM.new_zeros(B, self.dimensions),
            scale_BD=start_BSGM.new_ones(B, self.dimensions),
            elites_BCGM=start_BSGM.new_zeros(B, cells, G, M),
            fitness_BC=start_BSGM.new_full((B, cells), _EMPTY),
        )
        descriptors_BPD = self.describe(state, self.ask(state))
        # The grid is laid over the example's initial population, so its cells are as wide as a mutation moves.
        return replace(
            state,
            centre_BD=descriptors_BPD.mean(dim=1),
            scale_BD=descriptors_BPD.std(dim=1, correction=0).clamp_min(1e-6),
        )

    def ask(self, state: ArchiveState) -> Tensor:
        """Return the initial population, then children of the archive (B, population, G, M)."""
        if state.generation == 0:
            start_BSGM = state.start_BSGM
            missing = self.population - start_BSGM.shape[1]
            one_BPGM = start_BSGM[:, torch.arange(missing) % start_BSGM.shape[1]]
            return start_BSGM if missing == 0 else torch.cat([start_BSGM, self._mutate(state, one_BPGM, one_BPGM)], dim=1)
        # Occupied cells first, then the draw among as many as there are.
        order_BC = (state.fitness_BC == _EMPTY).to(torch.uint8).argsort(dim=1, stable=True)
        occupied_B1 = (state.fitness_BC != _EMPTY).sum(dim=1, keepdim=True)
        drawn_BP = draw(state.keys_B[:, None], self._counters(state, 1), 1 << 31) % occupied_B1
        other_BP = draw(state.keys_B[:, None], self._counters(state, 2), 1 << 31) % occupied_B1
        rows_B1 = torch.arange(len(order_BC), device=order_BC.device)[:, None]
        one_BPGM = state.elites_BCGM[rows_B1, order_BC.gather(1, drawn_BP)]
        two_BPGM = state.elites_BCGM[rows_B1, order_BC.gather(1, other_BP)]
        return self._mutate(state, one_BPGM, two_BPGM)

    def tell(self, state: ArchiveState, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None) -> ArchiveState:
        """Return the state with every candidate that is fitter than what its cell holds; of equal ones the earlier stays."""
        cell_BP = self.cell_of(state, candidates_BPGM)
        inside_BCP = cell_BP[:, None] == torch.arange(state.fitness_BC.shape[1], device=cell_BP.device)[:, None]
        fitness_BCP = torch.where(inside_BCP, fitness_BP[:, None], _EMPTY)
        best_BC = fitness_BCP.amax(dim=2)
        # The first of the fittest: argmax alone may return any of equal ones.
        place_BC = (fitness_BCP == best_BC[..., None]).to(torch.uint8).argsort(dim=2, descending=True, stable=True)[..., 0]
        wins_BC = best_BC > state.fitness_BC
        # Written cell by cell: few of a generation's candidates win, and a choice per cell would move the whole archive three times.
        row_W, cell_W = wins_BC.nonzero(as_tuple=True)
        elites_BCGM = state.elites_BCGM.clone()
        elites_BCGM[row_W, cell_W] = candidates_BPGM[row_W, place_BC[row_W, cell_W]]
        return replace(
            state,
            generation=state.generation + 1,
            elites_BCGM=elites_BCGM,
            fitness_BC=torch.where(wins_BC, best_BC, state.fitness_BC),
        )

    def best(self, state: ArchiveState) -> Best:
        """Return the fittest cells, one per result; where fewer are occupied than results are wanted, they repeat from the fittest on."""
        wanted = torch.arange(state.layer.results, device=state.fitness_BC.device)
        order_BC = state.fitness_BC.argsort(dim=1, descending=True, stable=True)
        occupied_B1 = (state.fitness_BC != _EMPTY).sum(dim=1, keepdim=True)
        cells_BR = order_BC.gather(1, wanted % occupied_B1)
        rows_B1 = torch.arange(len(cells_BR), device=cells_BR.device)[:, None]
        found_BRGM = state.elites_BCGM[rows_B1, cells_BR]
        return Best(targets_BRGM=found_BRGM, fitness_BR=state.fitness_BC.gather(1, cells_BR), seeds_BSGM=found_BRGM)

    def describe(self, state: ArchiveState, candidates_BPGM: Tensor) -> Tensor:
        """Return the descriptors (B, P, D): projections on the layer's axes."""
        return candidates_BPGM.flatten(2) @ state.axes.axes_XD

    def cell_of(self, state: ArchiveState, candidates_BPGM: Tensor) -> Tensor:
        """Return the cell (B, P) of each candidate."""
        offset_BPD = (self.describe(state, candidates_BPGM) - state.centre_BD[:, None]) / (self.span * state.scale_BD[:, None])
        place_BPD = ((offset_BPD + 1) / 2 * self.cells).floor().clamp(0, self.cells - 1).long()
        weights_D = self.cells ** torch.arange(self.dimensions, device=place_BPD.device)
        cell_BP: Tensor = (place_BPD * weights_D).sum(dim=2)
        return cell_BP

    def _axes(self, layer: SearchLayer) -> Tensor:
        """Return D random directions (X, D), smoothed as the mutation is, since it hardly moves along others; unit length each."""
        seeds = [seed_of(layer.seed, "descriptor", axis) for axis in range(self.dimensions)]
        axes_D1GM = torch.stack([torch.randn(1, *layer.groups, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        axes_DX = unit(blurred(axes_D1GM, layer, self.blur_passes[layer.position])).flatten(1)
        return (axes_DX / math.sqrt(axes_DX.shape[1])).T.contiguous().to(layer.device)

    def _mutate(self, state: ArchiveState, one_BPGM: Tensor, two_BPGM: Tensor) -> Tensor:
        layer, count = state.layer, one_BPGM.shape[1]
        drawn_BP = offsets(state.keys_B, state.generation, self.population)[:, :count]
        noise_BPGM = directions(layer, "pixel", drawn_BP, passes=self.blur_passes[layer.position], rows=self.noise_rows)
        moved = torch.addcmul(one_BPGM, noise_BPGM, deviations(one_BPGM)[..., None], value=self.strength[layer.position])
        if state.generation:
            keys_BP = draw(state.keys_B[:, None], self._counters(state, 3), 1 << 31)
            share_BP = standard_normal(keys_BP.flatten(), 1, moved.device).view(-1, count, 1, 1)
            moved = torch.addcmul(moved, two_BPGM - one_BPGM, share_BP, value=self.line)
        return finish(moved, layer)

    def _counters(self, state: ArchiveState, purpose: int) -> Tensor:
        """Return draw counters (population,) of the state's generation; purpose 0 is the noise."""
        lots = 1 + max(self.generations)
        first = (purpose * lots + state.generation) * self.population
        return torch.arange(first, first + self.population, device=state.keys_B.device)


class Axes:
    """The descriptor's axes (X, D), which all examples share."""

    def __init__(self, axes_XD: Tensor) -> None:
        self.axes_XD = axes_XD


@dataclass(frozen=True, kw_only=True)
class ArchiveState:
    """Archives of a tile: what each cell holds, its fitness (minus infinity: empty), and the grid's place in descriptor space."""

    layer: SearchLayer
    generation: int
    keys_B: Tensor
    axes: Axes
    start_BSGM: Tensor
    centre_BD: Tensor
    scale_BD: Tensor
    elites_BCGM: Tensor
    fitness_BC: Tensor
