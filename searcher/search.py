"""The search loop: representations of a range of training examples, layer after layer.

Per tile of examples (a block of fixed size, aligned to example indices): everything before the searched layer is frozen at its best,
everything after it is a forward pass, and fitness is the negative cross-entropy of the logits. A tile at the edge of the range is
padded, so that every matrix product has the same shape whatever the shard, and an example's result the same bits.

Shapes: T examples of a tile; P candidates; X a representation's own shape; L search layers; K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repsearch.datasets.base import Split
from repsearch.errors import NumericalError
from repsearch.networks.base import SearchableNetwork, layer_name
from repsearch.networks.convnet import normalised
from repsearch.seeding import draw, keys_of, seed_of
from searcher.evaluation_network import evaluation_network
from searcher.strategies.base import SearchLayer, SearchStrategy

_NOISE_BITS = 24


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search depends on besides the network and the images.

    layers: search layers in order: block numbers, then `len(network.blocks)` for the logits.
    from_network: start around the network's own representations instead of noisy inputs.
    """

    strategy: SearchStrategy[Any]
    layers: Sequence[int]
    seed: int
    round: int
    input_noise: float
    from_network: bool
    tile_examples: int


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Targets and fitness of N examples.

    targets: per search layer, float32 (N, ...), on the CPU.
    before_NL, after_NL: best fitness of the initial population and at the end, per search layer.
    curves: per search layer, mean best cross-entropy over the examples, after the initial population and after each generation.
    evaluations: candidate evaluations in all. seconds: time of the loop.
    """

    targets: list[Tensor]
    before_NL: Tensor
    after_NL: Tensor
    curves: list[list[float]]
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class TileResult:
    """A tile's elites per layer, and its best fitness (T,) per layer and generation."""

    targets: list[Tensor]
    fitness: list[list[Tensor]]


@torch.no_grad()
def search_examples(
    plan: SearchPlan,
    network: SearchableNetwork,
    split: Split,
    *,
    first: int,
    count: int,
    device: torch.device,
    on_tile: Callable[[int, list[list[float]]], None] = lambda done, curves: None,
) -> SearchResult:
    """Return the searched representations of training examples first .. first + count - 1 of `split`.

    `on_tile(done, curves)` is called after each tile with the examples done and the curves so far; it may raise to stop the search.
    Raises `NumericalError` naming image, layer and generation if a fitness is not finite.
    """
    begin = time.monotonic()
    searched = evaluation_network(network).to(device)
    tiles: list[tuple[TileResult, slice]] = []
    sums: list[Tensor] = []
    done = 0
    for start in range(first - first % plan.tile_examples, first + count, plan.tile_examples):
        index_T = torch.arange(start, start + plan.tile_examples)
        rows = slice(max(first - start, 0), min(first + count - start, plan.tile_examples))
        # Padding repeats the range's own examples; their rows are dropped.
        taken_T = index_T.clamp(first, first + count - 1)
        tile = search_tile(plan, searched, split.images[taken_T].to(device), split.labels[taken_T].to(device), index_T.to(device))
        tiles.append((_on_cpu(tile, rows), rows))
        done += rows.stop - rows.start
        sums = _accumulate(sums, tiles[-1][0])
        on_tile(done, [(-total / done).tolist() for total in sums])
    results = [tile for tile, _ in tiles]
    return SearchResult(
        targets=[torch.cat([tile.targets[p] for tile in results]) for p in range(len(plan.layers))],
        before_NL=torch.cat([torch.stack([values[0] for values in tile.fitness], dim=1) for tile in results]),
        after_NL=torch.cat([torch.stack([values[-1] for values in tile.fitness], dim=1) for tile in results]),
        curves=[(-total / count).tolist() for total in sums],
        evaluations=count * sum(plan.strategy.evaluations(p) for p in range(len(plan.layers))),
        seconds=time.monotonic() - begin,
    )


def search_tile(plan: SearchPlan, network: SearchableNetwork, images_TCHW: Tensor, labels_T: Tensor, index_T: Tensor) -> TileResult:
    """Return the elites of every search layer for one tile; `network` comes from `evaluation_network`."""
    below, below_layer = None, -1
    targets: list[Tensor] = []
    fitness: list[list[Tensor]] = []
    for position, layer in enumerate(plan.layers):
        if below is None:
            starts_TSX = _starting_candidates(plan, network, layer, images_TCHW, index_T)
        else:
            starts_TSX = _search_form(network, layer, _run_layers(network, below_layer, layer, below))[:, None]
        best_TX, history = _search_layer(plan, network, position, starts_TSX, labels_T, index_T)
        targets.append(best_TX)
        fitness.append(history)
        below, below_layer = best_TX, layer
    return TileResult(targets, fitness)


def _search_layer(
    plan: SearchPlan, network: SearchableNetwork, position: int, starts_TSX: Tensor, labels_T: Tensor, index_T: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the elites (T, ...) of one layer and the best fitness (T,) after the initial population and every generation."""
    number = plan.layers[position]
    shape = network.layer_shape(number)
    layer = SearchLayer(
        position=position,
        kind="logits" if number == network.logits_layer else "block",
        shape=shape,
        seed=seed_of(plan.seed, "noise", number),
        device=starts_TSX.device,
    )
    T, S = starts_TSX.shape[:2]
    keys_T = keys_of(seed_of(plan.seed, "search", plan.round, number), index_T)
    state = plan.strategy.init(starts_TSX.reshape(T, S, *layer.groups), layer=layer, keys_B=keys_T)
    history: list[Tensor] = []
    for generation in range(plan.strategy.generations_at(position) + 1):
        candidates_TPGM = plan.strategy.ask(state)
        fitness_TP = evaluate(network, number, candidates_TPGM.view(T, -1, *shape), labels_T)
        _require_finite(fitness_TP, index_T, layer_name(number, network.logits_layer), generation)
        state = plan.strategy.tell(state, candidates_TPGM, fitness_TP)
        history.append(plan.strategy.best(state)[1])
    return plan.strategy.best(state)[0].reshape(T, *shape), history


def evaluate(network: SearchableNetwork, layer: int, candidates_TPX: Tensor, labels_T: Tensor) -> Tensor:
    """Return the fitness (T, P): negative cross-entropy of the logits that the part above `layer` gives."""
    T, P = candidates_TPX.shape[:2]
    logits = network.run_from(layer, candidates_TPX.flatten(0, 1))
    return -F.cross_entropy(logits, labels_T.repeat_interleave(P), reduction="none").view(T, P)


def _starting_candidates(plan: SearchPlan, network: SearchableNetwork, layer: int, images_TCHW: Tensor, index_T: Tensor) -> Tensor:
    """Return (T, S, ...) at `layer`: the network's own representation, or that of noisy inputs (the first without noise)."""
    inputs_TCHW = network.prepare(images_TCHW)
    if plan.from_network:
        return _search_form(network, layer, _run_layers(network, -1, layer, network.stem(inputs_TCHW)))[:, None]
    count = plan.strategy.starts(0)
    noisy = (inputs_TCHW[:, None] + input_noise(plan, inputs_TCHW, count, index_T)).flatten(0, 1)
    starts = _search_form(network, layer, _run_layers(network, -1, layer, network.stem(noisy)))
    return starts.reshape(len(images_TCHW), count, *starts.shape[1:])


def input_noise(plan: SearchPlan, inputs_TCHW: Tensor, count: int, index_T: Tensor) -> Tensor:
    """Return noise (T, count, C, H, W) for the inputs, keyed by example; the first of the `count` is zero.

    Standard normal numbers by Box-Muller from counter-based integers, times `input_noise` and the image's channel deviation.
    """
    T, C = inputs_TCHW.shape[:2]
    size = inputs_TCHW[0].numel()
    keys_T = keys_of(seed_of(plan.seed, "input", plan.round), index_T)
    noise = standard_normal(keys_T, count * size, inputs_TCHW.device).view(T, count, *inputs_TCHW.shape[1:])
    deviation_TC = inputs_TCHW.flatten(2).std(dim=2, correction=0)
    noise = noise * (plan.input_noise * deviation_TC).view(T, 1, C, 1, 1)
    noise[:, 0] = 0
    return noise


def standard_normal(keys_B: Tensor, count: int, device: torch.device) -> Tensor:
    """Return (B, count) standard normal numbers, a function of each key alone (Box & Muller 1958)."""
    counter = torch.arange((count + 1) // 2, device=device) * 2
    first = (draw(keys_B[:, None], counter, 1 << _NOISE_BITS) + 1).to(torch.float32) / (1 << _NOISE_BITS)
    second = draw(keys_B[:, None], counter + 1, 1 << _NOISE_BITS).to(torch.float32) * (2 * torch.pi / (1 << _NOISE_BITS))
    radius = torch.sqrt(-2 * torch.log(first))
    return torch.stack([radius * torch.cos(second), radius * torch.sin(second)], dim=2).flatten(1)[:, :count]


def _run_layers(network: SearchableNetwork, below_layer: int, layer: int, representation: Tensor) -> Tensor:
    for number in range(below_layer + 1, layer + 1):
        representation = network.run_layer(number, representation)
    return representation


def _search_form(network: SearchableNetwork, layer: int, representation_BX: Tensor) -> Tensor:
    # Candidates are normalised (operator 4 of the paper), so the initial population is too; logits are recentred.
    if layer == network.logits_layer:
        return representation_BX - representation_BX.mean(dim=1, keepdim=True)
    return normalised(representation_BX)


def _require_finite(fitness_TP: Tensor, index_T: Tensor, layer: str, generation: int) -> None:
    if not bool(torch.isfinite(fitness_TP).all()):
        row = int((~torch.isfinite(fitness_TP)).any(dim=1).nonzero()[0])
        raise NumericalError(
            f"fitness is not finite: training image {int(index_T[row])}, {layer}, generation {generation}; "
            "the network's parameters or its BatchNorm statistics have overflowed: lower learn.optimiser.lr, or search from an earlier round"
        )


def _on_cpu(tile: TileResult, rows: slice) -> TileResult:
    return TileResult(
        [target[rows].cpu() for target in tile.targets],
        [[values[rows].cpu() for values in history] for history in tile.fitness],
    )


def _accumulate(sums: list[Tensor], tile: TileResult) -> list[Tensor]:
    added = [torch.stack([values.double().sum() for values in history]) for history in tile.fitness]
    return [total + more for total, more in zip(sums, added, strict=True)] if sums else added
