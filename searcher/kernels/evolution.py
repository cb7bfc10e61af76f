"""Evolution with its children made by the fused kernel.

The children are those of `searcher.strategies.evolution` (the same members, the same rows of the noise table) up to the order of sums,
so everything else is inherited. Shapes: see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from repsearch.errors import ConfigError
from repsearch.networks.base import Shape
from searcher.kernels.children import Layout, Table, children
from searcher.kernels.machine import require_kernels
from searcher.noise import NoiseTable
from searcher.strategies.base import SearchStrategy
from searcher.strategies.evolution import Evolution, EvolutionState

_DRAWS_PER_CHILD = 3


def with_kernels(strategy: SearchStrategy[Any], device: torch.device) -> SearchStrategy[Any]:
    """Return `strategy` with its children made by kernels on `device`; `ConfigError` naming `search.kernels` if that cannot be."""
    if type(strategy) is not Evolution:
        name = type(strategy).__name__
        raise ConfigError(f"search.kernels: {name} has no kernels; set search.kernels = false, or search.strategy.name = 'evolution'")
    if strategy.step_size != "relative":
        where = f"search.strategy.step_size: the kernels know no {strategy.step_size} steps"
        raise ConfigError(f"{where}; set search.kernels = false, or search.strategy.step_size = 'relative'")
    require_kernels(device)
    return FusedEvolution(**{field.name: getattr(strategy, field.name) for field in fields(strategy)})


@dataclass(frozen=True, kw_only=True)
class FusedEvolution(Evolution):
    """Evolution whose proposals come from `searcher.kernels.children`; fields as there."""

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """As `Evolution.check`; further, a layer's groups must fit the kernel."""
        super().check(layers, shapes)
        for layer, shape in zip(layers, shapes, strict=True):
            is_map = len(shape) == 3 and shape[1] * shape[2] > 1
            try:
                Layout.of(shape[0] if is_map else 1, _map_shape(shape), smoothed=is_map and self.blur == "candidate")
            except ValueError as error:
                raise ConfigError(f"search.kernels: layer {layer}: {error}") from None

    def ask(self, state: EvolutionState) -> Tensor:
        """Return what `Evolution.ask` returns, to rounding."""
        position, parents = state.layer.position, state.parents_BKGM
        alpha, boost = self.strength[position] * self.strength_decay**state.generation, self.boost[position]
        B, K, G, M = parents.shape
        if state.generation == 0:
            population_BPGM = parents.new_empty(B, self.population, G, M)
            population_BPGM[:, :K] = parents
            self._fused(state, parents, population_BPGM[:, K:], alpha * boost, first=0)
            return population_BPGM
        children_BPGM = parents.new_empty(B, self.explorers + self.refiners, G, M)
        explorers_BEGM, refiners_BRGM = children_BPGM[:, : self.explorers], children_BPGM[:, self.explorers :]
        self._fused(state, parents, explorers_BEGM, alpha * boost, first=0)
        self._fused(state, torch.cat([parents, explorers_BEGM], dim=1), refiners_BRGM, alpha, first=self.explorers)
        return children_BPGM

    def _fused(self, state: EvolutionState, pool_BQGM: Tensor, out_BPGM: Tensor, strength: float, *, first: int) -> None:
        """Write children of a pool into `out_BPGM`; `first` numbers them within the generation."""
        layer = state.layer
        children(
            pool_BQGM,
            keys_B=state.keys_B,
            counter=(state.generation * self.population + first) * _DRAWS_PER_CHILD,
            count=out_BPGM.shape[1],
            strength=strength,
            mutation=Table(rows_of(state.noise, layer.device)),
            map_shape=_map_shape(layer.shape),
            candidate_passes=self.blur_passes[layer.position] if self.blur == "candidate" and layer.is_map else 0,
            recentre=layer.kind == "logits",
            out_BPGM=out_BPGM,
        )


@lru_cache(maxsize=8)
def rows_of(table: NoiseTable, device: torch.device) -> Tensor:
    """Return the rows (R, M) of a table on `device`: draw o is rows o .. o + G - 1."""
    G, last = table.groups, table.draws - 1
    offsets = torch.arange(0, last + 1, G, device=device)
    rows_RM = table.take(offsets[None]).reshape(-1, table.size)
    # Every G-th draw gives the rows of whole groups; the last draw ends with those left over.
    left = last % G
    tail_GM = table.take(torch.full((1, 1), last, device=device))[0, 0]
    return torch.cat([rows_RM, tail_GM[G - left :]])


def _map_shape(shape: Shape) -> tuple[int, int]:
    return (shape[1], shape[2]) if len(shape) == 3 and shape[1] * shape[2] > 1 else (1, shape[0])
