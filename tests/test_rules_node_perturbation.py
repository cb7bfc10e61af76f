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
from learner.rules.decorrelation import Decorrelation, merge
from learner.rules.layers import Layer
from learner.rules.node_perturbation import NodePerturbation
from learner.rules.passes import layers_of
from repsearch.config import LearnConfig
from repsearch.datasets import cached_data
from repsearch.errors import ConfigError
from repsearch.networks import SearchableNetwork, build_network
from tests.learner_support import digits_config, tiny_data
from tests.rules_support import PlainNetwork, correlated_batch, cosine, estimate, estimates, gradient, leaky, problem_for, rule_of

COSINES = {"np": (0.275, 0.773, 0.958), "inp": (0.533, 0.872, 0.989), "anp": (0.492, 0.719, 0.774)}
"""With the true gradient at K = 1, 10 and 100, of one network 64-32-32-10: the reference's figures."""
NETWORKS = 3


def net(seed: int) -> tuple[Any, Batch]:
    batch = correlated_batch(128, 64, 10, seed=seed)
    return problem_for(PlainNetwork([64, 32, 32, 10], leaky, seed=seed).double()), batch


@pytest.mark.parametrize("variant", COSINES)
def test_cosine_with_the_gradient_grows_with_the_passes_as_published(variant: str) -> None:
    found = []
    for seed in range(NETWORKS):
        problem, batch = net(seed)
        true = gradient(problem, batch)
        row = []
        for passes in (1, 10, 100):
            rule = rule_of("node_perturbation", variant=variant, noise_std=1e-4, passes=passes)
            row.append(sum(cosine(drawn, true) for drawn in estimates(rule, problem, batch, 2)) / 2)
        found.append(row)
    means, spreads = torch.tensor(found).mean(0), torch.tensor(found).std(0)
    # The reference is one network too, whose numbers are not known: it lies within three standard deviations between networks.
    for published, mean, spread in zip(COSINES[variant], means.tolist(), spreads.tolist(), strict=True):
        assert abs(published - mean) < 3 * spread + 0.03, (means, spreads)
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize(("variant", "least"), [("np", 0.98), ("inp", 0.99)])
def test_a_thousand_passes_give_the_gradient_with_its_length(variant: str, least: float) -> None:
    problem, batch = net(2)
    true = gradient(problem, batch)
    found = estimates(rule_of("node_perturbation", variant=variant, noise_std=1e-4, passes=100), problem, batch, 10)
    ratios = found @ true / true.square().sum()
    error = float(ratios.std() / 10**0.5)
    assert cosine(found.mean(0), true) > least
    assert float(ratios.mean()) == pytest.approx(1.0, abs=4 * error)
    assert error < 0.02


def test_anp_stays_away_from_the_gradient_but_in_the_first_layer() -> None:
    problem, batch = net(2)
    true = gradient(problem, batch)
    mean = estimates(rule_of("node_perturbation", variant="anp", noise_std=1e-4, passes=100), problem, batch, 10).mean(0)
    assert 0.7 < cosine(mean, true) < 0.9
    first = slice(10 * 32 + 10, 10 * 32 + 10 + 64 * 32)  # the head's parameters come first
    assert cosine(mean[first], true[first]) > 0.98


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


@pytest.mark.parametrize("variant", ["np", "inp"])
def test_two_noisy_passes_are_unbiased_as_well(variant: str) -> None:
    problem, batch = net(2)
    true = gradient(problem, batch)
    found = estimates(rule_of("node_perturbation", variant=variant, noise_std=1e-4, passes=20, clean_pass=False), problem, batch, 20)
    ratios = found @ true / true.square().sum()
    assert cosine(found.mean(0), true) > 0.9
    assert float(ratios.mean()) == pytest.approx(1.0, abs=4 * float(ratios.std()) / 20**0.5)


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
