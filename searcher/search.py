"""The search loop: representations of a range of training examples, layer after layer.

Everything before the searched layer is frozen at its best, everything after it is a forward pass, and fitness is the negative
cross-entropy of the logits. Examples are computed in tiles of fixed size, aligned to example indices (`searcher.plan`); one layer of a
group of tiles is searched by `searcher.layer_search`.

Shapes: W tiles of a group; T examples of a tile; N examples; R results per example; X a representation's own shape; L search layers.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from repsearch.datasets.base import Split
from repsearch.datasets.splitting import check_labels
from repsearch.networks.base import SearchableNetwork, layer_name
from repsearch.networks.building import calibrate
from searcher.archive import Archive
from searcher.evaluating import evaluate
from searcher.evaluation_network import evaluation_network
from searcher.layer_search import LayerResult, search_layer
from searcher.normal import standard_normal
from searcher.plan import Group, SearchPlan, groups_of
from searcher.starting import input_noise, next_candidates, own_candidates

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
class Position:
    """Where the search of a group is: `generation` of `generations` of search layer number `layer`, counted by its place in the plan.

    examples: examples of the group times the share of its generations that are over.
    """

    layer: int
    generation: int
    generations: int
    examples: float


@dataclass(frozen=True)
class Piece:
    """Results of the next examples of a range; arrays as in `SearchResult`."""

    targets: list[Tensor]
    before_NL: Tensor
    after_NL: Tensor
    elites: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Targets and fitness of N examples; where R > 1 results per example are searched, arrays have an axis of R after that of N.

    targets: per search layer, float32 (N, ...), on the CPU.
    before_NL, after_NL: fitness after the initial population and at the end, per search layer.
    curves: per search layer, mean cross-entropy over examples and results, after the initial population and after each generation.
    solved: per search layer, the share of examples and results with p(correct) > 0.5.
    evaluations: candidate evaluations in all. seconds: time of the loop.
    elites: per search layer, float32 (N, K, ...), fittest first; empty if the plan has no archive.
    """

    targets: list[Tensor]
    before_NL: Tensor
    after_NL: Tensor
    curves: list[list[float]]
    solved: list[float]
    evaluations: int
    seconds: float
    elites: list[Tensor]


def search_examples(
    plan: SearchPlan,
    network: SearchableNetwork,
    split: Split,
    *,
    first: int,
    count: int,
    device: torch.device,
    archive: Archive | None = None,
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
) -> SearchResult:
    """Return the searched representations of training examples first .. first + count - 1 of `split`; see `search_pieces`."""
    pieces: list[Piece] = []
    end = search_pieces(
        plan, network, split, first=first, count=count, device=device, archive=archive, take=pieces.append, on_progress=on_progress
    )
    return SearchResult(
        targets=[torch.cat(parts) for parts in zip(*(piece.targets for piece in pieces), strict=True)],
        before_NL=torch.cat([piece.before_NL for piece in pieces]),
        after_NL=torch.cat([piece.after_NL for piece in pieces]),
        curves=end.curves,
        solved=end.solved,
        evaluations=end.evaluations,
        seconds=end.seconds,
        elites=[torch.cat(parts) for parts in zip(*(piece.elites for piece in pieces), strict=True)],
    )


@torch.no_grad()
def search_pieces(
    plan: SearchPlan,
    network: SearchableNetwork,
    split: Split,
    *,
    first: int,
    count: int,
    device: torch.device,
    take: Callable[[Piece], None],
    archive: Archive | None = None,
    on_progress: Callable[[SearchProgress], None] = lambda progress: None,
    on_position: Callable[[Position], None] = lambda position: None,
) -> SearchProgress:
    """Search training examples first .. first + count - 1 of `split`, give `take` their results in order, and return the end.

    `archive`: elites of these examples that are to be among the starting candidates.
    `on_progress` is called after each group of tiles, `on_position` after each generation of one; each may raise to stop the search.
    Raises `NumericalError` naming image, layer and generation if a fitness is not finite, `DatasetError` for a label that the network
    has no class for.
    """
    begin = time.monotonic()
    check_labels(split.labels[first : first + count], network.classes, where="training image", first=first)
    searched = _prepared(plan, network, split, device)
    tally = Tally(len(plan.layers))
    for group in groups_of(plan, split, first=first, count=count, device=device):
        take(tally.add(search_group(plan, searched, group, on_position, archive), group.real_WT))
        on_progress(tally.progress(time.monotonic() - begin))
    return tally.progress(time.monotonic() - begin)


def _prepared(plan: SearchPlan, network: SearchableNetwork, split: Split, device: torch.device) -> SearchableNetwork:
    """Return the copy of `network` that is searched, on the device."""
    if plan.calibration is None:
        return evaluation_network(network).to(device)
    first, count = plan.calibration.first, plan.calibration.count
    calibrated = copy.deepcopy(network).to(device)
    calibrate(calibrated, split.images[first : first + count].to(device))
    return evaluation_network(calibrated)


def search_group(
    plan: SearchPlan,
    network: SearchableNetwork,
    group: Group,
    on_position: Callable[[Position], None] = lambda position: None,
    archive: Archive | None = None,
) -> list[LayerResult]:
    """Return the results of every search layer for one group; `network` comes from `evaluation_network`."""
    searches = 1 if plan.strategy.traits.several else plan.searches
    steps = Steps(plan, searches, int(group.real_WT.sum()), on_position)
    return _beside([_search_layers(plan, network, group, replicate, steps, archive) for replicate in range(searches)])


class Steps:
    """Counts the generations of the independent `searches` of a group of `examples`."""

    def __init__(self, plan: SearchPlan, searches: int, examples: int, tell: Callable[[Position], None]) -> None:
        self._generations = [plan.strategy.generations_at(position) for position in range(len(plan.layers))]
        self._share = examples / (searches * sum(generations + 1 for generations in self._generations))
        self._tell = tell
        self._done = 0

    def of_layer(self, layer: int) -> Callable[[int], None]:
        """Return what to call after each generation of search layer number `layer`."""

        def over(generation: int) -> None:
            self._done += 1
            generations = self._generations[layer]
            self._tell(Position(layer=layer, generation=generation, generations=generations, examples=self._done * self._share))

        return over


def _search_layers(
    plan: SearchPlan, network: SearchableNetwork, group: Group, replicate: int, steps: Steps, archive: Archive | None
) -> list[LayerResult]:
    results: list[LayerResult] = []
    tiles = zip(group.images_WTCHW, group.index_WT, strict=True)
    own = [own_candidates(plan, network, images, index, replicate=replicate) for images, index in tiles]
    for position, layer in enumerate(plan.layers):
        if results and plan.chained:
            starts = [next_candidates(network, plan.layers[position - 1], layer, seeds_TSX) for seeds_TSX in results[-1].seeds_WTSX]
        else:
            starts = [next(candidates) for candidates in own]
            if plan.chained:
                # They hold what they have computed for layers that are not asked for.
                own.clear()
        starts_WTSX = torch.stack(starts)
        if archive is not None:
            name = layer_name(layer, network.logits_layer)
            starts_WTSX = archive.starts(plan, network, position, name, starts_WTSX, group, replicate)
        over = steps.of_layer(position)
        results.append(search_layer(plan, network, position, starts_WTSX, group, replicate=replicate, on_generation=over))
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
            torch.cat(elites, dim=2) if (elites := [r.elites_WTRKX for r in results if r.elites_WTRKX is not None]) else None,
        )
        for results in zip(*searches, strict=True)
    ]


class Tally:
    """Sums of the results of the groups so far."""

    def __init__(self, layers: int) -> None:
        self._sums: list[Tensor] = []
        self._solved = torch.zeros(layers, dtype=torch.int64)
        self._done = self._results = self._evaluations = 0

    def add(self, results: list[LayerResult], real_WT: Tensor) -> Piece:
        """Count the results of a group and return them, less its padding, on the CPU."""
        fitness = [[values[real_WT].cpu() for values in result.fitness] for result in results]
        targets = [result.targets_WTRX[real_WT].cpu() for result in results]
        elites = [result.elites_WTRKX[real_WT].cpu() for result in results if result.elites_WTRKX is not None]
        before_NRL = torch.stack([values[0] for values in fitness], dim=-1)
        after_NRL = torch.stack([values[-1] for values in fitness], dim=-1)
        sums = [torch.stack([values.double().sum() for values in layer]) for layer in fitness]
        self._sums = [total + more for total, more in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._solved += (after_NRL > SOLVED).flatten(0, -2).sum(dim=0)
        self._done += len(after_NRL)
        self._results += after_NRL[..., 0].numel()
        self._evaluations += sum(result.evaluations for result in results)
        if after_NRL.shape[1] > 1:
            return Piece(targets, before_NRL, after_NRL, elites)
        # One result per example needs no axis of results.
        targets, elites = ([values.squeeze(1) for values in arrays] for arrays in (targets, elites))
        return Piece(targets, before_NRL.squeeze(1), after_NRL.squeeze(1), elites)

    def progress(self, seconds: float) -> SearchProgress:
        """Return where the search is."""
        return SearchProgress(
            done=self._done,
            curves=[(-total / self._results).tolist() for total in self._sums],
            solved=(self._solved / self._results).tolist(),
            evaluations=self._evaluations,
            seconds=seconds,
        )
