"""Objectives: values by hand, where gradients go, and what every member must do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.objectives.base import Loss, Outputs, outputs_of
from learner.objectives.cross_entropy import CrossEntropy
from learner.objectives.regression import Regression
from repsearch.errors import ConfigError
from repsearch.families import OBJECTIVES
from repsearch.networks import SearchableNetwork
from tests.learner_support import network_for, tiny_data


def loss_on(network: SearchableNetwork, objective: Any, layers: tuple[str, ...] = ("block0", "block1", "logits")) -> Loss:
    data, rng = tiny_data(), torch.Generator().manual_seed(1)
    shapes = {"block0": network.layer_shape(0), "block1": network.layer_shape(1), "logits": network.layer_shape(2)}
    targets = {name: torch.randn((12, *shapes[name]), generator=rng).half() for name in layers}
    network.train()
    loss: Loss = objective.loss(outputs_of(network, data.train.images[:12]), targets, data.train.labels[:12])
    return loss


def gradients(network: SearchableNetwork, of: Tensor, part: str) -> list[Tensor | None]:
    network.zero_grad(set_to_none=True)
    torch.autograd.backward(of)
    return [parameter.grad for name, parameter in network.named_parameters() if name.startswith(part)]


def hand_outputs(block_BX: Tensor, logits_BK: Tensor, *, normalised: bool) -> Outputs:
    return Outputs([block_BX], lambda _: logits_BK, normalised)


def test_regression_values_by_hand() -> None:
    # One example with two values: 3 and 1 normalise to 1 and -1; squared errors to (0, 1) are 1 and 4.
    block = torch.tensor([[3.0, 1.0]])
    logits = torch.tensor([[0.0, math.log(3)]])  # softmax 1/4, 3/4
    targets = {"block0": torch.tensor([[0.0, 1.0]]).half(), "logits": torch.zeros(1, 2).half()}  # softmax 1/2, 1/2
    loss = Regression(head_weight=0.5).loss(hand_outputs(block, logits, normalised=False), targets, torch.tensor([0]))
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert loss.terms["block0"].item() == pytest.approx(2.5, abs=1e-4)
    assert loss.terms["head"].item() == pytest.approx(divergence, abs=1e-6)
    assert loss.total.item() == pytest.approx(2.5 + 0.5 * divergence, abs=1e-4)


def test_divergence_is_the_mean_over_examples() -> None:
    block = torch.zeros(2, 2)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    targets = {"block0": torch.zeros(2, 2), "logits": torch.zeros(2, 2)}
    loss = Regression().loss(hand_outputs(block, logits, normalised=True), targets, torch.tensor([0, 0]))
    assert loss.terms["head"].item() == pytest.approx(0.5 * 0.5 * math.log(4 / 3), abs=1e-6)


def test_an_output_that_is_normalised_already_is_compared_as_it_is() -> None:
    block = torch.tensor([[3.0, 1.0]])
    loss = Regression().loss(hand_outputs(block, torch.zeros(1, 2), normalised=True), {"block0": torch.zeros(1, 2)}, torch.tensor([0]))
    assert loss.terms["block0"].item() == pytest.approx((9 + 1) / 2)


def test_block_terms_are_averaged() -> None:
    network = network_for(tiny_data())
    loss = loss_on(network, Regression(head_weight=0.0))
    assert loss.total.item() == pytest.approx((loss.terms["block0"].item() + loss.terms["block1"].item()) / 2)


def test_without_searched_logits_the_head_learns_the_labels() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    loss = Regression().loss(hand_outputs(torch.zeros(1, 2), logits, normalised=True), {"block0": torch.zeros(1, 2)}, torch.tensor([1]))
    assert loss.terms["head"].item() == pytest.approx(-math.log(0.75), abs=1e-6)


@pytest.mark.parametrize("layers", [("block0", "block1", "logits"), ("block0", "block1")])
def test_the_head_term_gives_the_body_no_gradient(layers: tuple[str, ...]) -> None:
    network = network_for(tiny_data())
    assert all(gradient is None for gradient in gradients(network, head_term(network, layers), "blocks"))
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(network, head_term(network, layers), "head"))
    # Through the total: with and without the head term, the body's gradients have the same bits.
    with_head = gradients(network, loss_on(network, Regression(head_weight=1e6), layers).total, "blocks")
    without = gradients(network, loss_on(network, Regression(head_weight=0.0), layers).total, "blocks")
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(with_head, without, strict=True))


def head_term(network: SearchableNetwork, layers: tuple[str, ...]) -> Tensor:
    return loss_on(network, Regression(), layers).terms["head"]


def test_an_unsupervised_block_learns_from_the_blocks_after_it() -> None:
    network = network_for(tiny_data())
    loss = loss_on(network, Regression(layers=[1]), ("block1", "logits"))
    assert set(loss.terms) == {"block1", "head"}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(network, loss.total, "blocks.0"))


def test_a_block_does_not_learn_from_the_blocks_before_it() -> None:
    network = network_for(tiny_data())
    loss = loss_on(network, Regression(layers=[0], head_weight=0.0), ("block0", "logits"))
    assert all(gradient is None for gradient in gradients(network, loss.total, "blocks.1"))


def test_cross_entropy_reaches_the_body_and_smooths_labels() -> None:
    network = network_for(tiny_data())
    plain = loss_on(network, CrossEntropy())
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(network, plain.total, "blocks"))
    logits = torch.tensor([[0.0, math.log(3)]])
    smoothed = CrossEntropy(label_smoothing=0.2).loss(hand_outputs(torch.zeros(1, 2), logits, normalised=True), {}, torch.tensor([1]))
    assert smoothed.total.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25), abs=1e-6)


def test_regression_needs_the_searched_blocks_or_those_chosen() -> None:
    assert Regression().needs_targets([0, 2, "logits"]) == ("block0", "block2", "logits")
    assert Regression(layers=[2, 2]).needs_targets([0, 2]) == ("block2",)
    assert CrossEntropy().needs_targets([0, "logits"]) == ()


@pytest.mark.parametrize(
    ("objective", "layers", "message"),
    [
        (Regression(layers=[1]), [0, "logits"], r"learn\.objective\.layers: block 1 is not searched; search\.layers has blocks 0: add it"),
        (Regression(), ["logits"], r"search\.layers: no block among them.*add one"),
    ],
)
def test_regression_refuses_layers_that_are_not_searched(objective: Regression, layers: list[int | str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective.needs_targets(layers)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_every_objective_learns_from_what_it_asks_for(name: str) -> None:
    objective = OBJECTIVES.build({"name": name}, at="learn.objective")
    assert OBJECTIVES.resolve(OBJECTIVES.resolve({"name": name}))["name"] == name
    network = network_for(tiny_data())
    needed = objective.needs_targets([0, 1, "logits"])
    loss = loss_on(network, objective, needed)
    assert loss.total.ndim == 0
    assert loss.logits.shape == (12, 3)
    assert all(term.ndim == 0 and bool(term.isfinite()) for term in loss.terms.values())
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(network, loss.total, ""))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "regression", "head_weight": -1}, "head_weight"),
        ({"name": "regression", "layers": []}, "layers"),
        ({"name": "regression", "layers": [-1]}, "layers"),
        ({"name": "regression", "match": "raw"}, "match"),
        ({"name": "regression", "head_wieght": 1}, "head_weight"),
        ({"name": "cross_entropy", "label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OBJECTIVES.build(table, at="learn.objective")
