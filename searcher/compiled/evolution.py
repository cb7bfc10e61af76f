"""Evolution by `searcher.compiled.loops`: arguments laid out here, images shared out among threads.

Numba is imported when a search is first compiled: the package imports without it.
Shapes: T images; S starting candidates, K parents; G x M a representation; N generations, the initial population included.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from repsearch.networks.base import SearchableNetwork
from searcher.compiled.part import Part, part_above
from searcher.strategies.base import SearchLayer, SearchStrategy
from searcher.strategies.evolution import Evolution, EvolutionState

_VALUES_AT_A_TIME = 1_000_000_000  # of candidates, per thread: a second or two between two reports
_parts: WeakKeyDictionary[SearchableNetwork, dict[int, Part | None]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Evolved:
    """state: after the last generation. history_TN: best fitness after each. lived_T: generations an image was searched, the initial
    population included; fewer than N where it passed the strategy's bound, or had a fitness that is not finite (nan in its history)."""

    state: EvolutionState
    history_TN: Tensor
    lived_T: Tensor

    def evaluations(self, strategy: Evolution) -> int:
        """Return the candidates evaluated."""
        children = strategy.explorers + strategy.refiners
        return int(len(self.lived_T) * strategy.population + (self.lived_T - 1).sum() * children)


@dataclass(frozen=True)
class CompiledSearch:
    """Evolution of one layer of one network."""

    strategy: Evolution
    layer: SearchLayer
    part: Part

    def run(self, starts_TSGM: Tensor, labels_T: Tensor, keys_T: Tensor, on_images: Callable[[int], None]) -> Evolved:
        """Return what evolution finds from `starts_TSGM`; an image's result depends on its own rows alone.

        `on_images` is told the number of images done, at least every few seconds; it may raise to stop the search.
        """
        strategy, position = self.strategy, self.layer.position
        first = strategy.init(starts_TSGM, layer=self.layer, labels_B=labels_T, keys_B=keys_T)
        T, K, N = len(labels_T), strategy.parents, strategy.generations_at(position) + 1
        parents_TKGM = starts_TSGM.new_empty(T, K, *starts_TSGM.shape[2:])
        fitness_TK, history_TN = starts_TSGM.new_empty(T, K), starts_TSGM.new_empty(T, N)
        lived_T = torch.zeros(T, dtype=torch.int64)
        rows = (first.parents_BKGM.contiguous(), labels_T, keys_T, parents_TKGM, fitness_TK, history_TN, lived_T)
        fixed = (first.noise.steps.numpy(), self.part.arguments, *self._numbers(N))

        def some(part: slice) -> None:
            from searcher.compiled import loops

            loops.evolve(*fixed, *(values[part].numpy() for values in rows))

        values = strategy.evaluations(position) * self.layer.groups[0] * self.layer.groups[1]
        together = torch.get_num_threads() * max(1, _VALUES_AT_A_TIME // values)
        for done in range(0, T, together):
            _share_out(some, done, min(done + together, T))
            on_images(min(done + together, T))
        state = EvolutionState(
            layer=self.layer, noise=first.noise, keys_B=keys_T, generation=N, parents_BKGM=parents_TKGM, fitness_BK=fitness_TK
        )
        return Evolved(state, history_TN, lived_T)

    def _numbers(self, generations: int) -> tuple[Any, ...]:
        """Return counts of children, strengths, boost, whether to normalise, and the fitness at which an image is done."""
        strategy, position = self.strategy, self.layer.position
        strengths = strategy.strength[position] * strategy.strength_decay ** np.arange(generations)
        bound = math.inf if strategy.stop_probability is None else math.log(strategy.stop_probability)
        unit = self.layer.kind == "block"
        return (
            (strategy.explorers, strategy.refiners),
            strengths.astype(np.float32),
            np.float32(strategy.boost[position]),
            unit,
            np.float32(bound),
        )


def compiled_search(strategy: SearchStrategy[Any], network: SearchableNetwork, number: int, layer: SearchLayer) -> CompiledSearch | None:
    """Return the compiled search of layer `number` of a network from `evaluation_network`; None where tensors have to do it.

    It takes a CPU, evolution that smooths no whole candidates, and a part above the layer that `part_above` has numbers for.
    """
    # A subclass may propose or select in its own way.
    if layer.device.type != "cpu" or type(strategy) is not Evolution:
        return None
    if strategy.step_size != "relative":
        return None
    if strategy.blur == "candidate" and layer.is_map and strategy.blur_passes[layer.position]:
        return None
    known = _parts.setdefault(network, {})
    if number not in known:
        known[number] = part_above(network, number)
    part = known[number]
    return None if part is None else CompiledSearch(strategy, layer, part)


def _share_out(work: Callable[[slice], None], first: int, end: int) -> None:
    """Run `work` on equal parts of images first .. end - 1, as many as torch has threads."""
    threads = min(torch.get_num_threads(), end - first)
    if threads <= 1:
        work(slice(first, end))
        return
    edges = np.linspace(first, end, threads + 1).astype(int).tolist()
    own, *others = [slice(*pair) for pair in itertools.pairwise(edges)]
    waiting = [_pool(threads - 1).submit(work, part) for part in others]
    work(own)
    for part in waiting:
        part.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="search")
