"""Searches whose candidates are made and selected by compiled loops and evaluated by PyTorch, a tile of images at a time.

Above the searched layer of a learned network are convolutions, which PyTorch does best in large batches; what a strategy does between two
forward passes is small work per candidate, for which a hundred tensor operations are too many. A generation is one loop that makes the
tile's candidates where the network reads them, one forward pass of fixed shape, and one loop that selects.

Shapes: `searcher.strategies.base`; T images; E candidates evaluated together; X a representation's values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repsearch.networks.base import SearchableNetwork
from searcher.evaluating import Precision, logits_of
from searcher.evaluation_network import channels_last
from searcher.strategies.base import Best, SearchLayer, SearchStrategy
from searcher.strategies.evolution import Evolution, EvolutionState
from searcher.strategies.evolution_strategy import EvolutionStrategy, MeanState
from searcher.strategies.moves import direction_rows, offsets
from searcher.strategies.random_search import better
from searcher.strategies.step_sizes import adapted


@dataclass(frozen=True)
class Told:
    """fitness_TP: of all candidates there are after a generation. evaluated: how many of them it evaluated, per image. best_TR: fitness of
    the results so far."""

    fitness_TP: Tensor
    evaluated: int
    best_TR: Tensor


AT_A_TIME = 16 * 2**20
"""Bytes of candidates that a forward pass takes: more are no faster, and leave the processor's caches."""


class TileSearch(Protocol):
    """The search of a layer for a tile of images."""

    def generation(self, number: int) -> Told:
        """Make, evaluate and select; the initial population for number 0."""
        ...

    def best(self) -> Best:
        """Return what has been found."""
        ...


class Evaluation:
    """Candidates of a tile where the network reads them, and their fitness."""

    def __init__(self, network: SearchableNetwork, number: int, layer: SearchLayer, labels_T: Tensor, precision: Precision) -> None:
        self._network, self._number, self._shape, self._precision = network, number, layer.shape, precision
        self.last = layer.is_map and channels_last(layer.shape)
        self._labels_T = labels_T.numpy()
        self._rooms: dict[int, Tensor] = {}

    def room(self, count: int) -> np.ndarray:
        """Return room (T, count, X) to write `count` candidates per image into, with the channels last if `last`."""
        if count not in self._rooms:
            size = int(np.prod(self._shape))
            self._rooms[count] = torch.empty(len(self._labels_T), count, size)
        return self._rooms[count].numpy()

    def candidates(self, count: int) -> Tensor:
        """Return what is in the room of `count`, as (T, count, ...) of the layer's shape."""
        room_TPX = self._rooms[count]
        if not self.last:
            return room_TPX.view(*room_TPX.shape[:2], *self._shape)
        C, H, W = self._shape
        return room_TPX.view(*room_TPX.shape[:2], H, W, C).permute(0, 1, 4, 2, 3)

    def logits(self, count: int) -> np.ndarray:
        """Return the logits (T, count, K) of the candidates in the room of `count`."""
        candidates_NX = self.candidates(count).flatten(0, 1)
        rows = max(1, AT_A_TIME // (candidates_NX[0].numel() * candidates_NX.element_size()))
        pieces = math.ceil(len(candidates_NX) / rows)
        parts = [logits_of(self._network, self._number, piece, self._precision) for piece in torch.chunk(candidates_NX, pieces)]
        logits = torch.cat(parts)
        logits_TPK: np.ndarray = logits.view(len(self._labels_T), count, -1).numpy()
        return logits_TPK

    @property
    def labels(self) -> np.ndarray:
        """The labels (T,)."""
        return self._labels_T


class TileEvolution:
    """Evolution, as `Evolution` states it: the same draws and choices, sums in another order."""

    def __init__(self, strategy: Evolution, evaluation: Evaluation, state: EvolutionState) -> None:
        self._strategy, self._evaluation, self._state = strategy, evaluation, state
        layer, starts_TSGM = state.layer, state.parents_BKGM
        T, self._starts = starts_TSGM.shape[:2]
        P, (G, M) = strategy.population, layer.groups
        self._candidates_TPGM = torch.empty(T, P, G, M)
        self._candidates_TPGM[:, : self._starts] = starts_TSGM
        self._forms_TP2 = torch.tensor([1.0, 0.0]).repeat(T, P, 1)
        self._deviations_TPG = torch.empty(T, P, G)
        self._fitness_TP = torch.empty(T, P)
        self._places_TP = torch.arange(P).repeat(T, 1)
        self._noise, self._keys = state.noise.steps.numpy(), state.keys_B.numpy()

    def generation(self, number: int) -> Told:
        """See `TileSearch`."""
        from searcher.compiled import loops

        strategy, position = self._strategy, self._state.layer.position
        P, alpha = strategy.population, strategy.strength[position] * strategy.strength_decay**number
        factor_T = self._state.factor_B if self._state.factor_B is not None else torch.ones(len(self._places_TP))
        strengths_T2 = factor_T[:, None] * torch.tensor([alpha * strategy.boost[position], alpha])
        kept, counts = strategy.parents, (strategy.explorers, strategy.refiners)
        if number == 0:
            kept, counts = self._starts, (P - self._starts, 0)
            loops.measure_tile(self._candidates_TPGM[:, :kept].numpy(), self._deviations_TPG[:, :kept].numpy())
        count, unit = P if number == 0 else P - kept, self._state.layer.kind == "block"
        tile = (self._places_TP, self._candidates_TPGM, self._forms_TP2, self._deviations_TPG)
        absolute = strategy.step_size == "absolute"
        numbers = (self._noise, kept, counts, strengths_T2.numpy(), absolute, unit, number, self._evaluation.last, self._keys)
        loops.breed_tile(*numbers, *(part.numpy() for part in tile), self._evaluation.room(count))
        logits_TEK = self._evaluation.logits(count)
        better_T = torch.zeros(len(self._places_TP), dtype=torch.int64)
        ranked = (self._fitness_TP.numpy(), self._places_TP.numpy(), better_T.numpy())
        loops.select_tile(logits_TEK, self._evaluation.labels, strategy.parents, *ranked)
        if number and self._state.factor_B is not None:
            self._state = replace(self._state, factor_B=adapted(self._state.factor_B, better_T / count))
        self._state = replace(self._state, generation=number + 1)
        return Told(self._fitness_TP, count, self._fitness_TP.gather(1, self._places_TP[:, :1]))

    def best(self) -> Best:
        """See `TileSearch`."""
        places_TK = self._places_TP[:, : self._strategy.parents]
        rows_T1 = torch.arange(len(places_TK))[:, None]
        forms_TK2 = self._forms_TP2[rows_T1, places_TK]
        parents_TKGM = self._candidates_TPGM[rows_T1, places_TK] * forms_TK2[..., 0, None, None] + forms_TK2[..., 1, None, None]
        state = replace(self._state, parents_BKGM=parents_TKGM, fitness_BK=self._fitness_TP.gather(1, places_TK))
        return self._strategy.best(state)


class TilePairs:
    """The evolution strategy, as `EvolutionStrategy` states it."""

    def __init__(self, strategy: EvolutionStrategy, evaluation: Evaluation, state: MeanState) -> None:
        self._strategy, self._evaluation = strategy, evaluation
        layer = state.layer
        # Written in place from here on.
        means = {name: getattr(state, name).clone(memory_format=torch.contiguous_format) for name in ("mean_B1GM", "velocity_B1GM")}
        self._state = replace(state, **means)
        rows = direction_rows(layer, strategy.noise, passes=strategy.blur_passes[layer.position], rows=strategy.noise_rows)
        self._rows_RM, self._step, self._draws = rows.values_RM.numpy(), rows.step, rows.draws
        self._length_T = state.length_B1.flatten()

    def generation(self, number: int) -> Told:
        """See `TileSearch`."""
        from searcher.compiled import loops, pair_loops

        strategy, state, position = self._strategy, self._state, self._state.layer.position
        moves = number < strategy.generations[position]
        pairs = strategy.pairs_at(position)
        count = 1 + 2 * pairs if moves else 1
        room, unit = self._evaluation.room(count), state.layer.kind == "block"
        rows_TI = offsets(state.keys_B, number, pairs) % self._draws if moves else torch.empty(len(room), 0, dtype=torch.int64)
        sigma_T = self._length_T * (strategy.sigma[position] * self._step)
        mean_TGM = state.mean_B1GM[:, 0]
        pair_loops.spread_pairs(self._rows_RM, rows_TI.numpy(), mean_TGM.numpy(), sigma_T.numpy(), unit, self._evaluation.last, room)
        fitness_TP = torch.empty(room.shape[:2])
        loops.measure_logits(self._evaluation.logits(count), self._evaluation.labels, fitness_TP.numpy())
        if strategy.target == "best":
            groups = state.layer.groups
            candidates_TPGM = self._evaluation.candidates(count).reshape(*room.shape[:2], *groups)
            found = better(state.found_B1GM, state.fitness_B1, candidates_TPGM, fitness_TP)
        else:
            found = state.mean_B1GM.clone(), fitness_TP[:, :1]
        factor_B = strategy.factor(state, fitness_TP[:, 0])
        highest_B = state.highest_B.maximum(fitness_TP[:, 0])
        self._state = replace(
            state, generation=number + 1, found_B1GM=found[0], fitness_B1=found[1], factor_B=factor_B, highest_B=highest_B
        )
        if moves:
            length_T = self._length_T * strategy.step[position]
            if factor_B is not None:
                length_T = length_T * factor_B
            pair_loops.move_means(
                self._rows_RM,
                rows_TI.numpy(),
                fitness_TP.numpy(),
                np.float32(strategy.momentum),
                length_T.numpy(),
                unit,
                state.velocity_B1GM[:, 0].numpy(),
                mean_TGM.numpy(),
            )
        return Told(fitness_TP, count, self._state.fitness_B1)

    def best(self) -> Best:
        """See `TileSearch`."""
        return self._strategy.best(self._state)


def tiled(strategy: SearchStrategy[Any], layer: SearchLayer) -> bool:
    """Return whether there are loops for a strategy at a layer: a CPU, no images that stop early, no smoothing of whole candidates."""
    if layer.device.type != "cpu" or strategy.traits.stops:
        return False
    # A subclass may propose or select in its own way.
    if type(strategy) is Evolution:
        return not (strategy.blur == "candidate" and layer.is_map and strategy.blur_passes[layer.position])
    return type(strategy) is EvolutionStrategy and (strategy.noise != "channel" or not layer.is_map)


def tile_search(
    strategy: SearchStrategy[Any],
    network: SearchableNetwork,
    number: int,
    layer: SearchLayer,
    starts_TSGM: Tensor,
    labels_T: Tensor,
    keys_T: Tensor,
    precision: Precision = "float32",
) -> TileSearch:
    """Return the search of layer `number` of `network`, from `evaluation_network`, for a tile; only where it is `tiled`."""
    state = strategy.init(starts_TSGM, layer=layer, labels_B=labels_T, keys_B=keys_T)
    evaluation = Evaluation(network, number, layer, labels_T, precision)
    if isinstance(strategy, Evolution):
        return TileEvolution(strategy, evaluation, state)
    assert isinstance(strategy, EvolutionStrategy)
    return TilePairs(strategy, evaluation, state)
