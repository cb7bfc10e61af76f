"""The search loop: what an example's result depends on, and what it does not. Every strategy passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from repsearch.datasets.base import Data, Split
from repsearch.errors import DatasetError, NumericalError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork, build_network, calibrate
from searcher.evaluation_network import evaluation_network
from searcher.search import SearchPlan, SearchResult, evaluate, search_examples, standard_normal
from tests.networks import made_up_data, made_up_network, perturb

EVOLUTION = {"generations": [4, 3, 2], "strength": [0.3, 0.2, 0.1], "boost": [5, 3, 1], "blur_passes": [1, 0, 0], "noise_rows": 512}
MOVES = {"generations": [3, 2, 1], "step": [0.3, 0.3, 0.3], "sigma": [0.3, 0.3, 0.3], "blur_passes": [1, 0, 0], "noise_rows": 512}
EXAMPLES: dict[str, dict[str, object]] = {
    "evolution": EVOLUTION,
    "evolution_strategy": MOVES,
    "random_search": {"generations": [2, 1, 1], "strength": [0.9, 0.6, 0.3], "blur_passes": [1, 0, 0], "noise_rows": 512},
    "quality_diversity": {"generations": [4, 3, 2], "strength": [0.9, 0.6, 0.3], "blur_passes": [1, 0, 0], "noise_rows": 512},
    "gradient": {"steps": [3, 2, 1], "step": [0.3, 0.3, 0.3], "blur_passes": [1, 0, 0]},
    "class_code": {"blur_passes": [1, 0, 0]},
    "none": {},
}
"""Fields for search layers block0, block1 and logits, for the contract of every member."""
VARIANTS: dict[str, dict[str, object]] = {
    **{name: {"name": name, **fields} for name, fields in EXAMPLES.items()},
    "evolution that stops": {"name": "evolution", **EVOLUTION, "stop_probability": 0.4},
    "evolution of means": {"name": "evolution", **EVOLUTION, "target": "elite_mean", "seeding": "parents", "strength_decay": 0.9},
    "evolution of means that stops": {"name": "evolution", **EVOLUTION, "target": "elite_mean", "stop_probability": 0.4},
    "best of low resolution": {"name": "evolution_strategy", **MOVES, "noise": "low_resolution", "target": "best"},
    "channels that stop": {"name": "evolution_strategy", **MOVES, "noise": "channel", "stop_probability": 0.4},
    "steps that adapt": {"name": "evolution", **EVOLUTION, "step_size": "adapted", "stop_probability": 0.4},
    "steps in units": {"name": "evolution", **EVOLUTION, "step_size": "absolute"},
    "moves that adapt": {"name": "evolution_strategy", **MOVES, "step_size": "adapted"},
    "best of gradient": {"name": "gradient", **EXAMPLES["gradient"], "target": "best", "stop_probability": 0.4},
    "searched code": {
        "name": "class_code",
        "frequency": [2.0, 1.0, 0.0],
        "codes_per_class": 2,
        "code_seed": 3,
        "mix": 0.5,
        "strength": [2.0, 1.0, 1.0],
    },
    "mixed code": {"name": "class_code", "blur_passes": [1, 0, 0], "mix": 0.4, "logits": "own"},
}
"""Members, and settings of theirs that take other paths through the loop."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return made_up_data((1, 12, 12))


@pytest.fixture(scope="module", params=["untrained", "learned"])
def network(request: pytest.FixtureRequest, data: Data) -> SearchableNetwork:
    network = made_up_network(data)
    return perturb(network) if request.param == "learned" else network


@pytest.fixture(scope="module", params=[*STRATEGIES.members, *(name for name in VARIANTS if name not in STRATEGIES.members)])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def plan(variant: str) -> SearchPlan:
    return plan_of(variant)


def plan_of(name: str, **fields: object) -> SearchPlan:
    strategy = STRATEGIES.build(VARIANTS[name])
    values = {"layers": [0, 1, 2], "seed": 3, "round": 0, "input_noise": 0.1, "from_network": False, "micro_batch": 8, **fields}
    return SearchPlan(strategy=strategy, **values)  # type: ignore[arg-type]


def search(plan: SearchPlan, network: SearchableNetwork, data: Data, first: int = 0, count: int = 48) -> SearchResult:
    return search_examples(plan, network, data.train, first=first, count=count, device=CPU)


def joined(parts: list[SearchResult]) -> list[torch.Tensor]:
    targets = [torch.cat([part.targets[p] for part in parts]) for p in range(3)]
    return [*targets, torch.cat([part.before_NL for part in parts]), torch.cat([part.after_NL for part in parts])]


@pytest.fixture(scope="module")
def whole(plan: SearchPlan, network: SearchableNetwork, data: Data) -> SearchResult:
    return search(plan, network, data)


def test_results_have_the_same_bits_in_any_shard(plan: SearchPlan, network: SearchableNetwork, data: Data, whole: SearchResult) -> None:
    # Shards of one image, of whole tiles, and with tiles cut at either end.
    ranges = list(pairwise([0, 1, 16, 37, 48]))
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
    found = joined([search(plan, network, data, count=16)])
    assert all(torch.equal(one, other[:16]) for one, other in zip(found, joined([whole]), strict=True))


def test_fitness_is_what_the_network_says_of_the_target(
    plan: SearchPlan, network: SearchableNetwork, data: Data, whole: SearchResult
) -> None:
    searched = evaluation_network(network)
    with torch.no_grad():
        for position, layer in enumerate(plan.layers):
            fitness = evaluate(searched, layer, whole.targets[position][:, None], data.train.labels[:48])[:, 0]
            assert torch.allclose(fitness, whole.after_NL[:, position], atol=1e-5)


def test_search_improves_on_its_start_and_counts_its_evaluations(plan: SearchPlan, whole: SearchResult) -> None:
    traits = plan.strategy.traits
    most = 48 * sum(plan.strategy.evaluations(p) for p in range(3))
    assert whole.evaluations < most if traits.stops else whole.evaluations == most
    if traits.chooses:
        assert (whole.after_NL > whole.before_NL).float().mean() > 0.2
        assert whole.after_NL.mean() > whole.before_NL.mean()
    else:
        assert whole.evaluations == 0
        assert torch.equal(whole.after_NL, whole.before_NL)
    if traits.monotone:
        assert (whole.after_NL >= whole.before_NL).all()
    assert whole.solved == pytest.approx((whole.after_NL.exp() > 0.5).float().mean(dim=0).tolist())


def test_curves_run_from_the_initial_fitness_to_the_last(plan: SearchPlan, whole: SearchResult) -> None:
    for position, curve in enumerate(whole.curves):
        assert len(curve) == plan.strategy.generations_at(position) + 1
        if len(curve) > 1 or plan.strategy.traits.measured:
            assert curve[0] == pytest.approx(float(-whole.before_NL[:, position].mean()), abs=1e-6)
        assert curve[-1] == pytest.approx(float(-whole.after_NL[:, position].mean()), abs=1e-6)
        if plan.strategy.traits.monotone:
            assert all(later <= earlier + 1e-9 for earlier, later in pairwise(curve))


def test_targets_have_the_form_of_their_layer(whole: SearchResult) -> None:
    for target in whole.targets[:2]:
        assert target.flatten(1).mean(dim=1).abs().max() < 1e-4
        assert (target.flatten(1).var(dim=1, correction=0) - 1).abs().max() < 1e-2
    assert whole.targets[2].mean(dim=1).abs().max() < 1e-4


@pytest.mark.parametrize(("what", "value"), [("seed", 4), ("round", 1)])
def test_results_depend_on_seed_and_round_as_declared(
    what: str, value: int, variant: str, network: SearchableNetwork, data: Data, whole: SearchResult
) -> None:
    other = search(plan_of(variant, **{what: value}), network, data, count=8)
    assert torch.equal(other.targets[0], whole.targets[0][:8]) is not (what in plan_of(variant).strategy.traits.depends_on)


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
    plan = SearchPlan(strategy=strategy, layers=[1], seed=0, round=0, input_noise=0.1, from_network=False, micro_batch=8)
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


def test_independent_searches_are_results_side_by_side(
    plan: SearchPlan, network: SearchableNetwork, data: Data, whole: SearchResult
) -> None:
    three = search(replace(plan, searches=3), network, data, first=8, count=16)
    assert three.targets[0].shape == (16, 3, *whole.targets[0].shape[1:])
    assert three.before_NL.shape == three.after_NL.shape == (16, 3, 3)
    again = search(replace(plan, searches=3), network, data, first=0, count=24)
    assert torch.equal(three.targets[1], again.targets[1][8:])
    assert torch.equal(three.after_NL, again.after_NL[8:])
    traits = plan.strategy.traits
    if not traits.several:
        assert torch.equal(three.targets[2][:, 0], whole.targets[2][8:24])
        assert torch.equal(three.targets[0][:, 1], three.targets[0][:, 2]) is ("round" not in traits.depends_on)


def test_vectors_are_searched_as_maps_are(plan: SearchPlan, data: Data) -> None:
    dense = build_network({"name": "mlp", "widths": [24, 12]}, data, seed=0, purpose="searched")
    calibrate(dense, data.train.images)
    one, parts = search(plan, dense, data, count=24), [search(plan, dense, data, first, 12) for first in (0, 12)]
    assert [target.shape for target in one.targets] == [(24, 24), (24, 12), (24, 4)]
    assert all(torch.equal(joint, whole) for joint, whole in zip(joined(parts), joined([one]), strict=True))
    if plan.strategy.traits.chooses:
        assert one.after_NL.mean() > one.before_NL.mean()


@pytest.fixture(scope="module")
def stages() -> tuple[SearchableNetwork, Data]:
    """A torchvision model whose blocks put out a map, (24, 4, 4), and a vector, (1024,)."""
    data = made_up_data((3, 32, 32), train=16)
    table = {"name": "torchvision", "model": "mobilenet_v3_small", "stages": ["features.3", "classifier.0"]}
    network = build_network(table, data, seed=0, purpose="searched")
    calibrate(network, data.train.images)
    return network, data


@pytest.mark.parametrize("name", STRATEGIES.members)
def test_stages_of_torchvision_models_are_searched_as_blocks_are(name: str, stages: tuple[SearchableNetwork, Data]) -> None:
    (network, data), plan = stages, plan_of(name, micro_batch=4)
    one, part = search(plan, network, data, count=8), search(plan, network, data, 5, 3)
    assert [tuple(target.shape[1:]) for target in one.targets] == [(24, 4, 4), (1024,), (4,)]
    assert all(torch.equal(cut, whole[5:]) for cut, whole in zip(joined([part]), joined([one]), strict=True))
    assert bool(torch.isfinite(one.after_NL).all())
    if plan.strategy.traits.chooses:
        assert one.after_NL.mean() > one.before_NL.mean()


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_without_a_class_is_refused_by_image(label: int, network: SearchableNetwork, data: Data) -> None:
    labels = data.train.labels.clone()
    labels[11] = label
    with pytest.raises(DatasetError, match=rf"training image 11: label {label} is not in 0\.\.3"):
        search_examples(plan_of("none"), network, Split(data.train.images, labels), first=8, count=8, device=CPU)


def test_images_that_stop_leave_the_bits_of_the_others() -> None:
    """An image that never passes the bound has the bits of a search without one, whatever was packed beside it.

    By tensors: a learned network is searched by other operations where no image may stop."""
    data = made_up_data((1, 12, 12), train=192)
    network = perturb(made_up_network(data))
    fields = {"name": "evolution", "generations": [12], "strength": [0.3], "boost": [5], "blur_passes": [1], "noise_rows": 512}
    free, bound = (
        search_examples(
            replace(plan_of("evolution", layers=[0], seed=1, compiled=False), strategy=STRATEGIES.build(table)),
            network,
            data.train,
            first=0,
            count=192,
            device=CPU,
        )
        for table in (fields, {**fields, "stop_probability": 0.75})
    )
    stopped = bound.after_NL[:, 0].exp() > 0.75
    assert 0.1 < stopped.float().mean() < 0.9
    assert torch.equal(bound.targets[0][~stopped], free.targets[0][~stopped])
    assert bound.evaluations < 0.9 * free.evaluations
