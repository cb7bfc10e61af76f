"""The contract of learning rules: what every member keeps to, whatever it estimates gradients by."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from learner.batches import Batch, TrainingSet
from learner.checkpoints import NoCheckpoints, StoreCheckpoints, load_state, rule_state, state_arrays
from learner.fit import FitPlan, FitState, fit, optimiser_of, teaching_for
from learner.objectives.cross_entropy import CrossEntropy
from learner.objectives.generalised_cross_entropy import GeneralisedCrossEntropy
from learner.objectives.regression import Regression
from learner.optimisers.sgd import Sgd
from repsearch.families import RULES
from repsearch.networks import SearchableNetwork, build_network, to_arrays
from repsearch.serving import JobCancelled
from store import MemoryStore
from tests.learner_support import Recorder, made_up_targets, plan_for, tiny_data

DATA = tiny_data()
OBJECTIVES: dict[str, Any] = {
    "cross_entropy": CrossEntropy(label_smoothing=0.1),
    "generalised": GeneralisedCrossEntropy(),
    "regression": Regression(head_weight=1.0),
    "isolated": Regression(head_weight=1.0, isolate=True, match="raw"),
}
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "backprop": [{}, {"decorrelate": {"rate": 0.01, "whiten": 0.1}}],
    "forward_gradient": [
        {"draws": 3, "combine": "projection"},
        {"directions": "sphere"},
        {"perturb": "activities", "draws": 2, "directions": "rademacher"},
        {"perturb": "activities", "draws": 2, "directions": "sphere", "combine": "projection"},
        {"derivative": "central", "draws": 2, "step": 0.01},
        {"perturb": "activities", "derivative": "forward"},
    ],
    "weight_perturbation": [{"passes": 4, "noise": "rademacher"}],
    "feedback_alignment": [{}, {"feedback": "sign"}],
    "alopex": [{"hold": 3, "anneal_every": 2}],
    "node_perturbation": [
        {"variant": "np", "passes": 3},
        {"variant": "inp", "decorrelate": {"rate": 0.01}},
        {"variant": "anp", "noise": "rademacher"},
        {"variant": "np", "clean_pass": False, "noise_std": 1e-4},
    ],
}
"""Fields of each member under which it is tested, beside those that it has by default."""
RULE_TABLES = [{"name": name, **fields} for name in RULES.names() for fields in SAMPLES.get(name, [{}])]
every_rule = pytest.mark.parametrize("table", RULE_TABLES, ids=lambda table: "-".join(map(str, table.values())))


def network() -> SearchableNetwork:
    return build_network({"name": "mlp", "widths": [12, 8], "batchnorm": False}, DATA, seed=0, purpose="learned")


def training() -> TrainingSet:
    targets = {name: torch.from_numpy(values) for name, values in made_up_targets(network(), DATA).items()}
    return TrainingSet.on("cpu", DATA.train, targets)


def batch() -> Batch:
    whole = training()
    return Batch(whole.images[:16], whole.labels[:16], whole.targets_at(torch.arange(16)))


def plan(table: dict[str, Any], *, objective: str = "cross_entropy", **fields: Any) -> FitPlan:
    rule, sgd = RULES.build(table, at="learn.rule"), Sgd(lr=0.01, momentum=0.0, nesterov=False)
    found = plan_for(objective=OBJECTIVES[objective], optimiser=sgd, **fields)
    learn = found.learn.model_copy(update={"optimiser": {"name": "sgd", **dataclasses.asdict(sgd)}})
    return dataclasses.replace(found, rule=rule, learn=learn)


def learned(plan: FitPlan, checkpoints: Any = None, recorder: Recorder | None = None) -> tuple[SearchableNetwork, FitState]:
    learning = network()
    return learning, fit(learning, training(), DATA.validation, plan, checkpoints or NoCheckpoints(), recorder or Recorder())


def same_bits(a: SearchableNetwork, b: SearchableNetwork) -> bool:
    first, second = to_arrays(a), to_arrays(b)
    return all(np.array_equal(first[name], second[name]) for name in first)


@every_rule
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_estimate_has_a_gradient_for_every_parameter_and_says_what_it_cost(table: dict[str, Any], objective: str) -> None:
    learning = network().train()
    teaching = teaching_for(plan(table, objective=objective), learning, 48)
    before, drawn = to_arrays(learning), torch.random.get_rng_state()
    state = {name: value.clone() for name, value in teaching.state.items()}
    teaching.rule.enter(teaching.problem, teaching.state)
    estimates = []
    for _ in range(2):
        learning.zero_grad(set_to_none=True)
        estimate, after = teaching.rule.estimate(teaching.problem, batch(), teaching.state, rng=torch.Generator().manual_seed(3))
        estimates.append([parameter.grad for parameter in learning.parameters()])
    for first, second, parameter in zip(*estimates, learning.parameters(), strict=True):
        assert first is not None and first.shape == parameter.shape
        assert bool(first.isfinite().all()) and not first.requires_grad
        assert torch.equal(first, second), "the same generator gives the same estimate"
    assert any(bool(gradient.any()) for gradient in estimates[0] if gradient is not None)
    assert estimate.forward >= 16 and estimate.backward in (0, 16) and estimate.forward % 16 == 0
    assert estimate.loss.logits.shape == (16, 3)
    assert teaching.state.keys() == after.keys()
    assert all(torch.equal(teaching.state[name], value) for name, value in state.items()), "a state passed in is not changed"
    assert torch.equal(torch.random.get_rng_state(), drawn), "the global generator is not used"
    assert all(np.array_equal(to_arrays(learning)[name], value) for name, value in before.items()), "an estimate moves no parameter"


@every_rule
def test_what_is_recorded_is_the_loss_of_the_network_as_it_is(table: dict[str, Any]) -> None:
    learning = network().train()
    teaching = teaching_for(plan(table, objective="regression"), learning, 48)
    with torch.no_grad():
        expected = teaching.problem.loss_of(batch())
    estimate, _ = teaching.rule.estimate(teaching.problem, batch(), teaching.state, rng=torch.Generator())
    # Rounding of sums taken in another order; without a clean pass, noise of 1e-4 on every unit.
    clean = table.get("clean_pass", True)
    assert estimate.loss.total.item() == pytest.approx(expected.total.item(), rel=1e-6 if clean else 1e-4)
    assert {name: term.item() for name, term in estimate.loss.terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.terms.items()}, rel=1e-6 if clean else 1e-3
    )
    assert torch.allclose(estimate.loss.logits, expected.logits, rtol=0, atol=1e-6 if clean else 2e-3)


@every_rule
@pytest.mark.parametrize("stop_after", [1])
def test_a_fit_cancelled_in_any_epoch_and_resumed_gives_the_same_bits(table: dict[str, Any], stop_after: int) -> None:
    chosen = plan(table, objective="isolated", epochs=3)
    whole, expected = learned(chosen)
    store = MemoryStore()
    checks = 3 * chosen.rule.hold * stop_after + 2

    def stop() -> None:
        nonlocal checks
        checks -= 1
        if checks == 0:
            raise JobCancelled("stop")

    def kept(attempt: int) -> StoreCheckpoints:
        return StoreCheckpoints(store, "checkpoints/00001", round=1, attempt=attempt, digest="d", keep=1, attributes={})

    with pytest.raises(JobCancelled):
        learned(chosen, kept(1), Recorder(on_check=stop))
    resumed, state = learned(chosen, kept(2))
    assert same_bits(resumed, whole)
    assert state.history == expected.history


@every_rule
def test_learning_goes_on_from_a_stored_state_as_if_it_had_not_stopped(table: dict[str, Any]) -> None:
    """What `learn.start = "continue"` and streamed windows do between rounds."""
    chosen = plan(table, epochs=2, schedule="constant")
    results = []
    for stored in (False, True):
        learning = network()
        optimiser = optimiser_of(chosen.optimiser, learning, chosen.objective)
        state: dict[str, torch.Tensor] = {}
        for round in range(2):
            this = dataclasses.replace(chosen, round=round)
            state = fit(learning, training(), DATA.validation, this, NoCheckpoints(), Recorder(), optimiser, state).rule
            if stored:
                arrays = state_arrays(learning, optimiser, state)
                learning = network()
                optimiser = optimiser_of(chosen.optimiser, learning, chosen.objective)
                load_state(learning, optimiser, arrays)
                state = rule_state(arrays)
        results.append(learning)
    assert same_bits(*results)


@every_rule
def test_every_epoch_says_how_many_examples_passed_either_way(table: dict[str, Any]) -> None:
    chosen = plan(table, epochs=2)
    _, state = learned(chosen)
    learning = network().train()
    teaching = teaching_for(chosen, learning, 48)
    estimate, _ = teaching.rule.estimate(teaching.problem, batch(), teaching.state, rng=torch.Generator())
    steps = 3 * chosen.rule.hold
    assert [record["forward_examples"] for record in state.history] == [steps * estimate.forward] * 2
    assert [record["backward_examples"] for record in state.history] == [steps * estimate.backward] * 2


def test_backprop_is_the_gradient() -> None:
    learning = network().train()
    teaching = teaching_for(plan({"name": "backprop"}), learning, 48)
    expected = torch.autograd.grad(teaching.problem.loss_of(batch()).total, list(learning.parameters()))
    teaching.rule.estimate(teaching.problem, batch(), teaching.state, rng=torch.Generator())
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in zip(learning.parameters(), expected, strict=True))  # type: ignore[arg-type]
