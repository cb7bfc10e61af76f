"""Each strategy does what its source says: estimates, steps, codes, draws."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from repsearch.datasets.base import Data
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork
from repsearch.seeding import keys_of
from searcher.evaluating import evaluate, evaluate_with_gradient
from searcher.evaluation_network import evaluation_network
from searcher.search import SearchPlan, search_examples
from searcher.strategies import SearchLayer
from searcher.strategies.class_code import ClassCode
from searcher.strategies.evolution import normalise_groups
from searcher.strategies.evolution_strategy import EvolutionStrategy, centred_ranks, estimate
from searcher.strategies.gradient import Gradient
from searcher.strategies.moves import directions
from searcher.strategies.quality_diversity import ArchiveState, QualityDiversity
from searcher.strategies.random_search import RandomSearch
from tests.networks import made_up_data, made_up_network

CPU = torch.device("cpu")


def layer(kind: str = "block", shape: tuple[int, ...] = (4, 9, 9), classes: int = 4, seed: int = 5) -> SearchLayer:
    return SearchLayer(position=0, kind=kind, shape=shape, seed=seed, device=CPU, classes=classes)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def data() -> Data:
    return made_up_data((1, 12, 12))


@pytest.fixture(scope="module")
def network(data: Data) -> SearchableNetwork:
    return evaluation_network(made_up_network(data))


def of_block_0(strategy: object, *, count: int = 32, from_network: bool = True) -> SearchPlan:
    return SearchPlan(
        strategy=strategy,  # type: ignore[arg-type]
        layers=[0],
        seed=3,
        round=0,
        input_noise=0.1,
        from_network=from_network,
        micro_batch=count,
    )


def start_of(network: SearchableNetwork, data: Data, count: int = 32) -> Tensor:
    with torch.no_grad():
        return network.representations(data.train.images[:count])[0]


def test_the_estimate_nears_the_exact_gradient_as_pairs_grow(network: SearchableNetwork, data: Data) -> None:
    own, labels = start_of(network, data), data.train.labels[:32]
    _, exact = evaluate_with_gradient(network, 0, own[:, None], labels)
    shape = tuple(own.shape[1:])
    cosines = []
    for pairs in (4, 32, 256):
        member = EvolutionStrategy(pairs=pairs, generations=[1], sigma=[0.05], step=[0.1], blur_passes=[0])
        state = member.init(own.flatten(2)[:, None], layer=layer(shape=shape), labels_B=labels, keys_B=keys_of(1, torch.arange(32)))
        candidates = member.ask(state)
        with torch.no_grad():
            fitness = evaluate(network, 0, candidates.view(32, -1, *shape), labels)
        found = estimate(member.directions(state), fitness[:, 1:])
        cosines.append(float(torch.cosine_similarity(found.flatten(1), exact.flatten(1)).mean()))
    # A random direction in n dimensions has a cosine of sqrt(pairs / n) to the gradient, as long as pairs is well below n.
    n = own[0].numel()
    assert cosines[0] == pytest.approx((4 / n) ** 0.5, rel=0.5)
    assert cosines[1] == pytest.approx((32 / n) ** 0.5, rel=0.3)
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.5


def test_pairs_are_antithetic_and_the_mean_moves_by_the_step() -> None:
    member = EvolutionStrategy(pairs=8, generations=[2], sigma=[0.01], step=[0.05], blur_passes=[1])
    own = normalise_groups(normal(3, 1, 4, 81))
    state = member.init(own, layer=layer(), labels_B=torch.arange(3), keys_B=keys_of(1, torch.arange(3)))
    candidates = member.ask(state)
    assert candidates.shape == (3, 17, 4, 81)
    assert torch.equal(candidates[:, :1], own)
    assert ((candidates[:, 1:9] + candidates[:, 9:]) / 2 - own).abs().max() < 1e-3
    told = member.tell(state, candidates, normal(3, 17))
    assert (told.mean_B1GM - own).square().mean(dim=(1, 2, 3)).sqrt() == pytest.approx(0.05, rel=0.1)
    assert torch.equal(member.best(told).targets_BRGM, own)


def test_each_layer_may_have_pairs_of_its_own() -> None:
    fields = {"generations": [1, 2], "sigma": [0.1] * 2, "step": [0.1] * 2, "blur_passes": [1, 0]}
    alike, apart = (EvolutionStrategy(pairs=pairs, **fields) for pairs in (4, [4, 9]))
    assert [alike.evaluations(position) for position in (0, 1)] == [10, 19]
    assert [apart.evaluations(position) for position in (0, 1)] == [10, 39]
    assert [apart.footprint(position, (4, 9, 9), classes=3, results=1).candidates for position in (0, 1)] == [9, 19]
    assert (alike.wider(1.5), apart.wider(1.5)) == ({"pairs": 6}, {"pairs": [6, 14]})
    for member in (alike, apart):
        member.check([1, 2], [(4, 9, 9), (4, 5, 5)])
    with pytest.raises(ConfigError, match=r"search\.strategy\.pairs: 2 values \[4, 9\] for 3 search layers"):
        EvolutionStrategy(pairs=[4, 9], **{name: [*values, 0] for name, values in fields.items()}).check([0, 1, 2], [(4, 9, 9)] * 3)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([8, 0], r"s\.pairs\.1: should be greater than or equal to 1 \(given: 0\)"),
        ([8, 2.5], r"s\.pairs\.1: should be a valid integer \(given: 2\.5\)"),
        ("x", r"s\.pairs: should be a valid integer \(given: 'x'\), or should be a valid array \(given: 'x'\)"),
    ],
)
def test_pairs_that_are_none_are_named_once(pairs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        STRATEGIES.build({"name": "evolution_strategy", "pairs": pairs}, at="s")


def test_momentum_adds_the_direction_before() -> None:
    plain, heavy = (EvolutionStrategy(pairs=8, generations=[2], sigma=[0.1], step=[0.1], momentum=m, blur_passes=[1]) for m in (0.0, 0.9))
    own = normalise_groups(normal(1, 1, 4, 81))
    before = []
    for member in (plain, heavy):
        state = member.init(own, layer=layer(), labels_B=torch.zeros(1).long(), keys_B=keys_of(1, torch.arange(1)))
        first = member.tell(state, member.ask(state), normal(1, 17, seed=1))
        second = member.tell(first, member.ask(first), normal(1, 17, seed=2))
        before.append(torch.cosine_similarity(second.velocity_B1GM.flatten(), first.velocity_B1GM.flatten(), dim=0))
    assert before[1] > before[0] + 0.3


def test_ranks_are_centred_and_equal_fitness_has_equal_rank() -> None:
    assert centred_ranks(torch.tensor([[3.0, 1.0, 2.0]])).tolist() == [[0.5, -0.5, 0.0]]
    assert centred_ranks(torch.tensor([[1.0, 1.0, 2.0]])).tolist() == [[-0.25, -0.25, 0.5]]
    assert centred_ranks(torch.zeros(1, 6)).abs().max() == 0


@pytest.mark.parametrize("kind", ["pixel", "low_resolution", "channel"])
def test_directions_have_unit_variance_and_the_smoothness_of_their_kind(kind: str) -> None:
    drawn = torch.arange(4000)[None] * 97
    noise = directions(layer(), kind, drawn, passes=0, rows=8192).reshape(-1, 4, 9, 9)  # type: ignore[arg-type]
    assert noise.mean().abs() < 0.05
    assert float(noise.var()) == pytest.approx(1, rel=0.1)
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean())
    assert {"pixel": abs(neighbours) < 0.05, "low_resolution": 0.6 < neighbours < 0.95, "channel": neighbours > 0.95}[kind]
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.05


@pytest.mark.parametrize("passes", [0, 2])
def test_gradient_steps_lower_the_cross_entropy(passes: int, network: SearchableNetwork, data: Data) -> None:
    member = Gradient(steps=[5], step=[0.05], blur_passes=[passes])
    curve = search_examples(of_block_0(member), network, data.train, first=0, count=32, device=CPU).curves[0]
    assert all(later < earlier for earlier, later in pairwise(curve))


def test_a_gradient_step_has_its_length_and_follows_autograd(network: SearchableNetwork, data: Data) -> None:
    own, labels = start_of(network, data), data.train.labels[:32]
    member = Gradient(steps=[1], step=[0.01], blur_passes=[0])
    result = search_examples(of_block_0(member), network, data.train, first=0, count=32, device=CPU)
    moved = result.targets[0] - own
    assert moved.square().mean(dim=(1, 2, 3)).sqrt() == pytest.approx(0.01, rel=0.1)
    leaf = own.clone().requires_grad_()
    (exact,) = torch.autograd.grad(-torch.nn.functional.cross_entropy(network.run_from(0, leaf), labels, reduction="sum"), leaf)
    assert torch.cosine_similarity(moved.flatten(1), exact.flatten(1)).min() > 0.95


def codes_of(member: ClassCode, own: Tensor, labels: Tensor, **fields: object) -> Tensor:
    at = layer(**fields)  # type: ignore[arg-type]
    return member.init(own, layer=at, labels_B=labels, keys_B=keys_of(0, labels)).target_B1GM[:, 0]


def test_a_class_code_belongs_to_its_class_alone_and_is_smooth() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    code = codes_of(ClassCode(blur_passes=[4]), normal(4, 1, 4, 81), labels)
    assert torch.equal(code[0], code[3])
    assert torch.cosine_similarity(code[0].flatten(), code[1].flatten(), dim=0).abs() < 0.5
    assert code.square().mean(dim=(1, 2)) == pytest.approx(1, rel=1e-3)
    maps = code.view(4, 4, 9, 9)
    assert (maps[..., 1:] * maps[..., :-1]).mean() > 0.6
    other = codes_of(ClassCode(blur_passes=[4]), normal(4, 1, 4, 81, seed=1), labels, classes=7)
    assert torch.equal(other, code)


def test_a_mixed_code_has_the_shares_of_its_parts() -> None:
    own = normalise_groups(normal(4, 1, 4, 81))
    labels = torch.tensor([0, 1, 2, 3])
    code = codes_of(ClassCode(blur_passes=[0]), own, labels)
    mixed = codes_of(ClassCode(blur_passes=[0], mix=0.25), own, labels)
    expected = normalise_groups((0.75 * own[:, 0] + 0.25 * code)[:, None])[:, 0]
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert torch.allclose(codes_of(ClassCode(blur_passes=[0], mix=0.0), own, labels), own[:, 0], atol=1e-4)


def test_the_frequency_of_a_code_is_that_of_its_map() -> None:
    def waves(frequency: float) -> float:
        """Mean number of half waves in the map, by energy."""
        map_HW = ClassCode(frequency=[frequency]).codes(layer(shape=(1, 16, 16)))[0].view(16, 16)
        places, numbers = torch.arange(16) + 0.5, torch.arange(16)
        cosines = torch.cos(math.pi / 16 * numbers[:, None] * places)
        energy = (cosines @ map_HW @ cosines.T).square()
        return float((energy * (numbers[:, None] + numbers)).sum() / energy.sum())

    assert 0 < waves(1.0) < waves(3.0) < waves(100.0)
    flat = ClassCode(frequency=[0.0]).codes(layer(shape=(8, 4, 4)))
    assert torch.allclose(flat, flat[..., :1].expand_as(flat), atol=1e-5) and flat.std() > 0.9


def test_latent_numbers_move_a_code_and_as_many_make_the_same_one() -> None:
    at = layer(classes=2)
    plain = ClassCode(blur_passes=[1]).codes(at)
    still, moved, again = (
        ClassCode(blur_passes=[1], latent=[[[[0.0, 0.0]], [numbers]]]).codes(at) for numbers in ([0.0, 0.0], [1.0, -1.0], [1.0, -1.0])
    )
    assert torch.allclose(still, plain, atol=1e-4)
    assert torch.equal(moved, again) and torch.allclose(moved[0], plain[0], atol=1e-4)
    # By its own length: at right angles, more or less.
    assert torch.cosine_similarity(moved[1].flatten(), plain[1].flatten(), dim=0) == pytest.approx(0.5**0.5, abs=0.15)


def test_a_code_of_a_seed_of_its_own_does_not_follow_the_run() -> None:
    first, second = (ClassCode(blur_passes=[1], code_seed=4).codes(layer(seed=seed)) for seed in (1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, ClassCode(blur_passes=[1], code_seed=5).codes(layer(seed=1)))


def test_strength_is_the_length_of_the_code_in_the_mix() -> None:
    own, labels = normalise_groups(normal(4, 1, 4, 81)), torch.tensor([0, 1, 2, 3])
    code = codes_of(ClassCode(blur_passes=[0]), own, labels)
    strong = codes_of(ClassCode(blur_passes=[0], mix=0.5, strength=[3.0]), own, labels)
    assert torch.allclose(strong, normalise_groups((own[:, 0] + 3 * code)[:, None])[:, 0], atol=1e-5)


def test_several_codes_of_a_class_are_shared_out_by_the_key() -> None:
    member, at = ClassCode(blur_passes=[0], codes_per_class=3), layer(classes=4)
    labels, keys = torch.arange(300) % 4, keys_of(0, torch.arange(300))
    numbers = member.code_numbers(labels, keys, at)
    assert torch.equal(numbers // 3, labels)
    assert torch.bincount(numbers, minlength=12).min() >= 10
    targets = member.init(normal(300, 1, 4, 81), layer=at, labels_B=labels, keys_B=keys).target_B1GM[:, 0]
    assert torch.allclose(targets, member.codes(at)[numbers], atol=1e-4)
    # One code is the first of several.
    assert torch.equal(member.codes(at)[::3], ClassCode(blur_passes=[0]).codes(at))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frequency": [1.0]}, "search.strategy.frequency: 1 values"),
        ({"strength": [1.0, 1.0, 1.0]}, "search.strategy.strength: 3 values"),
        ({"latent": [[[[1.0]]]]}, "search.strategy.latent: 1 entries for 2 search layers"),
        ({"latent": [[[[1.0]], [[1.0, 2.0]]], []]}, "of layer 0, every class needs 1 lists"),
        ({"latent": [[[[1.0]], [[2.0]]], [[[1.0]]]]}, "the logits have no code that could be moved"),
        ({"latent": [[[[1.0]], [[2.0]]], []], "codes_per_class": 2}, "of layer 0, every class needs 2 lists"),
    ],
)
def test_codes_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ClassCode(**{"blur_passes": [1, 0], **fields}).check([0, "logits"], [(4, 9, 9), (4,)])


def test_a_latent_of_other_classes_is_refused() -> None:
    member = ClassCode(blur_passes=[1], latent=[[[[1.0]], [[2.0]]]])
    with pytest.raises(ConfigError, match="codes of 2 classes for a dataset of 10"):
        member.footprint(0, (4, 9, 9), classes=10, results=1)


def test_logits_of_a_code_prefer_the_class_by_the_scale_or_are_the_own_ones() -> None:
    labels, own = torch.tensor([2, 0]), normal(2, 1, 1, 4)
    logits = codes_of(ClassCode(blur_passes=[0], logit_scale=3.0), own, labels, kind="logits", shape=(4,))[:, 0]
    assert logits.argmax(dim=1).tolist() == [2, 0]
    assert logits[0].tolist() == pytest.approx([-0.75, -0.75, 2.25, -0.75])
    kept = codes_of(ClassCode(blur_passes=[0], logits="own"), own, labels, kind="logits", shape=(4,))
    assert torch.equal(kept, own[:, 0])


def test_random_search_returns_the_best_of_its_draws(network: SearchableNetwork, data: Data) -> None:
    own, labels = start_of(network, data), data.train.labels[:32]
    shape = tuple(own.shape[1:])
    member = RandomSearch(population=6, generations=[3], strength=[0.8], blur_passes=[1])
    state = member.init(own.flatten(2)[:, None], layer=layer(shape=shape), labels_B=labels, keys_B=keys_of(1, torch.arange(32)))
    everything, fitness = [], []
    for _ in range(4):
        candidates = member.ask(state)
        everything.append(candidates)
        with torch.no_grad():
            fitness.append(evaluate(network, 0, candidates.view(32, -1, *shape), labels))
        state = member.tell(state, candidates, fitness[-1])
    drawn, values = torch.cat(everything, dim=1), torch.cat(fitness, dim=1)
    assert drawn.shape[1] == member.evaluations(0) == 24
    # Independent draws: two alike are as rare as two equal rows drawn from the table of noise.
    distances = torch.cdist(drawn.flatten(2), drawn.flatten(2)) + torch.eye(24) * 99
    assert (distances < 0.1).float().mean() < 1e-3
    best = member.best(state)
    assert torch.equal(best.fitness_BR[:, 0], values.amax(dim=1))
    assert torch.equal(best.targets_BRGM[:, 0], drawn[torch.arange(32), values.argmax(dim=1)])


def test_no_search_returns_the_networks_own_representation(network: SearchableNetwork, data: Data) -> None:
    plan = of_block_0(STRATEGIES.build({"name": "none"}), from_network=False)
    result = search_examples(plan, network, data.train, first=0, count=32, device=CPU)
    assert torch.allclose(result.targets[0], start_of(network, data), atol=1e-4)
    assert result.evaluations == 0


def archive(
    network: SearchableNetwork, data: Data, results: int = 1, generations: int = 10
) -> tuple[QualityDiversity, ArchiveState, Tensor]:
    """Return the member, its state after `generations`, and how many cells were occupied after each."""
    own, labels = start_of(network, data), data.train.labels[:32]
    shape = tuple(own.shape[1:])
    member = QualityDiversity(population=16, generations=[generations], strength=[0.9], blur_passes=[1], cells=4)
    at = replace(layer(shape=shape), results=results)
    state = member.init(own.flatten(2)[:, None], layer=at, labels_B=labels, keys_B=keys_of(1, torch.arange(32)))
    occupied = []
    for _ in range(generations + 1):
        candidates = member.ask(state)
        with torch.no_grad():
            fitness = evaluate(network, 0, candidates.view(32, -1, *shape), labels)
        before = state
        state = member.tell(state, candidates, fitness)
        assert (state.fitness_BC >= before.fitness_BC).all()
        assert torch.equal(state.fitness_BC.amax(dim=1), torch.maximum(before.fitness_BC.amax(dim=1), fitness.amax(dim=1)))
        occupied.append((state.fitness_BC > float("-inf")).float().sum(dim=1).mean())
    return member, state, torch.stack(occupied)


def test_an_archive_holds_in_every_cell_a_candidate_of_that_cell(network: SearchableNetwork, data: Data) -> None:
    member, state, occupied = archive(network, data)
    assert (occupied.diff() >= 0).all()
    assert occupied[-1] > occupied[0]
    assert occupied[-1] > 6
    cells = member.cell_of(state, state.elites_BCGM)
    there = state.fitness_BC > float("-inf")
    assert torch.equal(cells[there], torch.arange(16).expand(32, 16)[there])
    with torch.no_grad():
        shape = (32, 16, *state.layer.shape)
        fitness = evaluate(network, 0, state.elites_BCGM.view(shape), data.train.labels[:32])
    assert torch.allclose(fitness[there], state.fitness_BC[there], atol=1e-5)


def test_the_results_of_an_archive_are_its_fittest_cells(network: SearchableNetwork, data: Data) -> None:
    member, state, _ = archive(network, data, results=4)
    best = member.best(state)
    assert best.targets_BRGM.shape[:2] == (32, 4)
    assert torch.equal(best.fitness_BR, state.fitness_BC.topk(4, dim=1).values)
    cells = member.cell_of(state, best.targets_BRGM)
    assert all(len(set(row)) == 4 for row in cells.tolist())


def test_an_archive_with_fewer_cells_than_results_repeats_from_the_fittest_on() -> None:
    member = QualityDiversity(population=2, generations=[0], strength=[0.9], blur_passes=[1])
    at = replace(layer(), results=5)
    state = member.init(normalise_groups(normal(3, 1, 4, 81)), layer=at, labels_B=torch.arange(3), keys_B=keys_of(1, torch.arange(3)))
    best = member.best(member.tell(state, member.ask(state), torch.tensor([[1.0, 2.0]]).expand(3, 2)))
    assert best.fitness_BR.tolist() in ([[2.0, 1.0, 2.0, 1.0, 2.0]] * 3, [[2.0] * 5] * 3)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "quality_diversity", "cells": 40, "dimensions": 2}, "40 cells along 2 dimensions are 1600"),
        ({"name": "gradient", "step": [0.0]}, r"step\.0: should be greater than 0"),
        ({"name": "gradient", "step": [1e9]}, r"less than or equal to 100"),
        ({"name": "evolution_strategy", "momentum": 1.0}, "less than 1"),
        ({"name": "evolution", "stop_probability": 1.0}, "less than 1"),
        ({"name": "class_code", "mix": 1.5}, "less than or equal to 1"),
        ({"name": "random_search", "blur_passes": [-1]}, "greater than or equal to 0"),
        ({"name": "none", "step": 1}, "unknown key 'step'"),
    ],
)
def test_values_out_of_range_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        STRATEGIES.build(table, at="search.strategy")


@pytest.mark.parametrize("name", ["evolution", "evolution_strategy", "quality_diversity", "random_search", "gradient", "class_code"])
def test_schedules_that_do_not_fit_the_layers_are_refused(name: str) -> None:
    member = STRATEGIES.build({"name": name, "blur_passes": [5, 1, 2, 0]})
    shapes = [(8, 13, 13), (8, 6, 6), (8, 3, 3), (10,)]
    with pytest.raises(ConfigError, match=r"search\.strategy\.\w+: 4 values .* for 1 search layers \[0\]"):
        member.check([0], shapes[:1])
    with pytest.raises(ConfigError, match=r"blur_passes: 2 passes average over 5 positions, and layer 2 has a map of 3x3; set at most 1"):
        member.check([0, 1, 2, "logits"], shapes)
    STRATEGIES.build({"name": name, "blur_passes": [5, 1, 1, 0]}).check([0, 1, 2, "logits"], shapes)
