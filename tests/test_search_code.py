"""Class codes in targets beside what was found."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from orchestrator.preflight import check_run
from repsearch.codes import code_of
from repsearch.config import parse_config, search_digest
from repsearch.datasets import cached_data
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork
from repsearch.search_memory import memory_of
from searcher.evaluation_network import evaluation_network
from searcher.mixing import Mix
from searcher.search import SearchPlan, SearchResult, evaluate, search_examples
from searcher.starting import search_form
from tests.networks import made_up_data, made_up_network, perturb

CODE = {"mix": 0.4, "blur_passes": [1, 0]}
STRATEGY = {
    "name": "evolution_strategy",
    "generations": [2, 2],
    "blur_passes": [0, 0],
    "noise_rows": 512,
    "sigma": [1.0, 1.0],
    "step": [1.0, 1.0],
}


@pytest.fixture(scope="module")
def data() -> Data:
    return made_up_data((1, 12, 12))


@pytest.fixture(scope="module")
def network(data: Data) -> SearchableNetwork:
    return perturb(made_up_network(data))


def plan_of(*layers: int, code: dict[str, Any] | None = None, **fields: Any) -> SearchPlan:
    built = None if code is None else STRATEGIES.build({**code, "name": "class_code"})
    values = {"seed": 3, "round": 1, "input_noise": 0.1, "from_network": True, "micro_batch": 8, "chained": False, **fields}
    return SearchPlan(strategy=STRATEGIES.build(STRATEGY), layers=layers, code=built, **values)


def search(plan: SearchPlan, network: SearchableNetwork, data: Data, first: int = 0, count: int = 24) -> SearchResult:
    return search_examples(plan, network, data.train, first=first, count=count, device=torch.device("cpu"))


@pytest.mark.parametrize("mix", [None, Mix("nudge", 0.3)])
def test_a_target_is_what_was_found_and_the_code_of_the_class(mix: Mix | None, network: SearchableNetwork, data: Data) -> None:
    found = search(plan_of(0, 1, mix=mix), network, data)
    result = search(plan_of(0, 1, mix=mix, code=CODE), network, data)
    codes = search(replace(plan_of(0, 1), strategy=STRATEGIES.build({**CODE, "mix": 1.0, "name": "class_code"})), network, data)
    searched = evaluation_network(network)
    for layer in (0, 1):
        expected = search_form(searched, layer, 0.6 * found.targets[layer] + 0.4 * codes.targets[layer])
        assert torch.allclose(result.targets[layer], expected, atol=1e-4)
        with torch.no_grad():
            fitness = evaluate(searched, layer, result.targets[layer][:, None], data.train.labels[:24])[:, 0]
        assert torch.allclose(fitness, result.after_NL[:, layer], atol=1e-4), "its fitness is the target's"
    assert result.evaluations == found.evaluations + (0 if mix else 2 * 24)


def test_logits_have_no_code(network: SearchableNetwork, data: Data) -> None:
    last = network.logits_layer
    assert torch.equal(search(plan_of(1, last, code=CODE), network, data).targets[1], search(plan_of(1, last), network, data).targets[1])


def test_a_way_leads_to_the_coded_target(network: SearchableNetwork, data: Data) -> None:
    whole = search(plan_of(0, 1, code=CODE, mix=Mix("step", 1.0)), network, data)
    way = search(plan_of(0, 1, code=CODE, mix=Mix("step", 1.0, relative=True)), network, data)
    own = search(replace(plan_of(0, 1), strategy=STRATEGIES.build({"name": "none"})), network, data)
    assert torch.allclose(way.targets[0] + own.targets[0], whole.targets[0], atol=1e-5)


def test_the_next_layer_stands_on_the_coded_target(network: SearchableNetwork, data: Data) -> None:
    apart = search(plan_of(0, 1, code=CODE), network, data)
    chained = search(plan_of(0, 1, code=CODE, chained=True), network, data)
    assert torch.equal(apart.targets[0], chained.targets[0]) and not torch.equal(apart.targets[1], chained.targets[1])


def test_coded_targets_have_the_same_bits_in_any_shard(network: SearchableNetwork, data: Data) -> None:
    plan = plan_of(0, 1, code={**CODE, "codes_per_class": 3}, searches=2)
    whole = search(plan, network, data)
    parts = [search(plan, network, data, first, end - first) for first, end in pairwise([0, 1, 13, 24])]
    for position in range(2):
        assert torch.equal(torch.cat([part.targets[position] for part in parts]), whole.targets[position])
    assert not torch.equal(whole.targets[0][:, 0], whole.targets[0][:, 1])


def test_memory_counts_the_codes(network: SearchableNetwork, data: Data) -> None:
    plain, coded = plan_of(0, 1), plan_of(0, 1, code=CODE)
    needs = [
        memory_of(plan.strategy, network, [0, 1], data.input_shape, mixed=plan.code is not None, code=plan.code) for plan in (plain, coded)
    ]
    assert needs[1].fixed > needs[0].fixed and needs[1].per_example > needs[0].per_example


def config_of(**code: Any) -> Any:
    return parse_config(
        {"network": {"name": "convnet", "width": 8, "blocks": 2}, "search": {"layers": [0, 1], "strategy": STRATEGY, "code": code}}
    )


def test_configuration_is_checked_and_counted() -> None:
    config = config_of(mix=0.5, blur_passes=[5, 1])
    shapes = [(8, 3, 3), (8, 1, 1)]
    assert code_of(config_of().search, shapes) is None
    with pytest.raises(ConfigError, match=r"search\.code\.blur_passes: 5 passes"):
        check_run(config, cached_data(config.dataset, seed=0))
    fitting = config_of(mix=0.5, blur_passes=[1, 0])
    plain = config_of()
    counted = [check_run(each, cached_data(each.dataset, seed=0)).evaluations for each in (plain, fitting)]
    assert counted[0] is not None and counted[1] == counted[0] + 2


def test_a_configuration_without_codes_has_the_digest_of_before() -> None:
    bare = parse_config({"search": {"strategy": "evolution_strategy"}})
    assert search_digest(bare) == "86a03606d987f905590b381223fd165354d72c930a22faab227bdcd1aaa2d7e9"
    assert search_digest(parse_config({"search": {"strategy": "evolution_strategy", "code": {"mix": 0.5}}})) != search_digest(bare)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"blur_passes": [1, 0]}, r"search\.code\.mix: is not given; .* give a number between 0 and 1"),
        ({"mix": 1.0}, r"search\.code\.mix: is 1, and it is the share of the code"),
        ({"mix": 0.0}, r"search\.code\.mix: is 0, and"),
        ({"mixx": 0.5}, r"search\.code\.mixx: unknown key 'mixx'; did you mean 'mix'"),
        ({"mix": 0.5, "name": "evolution"}, r"search\.code\.name: 'evolution'; .* leave the name out"),
    ],
)
def test_codes_that_cannot_be_are_refused(code: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**code)
