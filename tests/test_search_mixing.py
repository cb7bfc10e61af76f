"""Targets mixed with the network's own representation, and layers that are searched apart from one another."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch

from repsearch.config import learn_digest, parse_config, search_digest
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork, calibrate, network_digest
from repsearch.windows import Window, windows_of
from searcher.evaluation_network import evaluation_network
from searcher.jobs import calibration_of, mix_of
from searcher.mixing import Mix
from searcher.search import SearchPlan, SearchResult, evaluate, search_examples
from searcher.starting import run_layers, search_form
from tests.networks import made_up_data, made_up_network, perturb

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return made_up_data((1, 12, 12))


@pytest.fixture(scope="module")
def network(data: Data) -> SearchableNetwork:
    return perturb(made_up_network(data))


def plan_of(*layers: int, name: str = "evolution_strategy", **fields: Any) -> SearchPlan:
    count = len(layers)
    table = {"name": name, "generations": [2] * count, "blur_passes": [0] * count, "noise_rows": 512}
    scales = ("sigma", "step") if name == "evolution_strategy" else ("strength", "boost")
    strategy = STRATEGIES.build({**table, **{scale: [1.0] * count for scale in scales}})
    values = {"seed": 3, "round": 1, "input_noise": 0.1, "from_network": True, "micro_batch": 8, **fields}
    return SearchPlan(strategy=strategy, layers=layers, **values)


def search(plan: SearchPlan, network: SearchableNetwork, data: Data, first: int = 0, count: int = 24) -> SearchResult:
    return search_examples(plan, network, data.train, first=first, count=count, device=CPU)


@torch.no_grad()
def own_of(network: SearchableNetwork, data: Data, layer: int) -> torch.Tensor:
    searched = evaluation_network(network)
    inputs = searched.stem(searched.prepare(data.train.images[:24]))
    return search_form(searched, layer, run_layers(searched, -1, layer, inputs))


def test_a_relative_target_is_the_way_from_the_own_representation(data: Data, network: SearchableNetwork) -> None:
    absolute = search(plan_of(1, 2, chained=False, mix=Mix("nudge", 0.3)), network, data)
    relative = search(plan_of(1, 2, chained=False, mix=Mix("nudge", 0.3, relative=True)), network, data)
    own = own_of(network, data, 1)
    assert torch.allclose(relative.targets[0] + own, absolute.targets[0], atol=1e-5) and relative.targets[0].abs().max() > 0.1
    assert torch.equal(relative.targets[1], absolute.targets[1])  # of the logits
    assert torch.equal(relative.after_NL, absolute.after_NL)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"step": 0.5}, Mix("step", 0.5)),
        ({"nudge": 0.3, "relative": True}, Mix("nudge", 0.3, relative=True)),
        ({"relative": True}, Mix("step", 1.0, relative=True)),
    ],
)
def test_fields_say_how_targets_are_mixed(fields: dict[str, Any], expected: Mix | None) -> None:
    assert mix_of(parse_config({"search": fields}).search) == expected


def test_a_nudge_has_its_length_whatever_was_found_and_a_step_its_share() -> None:
    own, found = torch.randn(3, 4, 5), torch.randn(3, 2, 4, 5)
    way = Mix("nudge", 0.3).target(own, found) - own[:, None]
    expected = 0.3 * own.square().mean(dim=(1, 2)).sqrt()[:, None].expand(3, 2)
    assert torch.allclose(way.square().mean(dim=(2, 3)).sqrt(), expected, atol=1e-6)
    assert torch.allclose(torch.cosine_similarity(way.flatten(2), (found - own[:, None]).flatten(2), dim=2), torch.ones(3, 2), atol=1e-5)
    assert torch.allclose(Mix("step", 0.25).target(own, found), 0.75 * own[:, None] + 0.25 * found, atol=1e-6)


def test_what_was_not_moved_stays_where_it_is() -> None:
    own = torch.randn(3, 4, 5)
    assert torch.equal(Mix("nudge", 0.3).target(own, own[:, None]), own[:, None])


def test_a_whole_step_is_what_was_found(network: SearchableNetwork, data: Data) -> None:
    found, whole = search(plan_of(0), network, data), search(plan_of(0, mix=Mix("step", 1.0)), network, data)
    assert torch.allclose(whole.targets[0], found.targets[0], atol=1e-5)


@pytest.mark.parametrize("name", ["evolution", "evolution_strategy"])
@pytest.mark.parametrize("mix", [Mix("nudge", 0.3), Mix("step", 0.5)])
def test_a_mixed_target_lies_on_the_way_and_is_measured(mix: Mix, name: str, network: SearchableNetwork, data: Data) -> None:
    plain, plan = search(plan_of(0, 1, name=name), network, data), plan_of(0, 1, name=name, mix=mix)
    result = search(plan, network, data)
    own = own_of(network, data, 0)
    expected = search_form(network, 0, mix.target(own, plain.targets[0][:, None])[:, 0])
    assert torch.allclose(result.targets[0], expected, atol=1e-5)
    # Each target of each layer is evaluated once more, and its fitness is that of the target.
    assert result.evaluations == plain.evaluations + 2 * 24
    searched = evaluation_network(network)
    with torch.no_grad():
        for layer in (0, 1):
            fitness = evaluate(searched, layer, result.targets[layer][:, None], data.train.labels[:24])[:, 0]
            assert torch.allclose(fitness, result.after_NL[:, layer], atol=1e-5)


def test_the_next_layer_stands_on_the_mixed_target(network: SearchableNetwork, data: Data) -> None:
    result = search(plan_of(0, 1, mix=Mix("nudge", 1e-4)), network, data)
    # The first candidate of block 1 is what the network makes of a target that hardly differs from its own representation.
    assert torch.allclose(result.targets[1], own_of(network, data, 1), atol=1e-2)


def test_mixed_targets_have_the_same_bits_in_any_shard(network: SearchableNetwork, data: Data) -> None:
    plan = plan_of(0, 1, mix=Mix("nudge", 0.3), chained=False)
    whole = search(plan, network, data)
    parts = [search(plan, network, data, first, end - first) for first, end in pairwise([0, 1, 13, 24])]
    for position in range(2):
        assert torch.equal(torch.cat([part.targets[position] for part in parts]), whole.targets[position])


@pytest.mark.parametrize("from_network", [True, False])
def test_layers_on_own_representations_are_searched_as_each_alone(from_network: bool, network: SearchableNetwork, data: Data) -> None:
    fields = {"chained": False, "from_network": from_network}
    both, alone = search(plan_of(0, 1, **fields), network, data), search(plan_of(1, **fields), network, data)
    assert torch.equal(both.targets[1], alone.targets[0])
    chained = search(plan_of(0, 1, from_network=from_network), network, data)
    assert torch.equal(both.targets[0], chained.targets[0]) and not torch.equal(both.targets[1], chained.targets[1])


@pytest.mark.parametrize("part", [(0, 24), (4, 8)])
def test_statistics_may_be_those_of_the_images_of_a_window(part: tuple[int, int], network: SearchableNetwork, data: Data) -> None:
    before = network_digest(network)
    found = search(plan_of(0, 2, calibration=Window(2, 16)), network, data, *part)
    assert network_digest(network) == before
    calibrated = copy.deepcopy(network)
    calibrate(calibrated, data.train.images[2:18])
    expected = search(plan_of(0, 2), calibrated, data, *part)
    other = search(plan_of(0, 2), network, data, *part)
    for position in (0, 1):
        assert torch.equal(found.targets[position], expected.targets[position])
        assert not torch.equal(found.targets[position], other.targets[position])
    assert torch.equal(found.after_NL, expected.after_NL)


def test_the_window_is_the_rounds_and_no_longer_than_calibration_is() -> None:
    config = parse_config({"search": {"statistics": "round", "calibration_examples": 30}, "rounds": {"examples_per_round": 25}})
    windows = windows_of(config, 110)
    assert [calibration_of(config, 110, round, trained=True) for round in range(5)] == [windows.of(round) for round in range(5)]
    whole = parse_config({"search": {"statistics": "round", "calibration_examples": 30}})
    assert calibration_of(whole, 110, 7, trained=True) == Window(0, 30)
    assert calibration_of(parse_config({}), 110, 7, trained=True) is None
    assert calibration_of(whole, 110, 0, trained=False) is None


def test_two_ways_to_mix_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"search: step 0.5 and nudge 0.3 are two ways"):
        parse_config({"search": {"step": 0.5, "nudge": 0.3}})


def test_digests_of_configurations_that_mix_nothing_are_those_before_there_were_mixes() -> None:
    config = parse_config({"search": {"strategy": "evolution_strategy"}})
    assert search_digest(config) == "86a03606d987f905590b381223fd165354d72c930a22faab227bdcd1aaa2d7e9"
    assert learn_digest(config) == "c1463b886a150416a4acb3b80e04894cbf5288091ba1e07d26f80fafcdf67851"
    others = [{"nudge": 0.3}, {"step": 0.3}, {"below": "own"}, {"precision": "bfloat16"}]
    digests = {search_digest(parse_config({"search": {"strategy": "evolution_strategy", **other}})) for other in others}
    assert len(digests | {search_digest(config)}) == 5
