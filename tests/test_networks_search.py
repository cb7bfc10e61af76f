"""Searching networks of every kind, in process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from repsearch.networks import build_network, calibrate
from searcher.search import SearchPlan, search_examples
from searcher.strategies.evolution import Evolution
from tests.networks import made_up_data

RESNET = {"name": "torchvision", "model": "resnet18", "stages": ["layer1", "layer2", "layer3", "layer4"]}
TABLES: dict[str, dict[str, Any]] = {"mlp": {"name": "mlp", "widths": [48, 32, 32, 16]}, "resnet18": RESNET}


def plan(layers: list[int]) -> SearchPlan:
    count = len(layers)
    strategy = Evolution(
        population=8, parents=2, explorers=3, refiners=3, generations=[2] * count, strength=[0.3] * count, boost=[3.0] * count,
        blur_passes=[1] * count, noise_rows=64,
    )  # fmt: skip
    return SearchPlan(strategy=strategy, layers=layers, seed=0, round=0, input_noise=0.1, from_network=False, micro_batch=4)


@pytest.mark.parametrize("kind", TABLES)
def test_evolution_searches_every_layer_and_shards_do_not_matter(kind: str) -> None:
    data = made_up_data((3, 32, 32), train=32)
    network = build_network(TABLES[kind], data, seed=0, purpose="searched")
    calibrate(network, data.train.images)
    layers = [*range(network.logits_layer), network.logits_layer]
    search = plan(layers)
    whole = search_examples(search, network, data.train, first=0, count=8, device=torch.device("cpu"))
    assert [tuple(target.shape[1:]) for target in whole.targets] == [network.layer_shape(layer) for layer in layers]
    assert bool((whole.after_NL >= whole.before_NL).all())
    assert float(whole.after_NL[:, -1].mean()) > float(whole.before_NL[:, 0].mean()) + 0.1
    part = search_examples(search, network, data.train, first=2, count=3, device=torch.device("cpu"))
    for target, expected in zip(part.targets, whole.targets, strict=True):
        assert torch.equal(target, expected[2:5])


def test_a_normalised_start_classifies_almost_as_the_network_does() -> None:
    """The reason for `Standardise`: what search sees of a network is the network, not one fed with values of another scale."""
    data = made_up_data((3, 32, 32), train=64)
    network = build_network(TABLES["resnet18"], data, seed=0, purpose="searched")
    calibrate(network, data.train.images)
    search = replace(plan([1]), strategy=replace(plan([1]).strategy, generations=[0]), from_network=True)
    with torch.no_grad():
        own = network.representations(data.train.images[:16])
        logits = network.run_from(1, torch.nn.functional.layer_norm(own[1], own[1].shape[1:]))
    similarity = torch.nn.functional.cosine_similarity(logits - logits.mean(0), own[-1] - own[-1].mean(0), dim=1)
    assert float(similarity.mean()) > 0.8
    result = search_examples(search, network, data.train, first=0, count=16, device=torch.device("cpu"))
    own_fitness = -torch.nn.functional.cross_entropy(own[-1], data.train.labels[:16], reduction="none")
    assert float(result.before_NL[:, 0].mean()) > float(own_fitness.mean()) - 0.1
