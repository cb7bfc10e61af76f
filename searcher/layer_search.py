"""The search of one layer for a group of tiles: ask, evaluate, tell, until the schedule or every image is done.

Where `searcher.compiled` has loops for strategy and network, they do all of that; the tensor operations here are their reference.

Where a strategy lets images stop early, those still going on are packed together: an image keeps its row of the tile and moves to
another tile only, so that the shapes of all matrix products, and an image's place in them, stay what they are without packing, and so
do its bits. Of a group of tiles as many remain as the row with the most images left needs.

Shapes: W tiles of a group; T rows of a tile; P candidates; R results; S seeds; X a representation's own shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repsearch.networks.base import SearchableNetwork, layer_name
from repsearch.seeding import seed_of
from searcher.compiled import CompiledSearch, compiled_search
from searcher.compiled.tiles import tile_search, tiled
from searcher.evaluating import evaluate, evaluate_with_gradient, require_finite
from searcher.plan import Group, SearchPlan
from searcher.remaking import coded_targets, mixed_targets
from searcher.strategies.base import Best, SearchLayer


@dataclass(frozen=True)
class LayerResult:
    """targets_WTRX: results. seeds_WTSX: what the next layer starts from. fitness: of the results (W, T, R), after the initial
    population and every generation. evaluations: candidates evaluated for examples that were still going on, padding not counted.
    elites_WTRKX: of each result's last population, if the plan has an archive."""

    targets_WTRX: Tensor
    seeds_WTSX: Tensor
    fitness: list[Tensor]
    evaluations: int
    elites_WTRKX: Tensor | None = None


@dataclass(frozen=True)
class Pack:
    """A tile as it is computed: the strategy's state, and the tile of the group that each row belongs to, W for a row of no one.

    active: rows that belong to someone.
    """

    state: Any
    source_T: Tensor
    active: int


class Found:
    """Results of a group, filled in as images finish; the last tile takes the rows of no one."""

    def __init__(self, tiles: int, best: Best, archive: int) -> None:
        self._tiles = tiles
        elites_BKGM = _elites(best, archive)
        self.elites = None if elites_BKGM is None else elites_BKGM.new_zeros(tiles + 1, *elites_BKGM.shape)
        self.targets, self.fitness, self.seeds = (
            value.new_zeros(tiles + 1, *value.shape) for value in (best.targets_BRGM, best.fitness_BR, best.seeds_BSGM)
        )

    def note(self, pack: Pack, best: Best, slot_T: Tensor, *, last: bool) -> Pack:
        """Take the fitness of every row, and the results of the rows that are done; return the pack without those."""
        self.fitness[pack.source_T, slot_T] = best.fitness_BR
        if not last and best.finished_B is None:
            return pack
        done_T = pack.source_T if last else torch.where(_finished(best), pack.source_T, self._tiles)
        self.targets[done_T, slot_T] = best.targets_BRGM
        self.seeds[done_T, slot_T] = best.seeds_BSGM
        if self.elites is not None:
            assert best.elites_BKGM is not None
            self.elites[done_T, slot_T] = best.elites_BKGM[:, : self.elites.shape[2]]
        left_T = torch.where(_finished(best), self._tiles, pack.source_T) if not last else pack.source_T
        return replace(pack, source_T=left_T, active=pack.active if last else int((left_T < self._tiles).sum()))


def search_layer(
    plan: SearchPlan,
    network: SearchableNetwork,
    position: int,
    starts_WTSX: Tensor,
    group: Group,
    *,
    replicate: int = 0,
    on_generation: Callable[[int], None] = lambda generation: None,
) -> LayerResult:
    """Return the results of one layer; raises `NumericalError` naming image, layer and generation if a fitness is not finite.

    `on_generation` is called after the initial population, 0, and every generation; it may raise to stop the search. Compiled loops
    search image after image, and call it as often, for the share of the images that are done.
    """
    strategy, number = plan.strategy, plan.layers[position]
    layer = layer_of(plan, network, position, starts_WTSX.device)
    whole = plan.compiled and plan.precision == "float32"
    compiled = compiled_search(strategy, network, number, layer) if whole else None
    if compiled is not None:
        name = layer_name(number, network.logits_layer)
        result = _by_loops(compiled, plan, starts_WTSX, group, replicate, name, on_generation)
    elif plan.compiled and tiled(strategy, layer):
        result = _by_tiles(plan, network, layer, starts_WTSX, group, replicate, on_generation)
    else:
        result = _by_tensors(plan, network, layer, starts_WTSX, group, replicate, on_generation)
    remakes = plan.mix is not None or plan.code is not None
    if remakes:
        result = _remade(plan, network, layer, starts_WTSX[:, :, 0], group, result)
    if remakes or not strategy.traits.measured:
        tiles = zip(result.targets_WTRX, group.labels_WT, strict=True)
        result.fitness[-1] = torch.stack([evaluate(network, number, found, labels, plan.precision) for found, labels in tiles])
        result = replace(result, evaluations=result.evaluations + int(group.real_WT.sum()) * result.targets_WTRX.shape[2])
    if plan.mix is not None and plan.mix.relative and layer.kind == "block":
        result = replace(result, targets_WTRX=result.targets_WTRX - starts_WTSX[:, :, :1])
    return result if strategy.traits.chooses else replace(result, evaluations=0)


def _remade(
    plan: SearchPlan, network: SearchableNetwork, layer: SearchLayer, own_WTX: Tensor, group: Group, found: LayerResult
) -> LayerResult:
    """Return what was found with its targets, and the first of the seeds, mixed as the plan says."""
    targets_WTRX = found.targets_WTRX
    if plan.mix is not None:
        targets_WTRX = mixed_targets(plan.mix, network, plan.layers[layer.position], own_WTX, targets_WTRX)
    if plan.code is not None and layer.kind == "block":
        keys_WT = torch.stack([plan.example_keys(index_T) for index_T in group.index_WT])
        targets_WTRX = coded_targets(plan.code, layer, group.labels_WT, keys_WT, targets_WTRX)
    # The layer is frozen at its result, which therefore is the first seed.
    seeds_WTSX = torch.cat([targets_WTRX[:, :, :1], found.seeds_WTSX[:, :, 1:]], dim=2)
    return replace(found, targets_WTRX=targets_WTRX, seeds_WTSX=seeds_WTSX)


def _by_loops(
    compiled: CompiledSearch,
    plan: SearchPlan,
    starts_WTSX: Tensor,
    group: Group,
    replicate: int,
    name: str,
    on_generation: Callable[[int], None],
) -> LayerResult:
    """Search the images of a group by compiled loops; the rows of padding stay zero."""
    layer, real_WT = compiled.layer, group.real_WT
    whole = bool(real_WT.all())

    def rows(values_WT: Tensor) -> Tensor:
        # Of whole tiles a view: starting populations are large.
        return values_WT.flatten(0, 1) if whole else values_WT[real_WT]

    index_T = rows(group.index_WT)
    keys_T = plan.search_keys(index_T, replicate, layer.position)
    starts_TSGM = rows(starts_WTSX).reshape(len(index_T), starts_WTSX.shape[2], *layer.groups)
    generations = compiled.strategy.generations_at(layer.position) + 1
    told = 0

    def over(images: int) -> None:
        nonlocal told
        while told < generations * images // len(index_T):
            on_generation(told)
            told += 1

    found = compiled.run(starts_TSGM, rows(group.labels_WT), keys_T, over)
    if not bool(torch.isfinite(found.history_TN).all()):
        for generation, fitness_T in enumerate(found.history_TN.T):
            require_finite(fitness_T[:, None], index_T, torch.ones_like(index_T, dtype=torch.bool), name, generation)
    best = compiled.strategy.best(found.state)

    def placed(values_T: Tensor) -> Tensor:
        if whole:
            return values_T.view(*real_WT.shape, *values_T.shape[1:])
        result_WT = values_T.new_zeros(*real_WT.shape, *values_T.shape[1:])
        result_WT[real_WT] = values_T
        return result_WT

    return LayerResult(
        targets_WTRX=placed(best.targets_BRGM.reshape(*best.targets_BRGM.shape[:2], *layer.shape)),
        seeds_WTSX=placed(best.seeds_BSGM.reshape(*best.seeds_BSGM.shape[:2], *layer.shape)),
        fitness=list(placed(found.history_TN[:, None]).unbind(dim=-1)),
        evaluations=found.evaluations(compiled.strategy),
        elites_WTRKX=_shaped(placed(elites_BKGM), layer) if (elites_BKGM := _elites(best, plan.archive)) is not None else None,
    )


def _by_tiles(
    plan: SearchPlan,
    network: SearchableNetwork,
    layer: SearchLayer,
    starts_WTSX: Tensor,
    group: Group,
    replicate: int,
    on_generation: Callable[[int], None],
) -> LayerResult:
    """Search a group tile after tile, with loops between forward passes of fixed shape."""
    strategy, number = plan.strategy, plan.layers[layer.position]
    T, S = starts_WTSX.shape[1:3]
    name = layer_name(number, network.logits_layer)
    targets, seeds, elites, histories, evaluations = [], [], [], [], 0
    for tile, index_T in enumerate(group.index_WT):
        starts_TSGM = starts_WTSX[tile].reshape(T, S, *layer.groups)
        keys_T = plan.search_keys(index_T, replicate, layer.position)
        search = tile_search(strategy, network, number, layer, starts_TSGM, group.labels_WT[tile], keys_T, plan.precision)
        history = []
        for generation in range(strategy.generations_at(layer.position) + 1):
            told = search.generation(generation)
            require_finite(told.fitness_TP, index_T, group.real_WT[tile], name, generation)
            evaluations += int(group.real_WT[tile].sum()) * told.evaluated
            history.append(told.best_TR)
            on_generation(generation)
        best = search.best()
        targets.append(best.targets_BRGM.reshape(T, -1, *layer.shape))
        seeds.append(best.seeds_BSGM.reshape(T, -1, *layer.shape))
        elites.append(_elites(best, plan.archive))
        histories.append(torch.stack(history))
    kept = [elites_BKGM for elites_BKGM in elites if elites_BKGM is not None]
    return LayerResult(
        torch.stack(targets),
        torch.stack(seeds),
        list(torch.stack(histories, dim=1)),
        evaluations,
        _shaped(torch.stack(kept), layer) if kept else None,
    )


def _by_tensors(
    plan: SearchPlan,
    network: SearchableNetwork,
    layer: SearchLayer,
    starts_WTSX: Tensor,
    group: Group,
    replicate: int,
    on_generation: Callable[[int], None],
) -> LayerResult:
    """Search a group by a strategy's `ask` and `tell`, tile after tile."""
    strategy, number = plan.strategy, plan.layers[layer.position]
    W, T = group.index_WT.shape
    slot_T = torch.arange(T, device=layer.device)
    packs = _packs(plan, layer, starts_WTSX, group, replicate)
    found: Found | None = None
    history: list[Tensor] = []
    evaluations = 0
    last = strategy.generations_at(layer.position)
    for generation in range(last + 1):
        for place, pack in enumerate(packs):
            candidates_TPGM = strategy.ask(pack.state)
            tile_T = pack.source_T.clamp_max(W - 1)
            labels_T = group.labels_WT[tile_T, slot_T]
            candidates_TPX = candidates_TPGM.view(T, -1, *layer.shape)
            gradient_TPGM = None
            if strategy.traits.needs_gradient:
                fitness_TP, gradient = evaluate_with_gradient(network, number, candidates_TPX, labels_T, plan.precision)
                gradient_TPGM = gradient.view_as(candidates_TPGM)
            else:
                fitness_TP = evaluate(network, number, candidates_TPX, labels_T, plan.precision)
            name = layer_name(number, network.logits_layer)
            require_finite(fitness_TP, group.index_WT[tile_T, slot_T], pack.source_T < W, name, generation)
            state = strategy.tell(pack.state, candidates_TPGM, fitness_TP, gradient_TPGM)
            evaluations += pack.active * fitness_TP.shape[1]
            best = strategy.best(state)
            found = found or Found(W, best, plan.archive)
            packs[place] = found.note(replace(pack, state=state), best, slot_T, last=generation == last)
        assert found is not None
        history.append(found.fitness[:W].clone())
        on_generation(generation)
        if strategy.traits.stops and generation < last:
            packs = repack(packs, W)
    assert found is not None
    targets_WTRX = found.targets[:W].reshape(W, T, -1, *layer.shape)
    seeds_WTSX = found.seeds[:W].reshape(W, T, -1, *layer.shape)
    elites_WTRKX = None if found.elites is None else _shaped(found.elites[:W], layer)
    return LayerResult(targets_WTRX, seeds_WTSX, history, evaluations, elites_WTRKX)


def _elites(best: Best, archive: int) -> Tensor | None:
    """Return the `archive` fittest candidates (B, K, G, M); None if none are kept."""
    if not archive:
        return None
    assert best.elites_BKGM is not None, "a strategy without elites has no archive"
    return best.elites_BKGM[:, :archive]


def _shaped(elites_WTKGM: Tensor, layer: SearchLayer) -> Tensor:
    """Return elites of one result per example as (W, T, 1, K, ...) of the layer's shape."""
    W, T, K = elites_WTKGM.shape[:3]
    return elites_WTKGM.reshape(W, T, 1, K, *layer.shape)


def layer_of(plan: SearchPlan, network: SearchableNetwork, position: int, device: torch.device) -> SearchLayer:
    """Return the `position`-th search layer as the strategy sees it."""
    number = plan.layers[position]
    return SearchLayer(
        position=position,
        kind="logits" if number == network.logits_layer else "block",
        shape=network.layer_shape(number),
        seed=seed_of(plan.seed, "noise", number),
        device=device,
        classes=network.classes,
        results=plan.searches if plan.strategy.traits.several else 1,
    )


def _packs(plan: SearchPlan, layer: SearchLayer, starts_WTSX: Tensor, group: Group, replicate: int) -> list[Pack]:
    packs = []
    W, T, S = starts_WTSX.shape[:3]
    for tile in range(W):
        keys_T = plan.search_keys(group.index_WT[tile], replicate, layer.position)
        start_TSGM = starts_WTSX[tile].reshape(T, S, *layer.groups)
        state = plan.strategy.init(start_TSGM, layer=layer, labels_B=group.labels_WT[tile], keys_B=keys_T)
        real_T = group.real_WT[tile]
        packs.append(Pack(state, torch.where(real_T, tile, W), int(real_T.sum())))
    return packs


def _finished(best: Best) -> Tensor:
    assert best.finished_B is not None
    return best.finished_B


def repack(packs: Sequence[Pack], tiles: int) -> list[Pack]:
    """Return `packs` in as few tiles as hold their active rows, every row in its place of a tile."""
    if not packs:
        return []
    source_JT = torch.stack([pack.source_T for pack in packs])
    idle_JT = source_JT == tiles
    needed = int((~idle_JT).sum(dim=0).max())
    if needed == len(packs):
        return list(packs)
    # Active rows first, in the order of the tiles; a row without an image left over goes on with one that is done.
    order_JT = idle_JT.to(torch.uint8).argsort(dim=0, stable=True)[:needed]
    states = take_rows([pack.state for pack in packs], order_JT)
    sources = source_JT.gather(0, order_JT)
    return [Pack(state, source_T, int((source_T < tiles).sum())) for state, source_T in zip(states, sources, strict=True)]


def take_rows(states: Sequence[Any], order_JT: Tensor) -> list[Any]:
    """Return one state per row of `order_JT`: example t of state j comes from example t of `states[order_JT[j, t]]`."""
    slot_T = torch.arange(order_JT.shape[1], device=order_JT.device)
    names = [field.name for field in dataclasses.fields(states[0]) if isinstance(getattr(states[0], field.name), Tensor)]
    stacked = {name: torch.stack([getattr(state, name) for state in states]) for name in names}
    return [replace(states[0], **{name: values[order_T, slot_T] for name, values in stacked.items()}) for order_T in order_JT]
