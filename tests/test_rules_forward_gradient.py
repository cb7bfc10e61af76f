"""Forward gradients against the laws of their bias and variance."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from learner.batches import Batch
from learner.objectives.regression import Regression
from learner.rules.base import Problem
from learner.rules.carrying import Carrying
from learner.rules.forward_gradient import ForwardGradient
from repsearch.config import LearnConfig
from repsearch.errors import ConfigError
from repsearch.networks.activations import _Live
from repsearch.networks.convnet import normalised
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

REPEATS = 20


def small(*, examples: int = 16) -> tuple[Problem, Batch, Tensor]:
    problem, batch = problem_for(PlainNetwork([8, 6, 4], leaky).double()), correlated_batch(examples, 8, 4)
    return problem, batch, gradient(problem, batch)


@pytest.mark.parametrize(("law", "more"), [("gaussian", 1), ("rademacher", -1), ("sphere", -1)])
@pytest.mark.parametrize("draws", [1, 20])
def test_the_error_falls_with_the_draws_as_the_law_says(law: str, more: int, draws: int) -> None:
    problem, batch, true = small()
    found = estimates(rule_of("forward_gradient", directions=law, draws=draws), problem, batch, REPEATS * 3)
    mean, error = mean_and_error((found - true).square().sum(1) / true.square().sum())
    # One part (cross-entropy): n is the number of parameters.
    assert abs(mean - (len(true) + more) / draws) < 4 * error, (mean, error)
    ratio, ratio_error = mean_and_error(found @ true / true.square().sum())
    assert abs(ratio - 1) < 4 * ratio_error


def test_one_draw_has_the_cosine_of_a_random_direction() -> None:
    problem, batch, true = small()
    found = estimates(rule_of("forward_gradient"), problem, batch, REPEATS * 3)
    mean, error = mean_and_error(torch.tensor([cosine(row, true) for row in found]))
    assert abs(mean - math.sqrt(2 / (math.pi * len(true)))) < 4 * error


def test_the_mean_of_draws_has_the_cosine_of_the_law() -> None:
    problem, batch, true = small()
    found = estimates(rule_of("forward_gradient", draws=50), problem, batch, REPEATS)
    mean, error = mean_and_error(torch.tensor([cosine(row, true) for row in found]))
    assert abs(mean - math.sqrt(50 / (50 + len(true) + 1))) < 4 * error + 0.01


def test_the_projection_keeps_k_of_n_of_the_square() -> None:
    problem, batch, true = small()
    found = estimates(rule_of("forward_gradient", draws=20, combine="projection"), problem, batch, REPEATS)
    squares = torch.tensor([cosine(row, true) ** 2 for row in found])
    mean, error = mean_and_error(squares)
    assert abs(mean - 20 / len(true)) < 4 * error
    # What is projected is not lengthened: e . g = |e|^2.
    assert torch.allclose(found @ true, found.square().sum(1))
    whole = estimate(rule_of("forward_gradient", draws=len(true), combine="projection"), problem, batch)
    assert torch.allclose(whole, true, atol=1e-8)


@pytest.mark.parametrize("perturb", ["weights", "activities"])
@pytest.mark.parametrize("derivative", ["forward", "central"])
def test_differences_agree_with_the_derivative(perturb: str, derivative: str) -> None:
    problem, batch, _ = small()
    exact = estimate(rule_of("forward_gradient", perturb=perturb, draws=3), problem, batch)
    found = estimate(rule_of("forward_gradient", perturb=perturb, draws=3, derivative=derivative, step=1e-6), problem, batch)
    assert torch.allclose(found, exact, rtol=1e-3 if derivative == "forward" else 1e-6, atol=1e-5)


def test_over_activities_the_error_is_that_of_the_units_of_one_example() -> None:
    problem, batch, true = small(examples=1)
    found = estimates(rule_of("forward_gradient", perturb="activities"), problem, batch, REPEATS * 3)
    squares = (found - true).square().sum(1) / true.square().sum()
    mean, error = mean_and_error(squares)
    units = 6 + 4
    # Of one example: every layer's error is its own input's length times that of the pre-activations' gradient.
    assert mean < 2 * (units + 1) < len(true) / 2
    ratio, ratio_error = mean_and_error(found @ true / true.square().sum())
    assert abs(ratio - 1) < 4 * ratio_error
    head, hidden = slice(0, 28), slice(28, None)
    for part, size in ((head, 4), (hidden, 6)):
        own = (found[:, part] - true[part]).square().sum(1) / true[part].square().sum()
        own_mean, own_error = mean_and_error(own)
        share = pre_activation_share(problem, batch, part == head)
        # E |d u_l - g_l|^2 = |g_l|^2 + n_l |g|^2 for Gaussian u over all units.
        assert abs(own_mean - (1 + size / share)) < 4 * own_error
    assert error < mean


def pre_activation_share(problem: Problem, batch: Batch, head: bool) -> float:
    """Return the share of the squared gradient of all pre-activations that is the head's, or the hidden layer's."""
    network: Any = problem.network
    hidden = network.blocks[0].linear(network.prepare(batch.images).flatten(1)).detach().requires_grad_()
    logits = network.head(network.blocks[0].activation(hidden))
    of_logits, of_hidden = torch.autograd.grad(nn.functional.cross_entropy(logits, batch.labels), [logits, hidden])
    squares = [float(value.square().sum()) for value in (of_hidden, of_logits)]
    return squares[head] / sum(squares)


@pytest.mark.parametrize("derivative", ["jvp", "forward"])
@pytest.mark.parametrize("draws", [1, 3])
def test_units_whose_relu_is_off_are_left_out(derivative: str, draws: int) -> None:
    problem, batch = problem_for(PlainNetwork([8, 12, 4], torch.relu).double()), correlated_batch(1, 8, 4)
    true = gradient(problem, batch)
    table: dict[str, Any] = {"perturb": "activities", "derivative": derivative, "step": 1e-6, "draws": draws}
    plain, masked = (estimates(rule_of("forward_gradient", mask=mask, **table), problem, batch, 200) for mask in (False, True))
    network: Any = problem.network
    with torch.no_grad():
        on = network.blocks[0].linear(network.prepare(batch.images).flatten(1))[0] > 0
    assert 2 < int(on.sum()) < 10
    weights = masked[:, 4 * 13 : 4 * 13 + 12 * 8].unflatten(1, (12, 8))
    assert not bool(weights[:, ~on].any()) and bool(weights[:, on].any())
    hidden = slice(4 * 13, None)
    share = pre_activation_share(problem, batch, head=False)
    for found, units in ((plain, 12), (masked, int(on.sum()))):
        mean, error = mean_and_error((found - true)[:, hidden].square().sum(1) / true[hidden].square().sum())
        assert abs(mean - (1 + units / share) / draws) < 4 * error, "its variance is that of the units that are disturbed"
        ratio, ratio_error = mean_and_error(found @ true / true.square().sum())
        assert abs(ratio - 1) < 4 * ratio_error


@pytest.mark.parametrize(("activation", "perturb"), [(leaky, "activities"), (torch.relu, "weights")])
def test_a_mask_without_relu_is_refused(activation: Any, perturb: str) -> None:
    with pytest.raises(ConfigError, match=r"learn\.rule\.mask: leaves out units whose ReLU is off, and there are none"):
        rule_of("forward_gradient", perturb=perturb, mask=True).check(problem_for(PlainNetwork([8, 6, 4], activation)), 16)
    rule_of("forward_gradient", perturb="activities", mask=True).check(problem_for(PlainNetwork([8, 6, 4], torch.relu)), 16)


def test_isolated_blocks_have_the_error_of_their_own_size() -> None:
    network = PlainNetwork([8, 6, 5, 4], leaky).double()
    rng = torch.Generator().manual_seed(1)
    batch = correlated_batch(16, 8, 4)
    targets = {"block0": torch.randn(16, 6, generator=rng), "block1": torch.randn(16, 5, generator=rng)}
    batch = Batch(batch.images, batch.labels, targets)
    problem = problem_for(network, Regression(isolate=True, head_weight=1.0))
    true = gradient(problem, batch)
    found = estimates(rule_of("forward_gradient"), problem, batch, REPEATS * 3)
    for part in (slice(0, 24), slice(24, 24 + 54), slice(24 + 54, None)):
        mean = float(((found - true)[:, part].square().sum(1) / true[part].square().sum()).mean())
        # The derivative's square, whose deviation is the root of 2, times the direction's.
        size = len(true[part])
        assert abs(mean - (size + 1)) < 4 * size * (2 / len(found)) ** 0.5, "head and blocks are parts of their own"


def live_bytes(depth: int, name: str) -> int:
    """Return the most bytes that an estimate holds for a network of `depth` blocks beside parameters and data."""
    problem, batch = problem_for(PlainNetwork([16] * (depth + 1) + [4], leaky)), correlated_batch(4000, 16, 4)
    rule = rule_of(name)
    with _Live(there=[*problem.network.parameters(), batch.images, batch.labels]) as live:
        rule.estimate(problem, batch, {}, rng=torch.Generator().manual_seed(0))
    return live.most


def test_memory_does_not_grow_with_depth() -> None:
    forward, backprop = ([live_bytes(depth, name) for depth in (3, 12)] for name in ("forward_gradient", "backprop"))
    activations = 9 * 4000 * 16 * 4
    assert forward[1] - forward[0] < 0.05 * activations
    assert backprop[1] - backprop[0] > 0.9 * activations


def test_draws_are_one_batch_of_tangents() -> None:
    problem, batch, _ = small()
    runs: list[int] = []
    problem.network.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    estimate(rule_of("forward_gradient", draws=64), problem, batch)
    assert len(runs) == 1


class Opaque(torch.autograd.Function):
    """An operation without a formula for tangents."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    generate_vmap_rule = True


def test_a_network_without_derivatives_is_refused_and_served_by_differences() -> None:
    problem = problem_for(PlainNetwork([8, 6, 4], lambda values: Opaque.apply(10 * values) / 10))  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match=r"cannot carry a derivative along this network .*derivative = \"central\""):
        rule_of("forward_gradient").check(problem, 16)
    rule = ForwardGradient(derivative="central", step=0.3)
    rule.check(problem, 16)
    assert bool(estimate(rule, problem, correlated_batch(16, 8, 4)).any())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draws": 0}, "draws"),
        ({"directions": "cauchy"}, "directions"),
        ({"draws": 90, "combine": "projection"}, r"draws: 90 directions among 82 components.*combine = \"mean\""),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule_of("forward_gradient", **fields).check(problem_for(PlainNetwork([8, 6, 4], leaky)), 16)


def test_half_precision_is_refused() -> None:
    problem = dataclasses.replace(small()[0], learn=LearnConfig(precision="bfloat16"))
    with pytest.raises(ConfigError, match=r"learn\.precision: rule 'forward_gradient' .* set it to \"float32\""):
        rule_of("forward_gradient").check(problem, 16)


def products(rule: Any, problem: Problem, batch: Batch) -> int:
    """Return the multiplications of an estimate's matrix products, in those of one example."""
    with FlopCounterMode(display=False) as counter:
        estimate(rule, problem, batch)
    return int(counter.get_total_flops()) // (2 * len(batch.labels))


SIZES = [30, 20, 16, 4]
WHOLE, LATER = 30 * 20 + 20 * 16 + 16 * 4, 20 * 16 + 16 * 4
"""Products of a forward pass; those of the layers behind the first."""


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"name": "forward_gradient"}, 2 * WHOLE + LATER),
        ({"name": "forward_gradient", "draws": 8}, WHOLE + 8 * (WHOLE + LATER)),
        ({"name": "forward_gradient", "perturb": "activities"}, WHOLE + LATER + WHOLE),
        ({"name": "forward_gradient", "perturb": "activities", "draws": 8}, WHOLE + 8 * LATER + WHOLE),
        ({"name": "node_perturbation"}, WHOLE + LATER + WHOLE),
        ({"name": "node_perturbation", "passes": 8}, WHOLE + 8 * LATER + WHOLE),
        ({"name": "node_perturbation", "variant": "inp"}, WHOLE + LATER + 16 * 4 + WHOLE),
        ({"name": "weight_perturbation"}, 2 * WHOLE),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_no_product_is_made_that_is_known(table: dict[str, Any], expected: int) -> None:
    """The last term of rules over activities is the weight's gradient; tangents of weights take two products but in the first layer."""
    problem, batch = problem_for(PlainNetwork(SIZES, leaky).double()), correlated_batch(64, SIZES[0], SIZES[-1])
    table = dict(table)
    found = products(rule_of(table.pop("name"), **table), problem, batch)
    # Shapes are found with one example; factors are put together by products of K numbers.
    assert expected <= found <= expected + 0.04 * WHOLE + 8 * sum(SIZES[1:]), (found, expected)


def test_normalisation_has_the_tangent_that_torch_gives_it() -> None:
    rng = torch.Generator().manual_seed(0)
    for shape in ((5, 7), (5, 3, 4, 4)):
        at, way = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
        ways = torch.stack([way, -2 * way])

        def along(way: Tensor, at: Tensor = at) -> Tensor:
            tangent: Tensor = torch.func.jvp(lambda at: normalised(at * at), (at,), (way,))[1]
            return tangent

        expected = along(way)
        with Carrying():
            found, both = along(way), torch.func.vmap(along)(ways)
        assert torch.allclose(found, expected, rtol=1e-12) and torch.allclose(both[1], -2 * expected, rtol=1e-12)
        assert not torch.equal(found, expected), "the formula is this project's own"
