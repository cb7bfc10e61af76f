"""Regression in groups of channels: the same gradient, and estimates as good as a group is small; exact where a group is a unit."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learner.batches import Batch, TrainingSet
from learner.checkpoints import NoCheckpoints, StoreCheckpoints
from learner.evaluation import evaluate
from learner.fit import fit, teaching_for
from learner.objectives.base import outputs_of
from learner.objectives.by_group import normalised_errors, raw_errors
from learner.objectives.regression import Regression
from learner.rules.base import Problem, problem_of
from repsearch.config import LearnConfig
from repsearch.datasets.digits import Digits
from repsearch.errors import ConfigError
from repsearch.networks import SearchableNetwork, build_network, to_arrays
from repsearch.serving import JobCancelled
from store import MemoryStore
from tests.learner_support import Recorder, plan_for, tiny_data
from tests.rules_support import estimate, estimates, gradient, mean_and_error, problem_for, rule_of

DATA = tiny_data()
PLAIN = {"name": "mlp", "batchnorm": False, "activation": "leaky_relu"}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {**PLAIN, "widths": [16, 8]},
    "plain": {**PLAIN, "widths": [16, 8], "normalise": False},
    "deep": {**PLAIN, "widths": [16, 8], "layers": 2},
    "convnet": {"name": "convnet", "width": 8, "blocks": 2, "convolutions": 2, "batchnorm": "none"},
}
Match = Literal["normalised", "raw", "last_activation_dropped"]
every_match = pytest.mark.parametrize("match", get_args(Match))
SIGNS: list[dict[str, Any]] = [
    {"name": "forward_gradient", "perturb": "activities", "directions": "rademacher"},
    {"name": "forward_gradient", "perturb": "activities", "directions": "rademacher", "derivative": "central"},
    {"name": "node_perturbation", "noise": "rademacher", "noise_std": 1e-6},
    {"name": "node_perturbation", "variant": "inp", "noise_std": 1e-6, "passes": 2},
]
every_sign_rule = pytest.mark.parametrize("table", SIGNS, ids=lambda table: "-".join(map(str, table.values())))


def problem(name: str, *, relative: bool = False, **fields: Any) -> Problem:
    network = build_network(NETWORKS[name], DATA, seed=0, purpose="learned").double()
    found = problem_for(network, Regression(**{"isolate": True, "head_weight": 1.0, **fields}))
    return problem_of(found.network, found.objective, found.learn, relative=relative)


def batch(given: Problem, count: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(3)
    network = given.network
    shapes = {f"block{block}": network.layer_shape(block) for block in range(network.logits_layer)} | {"logits": (network.classes,)}
    targets = {name: torch.randn((count, *shape), generator=rng, dtype=torch.float64) for name, shape in shapes.items()}
    return Batch(DATA.train.images[:count], DATA.train.labels[:count], targets)


def of_blocks(given: Problem, vector: Tensor) -> Tensor:
    """Return the stretch of a gradient that is the blocks'."""
    names = [(path, value.numel()) for path, value in given.network.named_parameters()]
    assert [path.split(".")[0] for path, _ in names] == sorted(path.split(".")[0] for path, _ in names)
    return vector[: sum(size for path, size in names if path.startswith("blocks"))]


@pytest.mark.parametrize("shape", [(8,), (8, 3, 2)])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_copy_is_the_error_of_the_whole_output_with_the_other_groups_undisturbed(shape: tuple[int, ...], groups: int) -> None:
    rng = torch.Generator().manual_seed(0)
    output, still, target = (3 * torch.randn((5, *shape), generator=rng, dtype=torch.float64) + 2 for _ in range(3))
    raw, whole = raw_errors(output, still, target, groups), normalised_errors(output, still, target, groups, 1e-2)
    for group in range(groups):
        own = torch.arange(8) // (8 // groups) == group
        mixed = torch.where(own.reshape(-1, *[1] * (len(shape) - 1)), output, still)
        assert torch.allclose(raw[:, group], (mixed - target).flatten(1).square().mean(1), rtol=1e-12)
        error = F.layer_norm(mixed, shape, eps=1e-2) - target
        assert torch.allclose(whole[:, group], error.flatten(1).square().mean(1), rtol=1e-12)


@every_match
@pytest.mark.parametrize("name", ["mlp", "plain", "convnet"])
def test_loss_and_gradient_are_those_of_one_group(name: str, match: str) -> None:
    one, four = (problem(name, match=match, groups=groups) for groups in (1, 4))
    given = batch(one)
    assert one.loss_of(given).total.item() == pytest.approx(four.loss_of(given).total.item(), rel=1e-12)
    assert torch.allclose(gradient(one, given), gradient(four, given), rtol=1e-9, atol=1e-14)
    loss = four.loss_of(given)
    assert torch.allclose(loss.shares["block1"], loss.terms["block1"].expand(4) / 2), "each copy is the block's whole error"
    assert torch.allclose(loss.shares["head"], loss.terms["head"].expand(four.network.classes))
    last = [parameter for name, parameter in four.network.blocks[1].named_parameters() if name.endswith("weight")][-1]
    summed = torch.zeros_like(last)
    for group in range(4):
        (found,) = torch.autograd.grad(loss.shares["block1"][group], last, retain_graph=True)
        by_group = torch.unflatten(found, 0, (4, -1))
        assert bool(by_group[group].any()) and not bool(by_group[torch.arange(4) != group].any())
        summed += found
    (whole,) = torch.autograd.grad(loss.total, last)
    assert torch.allclose(summed, whole, rtol=1e-9, atol=1e-14)


def test_weights_of_blocks_reach_every_copy() -> None:
    weights = [3.0, 0.5]
    given = problem("mlp", groups=4, layers=[0, 1], weights=weights)
    loss = given.loss_of(batch(given))
    for block, weight in enumerate(weights):
        share, term = loss.shares[f"block{block}"], loss.terms[f"block{block}"]
        assert share.shape == (4,) and torch.allclose(share, weight * term.expand(4) / 2)


@every_sign_rule
@pytest.mark.parametrize(("match", "relative"), [*((match, False) for match in get_args(Match)), ("normalised", True)])
@pytest.mark.parametrize("head", ["searched", "labels"])
def test_with_a_group_per_unit_one_draw_of_signs_is_the_gradient(
    table: dict[str, Any], match: Match, relative: bool, head: Literal["searched", "labels"]
) -> None:
    """Of one unit per group, E |e - g|^2 = (1 - 1) |g|^2 / K: nothing of an estimate is left to chance."""
    network = build_network({**PLAIN, "widths": [16]}, DATA, seed=0, purpose="learned").double()
    given = problem_of(
        network, Regression(isolate=True, match=match, groups=16, head=head, head_weight=0.5), LearnConfig(), relative=relative
    )
    rule = rule_of(**table)
    rule.check(given, 48)
    assert given.grouped == {"blocks.0.linears.0", "head.linear"}
    targets = batch(given)
    if head == "labels":
        targets = dataclasses.replace(targets, targets={"block0": targets.targets["block0"]})
    true, found = gradient(given, targets), estimate(rule, given, targets)
    assert bool(true.any()) and torch.allclose(found, true, rtol=1e-4, atol=1e-4 * float(true.abs().max()))


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize(
    ("table", "more"),
    [
        ({"name": "forward_gradient", "perturb": "activities", "draws": 20}, 1),
        ({"name": "forward_gradient", "perturb": "activities", "directions": "rademacher", "draws": 20}, -1),
        ({"name": "node_perturbation", "noise_std": 1e-5, "passes": 20}, 1),
    ],
    ids=["gaussian", "signs", "np"],
)
def test_the_error_of_an_estimate_is_that_of_a_group_s_size(table: dict[str, Any], more: int, groups: int) -> None:
    """Of n components in G groups and K draws, E |e - g|^2 is (n / G + 1) |g|^2 / K for Gaussian directions, n / G - 1 for signs."""
    given = problem("plain", groups=groups) if groups < 16 else _wide(groups)
    one = batch(given, 1)
    true = gradient(given, one)
    block = slice(0, 16 * 65)
    found, true = estimates(rule_of(**table), given, one, 25)[:, block], true[block]
    mean, error = mean_and_error((found - true).square().sum(1) / true.square().sum())
    assert abs(mean - (16 / groups + more) / 20) < 4 * error + 1e-6, (mean, error)


def _wide(groups: int) -> Problem:
    network = build_network({**PLAIN, "widths": [16, 16], "normalise": False}, DATA, seed=0, purpose="learned").double()
    return problem_for(network, Regression(isolate=True, head_weight=1.0, groups=groups))


@pytest.mark.parametrize("name", ["deep", "convnet"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(
    "table",
    [
        {"name": "forward_gradient", "draws": 20},
        {"name": "forward_gradient", "perturb": "activities", "draws": 20},
        {"name": "forward_gradient", "perturb": "activities", "draws": 20, "derivative": "forward", "step": 1e-6},
        {"name": "node_perturbation", "passes": 20, "noise_std": 1e-6},
    ],
    ids=lambda table: "-".join(map(str, table.values())),
)
def test_estimates_of_every_layer_are_without_bias(table: dict[str, Any], relative: bool, name: str) -> None:
    given = problem(name, relative=relative, groups=4)
    true = gradient(given, batch(given))
    found = estimates(rule_of(**table), given, batch(given), 16)
    start = 0
    for path, value in given.network.named_parameters():
        part = slice(start, start + value.numel())
        start = part.stop
        ratio, error = mean_and_error(found[:, part] @ true[part] / true[part].square().sum())
        assert abs(ratio - 1) < 4.5 * error, path


@pytest.mark.parametrize(
    "table",
    [{"name": "node_perturbation", "passes": 400, "noise_std": 1e-6}, {"name": "weight_perturbation", "passes": 400, "noise_std": 1e-6}],
    ids=["node", "weight"],
)
def test_a_way_does_not_move_with_the_noise(table: dict[str, Any]) -> None:
    """Were a disturbed pass' target the way from its own output, there would be next to nothing to learn from."""
    given = problem("mlp", relative=True)
    true, found = (of_blocks(given, vector) for vector in (gradient(given, batch(given)), estimate(rule_of(**table), given, batch(given))))
    assert float(found @ true / true.square().sum()) == pytest.approx(1, abs=0.35)


def test_a_fit_stopped_and_gone_on_with_has_the_same_bits() -> None:
    objective = Regression(isolate=True, groups=8)
    rule = rule_of("node_perturbation", noise="rademacher", noise_std=1e-2)
    plan = dataclasses.replace(plan_for(objective=objective, epochs=2, precision="float32"), rule=rule)
    store, checks = MemoryStore(), 3 + 2

    def stop() -> None:
        nonlocal checks
        checks -= 1
        if checks == 0:
            raise JobCancelled("stop")

    def learned(attempt: int, recorder: Recorder) -> SearchableNetwork:
        network = build_network(NETWORKS["mlp"], DATA, seed=0, purpose="learned")
        kept = StoreCheckpoints(store, "checkpoints/00001", round=1, attempt=attempt, digest=str(attempt > 0), keep=1, attributes={})
        targets = {name: value.float() for name, value in batch(problem("mlp"), 48).targets.items()}
        fit(network, TrainingSet.on("cpu", DATA.train, targets), DATA.validation, plan, kept, recorder)
        return network

    whole = to_arrays(learned(0, Recorder()))
    with pytest.raises(JobCancelled):
        learned(1, Recorder(on_check=stop))
    again = to_arrays(learned(2, Recorder()))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_one_noisy_pass_learns_as_backpropagation_does() -> None:
    """Random codes per class as targets; in float32, with the noise that is advised."""
    data = Digits(train=600).load(seed=0)
    rng = torch.Generator().manual_seed(0)
    codes = [F.layer_norm(torch.randn((10, 32), generator=rng), (32,)) for _ in range(2)]
    targets = {f"block{block}": codes[block][data.train.labels] for block in range(2)}
    accuracies = []
    for rule in (rule_of("backprop"), rule_of("node_perturbation", noise="rademacher", noise_std=1e-2)):
        network = build_network({**PLAIN, "widths": [32, 32]}, data, seed=0, purpose="learned")
        objective = Regression(isolate=True, groups=32, head_weight=1.0, head="labels")
        plan = dataclasses.replace(plan_for(objective=objective, epochs=10, batch_size=25), rule=rule)
        fit(network, TrainingSet.on("cpu", data.train, targets), data.validation, plan, NoCheckpoints(), Recorder())
        accuracies.append(evaluate(network, data.test).accuracy)
    assert accuracies[0] > 0.8 and accuracies[1] == pytest.approx(accuracies[0], abs=0.02)


@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        ({"name": "node_perturbation", "variant": "anp"}, {"groups": 2}, r"learn\.rule\.variant: anp .* set variant = \"np\""),
        ({"name": "backprop"}, {"groups": 3}, r"learn\.objective\.groups: the 16 channels of block 0 .* 3 groups .* set it to 1, 2, 4, 8$"),
    ],
)
def test_what_cannot_be_served_is_refused(table: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    network = build_network(NETWORKS["mlp"], DATA, seed=0, purpose="learned")
    plan = dataclasses.replace(plan_for(objective=Regression(isolate=True, **fields)), rule=rule_of(**table))
    with pytest.raises(ConfigError, match=message):
        teaching_for(plan, network, 48)


def test_groups_of_blocks_that_are_not_isolated_are_refused() -> None:
    with pytest.raises(ValueError, match="groups is 4, and groups of a block learn from that block's error alone; set isolate = true"):
        Regression(groups=4)
    with pytest.raises(ConfigError, match=r"learn\.objective\.groups: reads .* take a network of this project, or set groups = 1"):
        Regression(groups=4, isolate=True).check([0], 1, ("representation",))


def test_alopex_on_ways_is_refused() -> None:
    rule = rule_of("alopex")
    given = problem("mlp", relative=True)
    with pytest.raises(ConfigError, match=r"search\.relative: alopex compares losses .* set search\.relative = false"):
        rule.check(given, 48)


def test_outputs_are_read_as_they_are_matched() -> None:
    given = problem("convnet", groups=4)
    outputs = outputs_of(given.network, batch(given).images, given.objective.reading)
    assert not torch.equal(outputs.blocks[0], outputs.compared[0]) and given.objective.reading.output == "raw"
