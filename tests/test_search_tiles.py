"""Search of a learned network: loops between forward passes do what tensor operations do; its evaluation network is the learned one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from repsearch.config import parse_config
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork
from repsearch.networks.convnet import halve
from searcher.compiled import tiles
from searcher.compiled.tiles import tiled
from searcher.evaluating import evaluate
from searcher.evaluation_network import FoldedGroup, channels_last, evaluation_network
from searcher.layer_search import layer_of
from searcher.plan import SearchPlan
from searcher.search import SearchResult, search_examples
from tests.networks import made_up_data, made_up_network, perturb

CPU = torch.device("cpu")
ROUNDING = 5e-4
"""Of targets with unit variance after some generations: sums run in another order."""
EVOLUTION = {
    "name": "evolution",
    "population": 9,
    "parents": 2,
    "explorers": 3,
    "refiners": 4,
    "generations": [3, 2, 2],
    "strength": [0.3, 0.2, 0.1],
    "boost": [4.0, 3.0, 1.0],
    "blur_passes": [2, 1, 0],
    "noise_rows": 100,
}
PAIRS = {
    "name": "evolution_strategy",
    "pairs": 5,
    "generations": [3, 2, 1],
    "sigma": [0.3, 0.2, 0.1],
    "step": [0.3, 0.4, 0.5],
    "blur_passes": [2, 1, 0],
    "noise_rows": 100,
}
CHOICES: dict[str, dict[str, Any]] = {
    "evolution": EVOLUTION,
    "parents seed the next layer": {**EVOLUTION, "seeding": "parents"},
    "mean of the parents": {**EVOLUTION, "target": "elite_mean"},
    "fading strength, no smoothing": {**EVOLUTION, "strength_decay": 0.8, "blur": "none"},
    "no refiners": {**EVOLUTION, "explorers": 7, "refiners": 0},
    "no explorers": {**EVOLUTION, "explorers": 0, "refiners": 7},
    "no generations": {**EVOLUTION, "generations": [0, 1, 0]},
    "pairs": PAIRS,
    "pairs by layer": {**PAIRS, "pairs": [3, 6, 1]},
    "no momentum": {**PAIRS, "momentum": 0.0},
    "fittest of pairs": {**PAIRS, "target": "best"},
    "steps in units": {**EVOLUTION, "step_size": "absolute"},
    "steps that adapt": {**EVOLUTION, "step_size": "adapted"},
    "moves in units": {**PAIRS, "step_size": "absolute"},
    "moves that adapt": {**PAIRS, "step_size": "adapted", "generations": [4, 4, 2]},
    "pairs of low resolution": {**PAIRS, "noise": "low_resolution"},
}


@pytest.fixture(scope="module")
def data() -> Data:
    return made_up_data((1, 14, 14))


@pytest.fixture(scope="module")
def network(data: Data) -> SearchableNetwork:
    # Block 0 has maps whose channels come last, block 1 maps whose channels come first.
    return perturb(made_up_network(data, width=9, convolutions=4))


def plan_of(choice: str, **fields: Any) -> SearchPlan:
    values = {"layers": [0, 1, 2], "seed": 3, "round": 1, "input_noise": 0.1, "from_network": True, "micro_batch": 8, **fields}
    return SearchPlan(strategy=STRATEGIES.build(CHOICES[choice]), **values)


def search(plan: SearchPlan, network: SearchableNetwork, data: Data, first: int = 0, count: int = 19) -> SearchResult:
    return search_examples(plan, network, data.train, first=first, count=count, device=CPU)


@pytest.mark.parametrize("from_network", [True, False])
@pytest.mark.parametrize("choice", CHOICES)
def test_loops_between_forward_passes_equal_tensor_operations(
    choice: str, from_network: bool, network: SearchableNetwork, data: Data
) -> None:
    plan = plan_of(choice, from_network=from_network)
    searched = evaluation_network(network)
    assert all(tiled(plan.strategy, layer_of(plan, searched, position, CPU)) for position in range(3))
    loops, tensors = search(plan, network, data), search(replace(plan, compiled=False), network, data)
    assert loops.evaluations == tensors.evaluations
    for found, expected in zip(loops.targets, tensors.targets, strict=True):
        assert torch.allclose(found, expected, atol=ROUNDING)
    for curve, reference in zip(loops.curves, tensors.curves, strict=True):
        assert curve == pytest.approx(reference, abs=ROUNDING)


@pytest.mark.parametrize("choice", ["evolution", "pairs"])
def test_bits_depend_on_neither_shard_nor_threads(choice: str, network: SearchableNetwork, data: Data) -> None:
    plan = plan_of(choice)
    whole = search(plan, network, data)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        parts = [search(plan, network, data, first, end - first) for first, end in pairwise([0, 1, 11, 19])]
    finally:
        torch.set_num_threads(threads)
    for position, target in enumerate(whole.targets):
        assert torch.equal(torch.cat([part.targets[position] for part in parts]), target)


def test_what_loops_cannot_do_is_done_by_tensors(network: SearchableNetwork) -> None:
    plan, searched = plan_of("pairs"), evaluation_network(network)
    layer = layer_of(plan, searched, 0, CPU)
    others = [
        {**EVOLUTION, "blur": "candidate"},
        {**EVOLUTION, "stop_probability": 0.5},
        {**PAIRS, "noise": "channel"},
        {"name": "random_search"},
    ]
    assert not any(tiled(STRATEGIES.build(other), layer) for other in others)
    assert not tiled(plan.strategy, replace(layer, device=torch.device("cuda")))


@pytest.mark.parametrize("negative", [False, True])
def test_the_evaluation_network_is_the_learned_network_in_evaluation_mode(negative: bool, data: Data) -> None:
    network = perturb(made_up_network(data, width=9, convolutions=4))
    if negative:
        # A norm that turns signs before the maximum over four positions is taken is no part of the convolution before it.
        with torch.no_grad():
            network.blocks[1].groups[0].norm1.weight[::2] *= -1  # type: ignore[index, union-attr]
    searched = evaluation_network(network)
    assert all(isinstance(group, FoldedGroup) for block in searched.blocks for group in block.groups)  # type: ignore[union-attr]
    with torch.no_grad():
        expected = network.eval()(data.train.images)
        assert torch.allclose(searched(data.train.images), expected, atol=1e-4)
        for layer in range(2):
            below = torch.randn(6, *network.layer_shape(layer))
            assert torch.allclose(searched.run_from(layer, below), network.run_from(layer, below), atol=1e-4)


def test_an_untrained_network_keeps_its_groups(data: Data) -> None:
    searched = evaluation_network(made_up_network(data))
    assert not any(isinstance(module, FoldedGroup) for module in searched.modules())


def test_the_maximum_of_maps_with_the_channels_last_is_that_of_the_others() -> None:
    maps = torch.randn(3, 5, 7, 6)
    with torch.no_grad():
        assert torch.equal(halve(maps.contiguous(memory_format=torch.channels_last)), halve(maps))
    assert channels_last((9, 6, 6)) and not channels_last((9, 3, 3))


@pytest.mark.parametrize(("chained", "blocks"), [(False, 2), (True, 1)])
def test_the_part_below_runs_once_and_only_as_far_as_layers_are_asked_for(
    chained: bool, blocks: int, network: SearchableNetwork, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run_layer = SearchableNetwork.run_layer

    def counted(self: SearchableNetwork, layer: int, below: torch.Tensor) -> torch.Tensor:
        if len(below) == 8:  # images of a tile, no candidates
            ran.append(layer)
        return run_layer(self, layer, below)

    monkeypatch.setattr(SearchableNetwork, "run_layer", counted)
    strategy = STRATEGIES.build({**PAIRS, **{name: PAIRS[name][:blocks] for name in ("generations", "sigma", "step", "blur_passes")}})  # type: ignore[index]
    plan = replace(plan_of("pairs"), strategy=strategy, layers=list(range(blocks)), chained=chained)
    search(plan, network, data, count=16)
    own = [layer for layer in ran if layer < blocks]
    # The last evaluation of a layer, of the mean alone, runs the layers above it.
    above = [layer for searched in range(blocks) for layer in range(searched + 1, blocks)]
    assert sorted(own) == sorted([*range(blocks), *above] * 2)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("choice", ["evolution", "pairs"])
def test_bfloat16_evaluates_nearly_the_same(choice: str, compiled: bool, network: SearchableNetwork, data: Data) -> None:
    plan = plan_of(choice, compiled=compiled, precision="bfloat16")
    searched = evaluation_network(network)
    candidates, labels = torch.randn(4, 6, *network.layer_shape(0)), torch.arange(4)
    with torch.no_grad():
        half, full = (evaluate(searched, 0, candidates, labels, precision) for precision in ("bfloat16", "float32"))
    assert not torch.equal(half, full) and torch.allclose(half, full, atol=0.1)
    result = search(plan, network, data)
    with torch.no_grad():
        fitness = evaluate(searched, 0, result.targets[0][:, None], data.train.labels[:19])[:, 0]
    assert torch.allclose(fitness, result.after_NL[:, 0], atol=0.2)
    assert result.after_NL.mean() > result.before_NL.mean()
    assert all(target.dtype == torch.float32 for target in result.targets)


@pytest.mark.parametrize("choice", ["evolution", "pairs"])
def test_forward_passes_in_pieces_find_the_same(
    choice: str, network: SearchableNetwork, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(plan_of(choice), network, data)
    monkeypatch.setattr(tiles, "AT_A_TIME", 20 * 9 * 36 * 4)
    pieces = search(plan_of(choice), network, data)
    assert all(torch.allclose(one, other, atol=ROUNDING) for one, other in zip(pieces.targets, whole.targets, strict=True))


def test_a_precision_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"search.precision: should be 'float32' or 'bfloat16' \(given: 'float16'\)"):
        parse_config({"search": {"precision": "float16"}})
