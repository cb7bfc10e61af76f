"""Local classifiers and groups of channels against Ren et al. 2022: where gradients go, and what groups do to an estimate's variance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learner.batches import Batch, TrainingSet
from learner.checkpoints import NoCheckpoints, StoreCheckpoints
from learner.evaluation import evaluate
from learner.fit import fit, teaching_for
from learner.jobs import run_job
from learner.objectives.base import outputs_of
from learner.objectives.classifiers import classifiers_of
from learner.objectives.local_cross_entropy import LocalCrossEntropy
from learner.rules.base import Problem
from repsearch.config import LearnConfig
from repsearch.datasets.digits import Digits
from repsearch.errors import ConfigError
from repsearch.networks import SearchableNetwork, build_network, load_arrays, to_arrays
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import JobCancelled
from store import MemoryStore, Reference, ZarrStore, layout
from store.parameters import read_parameters
from tests.learner_support import Recorder, digits_config, plan_for, request_for, tiny_data
from tests.rules_support import estimate, estimates, gradient, mean_and_error, problem_for, rule_of

DATA = tiny_data()
PLAIN = {"name": "mlp", "batchnorm": False, "normalise": False, "activation": "leaky_relu"}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {**PLAIN, "widths": [16, 8]},
    "deep": {**PLAIN, "widths": [16, 8], "layers": 2},
    "in groups": {**PLAIN, "widths": [16, 8], "layers": 2, "groups": 4},
    "normalised": {"name": "mlp", "batchnorm": False, "widths": [16, 8]},
    "convnet": {"name": "convnet", "width": 8, "blocks": 2, "convolutions": 2, "batchnorm": "none"},
}
RULES: list[dict[str, Any]] = [
    {"name": "backprop"},
    {"name": "backprop", "decorrelate": {"rate": 1e-3}},
    {"name": "forward_gradient"},
    {"name": "forward_gradient", "derivative": "forward", "draws": 2},
    {"name": "forward_gradient", "perturb": "activities", "draws": 2},
    {"name": "forward_gradient", "perturb": "activities", "derivative": "central"},
    {"name": "forward_gradient", "perturb": "activities", "directions": "sphere"},
    {"name": "weight_perturbation"},
    {"name": "node_perturbation", "passes": 2},
    {"name": "node_perturbation", "variant": "inp", "clean_pass": False},
]
DRAWS = 20
every_rule = pytest.mark.parametrize("table", RULES, ids=lambda table: "-".join(map(str, table.values())))


def built(name: str) -> SearchableNetwork:
    return build_network(NETWORKS[name], DATA, seed=0, purpose="learned")


def draw_classifiers(network: SearchableNetwork, *, seed: int = 1, only: int | None = None) -> None:
    """Give classifiers, which start at 0, weights that pass something on."""
    rng = torch.Generator().manual_seed(seed)
    for number, classifier in enumerate(classifiers_of(network)):
        if only in (None, number):
            with torch.no_grad():
                classifier.weight.copy_(torch.randn(classifier.weight.shape, generator=rng))


def problem(name: str, groups: int = 1, *, double: bool = True) -> Problem:
    network = built(name)
    found = problem_for(network.double() if double else network, LocalCrossEntropy(groups=groups))
    draw_classifiers(found.network)
    return found


def batch(count: int = 6) -> Batch:
    return Batch(DATA.train.images[:count], DATA.train.labels[:count], {})


def grads(problem: Problem, part: str) -> list[Tensor | None]:
    return [parameter.grad for name, parameter in problem.network.named_parameters() if name.startswith(part)]


def test_a_block_s_loss_is_the_cross_entropy_of_its_classifier() -> None:
    given = problem("mlp")
    outputs = outputs_of(given.network, batch().images, given.objective.reading)
    loss = given.objective.loss(outputs, {}, batch().labels)
    raw = outputs.compared[0].detach()
    weight = classifiers_of(given.network)[0].weight.detach()
    assert loss.terms["block0"].item() == pytest.approx(F.cross_entropy(raw @ weight.T, batch().labels).item(), rel=1e-9)
    assert loss.total.item() == pytest.approx(sum(term.item() for term in loss.terms.values()))
    assert set(loss.terms) == {"block0", "block1", "head"}
    fresh = problem_for(built("convnet"), LocalCrossEntropy())
    terms = fresh.loss_of(batch()).terms
    assert terms["block0"].item() == pytest.approx(np.log(3), rel=1e-6), "classifiers start at 0"


@pytest.mark.parametrize(
    ("table", "name", "groups"),
    [*((table, "mlp", 4) for table in RULES), *((RULES[number], name, 2) for name in ("deep", "convnet") for number in (0, 4, 8))],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_no_gradient_crosses_blocks(table: dict[str, Any], name: str, groups: int) -> None:
    found = []
    for seed in (1, 2):
        given = problem(name, groups)
        draw_classifiers(given.network, seed=seed, only=1)
        estimate(rule_of(**table), given, batch())
        found.append([grads(given, part) for part in ("blocks.0", "local_classifiers.0", "blocks.1", "head")])
    for own in range(2):
        assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(found[0][own], found[1][own], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True)), "block 1 learns from its own"  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(found[0][3], found[1][3], strict=True)), "the head learns from no classifier"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mlp", "normalised", "convnet"])
def test_a_group_s_loss_reaches_that_group_s_units_alone_and_together_they_give_the_gradient(name: str) -> None:
    given = problem(name, 4)
    last = [module for module in given.network.blocks[1].modules() if hasattr(module, "weight")][-1]
    loss = given.loss_of(batch())
    assert torch.allclose(loss.shares["block1"], loss.terms["block1"].expand(4)), "each copy is the block's whole loss"
    summed = torch.zeros_like(last.weight)
    for group in range(4):
        (found,) = torch.autograd.grad(loss.shares["block1"][group], last.weight, retain_graph=True)
        by_group = found.unflatten(0, (4, -1))
        assert bool(by_group[group].any()) and not bool(by_group[torch.arange(4) != group].any())
        summed += found
    (whole,) = torch.autograd.grad(loss.total, last.weight)
    assert torch.allclose(summed, whole, rtol=1e-9, atol=1e-12)
    assert torch.equal(gradient(problem(name, 1), batch()), gradient(given, batch())), "the gradient is the same for any number of groups"


@pytest.mark.parametrize(
    ("name", "groups", "expected"),
    [
        ("mlp", 8, ["linears.0"]),
        ("normalised", 8, ["linears.0"]),
        ("deep", 4, ["linears.1"]),
        ("in groups", 4, ["linears.0", "linears.1"]),
        ("in groups", 2, ["linears.0", "linears.1"]),
        ("in groups", 8, ["linears.1"]),
        ("convnet", 2, ["groups.0.conv2"]),
        ("mlp", 1, []),
    ],
)
def test_layers_that_keep_groups_apart_are_found(name: str, groups: int, expected: list[str]) -> None:
    assert problem(name, groups).grouped == {f"blocks.{block}.{layer}" for block in range(2) for layer in expected}


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("table", "more"),
    [
        ({"name": "forward_gradient", "perturb": "activities", "draws": DRAWS}, 1),
        ({"name": "forward_gradient", "perturb": "activities", "directions": "rademacher", "draws": DRAWS}, -1),
        ({"name": "forward_gradient", "draws": DRAWS}, 1),
        ({"name": "node_perturbation", "noise_std": 1e-5, "passes": DRAWS}, 1),
        ({"name": "node_perturbation", "variant": "inp", "noise_std": 1e-5, "passes": DRAWS}, -1),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_the_error_of_an_estimate_is_that_of_a_group_s_size(table: dict[str, Any], more: int, groups: int) -> None:
    """Of n components in G groups and K draws, E |e - g|^2 is (n / G + 1) |g|^2 / K for Gaussian directions, n / G - 1 for signs."""
    given, one = problem("mlp", groups), batch(1)
    true = gradient(given, one)
    width, inputs = 16, 64
    block = slice(0, width * (inputs + 1))
    found, true = estimates(rule_of(**table), given, one, 25)[:, block], true[block]
    components = width if "perturb" in table or table["name"] == "node_perturbation" else width * (inputs + 1)
    mean, error = mean_and_error((found - true).square().sum(1) / true.square().sum())
    assert abs(mean - (components / groups + more) / DRAWS) < 4 * error, (mean, error)
    ratio, ratio_error = mean_and_error(found @ true / true.square().sum())
    assert abs(ratio - 1) < 4 * ratio_error + 1e-4


@pytest.mark.parametrize(("name", "perturb"), [("deep", "weights"), ("in groups", "activities"), ("convnet", "activities")])
def test_layers_below_the_groups_are_estimated_without_bias(name: str, perturb: str) -> None:
    given = problem(name, 4)
    true = gradient(given, batch())
    found = estimates(rule_of("forward_gradient", perturb=perturb, draws=20), given, batch(), 16)
    names = [(path, value.numel()) for path, value in given.network.named_parameters()]
    start = 0
    for path, size in names:
        part = slice(start, start + size)
        start += size
        if path.startswith("blocks") and bool(true[part].any()):
            ratio, error = mean_and_error(found[:, part] @ true[part] / true[part].square().sum())
            assert abs(ratio - 1) < 4.5 * error, path


@every_rule
def test_classifiers_and_head_learn_by_their_exact_gradient(table: dict[str, Any]) -> None:
    given = problem("normalised", 2)
    true = {}
    for name, parameter in given.network.named_parameters():
        if not name.startswith("blocks"):
            (true[name],) = torch.autograd.grad(given.loss_of(batch()).total, parameter)
    estimate(rule_of(**table), given, batch())
    for name, expected in true.items():
        found = given.network.get_parameter(name).grad
        # A pass that is never without noise has noise in it here too.
        assert found is not None and torch.allclose(found, expected, rtol=1e-2 if "clean_pass" in table else 1e-9, atol=1e-2), name


def test_a_mask_is_of_the_units_whose_relu_is_on() -> None:
    network = build_network({**NETWORKS["mlp"], "activation": "relu"}, DATA, seed=0, purpose="learned")
    rule, given = rule_of("forward_gradient", perturb="activities", mask=True), problem_for(network, LocalCrossEntropy(groups=2))
    rule.check(given, 48)
    state = rule.init(given, rng=torch.Generator())
    assert sorted(state) == ["mask/blocks.0.linears.0", "mask/blocks.1.linears.0"]


@pytest.mark.parametrize(("number", "name"), [(0, "convnet"), (1, "mlp"), (2, "mlp"), (4, "convnet"), (8, "mlp")])
def test_a_fit_stopped_and_gone_on_with_has_the_same_bits(number: int, name: str) -> None:
    objective = LocalCrossEntropy(groups=2)
    plan = dataclasses.replace(plan_for(objective=objective, epochs=2, precision="float32"), rule=rule_of(**RULES[number]))
    store, checks = MemoryStore(), 3 + 2

    def stop() -> None:
        nonlocal checks
        checks -= 1
        if checks == 0:
            raise JobCancelled("stop")

    def learned(attempt: int, recorder: Recorder) -> SearchableNetwork:
        network = built(name)
        kept = StoreCheckpoints(store, "checkpoints/00001", round=1, attempt=attempt, digest=str(attempt > 0), keep=1, attributes={})
        fit(network, TrainingSet.on("cpu", DATA.train, {}), DATA.validation, plan, kept, recorder)
        return network

    whole = to_arrays(learned(0, Recorder()))
    assert any(name.startswith("local_classifiers") and array.any() for name, array in whole.items())
    with pytest.raises(JobCancelled):
        learned(1, Recorder(on_check=stop))
    again = to_arrays(learned(2, Recorder()))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_the_stored_network_is_the_network_without_classifiers(tmp_path: Path) -> None:
    config = digits_config(learn={"objective": {"name": "local_cross_entropy", "groups": 2}, "keep": "best", "snapshots": 2})
    spec = jobs_pb2.LearnSpec(
        round=0,
        attempt=1,
        output_path=layout.learned_network_path(0, 1),
        checkpoint_path=layout.checkpoint_folder(0),
        epochs=2,
        digest="d",
        state_path="rounds/00000/state-a1",
    )
    result = run_job(request_for(config, learn=spec), Recorder(store_root=tmp_path))
    store = ZarrStore(tmp_path / "run")
    attributes = store.manifest(Reference(result.path, result.digest)).attributes
    data = Digits(train=200, validation=50, test=100).load(seed=config.run.seed)
    for path, digest in [*((found["path"], found["digest"]) for found in attributes["snapshots"]), (result.path, result.digest)]:
        network = build_network(config.network, data, seed=1, purpose="learned")
        load_arrays(network, read_parameters(store, Reference(path, digest)))
    assert evaluate(network, data.test).accuracy == attributes["test_accuracy"]
    state = read_parameters(store, Reference(attributes["state"]["path"], attributes["state"]["digest"]))
    assert state["network/local_classifiers.1.weight"].any(), "learning that goes on has them"


def test_digits_are_learned_by_forward_gradients_of_local_losses() -> None:
    rule = rule_of("forward_gradient", perturb="activities", directions="rademacher", mask=True)
    data = Digits(train=600).load(seed=0)
    network = build_network({**PLAIN, "activation": "relu", "widths": [32, 32]}, data, seed=0, purpose="learned")
    objective = LocalCrossEntropy(groups=8)
    plan = dataclasses.replace(plan_for(objective=objective, epochs=6, batch_size=25), rule=rule)
    fit(network, TrainingSet.on("cpu", data.train, {}), data.validation, plan, NoCheckpoints(), Recorder())
    assert evaluate(network, data.test).accuracy > 0.85


@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        ({"name": "alopex"}, {}, r"learn\.rule: 'alopex' has nothing to teach the blocks' own classifiers by; take rule backprop"),
        ({"name": "feedback_alignment"}, {}, r"'feedback_alignment' has nothing to teach"),
        ({"name": "target_propagation"}, {}, r"'target_propagation' has nothing to teach"),
        ({"name": "node_perturbation", "variant": "anp"}, {"groups": 2}, r"learn\.rule\.variant: anp .* set variant = \"np\""),
        ({"name": "forward_gradient", "combine": "projection"}, {"groups": 2}, r"learn\.rule\.combine: .* set combine = \"mean\""),
        ({"name": "backprop"}, {"groups": 3}, r"learn\.objective\.groups: the 16 channels of block 0 .* 3 groups .* set it to 1, 2, 4, 8$"),
    ],
)
def test_what_cannot_be_served_is_refused(table: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    plan = dataclasses.replace(plan_for(objective=LocalCrossEntropy(**fields)), rule=rule_of(**table))
    with pytest.raises(ConfigError, match=message):
        teaching_for(plan, built("mlp"), 48)


def test_a_network_without_outputs_before_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"learn\.objective: local_cross_entropy reads .* take a network of this project"):
        LocalCrossEntropy().check([0], 2, ("representation",))


def test_noise_lost_in_rounding_is_warned_of_though_classifiers_start_at_0(caplog: pytest.LogCaptureFixture) -> None:
    given = problem_for(built("mlp"), LocalCrossEntropy())
    rule_of("node_perturbation", noise_std=1e-2).check(given, 48)
    assert not caplog.records
    rule_of("node_perturbation", noise_std=1e-7).check(given, 48)
    assert "rounding is" in caplog.text
    assert not classifiers_of(given.network)[0].weight.any(), "the check changes nothing"


def test_another_objective_takes_the_classifiers_away() -> None:
    network = built("mlp")
    problem_for(network, LocalCrossEntropy())
    problem_for(network)
    assert not classifiers_of(network) and LearnConfig().objective["name"] == "regression"
