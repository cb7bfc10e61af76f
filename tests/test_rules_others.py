"""Alopex, weight perturbation, feedback alignment and difference target propagation against their equations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learner.batches import Batch
from learner.objectives.base import Loss, Outputs
from learner.objectives.from_labels import FromLabels
from learner.objectives.regression import Regression
from learner.rules.alopex import Alopex
from learner.rules.base import Problem
from learner.rules.passes import layers_of
from repsearch.errors import ConfigError
from repsearch.networks import build_network
from tests.learner_support import tiny_data
from tests.networks import made_up_data
from tests.rules_support import (
    PlainNetwork,
    correlated_batch,
    cosine,
    estimate,
    estimates,
    gradient,
    leaky,
    mean_and_error,
    problem_for,
    rule_of,
)

SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "nesterov": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squared(FromLabels):
    """The mean squared distance of the logits, through a function, to the labels."""

    through: Any = torch.sigmoid

    def loss(self, outputs: Outputs, targets: Any, labels_B: Tensor) -> Loss:
        logits = outputs.head(outputs.blocks[-1])
        total = (self.through(logits).squeeze(1) - labels_B).square().mean()
        return Loss(total, {"squared": total}, logits)


def turns(rule: Alopex, problem: Problem, batch: Batch, count: int, delta: float, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Take `count` turns; return the state after each, with the loss and gradients under names of their own."""
    rng = torch.Generator().manual_seed(seed)
    state, found = rule.init(problem, rng=rng), []
    for _ in range(count):
        problem.network.zero_grad(set_to_none=True)
        result, state = rule.estimate(problem, batch, state, rng=rng)
        moves = {f"move/{name}": -delta * value.grad for name, value in problem.network.named_parameters() if value.grad is not None}
        found.append({**state, "E": result.loss.total, **moves})
        with torch.no_grad():
            for value in problem.network.parameters():
                value -= delta * value.grad  # type: ignore[operator]
    return found


def test_alopex_moves_every_weight_by_delta_and_sets_the_temperature_to_delta_times_the_mean_change() -> None:
    problem, batch = problem_for(PlainNetwork([8, 6, 4], leaky).double()), correlated_batch(32, 8, 4)
    delta, every = 0.01, 10
    found = turns(Alopex(hold=1000, anneal_every=every), problem, batch, 41, delta)
    losses = torch.stack([state["E"] for state in found])
    changes = (losses[1:] - losses[:-1]).abs()
    for state in found:
        assert all(torch.all(value.abs() == delta) for name, value in state.items() if name.startswith("move/"))
    assert float(found[8]["temperature"]) == 1e4
    # The first turn has no change; from then on a setting is the mean of `every` of them.
    assert float(found[9]["temperature"]) == pytest.approx(delta * float(changes[:9].sum()) / every, rel=1e-4)
    assert float(found[19]["temperature"]) == pytest.approx(delta * float(changes[9:19].mean()), rel=1e-4)
    assert float(found[25]["temperature"]) == float(found[19]["temperature"])


@pytest.mark.parametrize(("correlation", "expected"), [(0.0, 0.5), (1.0, 0.731), (-1.0, 0.269), (3.0, 0.953)])
def test_alopex_goes_down_with_the_probability_of_the_equation(correlation: float, expected: float) -> None:
    problem, batch = problem_for(PlainNetwork([300, 20, 4], leaky)), correlated_batch(8, 300, 4)
    rule, temperature = Alopex(hold=1000), 0.5
    state = rule.init(problem, rng=torch.Generator())
    loss = problem.loss_of(batch).total.detach()
    # The last move was 1 for every weight, and the last change of the loss makes C = correlation * T.
    state |= {name: value - 1 for name, value in state.items() if name.startswith("weight/")}
    state |= {"turn": torch.tensor(1), "loss": (loss - correlation * temperature).reshape(1), "temperature": torch.tensor([temperature])}
    moved = estimate(rule, problem, batch, state=state)
    error = math.sqrt(expected * (1 - expected) / len(moved))
    assert abs(float((moved > 0).double().mean()) - expected) < 4 * error + 5e-4


@pytest.mark.parametrize("n", [10, 100])
def test_alopex_on_a_smooth_bowl_takes_71_percent_of_its_steps_downhill(n: int) -> None:
    class Bowl(FromLabels):
        def loss(self, outputs: Outputs, targets: Any, labels_B: Tensor) -> Loss:
            logits = outputs.head(outputs.blocks[-1])
            total = 0.5 * logits.square().sum(1).mean()
            return Loss(total, {"bowl": total}, logits)

    network = PlainNetwork([1, 1, n], lambda values: torch.zeros_like(values) * values)
    network.blocks[0].requires_grad_(False)
    network.head.weight.requires_grad_(False)  # type: ignore[union-attr]
    bias: Any = network.head.bias
    with torch.no_grad():
        bias.copy_(10 * torch.randn(n, generator=torch.Generator().manual_seed(1)))
    problem = problem_for(network.double(), Bowl())
    batch = Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64), {})
    rule, delta = Alopex(hold=100_000, anneal_every=20), 1e-4
    rng = torch.Generator().manual_seed(2)
    state, downhill, cosines = rule.init(problem, rng=rng), [], []
    for turn in range(700):
        _, state = rule.estimate(problem, batch, state, rng=rng)
        step, true = -delta * bias.grad, bias.detach().clone()
        if turn >= 100:
            downhill.append(float(step @ true) < 0)
            cosines.append(float(F.cosine_similarity(step, -true, dim=0)))
        with torch.no_grad():
            bias += step
    found = torch.tensor(downhill).double()
    # Turns are not independent: one gives the next its signal. The reference's .71 within four standard errors of a binomial, and .02.
    assert abs(float(found.mean()) - 0.71) < 4 * math.sqrt(0.71 * 0.29 / len(found)) + 0.02
    scaled = torch.tensor(cosines).double() * math.sqrt(n)
    assert abs(float(scaled.mean()) - 0.61) < 4 * float(scaled.std()) / math.sqrt(len(scaled)) + 0.05


@pytest.mark.slow
def test_alopex_solves_xor() -> None:
    batch = Batch(torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).reshape(4, 1, 1, 2), torch.tensor([0, 1, 1, 0]), {})
    solved = 0
    for seed in range(6):
        network = PlainNetwork([2, 2, 1], torch.sigmoid, seed=seed)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in network.parameters():
                value.uniform_(-1, 1, generator=rng)
        problem, rule = problem_for(network, Squared()), Alopex(hold=100_000, anneal_every=50)
        state = rule.init(problem, rng=rng)
        for _ in range(2500):
            result, state = rule.estimate(problem, batch, state, rng=rng)
            if bool(((torch.sigmoid(result.loss.logits).squeeze(1) - batch.labels).abs() < 0.1).all()):
                solved += 1
                break
            with torch.no_grad():
                for value in network.parameters():
                    value -= 0.1 * value.grad  # type: ignore[operator]
    # 28 of 30 in the reference, half of them within 976 turns.
    assert solved >= 3


def test_alopex_learns_with_signs_for_activations() -> None:
    data = tiny_data()
    network = PlainNetwork([64, 16, 3], torch.sign)
    problem = problem_for(network)
    batch = Batch(data.train.images.float() / 255, data.train.labels, {})
    found = turns(Alopex(hold=100_000), problem, batch, 600, 0.01)
    assert float(found[-1]["E"]) < 0.5 * float(found[0]["E"])
    assert not bool(gradient(problem, batch)[3 * 16 + 3 :].any()), "there is no gradient below the signs"


def test_alopex_has_no_change_of_loss_between_batches() -> None:
    problem = problem_for(PlainNetwork([8, 6, 4], leaky))
    rule = Alopex(hold=2, anneal_every=1)
    rng = torch.Generator().manual_seed(0)
    state = rule.init(problem, rng=rng)
    for turn in range(4):
        before = state["temperature"]
        _, state = rule.estimate(problem, correlated_batch(8, 8, 4, seed=turn // 2), state, rng=rng)
        with torch.no_grad():
            for value in problem.network.parameters():
                value -= 0.1 * value.grad  # type: ignore[operator]
        assert torch.equal(before, state["temperature"]) is (turn % 2 == 0)


@pytest.mark.parametrize(
    ("rule", "learn", "message"),
    [
        (Alopex(), {"optimiser": {"name": "adamw"}}, r"learn\.optimiser: .*'adamw'.*name = \"sgd\", momentum = 0\.0"),
        (Alopex(), {"optimiser": {**SGD, "momentum": 0.9}}, r"learn\.optimiser: "),
        (Alopex(), {"optimiser": SGD, "clip_norm": 1.0}, r"learn\.clip_norm"),
        (
            Alopex(hold=1),
            {"optimiser": SGD, "batch_size": 16},
            r"learn\.rule\.hold: 1 compares losses of different batches.*batch_size = 48",
        ),
        (Alopex(hold=1), {"optimiser": SGD, "batch_size": 48, "flip": True}, r"without augmentation"),
    ],
)
def test_settings_that_alopex_cannot_learn_by_are_refused(rule: Alopex, learn: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule.check(problem_for(PlainNetwork([8, 6, 4], leaky), **learn), 48)


def test_alopex_accepts_the_whole_set_at_once() -> None:
    Alopex(hold=1).check(problem_for(PlainNetwork([8, 6, 4], leaky), optimiser=SGD, batch_size=48), 48)


def test_weight_perturbation_has_the_variance_of_its_weights() -> None:
    problem, batch = problem_for(PlainNetwork([8, 6, 4], leaky).double()), correlated_batch(16, 8, 4)
    true = gradient(problem, batch)
    found = estimates(rule_of("weight_perturbation", noise_std=1e-5, passes=5), problem, batch, 100)
    squares = (found - true).square().sum(1) / true.square().sum()
    assert abs(float(squares.mean()) - (len(true) + 1) / 5) < 4 * float(squares.std()) / 10
    ratios = found @ true / true.square().sum()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / 10


def test_feedback_alignment_is_backprop_where_the_feedback_is_the_weights() -> None:
    network = build_network(
        {"name": "convnet", "width": 8, "blocks": 2, "convolutions": 2, "batchnorm": "none"}, tiny_data(), seed=0, purpose="learned"
    )
    data = tiny_data()
    problem, batch = problem_for(network), Batch(data.train.images, data.train.labels, {})
    own = {f"feedback/{layer.name}": layer.module.weight.detach() for layer in layers_of(problem)}
    rule = rule_of("feedback_alignment")
    true = gradient(problem, batch)
    assert torch.allclose(estimate(rule, problem, batch, state=own), true, rtol=1e-4, atol=1e-6)
    other = estimate(rule, problem, batch)
    assert not torch.allclose(other, true, rtol=0.1)
    head = slice(-network.head.linear.weight.numel() - 3, None)  # type: ignore[union-attr, operator]
    assert torch.allclose(other[head], true[head], rtol=1e-4, atol=1e-6), "the last layer needs no feedback"


def aligned(sizes: list[int], feedback: str, seed: int, turns: int = 0) -> list[float]:
    """Return the cosine of estimate and gradient below the head, at first and after `turns` turns."""
    batch = correlated_batch(64, sizes[0], sizes[-1], seed=seed)
    batch, problem = Batch(batch.images.float(), batch.labels, {}), problem_for(PlainNetwork(sizes, leaky, seed=seed))
    rule, found = rule_of("feedback_alignment", feedback=feedback), list[float]()
    # The network was drawn from the seed itself.
    state = rule.init(problem, rng=torch.Generator().manual_seed(100 + seed))
    below = slice((sizes[-2] + 1) * sizes[-1], None)
    for turn in range(turns + 1):
        estimated = estimate(rule, problem, batch, state=state)
        if turn in (0, turns):
            found.append(cosine(estimated[below], gradient(problem, batch)[below]))
        with torch.no_grad():
            for value in problem.network.parameters():
                value -= 0.1 * value.grad  # type: ignore[operator]
    return found


def test_feedback_of_signs_is_closer_to_the_gradient() -> None:
    random, signs = (torch.tensor([aligned([20, 16, 16, 4], kind, seed)[0] for seed in range(8)]) for kind in ("random", "sign"))
    mean, error = mean_and_error(random)
    assert abs(mean) < 4 * error, "at first random feedback is at right angles to the gradient"
    gain, gain_error = mean_and_error(signs - random)
    assert gain > 4 * gain_error


def test_feedback_alignment_aligns_the_weights() -> None:
    """The angle between its estimate and the gradient shrinks as it learns, which is why it works."""
    before, after = torch.tensor([aligned([20, 16, 4], "random", seed, turns=400) for seed in range(8)]).unbind(1)
    mean, error = mean_and_error(before)
    assert abs(mean) < 4 * error
    mean, error = mean_and_error(after)
    assert mean > 4 * error and bool((after > math.cos(math.radians(80))).all())
    gain, gain_error = mean_and_error(after - before)
    assert gain > 2 * gain_error


def test_target_propagation_through_exact_linear_inverses_is_gauss_newton() -> None:
    network = PlainNetwork([6, 5, 5, 4], lambda values: values).double()
    problem, batch = problem_for(network), correlated_batch(32, 6, 4)
    weight = network.blocks[1].linear.weight.detach()  # type: ignore[union-attr, operator]
    found = estimate(rule_of("target_propagation"), problem, batch, state={"decoder/1": torch.linalg.inv(weight)})
    true = gradient(problem, batch)
    split = [4 * 5, 4, 5 * 6, 5, 5 * 5, 5]
    names = ["head", "head_bias", "first", "first_bias", "second", "second_bias"]
    own, exact = (dict(zip(names, values.split(split), strict=True)) for values in (found, true))
    for name in ("head", "head_bias", "second", "second_bias"):
        assert torch.allclose(own[name], exact[name]), name
    # Backpropagation gives the first block W^T e; target propagation W^-1 e.
    with torch.no_grad():
        inputs = network.prepare(batch.images).flatten(1)
        logits = network(batch.images)
        at_logits = (logits.softmax(1) - F.one_hot(batch.labels, 4)) / 32
        error = at_logits @ network.head.weight @ torch.linalg.inv(weight).T  # type: ignore[operator]
    assert torch.allclose(own["first"].reshape(5, 6), error.T @ inputs)


def test_decoders_learn_to_undo_their_blocks() -> None:
    problem, batch = problem_for(PlainNetwork([6, 5, 8, 4], leaky)), correlated_batch(64, 6, 4)
    batch = Batch(batch.images.float(), batch.labels, {})
    rule: Any = rule_of("target_propagation")
    rng = torch.Generator().manual_seed(0)
    state, network = rule.init(problem, rng=rng), problem.network

    def miss() -> float:
        with torch.no_grad():
            below, above, _ = network.representations(batch.images)
            return float((above @ state["decoder/1"].T - below).square().mean() / below.square().mean())

    first = miss()
    for _ in range(300):
        network.zero_grad(set_to_none=True)
        _, state = rule.estimate(problem, batch, state, rng=rng)
    assert miss() < 0.2 * first


@pytest.mark.parametrize("width", [8, 64])
def test_target_propagation_takes_small_maps_and_refuses_large_ones_by_block(width: int) -> None:
    data = tiny_data() if width == 8 else made_up_data((3, 32, 32), train=8)
    table = {"name": "convnet", "width": width, "blocks": 2, "convolutions": 2, "batchnorm": "none"}
    problem = problem_for(build_network(table, data, seed=0, purpose="learned"))
    rule = rule_of("target_propagation")
    if width == 8:
        rule.check(problem, 8)
        assert bool(estimate(rule, problem, Batch(data.train.images, data.train.labels, {})).any())
        return
    with pytest.raises(
        ConfigError, match=r"undoes blocks\.1 by a linear map .*weights, more than 16,777,216; take a network of smaller maps"
    ):
        rule.check(problem, 8)


def test_target_propagation_of_isolated_blocks_is_the_local_gradient() -> None:
    network = PlainNetwork([6, 5, 5, 4], leaky).double()
    rng = torch.Generator().manual_seed(1)
    batch = correlated_batch(32, 6, 4)
    batch = Batch(batch.images, batch.labels, {name: torch.randn(32, 5, generator=rng) for name in ("block0", "block1")})
    problem = problem_for(network, Regression(isolate=True))
    assert torch.allclose(estimate(rule_of("target_propagation"), problem, batch), gradient(problem, batch))
