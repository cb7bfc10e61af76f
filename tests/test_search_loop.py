"""The search loop: what an example's result depends on, and what it does not. Every strategy passes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from repsearch.datasets.base import Data, Split
from repsearch.errors import NumericalError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork
from searcher.evaluation_network import evaluation_network
from searcher.search import SearchPlan, SearchResult, evaluate, search_examples, standard_normal
from tests.networks import made_up_data, made_up_network, perturb

EXAMPLES = {"evolution": {"generations": [4, 3, 2], "strength": [0.3, 0.2, 0.1], "boost": [5, 3, 1], "blur_passes": [1, 0, 0]}}
"""Fields for search layers block0, block1 and logits, for the contract of every member."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return made_up_data((1, 12, 12))


@pytest.fixture(scope="module", params=["untrained", "learned"])
def network(request: pytest.FixtureRequest, data: Data) -> SearchableNetwork:
    network = made_up_network(data)
    return perturb(network) if request.param == "learned" else network


@pytest.fixture(scope="module", params=list(STRATEGIES.members))
def plan(request: pytest.FixtureRequest) -> SearchPlan:
    return plan_of(request.param)


def plan_of(name: str, **fields: object) -> SearchPlan:
    strategy = STRATEGIES.build({"name": name, **EXAMPLES[name]})
    values = {"layers": [0, 1, 2], "seed": 3, "round": 0, "input_noise": 0.1, "from_network": False, "tile_examples": 8, **fields}
    return SearchPlan(strategy=strategy, **values)  # type: ignore[arg-type]


def search(plan: SearchPlan, network: SearchableNetwork, data: Data, first: int = 0, count: int = 48) -> SearchResult:
    return search_examples(plan, network, data.train, first=first, count=count, device=CPU)


def joined(parts: list[SearchResult]) -> list[torch.Tensor]:
    targets = [torch.cat([part.targets[p] for part in parts]) for p in range(3)]
    return [*targets, torch.cat([part.before_NL for part in parts]), torch.cat([part.after_NL for part in parts])]


@pytest.fixture(scope="module")
def whole(plan: SearchPlan, network: SearchableNetwork, data: Data) -> SearchResult:
    return search(plan, network, data)


@pytest.mark.parametrize("cuts", [[0, 16, 48], [0, 5, 11, 37, 48], list(range(0, 49, 6)), [0, 1, 48]])
def test_results_have_the_same_bits_in_any_shard(
    cuts: list[int], plan: SearchPlan, network: SearchableNetwork, data: Data, whole: SearchResult
) -> None:
    ranges = list(pairwise(cuts))
    # The last shard first: the order does not matter either.
    parts = [search(plan, network, data, first, end - first) for first, end in reversed(ranges)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(joined(parts), joined([whole]), strict=True))


def test_results_do_not_depend_on_the_other_examples(plan: SearchPlan, network: SearchableNetwork, data: Data, whole: SearchResult) -> None:
    images = data.train.images.clone()
    images[:20] = 255 - images[:20]
    changed = search_examples(plan, network, Split(images, data.train.labels), first=0, count=48, device=CPU)
    assert torch.equal(changed.targets[0][20:], whole.targets[0][20:])
    assert torch.equal(changed.after_NL[20:], whole.after_NL[20:])


@pytest.fixture
def other_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("other_threads")
def test_results_have_the_same_bits_on_another_number_of_threads(
    plan: SearchPlan, network: SearchableNetwork, data: Data, whole: SearchResult
) -> None:
    assert all(torch.equal(one, other) for one, other in zip(joined([search(plan, network, data)]), joined([whole]), strict=True))


def test_fitness_is_what_the_network_says_of_the_target(
    plan: SearchPlan, network: SearchableNetwork, data: Data, whole: SearchResult
) -> None:
    searched = evaluation_network(network)
    with torch.no_grad():
        for position, layer in enumerate(plan.layers):
            fitness = evaluate(searched, layer, whole.targets[position][:, None], data.train.labels[:48])[:, 0]
            assert torch.allclose(fitness, whole.after_NL[:, position], atol=1e-5)


def test_search_improves_on_its_start_and_counts_its_evaluations(plan: SearchPlan, whole: SearchResult) -> None:
    assert (whole.after_NL >= whole.before_NL).all()
    assert (whole.after_NL > whole.before_NL).float().mean() > 0.5
    assert whole.evaluations == 48 * sum(plan.strategy.evaluations(p) for p in range(3))
    for position, curve in enumerate(whole.curves):
        assert len(curve) == plan.strategy.generations_at(position) + 1
        assert curve[0] == pytest.approx(float(-whole.before_NL[:, position].mean()), abs=1e-6)
        assert curve[-1] == pytest.approx(float(-whole.after_NL[:, position].mean()), abs=1e-6)
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(curve))


@pytest.mark.parametrize("field", [{"seed": 4}, {"round": 1}])
def test_results_depend_on_seed_and_round(field: dict[str, int], network: SearchableNetwork, data: Data) -> None:
    name = next(iter(STRATEGIES.members))
    one, other = (search(plan_of(name, **fields), network, data, count=8) for fields in ({}, field))
    assert not torch.equal(one.targets[0], other.targets[0])


def test_starting_from_the_network_begins_at_its_own_representation(network: SearchableNetwork, data: Data) -> None:
    plan = plan_of("evolution", from_network=True)
    result = search(plan, network, data, count=16)
    with torch.no_grad():
        own = evaluation_network(network)(data.train.images[:16])
    own_fitness = -torch.nn.functional.cross_entropy(own, data.train.labels[:16], reduction="none")
    # The first candidate is the network's own representation, so the initial population's best is at least as fit.
    assert (result.before_NL[:, 0] >= own_fitness - 1e-3).all()


def test_a_subset_of_layers_can_be_searched(network: SearchableNetwork, data: Data) -> None:
    strategy = STRATEGIES.build({"name": "evolution", "generations": [2], "strength": [0.2], "boost": [3], "blur_passes": [0]})
    plan = SearchPlan(strategy=strategy, layers=[1], seed=0, round=0, input_noise=0.1, from_network=False, tile_examples=8)
    result = search(plan, network, data, count=16)
    assert [target.shape for target in result.targets] == [(16, 16, 2, 2)]


def test_a_fitness_that_is_not_finite_names_image_layer_and_generation(data: Data) -> None:
    network = made_up_network(data)
    with torch.no_grad():
        network.head.linear.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="training image 16, block0, generation 0"):
        search(plan_of("evolution"), network, data, first=16, count=8)


def test_normal_numbers_from_keys_are_standard_normal() -> None:
    numbers = standard_normal(torch.arange(50), 4001, CPU)
    assert numbers.shape == (50, 4001)
    assert numbers.mean().abs() < 0.01
    assert abs(float(numbers.var()) - 1) < 0.02
    assert torch.equal(standard_normal(torch.tensor([7]), 4001, CPU)[0], numbers[7])
