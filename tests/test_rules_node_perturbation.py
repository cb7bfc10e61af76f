"""Node perturbation against its published figures and the true gradient, and decorrelation."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.batches import Batch
from learner.jobs import check
from learner.objectives.regression import Regression
from learner.rules.base import Problem
from learner.rules.decorrelation import Decorrelation, merge
from learner.rules.layers import Layer
from learner.rules.node_perturbation import NodePerturbation
from learner.rules.passes import layers_of
from repsearch.config import LearnConfig
from repsearch.datasets import cached_data
from repsearch.errors import ConfigError
from repsearch.networks import SearchableNetwork, build_network
from tests.learner_support import digits_config, tiny_data
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

COSINES = {
    "np": {1: 0.275, 10: 0.773, 100: 0.958, 1000: 0.997},
    "inp": {1: 0.533, 10: 0.872, 100: 0.989, 1000: 0.999},
    "anp": {1: 0.492, 10: 0.719, 100: 0.774, 1000: 0.772},
}
"""Published cosines with the true gradient by K: one estimate each, of one network 64-32-32-10."""
ROUNDING = 5e-4
NETWORKS = 5
HEAD, FIRST = slice(0, 10 * 33), slice(10 * 33, 10 * 33 + 32 * 65)
"""Parameters of the last layer, which come first, and of the first."""


def net(seed: int) -> tuple[Problem, Batch]:
    batch = correlated_batch(128, 64, 10, seed=seed)
    return problem_for(PlainNetwork([64, 32, 32, 10], leaky, seed=seed).double()), batch


def variances(problem: Problem, batch: Batch) -> dict[str, float]:
    """Return the variance of an estimate of one pass over the squared length of the gradient, from the gradient of each example.

    Of an example with gradient g over N pre-activations, n of them a layer's and g_l its share, the layer's estimate varies with the square
    n |g|^2 + |g_l|^2 for np, and (n - 1) |g_l|^2 for inp; the weight's by that times the square of the layer's input.
    """
    network: Any = problem.network
    below = network.prepare(batch.images).flatten(1)
    inputs, outputs = list[Tensor](), list[Tensor]()
    for linear in [*(block.linear for block in network.blocks), network.head]:
        inputs.append(below.detach())
        outputs.append(linear(below))
        below = leaky(outputs[-1])
    errors = torch.autograd.grad(nn.functional.cross_entropy(outputs[-1], batch.labels, reduction="sum"), outputs)
    squares = sum(error.square().sum(1) for error in errors)
    found = {"np": 0.0, "inp": 0.0}
    for input_BY, error in zip(inputs, errors, strict=True):
        reach, own, units = input_BY.square().sum(1) + 1, error.square().sum(1), error.shape[1]
        found["np"] += float(((units * squares + own) * reach).sum())
        found["inp"] += float(((units - 1) * own * reach).sum())
    whole = float(gradient(problem, batch).square().sum()) * len(batch.labels) ** 2
    return {name: value / whole for name, value in found.items()}


@pytest.mark.parametrize("variant", COSINES)
def test_cosine_with_the_gradient_grows_with_the_passes_as_published(variant: str) -> None:
    cosines: dict[int, list[float]] = {passes: [] for passes in COSINES[variant]}
    ratios, first = list[float](), list[float]()
    for seed in range(NETWORKS):
        problem, batch = net(seed)
        true = gradient(problem, batch)
        for passes, row in cosines.items():
            found = estimate(rule_of("node_perturbation", variant=variant, noise_std=1e-4, passes=passes), problem, batch)
            row.append(cosine(found, true))
        ratios.append(float(found @ true / true.square().sum()))
        first.append(cosine(found[FIRST], true[FIRST]))
    for passes, published in COSINES[variant].items():
        mean, error = mean_and_error(torch.tensor(cosines[passes]))
        # The published figure is one more network: it differs from the mean of these by the deviation of one and by that of the mean.
        deviation = error * NETWORKS**0.5 * (1 + 1 / NETWORKS) ** 0.5
        assert abs(published - mean) < 3 * deviation + ROUNDING, (passes, cosines[passes])
    ratio, ratio_error = mean_and_error(torch.tensor(ratios))
    if variant == "anp":
        assert all(0.7 < value < 0.9 for value in cosines[1000]), "its bias stays"
        gain, gain_error = mean_and_error(torch.tensor(cosines[1000]) - torch.tensor(cosines[100]))
        assert abs(gain) < 0.01 + 3 * gain_error
        assert mean_and_error(torch.tensor(first))[0] > 0.98, "but not in the first layer"
    else:
        assert mean > 0.99
        assert abs(ratio - 1) < min(0.05, 4 * ratio_error)


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({"variant": "np", "passes": 1}, 1.0),
        ({"variant": "np", "passes": 10}, 0.1),
        ({"variant": "inp", "passes": 1}, 1.0),
        ({"variant": "inp", "passes": 10}, 0.1),
        ({"variant": "np", "passes": 1, "clean_pass": False}, 1.0),
        # The K differences have a noise in common: a quarter of the variance, however many.
        ({"variant": "np", "passes": 10, "clean_pass": False}, 0.25 + 0.075),
        ({"variant": "inp", "passes": 1, "clean_pass": False}, 1.0),
    ],
)
def test_the_variance_is_that_of_the_law(fields: dict[str, Any], shares: float) -> None:
    rows = list[Tensor]()
    for seed in range(NETWORKS):
        problem, batch = net(seed)
        true = gradient(problem, batch)
        expected = shares * variances(problem, batch)[fields["variant"]]
        found = estimates(rule_of("node_perturbation", noise_std=1e-4, **fields), problem, batch, 12)
        length = true.square().sum()
        rows.append(torch.stack([(found - true).square().sum(1) / length / expected, found @ true / length], 1))
    for mean, error in map(mean_and_error, torch.cat(rows).unbind(1)):
        assert error < 0.1 and abs(mean - 1) < 4 * error, (mean, error)


def isolated(variant: str, noise: str, **fields: Any) -> Tensor:
    network = PlainNetwork([20, 8, 6, 4], leaky).double()
    rng = torch.Generator().manual_seed(1)
    batch = correlated_batch(32, 20, 4)
    targets = {"block0": torch.randn(32, 8, generator=rng), "block1": torch.randn(32, 6, generator=rng)}
    problem = problem_for(network, Regression(isolate=True))
    rule = rule_of("node_perturbation", variant=variant, noise=noise, noise_std=1e-3, **fields)
    return estimate(rule, problem, Batch(batch.images, batch.labels, targets))


def test_of_one_layer_the_variants_are_the_same_with_rademacher_noise() -> None:
    np_, inp, anp = (isolated(variant, "rademacher", passes=3) for variant in COSINES)
    assert torch.allclose(np_, inp, rtol=1e-9) and torch.allclose(np_, anp, rtol=1e-9)
    # With Gaussian noise they differ by N s^2 / ||v||^2.
    np_, inp, anp = (isolated(variant, "gaussian", passes=3) for variant in COSINES)
    assert not torch.allclose(np_, inp, rtol=1e-2) and torch.allclose(inp, anp, rtol=1e-9)


@pytest.mark.parametrize("isolate", [True, False])
def test_noise_stays_within_an_isolated_block(isolate: bool) -> None:
    network = PlainNetwork([20, 8, 6, 4], leaky).double()
    batch = correlated_batch(32, 20, 4)
    targets = {"block0": torch.randn(32, 8), "block1": torch.randn(32, 6)}
    read: dict[str, list[Tensor]] = {"block1": [], "head": []}
    network.blocks[1].register_forward_pre_hook(lambda _, given: read["block1"].append(given[0]))
    network.head.register_forward_pre_hook(lambda _, given: read["head"].append(given[0]))
    problem = problem_for(network, Regression(isolate=isolate))
    estimate(rule_of("node_perturbation", noise_std=1e-2), problem, Batch(batch.images, batch.labels, targets))
    clean, noisy = read["block1"]
    assert torch.equal(clean, noisy) is isolate
    assert torch.equal(*read["head"]), "regression's head stands behind a stop-gradient in any case"


def convnet(**fields: Any) -> SearchableNetwork:
    table = {"name": "convnet", "width": 8, "blocks": 1, "convolutions": 2, "batchnorm": "none", **fields}
    return build_network(table, tiny_data(), seed=0, purpose="learned")


@pytest.mark.parametrize("variant", ["np", "inp"])
def test_convolutions_get_the_gradient_too(variant: str) -> None:
    problem, data = problem_for(convnet()), tiny_data()
    batch = Batch(data.train.images, data.train.labels, {})
    true = gradient(problem, batch)
    found = estimates(rule_of("node_perturbation", variant=variant, passes=50), problem, batch, 10)
    ratios = found @ true / true.square().sum()
    assert cosine(found.mean(0), true) > 0.75
    assert float(ratios.mean()) == pytest.approx(1.0, abs=4 * float(ratios.std()) / 10**0.5)


def test_draws_are_one_batch_of_passes() -> None:
    problem, batch = net(0)
    runs = []
    problem.network.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    estimate(rule_of("node_perturbation", passes=64), problem, batch)
    assert len(runs) == 2


def correlation(x: Tensor) -> float:
    matrix = torch.corrcoef(x.T)
    return float(matrix.fill_diagonal_(0).abs().sum() / (matrix.numel() - len(matrix)))


@pytest.mark.parametrize("whiten", [0.0, 0.5])
def test_decorrelation_lowers_correlations_20_fold(whiten: float) -> None:
    rng = torch.Generator().manual_seed(0)
    features = 16
    data = torch.randn(4000, features, generator=rng) @ (0.4 * torch.randn(features, features, generator=rng))
    data = data - data.mean(0)
    layer = Layer("layer", nn.Linear(features, 2), 0, 0)
    rule = Decorrelation(rate=0.02, whiten=whiten)
    state = rule.init([layer])
    for _ in range(1500):
        state = rule.updated([layer], [data], state)
    decorrelated = data @ state["decorrelation/layer"].T
    assert correlation(decorrelated) < correlation(data) / 20
    if whiten:
        assert torch.allclose(decorrelated.var(0), torch.ones(features), atol=0.05)


@pytest.mark.parametrize("name", ["backprop", "node_perturbation"])
def test_the_stored_network_has_the_matrices_in_its_weights(name: str) -> None:
    data = tiny_data()
    problem = problem_for(convnet())
    rule: Any = rule_of(name, decorrelate={"rate": 0.05})
    batch = Batch(data.train.images, data.train.labels, {})
    state = rule.init(problem, rng=torch.Generator())
    for _ in range(3):
        problem.network.zero_grad(set_to_none=True)
        result, state = rule.estimate(problem, batch, state, rng=torch.Generator())
    assert all(not torch.equal(matrix, torch.eye(len(matrix))) for matrix in state.values())
    problem.network.zero_grad(set_to_none=True)
    result, _ = rule.estimate(problem, batch, state, rng=torch.Generator())
    before = [layer.module.weight.detach().clone() for layer in layers_of(problem)]
    after = merge(layers_of(problem), state)
    merged_loss = problem.loss_of(batch).total.item()
    assert merged_loss == pytest.approx(result.loss.total.item(), rel=1e-5)
    assert merged_loss != pytest.approx(3.0, rel=1e-6)
    rule.enter(problem, after)
    assert all(torch.equal(a, layer.module.weight) for a, layer in zip(before, layers_of(problem), strict=True))


def test_backprop_through_decorrelated_inputs_is_the_gradient_of_w() -> None:
    problem, batch = net(1)
    rule: Any = rule_of("backprop", decorrelate={"rate": 0.01})
    state = rule.init(problem, rng=torch.Generator())
    state = {name: value + 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) for name, value in state.items()}
    exact = estimate(rule, problem, batch, state=state)
    inp = rule_of("node_perturbation", variant="inp", noise_std=1e-4, passes=400, decorrelate={"rate": 0.01})
    assert cosine(exact, estimate(inp, problem, batch, state=state)) > 0.98


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "mlp", "widths": [8]}, r"blocks\.0\.norms\.0: it normalises by the statistics of a batch.*network\.batchnorm off"),
        ({"name": "convnet", "width": 8, "blocks": 1, "convolutions": 2}, r"blocks\.0\.groups\.0\.norm1: .*\"none\""),
    ],
)
def test_networks_whose_passes_cannot_be_paired_are_refused_by_layer(table: dict[str, Any], message: str) -> None:
    network = build_network(table, tiny_data(), seed=0, purpose="learned")
    with pytest.raises(ConfigError, match=message):
        rule_of("node_perturbation").check(problem_for(network), 48)


@pytest.mark.parametrize(
    ("model", "stages", "message"),
    [
        (
            "resnet18",
            ["layer1", "layer2"],
            r"layer stem\.part\.bn1: it normalises by the statistics of a batch",
        ),
        ("squeezenet1_1", ["features.4", "features"], r"layer stem\.part\.features\.1: it works in place.*set inplace = False"),
    ],
)
@pytest.mark.parametrize("rule", ["node_perturbation", "forward_gradient", "weight_perturbation", "alopex", "target_propagation"])
def test_torchvision_networks_are_refused_by_layer(rule: str, model: str, stages: list[str], message: str) -> None:
    data = made_up_data((3, 32, 32), train=8)
    network = build_network({"name": "torchvision", "model": model, "stages": stages}, data, seed=0, purpose="learned")
    with pytest.raises(ConfigError, match=rf"learn\.rule: '{rule}' cannot serve {message}"):
        rule_of(rule).check(problem_for(network), 8)


class Doubling(nn.Module):
    """A linear layer that runs twice, or whose output is changed in place, or that drops units by a function."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(6, 6), kind
        self.scale = nn.Parameter(torch.ones(1)) if kind == "other" else None

    def forward(self, below: Tensor) -> Tensor:
        above = self.linear(below)
        if self.kind == "twice":
            return self.linear(above)  # type: ignore[no-any-return]
        if self.kind == "in place":
            return above.relu_()  # type: ignore[no-any-return]
        if self.kind == "dropout":
            return torch.dropout(above, 0.5, train=True)
        if self.kind == "batch":
            return above - above.mean(0)  # type: ignore[no-any-return]
        return above * self.scale if self.scale is not None else above  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dropout(0.25), r"layer blocks\.0\.1: it drops other units.*p = 0\.25.*set its p to 0"),
        (nn.ReLU(inplace=True), r"layer blocks\.0\.1: it works in place.*set inplace = False"),
        (nn.BatchNorm1d(6), r"layer blocks\.0\.1: it normalises by the statistics of a batch"),
        (nn.PReLU(), r"no formula for layer blocks\.0\.1 \(PReLU\)"),
    ],
)
def test_modules_that_a_rule_cannot_serve_are_refused_by_layer(module: nn.Module, message: str) -> None:
    network = PlainNetwork([6, 6, 3], leaky)
    network.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), module)])
    with pytest.raises(ConfigError, match=message):
        rule_of("node_perturbation").check(problem_for(network), 48)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("twice", r"blocks\.0\.linear runs 2 times; use a layer of its own"),
        ("in place", r"output of layer blocks\.0\.linear again, which is changed in place"),
        ("dropout", r"two of blocks\.0 differ; leave out what is random"),
        ("batch", r"do not depend on one another, as they do in blocks\.0"),
        ("other", r"no formula for layer blocks\.0 \(Doubling\)"),
    ],
)
def test_what_modules_do_in_their_passes_is_refused_by_layer(kind: str, message: str) -> None:
    network = PlainNetwork([6, 6, 3], leaky)
    network.blocks = nn.ModuleList([Doubling(kind)])
    with pytest.raises(ConfigError, match=message):
        rule_of("node_perturbation").check(problem_for(network), 48)


def test_half_precision_and_compilation_are_refused() -> None:
    problem = problem_for(PlainNetwork([6, 6, 3], leaky))
    for learn, message in (({"precision": "bfloat16"}, r"learn\.precision"), ({"compile": True}, r"learn\.compile")):
        with pytest.raises(ConfigError, match=message):
            rule_of("node_perturbation").check(dataclasses.replace(problem, learn=LearnConfig(**learn)), 48)


@pytest.mark.parametrize("noise_std", [1e-3, 1e-7])
def test_noise_lost_in_rounding_is_warned_of_with_the_number(noise_std: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        NodePerturbation(noise_std=noise_std).check(problem_for(convnet()), 48)
    warned = [record.getMessage() for record in caplog.records]
    assert bool(warned) is (noise_std == 1e-7), warned
    if warned:
        assert "noise_std: with 1e-07, rounding is" in warned[0]


@pytest.mark.parametrize(
    ("fields", "message"), [({"passes": 0}, "passes"), ({"noise": "cauchy"}, "noise"), ({"noise_std": 0.0}, "noise_std")]
)
def test_hyperparameters_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule_of("node_perturbation", **fields)
    with pytest.raises(ConfigError, match="rat"):
        rule_of("node_perturbation", decorrelate={"rat": 1.0})


def test_a_run_whose_network_a_rule_cannot_serve_is_refused_before_it_starts() -> None:
    config = digits_config(learn={"rule": "node_perturbation"})
    data = cached_data(config.dataset, seed=0)
    with pytest.raises(ConfigError, match=r"'node_perturbation' cannot serve layer blocks\.0\.groups\.0\.norm1: .* network\.batchnorm off"):
        check(config, data)
    check(digits_config(learn={"rule": "node_perturbation"}, network={"batchnorm": "none"}), data)
