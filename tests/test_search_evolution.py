"""Evolution: the operators and the population structure of the source paper."""

from __future__ import annotations

import pytest
import torch

from repsearch.config import load_config
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from repsearch.seeding import keys_of
from searcher.noise import NoiseTable, smooth
from searcher.strategies import SearchLayer
from searcher.strategies.evolution import Evolution, deviations, normalise_groups

SHAPE = (4, 6, 6)
LABELS = torch.tensor([0, 1, 2])
"""Evolution does not read them."""


def layer(kind: str = "block", shape: tuple[int, ...] = SHAPE) -> SearchLayer:
    return SearchLayer(position=0, kind=kind, shape=shape, seed=5, device=torch.device("cpu"))  # type: ignore[arg-type]


def evolution(**fields: object) -> Evolution:
    table = {"name": "evolution", "generations": [3], "strength": [0.3], "boost": [5.0], "blur_passes": [2], **fields}
    member: Evolution = STRATEGIES.build(table, at="search.strategy")
    return member


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(strategy: Evolution, B: int = 3) -> tuple[object, torch.Tensor]:
    start = normalise_groups(normal(B, strategy.population, 4, 36))
    return strategy.init(start, layer=layer(), labels_B=LABELS, keys_B=keys_of(1, torch.arange(B))), start


def test_paper_schedule_costs_112_200_evaluations_per_image_after_the_initial_populations() -> None:
    config = load_config_of("paper-cifar10")
    strategy = STRATEGIES.build(config.search.strategy)
    after_initial = sum(strategy.evaluations(p) - strategy.population for p in range(4))
    assert after_initial == 112_200


def load_config_of(name: str):  # type: ignore[no-untyped-def]
    from pathlib import Path

    return load_config(Path(__file__).parents[1] / "configs" / f"{name}.toml")


def test_first_proposal_is_the_starting_population_filled_up_by_mutations() -> None:
    strategy = evolution()
    start = normalise_groups(normal(3, 2, 4, 36))
    candidates = strategy.ask(strategy.init(start, layer=layer(), labels_B=LABELS, keys_B=keys_of(1, torch.arange(3))))
    assert candidates.shape == (3, 24, 4, 36)
    assert torch.equal(candidates[:, :2], start)
    assert (candidates[:, 2:] - start[:, :1]).abs().amax(dim=(2, 3)).gt(0.01).all()


def test_parents_stay_unchanged_and_the_elite_never_gets_worse() -> None:
    strategy = evolution()
    state, _ = started(strategy)
    state = strategy.tell(state, strategy.ask(state), normal(3, 24))
    for generation in range(1, 4):
        parents, before = state.parents_BKGM, strategy.best(state).fitness_BR
        candidates = strategy.ask(state)
        assert candidates.shape[1] == 20
        worse = torch.full((3, 20), -1e9)
        assert torch.equal(strategy.tell(state, candidates, worse).parents_BKGM, parents)
        state = strategy.tell(state, candidates, normal(3, 20, seed=generation))
        assert (strategy.best(state).fitness_BR >= before).all()


def test_selection_keeps_the_fittest_of_parents_and_children() -> None:
    strategy = evolution()
    state, _ = started(strategy)
    first, second = normal(3, 24, seed=1), normal(3, 20, seed=2)
    state = strategy.tell(state, strategy.ask(state), first)
    state = strategy.tell(state, strategy.ask(state), second)
    kept = torch.cat([first.topk(4, dim=1).values, second], dim=1).topk(4, dim=1).values
    assert torch.equal(state.fitness_BK, kept)


def test_without_mutation_a_child_is_the_normalised_mean_of_two_parents() -> None:
    strategy = evolution(strength=[1e-12], explorers=20, refiners=0)
    state, _ = started(strategy)
    state = strategy.tell(state, strategy.ask(state), normal(3, 24))
    parents = state.parents_BKGM
    means = normalise_groups(((parents[:, :, None] + parents[:, None]) / 2).flatten(1, 2))
    distance = torch.cdist(strategy.ask(state).flatten(2), means.flatten(2))
    assert distance.amin(dim=2).max() < 1e-4
    # Every pairing occurs: both members are drawn at random, with replacement.
    pairs = {int(pair) for pair in distance.argmin(dim=2).flatten()}
    assert len(pairs) > 8


def test_mutation_has_standard_deviation_alpha_sigma_per_channel() -> None:
    strategy = evolution(parents=1, explorers=0, refiners=399, population=400, strength=[0.05], blur_passes=[0])
    scale = torch.tensor([0.7, 0.8, 1.0, 1.4])[:, None]
    start = normalise_groups(normal(2, 400, 4, 36) * scale)
    state = strategy.init(start, layer=layer(), labels_B=LABELS, keys_B=keys_of(1, torch.arange(2)))
    state = strategy.tell(state, start, torch.arange(400.0).flip(0).expand(2, 400))
    parent = state.parents_BKGM
    difference = strategy.ask(state) - parent
    measured = difference.std(dim=1).mean(dim=-1) / deviations(parent)[:, 0]
    assert torch.allclose(measured, torch.full_like(measured, 0.05), rtol=0.1)


def test_explorers_move_boost_times_as_far_as_refiners() -> None:
    strategy = evolution(parents=1, explorers=100, refiners=100, population=201, strength=[0.01], boost=[4.0])
    state = strategy.init(normalise_groups(normal(2, 201, 4, 36)), layer=layer(), labels_B=LABELS, keys_B=keys_of(1, torch.arange(2)))
    state = strategy.tell(state, strategy.ask(state), normal(2, 201))
    moved = (strategy.ask(state) - state.parents_BKGM).square().mean(dim=(2, 3)).sqrt()
    explorers, refiners = moved[:, :100].mean(), moved[:, 100:].mean()
    # Refiners descend from the parent and from explorers, so they carry part of the explorers' move: the law of their mix.
    share = (100 / 101) ** 2 * 0.5 + 2 * (100 / 101) * (1 / 101) * 0.25
    expected = torch.sqrt(explorers**2 * share + (0.01 / 0.04 * explorers) ** 2)
    assert torch.isclose(refiners, expected, rtol=0.1)


@pytest.mark.parametrize("blur", ["mutation", "candidate", "none"])
def test_block_candidates_have_zero_mean_and_unit_variance(blur: str) -> None:
    strategy = evolution(blur=blur)
    state, _ = started(strategy)
    state = strategy.tell(state, strategy.ask(state), normal(3, 24))
    candidates = strategy.ask(state).flatten(2)
    assert candidates.mean(dim=2).abs().max() < 1e-5
    assert (candidates.var(dim=2, correction=0) - 1).abs().max() < 1e-3


def test_logits_are_recentred_and_neither_smoothed_nor_scaled() -> None:
    strategy = evolution()
    start = normal(3, 24, 1, 10) * 3
    logits = layer("logits", (10,))
    state = strategy.init(start - start.mean(dim=-1, keepdim=True), layer=logits, labels_B=LABELS, keys_B=keys_of(1, torch.arange(3)))
    state = strategy.tell(state, strategy.ask(state), normal(3, 24))
    candidates = strategy.ask(state)
    assert candidates.mean(dim=-1).abs().max() < 1e-5
    assert candidates.std(dim=-1).mean() > 2


def test_smoothing_repeats_3x3_average_pooling_over_positions_that_exist() -> None:
    once = smooth(torch.tensor([[[9.0, 0, 0], [0, 0, 0], [0, 0, 0]]]), 1)[0]
    assert torch.allclose(once, torch.tensor([[9 / 4, 9 / 6, 0], [9 / 6, 1, 0], [0, 0, 0]]))
    assert torch.allclose(smooth(torch.ones(1, 5, 7), 4), torch.ones(1, 5, 7))


def test_noise_is_standard_normal_after_smoothing_and_a_function_of_its_offset() -> None:
    table = NoiseTable(SHAPE, rows=4096, passes=5, rescale=True, seed=3, device=torch.device("cpu"))
    again = NoiseTable(SHAPE, rows=4096, passes=5, rescale=True, seed=3, device=torch.device("cpu"))
    offsets = torch.arange(0, table.draws, 7)[None]
    noise = table.take(offsets)
    assert torch.equal(noise, again.take(offsets))
    assert noise.mean().abs() < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    neighbours = noise.view(-1, 6, 6)
    assert (neighbours[:, :, 1:] * neighbours[:, :, :-1]).mean() > 0.7


def test_normalisation_equals_layer_norm_to_rounding() -> None:
    maps = normal(5, 3, 4, 36) * 3 + 1
    reference = torch.nn.functional.layer_norm(maps, (4, 36), eps=1e-5)
    assert torch.allclose(normalise_groups(maps), reference, atol=1e-5)
    assert torch.allclose(deviations(maps), maps.std(dim=-1, correction=0), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"population": 4}, "population 4 is smaller than parents + 1 = 5"),
        ({"explorers": 9}, "parents 4 + explorers 9 + refiners 12 = 25, but population is 24"),
        ({"strength": [-0.1]}, "greater than 0"),
    ],
)
def test_values_that_cannot_work_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        evolution(**fields)


def test_a_schedule_needs_one_value_per_search_layer() -> None:
    with pytest.raises(ConfigError, match=r"search\.strategy\.generations: 1 values \[3\] for 2 search layers"):
        evolution().check([0, 1], [SHAPE, SHAPE])


def test_a_map_of_one_position_is_mutated_as_a_vector() -> None:
    one_position = layer(shape=(32, 1, 1))
    strategy = evolution()
    assert one_position.groups == (1, 32)
    start = normalise_groups(normal(3, 1, 1, 32))
    candidates = strategy.ask(strategy.init(start, layer=one_position, labels_B=LABELS, keys_B=keys_of(1, torch.arange(3))))
    assert (candidates[:, 1:] - start).abs().amax(dim=(2, 3)).gt(0.1).all()
