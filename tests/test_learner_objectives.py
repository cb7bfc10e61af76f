"""Objectives: values by hand, where gradients go, and what every member must do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learner.objectives.base import Loss, Outputs, Reading, outputs_of
from learner.objectives.classifiers import classifiers_of, fit_classifiers
from learner.objectives.cross_entropy import CrossEntropy
from learner.objectives.generalised_cross_entropy import GeneralisedCrossEntropy
from learner.objectives.regression import Regression, normalised
from repsearch.errors import ConfigError
from repsearch.families import OBJECTIVES
from repsearch.networks import BlockOutput, SearchableNetwork, build_network
from tests.learner_support import network_for, tiny_data
from tests.networks import made_up_data

NETWORK_TABLES: list[dict[str, Any]] = [
    {"name": "convnet", "width": 8, "blocks": 2, "convolutions": 4},
    {"name": "mlp", "widths": [16, 12], "layers": 2},
]
"""Networks that give every output of their blocks."""


def loss_on(network: SearchableNetwork, objective: Any, layers: tuple[str, ...] = ("block0", "block1", "logits")) -> Loss:
    data, rng = tiny_data(), torch.Generator().manual_seed(1)
    fit_classifiers(network, wanted=objective.reading.classifiers, groups=objective.reading.groups)
    for classifier in classifiers_of(network):
        torch.nn.init.normal_(classifier.weight, generator=rng)  # 0 at first, when nothing reaches the blocks
    shapes = {"block0": network.layer_shape(0), "block1": network.layer_shape(1), "logits": network.layer_shape(2)}
    targets = {name: torch.randn((12, *shapes[name]), generator=rng).half() for name in layers}
    network.train()
    loss: Loss = objective.loss(outputs_of(network, data.train.images[:12], objective.reading), targets, data.train.labels[:12])
    return loss


def gradients(network: SearchableNetwork, of: Tensor, part: str) -> list[Tensor | None]:
    network.zero_grad(set_to_none=True)
    torch.autograd.backward(of)
    return [parameter.grad for name, parameter in network.named_parameters() if name.startswith(part)]


def hand_outputs(block_BX: Tensor, logits_BK: Tensor, *, normalised: bool) -> Outputs:
    return Outputs([block_BX], [block_BX], lambda _: logits_BK, normalised)


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


def test_a_relative_target_leads_from_the_output_wherever_that_is() -> None:
    # Outputs of an offset: absolute targets would pull them back, relative ones lead each the same way ahead.
    way = torch.tensor([[0.3, -0.3, 0.0]])
    gradients = []
    for offset in (0.0, 0.5):
        block = normalised(torch.tensor([[1.0, -0.5 + offset, -0.5 - offset]])).requires_grad_()
        outputs = Outputs([block], [block], lambda _: torch.zeros(1, 2), True, relative=True)
        loss = Regression().loss(outputs, {"block0": way}, torch.tensor([0]))
        torch.autograd.backward(loss.terms["block0"])
        expected = 2 / 3 * (block - normalised(block + way)).detach()
        assert block.grad is not None and torch.allclose(block.grad, expected, atol=1e-6)
        gradients.append(block.grad)
    assert all((gradient * way).sum() < 0 for gradient in gradients)


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


def test_weights_multiply_the_errors_before_their_mean() -> None:
    network = network_for(tiny_data())
    loss = loss_on(network, Regression(head_weight=0.0, layers=[1, 0], weights=[0.5, 3.0]))
    by_hand = (3.0 * loss.terms["block0"].item() + 0.5 * loss.terms["block1"].item()) / 2
    assert loss.total.item() == pytest.approx(by_hand, rel=1e-6)
    plain, ones = (loss_on(network, Regression(layers=[0, 1], weights=weights)).total for weights in (None, [1.0, 1.0]))
    assert torch.equal(plain, ones)


def test_an_isolated_block_learns_from_its_own_target_alone() -> None:
    network = network_for(tiny_data())
    objective = Regression(layers=[0, 1], weights=[1.0, 3.0], isolate=True)
    whole = {part: gradients(network, loss_on(network, objective).total, part) for part in ("blocks.0", "blocks.1")}
    for layer, weight in ((0, 1.0), (1, 3.0)):
        term = loss_on(network, objective).terms[f"block{layer}"]
        own = gradients(network, weight * term / 2, f"blocks.{layer}")
        assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(whole[f"blocks.{layer}"], own, strict=True))
    last = loss_on(network, objective).terms["block1"]
    assert all(gradient is None for gradient in gradients(network, last, "blocks.0"))
    # Without isolation the same term does reach the block before.
    last = loss_on(network, Regression()).terms["block1"]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(network, last, "blocks.0"))


def test_under_isolation_the_stem_learns_from_block_0() -> None:
    data = made_up_data((3, 32, 32), train=12)
    network = build_network({"name": "torchvision", "model": "resnet18", "stages": ["layer1", "layer2"]}, data, seed=0, purpose="learned")
    outputs = outputs_of(network.train(), data.train.images, Reading(isolate=True))
    stem = gradients(network, outputs.compared[0].square().mean(), "stem")
    assert stem and all(gradient is not None for gradient in stem)
    assert all(gradient is None for gradient in gradients(network, outputs.compared[1].square().mean(), "stem"))


@pytest.mark.parametrize("table", NETWORK_TABLES, ids=lambda table: table["name"])
def test_each_match_compares_what_it_says(table: dict[str, Any]) -> None:
    data = made_up_data(train=16)
    network = build_network(table, data, seed=0, purpose="learned").train()
    objectives = {match: Regression(match=match, head_weight=0.0) for match in ("normalised", "raw", "last_activation_dropped")}  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(1)
    targets = {f"block{layer}": torch.randn((16, *network.layer_shape(layer)), generator=rng) for layer in range(2)}
    found = {}
    for match, objective in objectives.items():
        outputs = outputs_of(network, data.train.images, objective.reading)
        found[match] = (outputs, objective.loss(outputs, targets, data.train.labels).terms["block1"])
    before = found["last_activation_dropped"][0].compared[1]
    activated, target = F.gelu(before), targets["block1"]
    assert torch.equal(found["raw"][1], F.mse_loss(activated, target))
    assert torch.allclose(found["normalised"][1], F.mse_loss(normalised(activated), target), rtol=1e-5)
    assert torch.allclose(found["last_activation_dropped"][1], F.mse_loss(normalised(before), target), rtol=1e-5)
    # What passes on is the same whatever is compared.
    for outputs, _ in found.values():
        assert torch.allclose(outputs.blocks[1], network.run_prepared(network.prepare(data.train.images))[1], atol=1e-5)


def test_the_raw_output_of_a_network_that_does_not_normalise_is_its_representation() -> None:
    data = made_up_data((3, 32, 32), train=8)
    network = build_network({"name": "torchvision", "model": "resnet18", "stages": ["layer1"]}, data, seed=0, purpose="learned")
    outputs = outputs_of(network, data.train.images, Regression(match="raw").reading)
    target = torch.ones_like(outputs.blocks[0])
    loss = Regression(match="raw").loss(outputs, {"block0": target}, data.train.labels)
    assert torch.equal(loss.terms["block0"], F.mse_loss(outputs.blocks[0], target))


@pytest.mark.parametrize(
    ("objective", "layers", "outputs", "message"),
    [
        (
            Regression(match="last_activation_dropped"),
            [0, 1],
            ("representation", "raw"),
            r"match: .*'last_activation_dropped'.*normalised, raw",
        ),
        (Regression(match="raw"), [0, 1], ("representation",), r"learn\.objective\.match: .* set it to normalised$"),
        (Regression(isolate=True), [1, "logits"], ("representation",), r"learn\.objective\.isolate: block 0 has no target"),
        (Regression(isolate=True, layers=[0]), [0, 1], ("representation",), r"isolate: block 1 has no target"),
        (Regression(isolate=True, layers=[0, 1], weights=[1.0, 0.0]), [0, 1], ("representation",), r"isolate: block 1 has no target"),
    ],
)
def test_an_objective_that_does_not_fit_the_network_is_refused(
    objective: Regression, layers: list[int | str], outputs: tuple[BlockOutput, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        objective.check(layers, 2, outputs)


def test_a_head_on_labels_reads_no_searched_logits() -> None:
    assert Regression(head="labels").needs_targets([0, "logits"]) == ("block0",)


def test_generalised_cross_entropy_by_hand_and_at_its_ends() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # p of the label: 3/4, 1/2
    labels = torch.tensor([1, 0])

    def of(q: float) -> float:
        return GeneralisedCrossEntropy(q=q).loss(hand_outputs(torch.zeros(2, 2), logits, normalised=True), {}, labels).total.item()

    assert of(0.7) == pytest.approx(((1 - 0.75**0.7) + (1 - 0.5**0.7)) / 2 / 0.7, rel=1e-6)
    assert of(1.0) == pytest.approx((0.25 + 0.5) / 2, rel=1e-6)
    assert of(1e-6) == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_generalised_cross_entropy_weighs_the_gradient_of_cross_entropy_by_p_to_the_q() -> None:
    logits = torch.tensor([[0.3, -1.0, 0.5]], requires_grad=True)
    outputs, labels = hand_outputs(torch.zeros(1, 2), logits, normalised=True), torch.tensor([1])
    (own,) = torch.autograd.grad(GeneralisedCrossEntropy(q=0.7).loss(outputs, {}, labels).total, logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    assert torch.allclose(own, logits.softmax(1)[0, 1].detach() ** 0.7 * plain)


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
        ({"name": "regression", "match": "none"}, "match"),
        ({"name": "regression", "weights": [1.0]}, "give layers too"),
        ({"name": "regression", "layers": [0, 1], "weights": [1.0]}, "weights has 1 values for layers"),
        ({"name": "regression", "layers": [1, 1], "weights": [1.0, 1.0]}, "each layer once"),
        ({"name": "regression", "layers": [0, 1], "weights": [0.0, 0.0]}, "weights are all 0"),
        ({"name": "regression", "layers": [0], "weights": [-1.0]}, "weights"),
        ({"name": "generalised_cross_entropy", "q": 0.0}, "q"),
        ({"name": "generalised_cross_entropy", "q": 1.5}, "q"),
        ({"name": "regression", "head_wieght": 1}, "head_weight"),
        ({"name": "cross_entropy", "label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OBJECTIVES.build(table, at="learn.objective")
