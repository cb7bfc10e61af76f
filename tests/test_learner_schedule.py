"""Learning rate, batch order and optimisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from learner.schedule import epoch_batches, rate_factor, steps_per_epoch
from repsearch.config import LearnConfig
from repsearch.errors import ConfigError
from repsearch.families import OPTIMISERS


def factors(steps: int, **learn: Any) -> list[float]:
    return [rate_factor(LearnConfig(**learn), step, steps) for step in range(steps)]


def test_one_cycle_rises_linearly_then_falls_to_nearly_zero() -> None:
    values = factors(100, warmup=0.25)
    assert values[:3] == pytest.approx([1 / 25, 2 / 25, 3 / 25])
    assert values[24] == 1.0
    assert values.index(max(values)) == 24
    assert values == values[:25] + sorted(values[25:], reverse=True)
    assert 0 < values[-1] < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.01, 0.5, 0.99])
def test_one_cycle_moves_at_every_step_however_few(steps: int, warmup: float) -> None:
    values = factors(steps, warmup=warmup)
    assert all(0 < value <= 1 for value in values)
    assert max(values) == 1.0


def test_cosine_falls_from_the_first_step_to_nearly_zero() -> None:
    values = factors(100, schedule="cosine")
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)
    assert 0 < values[-1] < 1e-3


def test_constant_is_constant() -> None:
    assert set(factors(9, schedule="constant")) == {1.0}


def batches(epoch: int, *, examples: int = 50, seed: int = 1, round: int = 0, **learn: Any) -> list[list[int]]:
    section = LearnConfig(**{"batch_size": 16, **learn})
    return [batch.tolist() for batch in epoch_batches(section, examples, seed=seed, round=round, epoch=epoch)]


def test_an_epoch_has_full_batches_of_distinct_examples() -> None:
    drawn = batches(1)
    assert [len(batch) for batch in drawn] == [16, 16, 16]
    assert len({index for batch in drawn for index in batch}) == 48
    assert steps_per_epoch(LearnConfig(batch_size=16), 50) == 3


def test_a_lone_smaller_batch_is_kept() -> None:
    assert [sorted(batch) for batch in batches(1, examples=5)] == [[0, 1, 2, 3, 4]]
    assert [sorted(batch) for batch in batches(1, examples=5, fixed_batches=True)] == [[0, 1, 2, 3, 4]]


def test_the_order_is_a_function_of_seed_round_and_epoch() -> None:
    assert batches(1) == batches(1)
    others = [batches(2), batches(1, seed=2), batches(1, round=1)]
    assert all(other != batches(1) for other in others)


def test_fixed_batches_keep_their_composition_within_a_round() -> None:
    first, second = batches(1, examples=160, fixed_batches=True), batches(2, examples=160, fixed_batches=True)
    assert first != second
    assert sorted(first) == sorted(second)
    assert sorted(batches(1, examples=160, fixed_batches=True, round=1)) != sorted(first)
    assert sorted(batches(1, examples=160)) != sorted(batches(2, examples=160))


@pytest.mark.parametrize("name", OPTIMISERS.names())
def test_every_optimiser_lowers_a_loss_with_state_that_checkpoints_hold(name: str) -> None:
    spec = OPTIMISERS.build({"name": name, "lr": 0.01}, at="learn.optimiser")
    assert OPTIMISERS.resolve(OPTIMISERS.resolve({"name": name}))["name"] == name
    layer = nn.Linear(3, 1)
    inputs = torch.arange(12.0).reshape(4, 3) / 12
    optimiser = spec.build(layer.parameters())
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = (layer(inputs) - 2).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert spec.lr == 0.01
    states = optimiser.state_dict()["state"].values()
    assert all(value is None or isinstance(value, torch.Tensor) for state in states for value in state.values())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "sgd", "lr": 0}, r"learn\.optimiser\.lr"),
        ({"name": "sgd", "momentum": 0.0}, "nesterov needs momentum"),
        ({"name": "adamw", "betas": [0.9, 1.0]}, r"learn\.optimiser\.betas"),
        ({"name": "adamw", "weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OPTIMISERS.build(table, at="learn.optimiser")
