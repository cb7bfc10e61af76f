"""Step sizes: in which unit, and the one-fifth rule per image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from searcher.kernels.evolution import with_kernels
from searcher.strategies.base import SearchLayer
from searcher.strategies.step_sizes import TARGET_RATE, adapted

CPU = torch.device("cpu")
LAYER = SearchLayer(position=0, kind="block", shape=(4, 5, 5), seed=7, device=CPU, classes=3)
EVOLUTION = {"name": "evolution", "generations": [12], "strength": [0.5], "boost": [1.0], "blur_passes": [0], "noise_rows": 256}
PAIRS = {"name": "evolution_strategy", "generations": [12], "sigma": [0.3], "step": [0.3], "blur_passes": [0], "noise_rows": 256}


def start(examples: int = 6) -> Tensor:
    values = torch.randn(examples, 1, *LAYER.groups, generator=torch.Generator().manual_seed(1))
    return values / values.flatten(2).std(dim=2, correction=0)[..., None, None]


def begin(table: dict[str, Any]) -> tuple[Any, Any]:
    strategy = STRATEGIES.build(table)
    labels, keys = torch.zeros(6, dtype=torch.int64), torch.arange(6)
    return strategy, strategy.init(start(), layer=LAYER, labels_B=labels, keys_B=keys)


def test_steps_grow_where_more_than_a_fifth_succeed_and_shrink_where_fewer_do() -> None:
    factor = adapted(torch.ones(3), torch.tensor([TARGET_RATE + 0.1, TARGET_RATE, TARGET_RATE - 0.1]))
    assert factor[0] > 1 and factor[1] == 1 and factor[2] < 1
    for _ in range(50):
        factor = adapted(factor, torch.tensor([1.0, TARGET_RATE, 0.0]))
    assert factor.tolist() == [64, 1, 1 / 64]


def test_each_image_has_its_own_rate_of_success() -> None:
    strategy, state = begin({**EVOLUTION, "step_size": "adapted"})
    for _ in range(2):
        candidates = strategy.ask(state)
        # Of image 0 every child is fitter than the elite, of image 1 a fifth, of the others none.
        fitness = torch.zeros(candidates.shape[:2])
        if state.generation:
            fitness[0], fitness[1, :4], fitness[2:] = 1.0, 1.0, -1.0
        state = strategy.tell(state, candidates, fitness)
    assert state.factor_B[0] > 1 and state.factor_B[1] == pytest.approx(1) and bool((state.factor_B[2:] < 1).all())


@pytest.mark.parametrize(("gain", "longer"), [(1.0, True), (-1.0, False)])
def test_a_move_that_raises_the_mean_makes_the_next_one_longer(gain: float, longer: bool) -> None:
    strategy, state = begin({**PAIRS, "step_size": "adapted"})
    for generation in range(2):
        candidates = strategy.ask(state)
        state = strategy.tell(state, candidates, torch.randn(candidates.shape[:2]) * 0.1 + 100 * gain * generation)
    assert bool((state.factor_B > 1).all()) is longer and bool((state.factor_B < 1).all()) is not longer


@pytest.mark.parametrize("table", [{**EVOLUTION, "strength": [2.0], "generations": [40]}, {**PAIRS, "step": [8.0], "generations": [40]}])
def test_steps_far_too_long_are_put_right(table: dict[str, Any]) -> None:
    wanted = start()[:, 0] + 0.3 * torch.randn(6, *LAYER.groups, generator=torch.Generator().manual_seed(2))
    ends = []
    for step_size in ("relative", "adapted"):
        strategy, state = begin({**table, "step_size": step_size})
        for _ in range(41):
            candidates = strategy.ask(state)
            state = strategy.tell(state, candidates, -(candidates - wanted[:, None]).square().flatten(2).sum(dim=2))
        ends.append(strategy.best(state).fitness_BR.mean())
    assert ends[1] > ends[0] + 0.1


@pytest.mark.parametrize("name", ["evolution", "evolution_strategy"])
def test_absolute_steps_do_not_depend_on_the_spread(name: str) -> None:
    layer = SearchLayer(position=0, kind="logits", shape=(50,), seed=7, device=CPU, classes=50)
    for step_size, ratio in (("absolute", 1.0), ("relative", 5.0)):
        table = {**(EVOLUTION if name == "evolution" else PAIRS), "step_size": step_size}
        moves = []
        for spread in (1.0, 5.0):
            strategy = STRATEGIES.build(table)
            own = spread * torch.linspace(-1, 1, 50).expand(3, 1, 1, 50)
            state = strategy.init(own, layer=layer, labels_B=torch.zeros(3, dtype=torch.int64), keys_B=torch.arange(3))
            moves.append((strategy.ask(state)[:, 1:] - own).std())
        assert moves[1] / moves[0] == pytest.approx(ratio, rel=0.01)


def test_kernels_refuse_steps_they_do_not_know() -> None:
    strategy = STRATEGIES.build({**EVOLUTION, "step_size": "adapted"})
    with pytest.raises(ConfigError, match=r"search.strategy.step_size: the kernels know no adapted steps; set search.kernels = false"):
        with_kernels(strategy, CPU)
