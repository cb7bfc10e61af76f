"""The search loop: representations of a range of training examples, layer after layer.

Everything before the searched layer is frozen at its best, everything after it is a forward pass, and fitness is the negative
cross-entropy of the logits. Examples are computed in tiles of fixed size, aligned to example indices (`searcher.plan`); one layer of a
group of tiles is searched by `searcher.layer_search`.

Shapes: W tiles of a group; T examples of a tile; N examples; R results per example; X a representation's own shape; L search layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from repsearch.datasets.base import Split
from repsearch.networks.base import SearchableNetwork
from searcher.evaluating import evaluate
from searcher.evaluation_network import evaluation_network
from searcher.layer_search import LayerResult, search_layer
from searcher.normal import standard_normal
from searcher.plan import Group, SearchPlan, check_labels, groups_of
from searcher.starting import first_candidates, input_noise, next_candidates

__all__ = ["SearchPlan", "SearchProgress", "SearchResult", "evaluate", "input_noise", "search_examples", "standard_normal"]

SOLVED = math.log(0.5)
"""An example is solved at a layer if the fitness of its result, log p(correct), exceeds this."""


@dataclass(frozen=True, kw_only=True)
class SearchProgress:
    """How far a search is: examples done, and of those per search layer the curves and the share solved; see `SearchResult`."""

    done: int
    curves: list[list[float]]
    solved: list[float]
    evaluations: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Targets and fitness of N examples; where R > 1 results per example are searched, arrays have an axis of R after that of N.

    targets: per search layer, float32 (N, ...), on the CPU.
    before_NL, after_NL: fitness after the initial population and at the end, per search layer.
    curves: per search layer, mean cross-entropy over examples and results, after the initial population and after each generation.
    solved: per search layer, the share of examples and results with p(correct) > 0.5.
    evaluations: candidate evaluations in all. seconds: time of the loop.
    """

    targets: list[Tensor]
    before_NL: Tensor
    after_NL: Tensor
    curves: list[list[float]]
    solved: list[float]
    evaluations: int
    seconds: float


@torch.no_grad()
def search_examples(
    plan: SearchPlan,
    network: SearchableNetwork,
    split: Split,
    *,
    first: int,
    count: int,
    device: torch.device,
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
) -> SearchResult:
    """Return the searched representations of training examples first .. first + count - 1 of `split`.

    `on_progress` is called after each group of tiles; it may raise to stop the search. Raises `NumericalError` naming image, layer and
    generation if a fitness is not finite, `DatasetError` for a label that the network has no class for.
    """
    begin = time.monotonic()
    check_labels(split.labels[first : first + count], network.classes, first=first)
    searched = evaluation_network(network).to(device)
    tally = Tally(len(plan.layers))
    for group in groups_of(plan, split, first=first, count=count, device=device):
        tally.add(search_group(plan, searched, group), group.real_WT)
        on_progress(tally.progress(time.monotonic() - begin))
    return tally.result(plan.searches, time.monotonic() - begin)


def search_group(plan: SearchPlan, network: SearchableNetwork, group: Group) -> list[LayerResult]:
    """Return the results of every search layer for one group; `network` comes from `evaluation_network`."""
    searches = 1 if plan.strategy.traits.several else plan.searches
    return _beside([_search_layers(plan, network, group, replicate) for replicate in range(searches)])


def _search_layers(plan: SearchPlan, network: SearchableNetwork, group: Group, replicate: int) -> list[LayerResult]:
    results: list[LayerResult] = []
    for position, layer in enumerate(plan.layers):
        if results:
            starts = [next_candidates(network, plan.layers[position - 1], layer, seeds_TSX) for seeds_TSX in results[-1].seeds_WTSX]
        else:
            tiles = zip(group.images_WTCHW, group.index_WT, strict=True)
            starts = [first_candidates(plan, network, images, index, replicate=replicate) for images, index in tiles]
        results.append(search_layer(plan, network, position, torch.stack(starts), group, replicate=replicate))
    return results


def _beside(searches: list[list[LayerResult]]) -> list[LayerResult]:
    """Return the results of independent searches of the same examples as one, side by side along R."""
    if len(searches) == 1:
        return searches[0]
    return [
        LayerResult(
            torch.cat([result.targets_WTRX for result in results], dim=2),
            torch.cat([result.seeds_WTSX for result in results], dim=2),
            [torch.cat(values, dim=2) for values in zip(*(result.fitness for result in results), strict=True)],
            sum(result.evaluations for result in results),
        )
        for results in zip(*searches, strict=True)
    ]


class Tally:
    """Results of the groups so far, on the CPU, and their sums."""

    def __init__(self, layers: int) -> None:
        self._targets: list[list[Tensor]] = [[] for _ in range(layers)]
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._solved = torch.zeros(layers, dtype=torch.int64)
        self._done = self._results = self._evaluations = 0

    def add(self, results: list[LayerResult], real_WT: Tensor) -> None:
        """Take the results of a group, less its padding."""
        fitness = [[values[real_WT].cpu() for values in result.fitness] for result in results]
        for kept, result in zip(self._targets, results, strict=True):
            kept.append(result.targets_WTRX[real_WT].cpu())
        self._before.append(torch.stack([values[0] for values in fitness], dim=-1))
        self._after.append(torch.stack([values[-1] for values in fitness], dim=-1))
        sums = [torch.stack([values.double().sum() for values in layer]) for layer in fitness]
        self._sums = [total + more for total, more in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._solved += (self._after[-1] > SOLVED).flatten(0, -2).sum(dim=0)
        self._done += len(self._after[-1])
        self._results += self._after[-1][..., 0].numel()
        self._evaluations += sum(result.evaluations for result in results)

    def progress(self, seconds: float) -> SearchProgress:
        """Return where the search is."""
        return SearchProgress(
            done=self._done,
            curves=[(-total / self._results).tolist() for total in self._sums],
            solved=(self._solved / self._results).tolist(),
            evaluations=self._evaluations,
            seconds=seconds,
        )

    def result(self, searches: int, seconds: float) -> SearchResult:
        """Return everything; without the axis of results if there is one result per example."""
        arrays = [torch.cat(parts) for parts in (*self._targets, self._before, self._after)]
        *targets, before, after = [array.squeeze(1) if searches == 1 else array for array in arrays]
        now = self.progress(seconds)
        return SearchResult(
            targets=targets,
            before_NL=before,
            after_NL=after,
            curves=now.curves,
            solved=now.solved,
            evaluations=now.evaluations,
            seconds=seconds,
        )
