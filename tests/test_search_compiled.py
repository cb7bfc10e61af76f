"""Compiled search gives what the tensor operations give, for every choice that evolution has, and stands aside where it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repsearch.datasets.base import Data, Split
from repsearch.errors import NumericalError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork, build_network, calibrate
from repsearch.seeding import draw, keys_of
from searcher.compiled import compiled_search, loops
from searcher.compiled.part import part_above
from searcher.evaluating import evaluate
from searcher.evaluation_network import evaluation_network
from searcher.layer_search import layer_of
from searcher.plan import SearchPlan
from searcher.search import SearchResult, search_examples

CPU = torch.device("cpu")
LOGITS = 2
ROUNDING = 2e-4
"""Of targets with unit variance after some generations: sums run in another order, and a child's noise has five times its size."""


@pytest.fixture(scope="module")
def data() -> Data:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 14, 14), generator=rng, dtype=torch.uint8)
    train = Split(images, torch.arange(40) % 5)
    few = Split(images[:5], torch.arange(5))
    pixels = images.float() / 255
    return Data("made_up", tuple("abcde"), train, few, few, pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3)), "made-up")


def make_network(data: Data, **fields: Any) -> SearchableNetwork:
    table = {"name": "convnet", "width": 9, "blocks": 2, "convolutions": 4, **fields}
    network = build_network(table, data, seed=1, purpose="searched")
    calibrate(network, data.train.images)
    return network


@pytest.fixture(scope="module")
def network(data: Data) -> SearchableNetwork:
    return make_network(data)


def make_plan(**fields: Any) -> SearchPlan:
    table = {
        "name": "evolution",
        "population": 9,
        "parents": 2,
        "explorers": 3,
        "refiners": 4,
        "generations": [4, 3, 2],
        "strength": [0.3, 0.2, 0.1],
        "boost": [4.0, 3.0, 1.0],
        "blur_passes": [2, 1, 0],
        "noise_rows": 100,
        **fields,
    }
    strategy = STRATEGIES.build(table)
    return SearchPlan(strategy=strategy, layers=[0, 1, LOGITS], seed=3, round=0, input_noise=0.1, from_network=False, micro_batch=4)


def search(plan: SearchPlan, network: SearchableNetwork, data: Data, first: int = 2, count: int = 17) -> SearchResult:
    return search_examples(plan, network, data.train, first=first, count=count, device=CPU)


CHOICES: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "parents seed the next layer": {"seeding": "parents"},
    "mean of the parents": {"target": "elite_mean"},
    "images stop early": {"stop_probability": 0.5},
    "fading strength, no smoothing": {"strength_decay": 0.8, "blur": "none"},
    "no refiners": {"explorers": 7, "refiners": 0},
    "no explorers": {"explorers": 0, "refiners": 7},
    "no generations": {"generations": [0, 1, 0]},
    "one parent": {"parents": 1, "explorers": 4},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_compiled_search_equals_tensor_operations(data: Data, network: SearchableNetwork, choice: str) -> None:
    plan = make_plan(**CHOICES[choice])
    compiled, tensors = search(plan, network, data), search(replace(plan, compiled=False), network, data)
    assert compiled.evaluations == tensors.evaluations
    for found, expected in zip(compiled.targets, tensors.targets, strict=True):
        assert torch.allclose(found, expected, atol=ROUNDING)
    assert torch.allclose(compiled.before_NL, tensors.before_NL, atol=ROUNDING)
    assert torch.allclose(compiled.after_NL, tensors.after_NL, atol=ROUNDING)
    for curve, reference in zip(compiled.curves, tensors.curves, strict=True):
        assert curve == pytest.approx(reference, abs=ROUNDING)
    assert compiled.solved == tensors.solved


def test_independent_searches_equal_tensor_operations(data: Data, network: SearchableNetwork) -> None:
    plan = replace(make_plan(), searches=2)
    compiled, tensors = search(plan, network, data), search(replace(plan, compiled=False), network, data)
    assert torch.allclose(compiled.targets[0], tensors.targets[0], atol=ROUNDING)
    assert not torch.equal(compiled.targets[0][:, 0], compiled.targets[0][:, 1])


def test_bits_depend_on_neither_range_nor_threads(data: Data, network: SearchableNetwork) -> None:
    plan = make_plan()
    whole = search(plan, network, data, first=0, count=20)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        part = search(plan, network, data, first=5, count=9)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(few, many[5:14]) for few, many in zip(part.targets, whole.targets, strict=True))
    assert torch.equal(part.after_NL, whole.after_NL[5:14])


def applies(plan: SearchPlan, network: SearchableNetwork, position: int = 0, device: torch.device = CPU) -> bool:
    searched = evaluation_network(network)
    return compiled_search(plan.strategy, searched, plan.layers[position], layer_of(plan, searched, position, device)) is not None


@pytest.mark.parametrize("choice", CHOICES)
def test_every_layer_of_an_untrained_convnet_is_compiled(network: SearchableNetwork, choice: str) -> None:
    assert all(applies(make_plan(**CHOICES[choice]), network, position) for position in range(3))


def test_tensor_operations_do_what_the_loops_cannot(data: Data, network: SearchableNetwork) -> None:
    assert not applies(make_plan(blur="candidate"), network)
    assert not applies(replace(make_plan(), strategy=STRATEGIES.build({"name": "random_search"})), network)
    assert not applies(make_plan(), network, device=torch.device("cuda"))
    trained = make_network(data)
    with torch.no_grad():
        trained.blocks[1].groups[0].conv2.weight += 0.01  # type: ignore[index, union-attr]
    assert not applies(make_plan(), trained)
    assert applies(make_plan(), trained, position=1), "nothing but the head is above the last block"
    mlp = build_network({"name": "mlp", "widths": [12, 10]}, data, seed=0, purpose="searched")
    assert not applies(make_plan(), mlp)


def test_a_switch_turns_it_off(data: Data, network: SearchableNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(loops, "evolve", refuse)
    search(replace(make_plan(), compiled=False), network, data)
    with pytest.raises(AssertionError, match="compiled"):
        search(make_plan(), network, data)


def loop_fitness(network: SearchableNetwork, layer: int, candidate_X: Tensor, label: int) -> float:
    part = part_above(network, layer)
    assert part is not None
    room, run = (torch.empty(candidate_X.numel()).numpy() for _ in range(2))
    logits, form = torch.empty(network.classes).numpy(), torch.tensor([1.0, 0.0]).numpy()
    return float(loops.fitness(candidate_X.flatten().numpy(), form, label, *part.arguments, room, run, logits))


@pytest.mark.parametrize("layer", [0, 1, LOGITS])
def test_fitness_equals_that_of_the_network(network: SearchableNetwork, layer: int) -> None:
    searched = evaluation_network(network)
    candidates = torch.randn(6, 1, *searched.layer_shape(layer), generator=torch.Generator().manual_seed(layer))
    labels = torch.arange(6) % searched.classes
    expected = evaluate(searched, layer, candidates, labels)[:, 0]
    found = [loop_fitness(searched, layer, candidate, int(label)) for candidate, label in zip(candidates, labels, strict=True)]
    assert torch.allclose(torch.tensor(found), expected, atol=1e-5)


def test_gelu_equals_its_definition() -> None:
    x = torch.linspace(-12, 12, 1001)
    found = torch.tensor([loops.gelu(value) for value in x.numpy()])
    assert (found - F.gelu(x.double())).abs().max() < 2e-6


def test_draws_equal_those_of_the_seeds() -> None:
    keys, counters = keys_of(7, torch.arange(5)), torch.tensor([0, 3, 1 << 40])
    expected = draw(keys[:, None], counters, 1000)
    assert [[loops.draw(key, counter, 1000) for counter in counters.tolist()] for key in keys.tolist()] == expected.tolist()


def test_a_fitness_that_is_not_finite_is_named(data: Data, network: SearchableNetwork) -> None:
    broken = make_network(data)
    with torch.no_grad():
        broken.head.linear.bias[0] = float("nan")
    with pytest.raises(NumericalError, match="training image 2, block0, generation 0"):
        search(make_plan(), broken, data)
