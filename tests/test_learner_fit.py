"""The fit loop: what it learns, records and refuses, and that stopping and going on changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.checkpoints import NoCheckpoints, StoreCheckpoints
from learner.evaluation import EVALUATION_BATCH, evaluate
from learner.fit import FitPlan, FitState, TrainingSet, fit
from learner.objectives.base import Loss, Outputs
from learner.objectives.cross_entropy import CrossEntropy
from learner.objectives.regression import Regression
from learner.optimisers.adamw import AdamW
from learner.optimisers.sgd import Sgd
from repsearch.config import LearnConfig
from repsearch.datasets import load_data
from repsearch.datasets.base import Data, Split
from repsearch.errors import NumericalError
from repsearch.networks import SearchableNetwork, build_network, to_arrays
from repsearch.serving import JobCancelled
from store import MemoryStore
from tests.learner_support import Recorder, made_up_targets, network_for, plan_for, tiny_data


def training_of(network: SearchableNetwork, data: Data) -> TrainingSet:
    targets = {name: torch.from_numpy(values) for name, values in made_up_targets(network, data).items()}
    return TrainingSet.on("cpu", data.train, targets)


def learned(data: Data, plan: FitPlan, recorder: Recorder | None = None) -> tuple[SearchableNetwork, FitState]:
    network = network_for(data)
    return network, fit(network, training_of(network, data), data.validation, plan, NoCheckpoints(), recorder or Recorder())


def same_bits(a: SearchableNetwork, b: SearchableNetwork) -> bool:
    first, second = to_arrays(a), to_arrays(b)
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_cross_entropy_reaches_95_percent_on_digits() -> None:
    data = load_data({"name": "digits"}, seed=0)
    network = build_network({"name": "convnet", "width": 32, "blocks": 2, "convolutions": 4}, data, seed=0, purpose="learned")
    plan = FitPlan(CrossEntropy(), AdamW(), LearnConfig(batch_size=125), epochs=5, seed=0, round=0)
    fit(network, TrainingSet.on("cpu", data.train, {}), data.validation, plan, NoCheckpoints(), Recorder())
    assert evaluate(network, data.test).accuracy >= 0.95


def test_regression_on_class_codes_learns_blocks_and_head() -> None:
    data = tiny_data()
    plan = plan_for(epochs=15, objective=Regression(head_weight=1.0), optimiser=AdamW(lr=0.02))
    network, state = learned(data, plan)
    assert state.history[-1]["loss_block0"] < 0.5 * state.history[0]["loss_block0"]
    assert state.history[-1]["loss_head"] < state.history[0]["loss_head"]
    assert set(state.history[0]) == {
        *("epoch", "loss", "loss_block0", "loss_block1", "loss_head", "learning_rate"),
        *("train_accuracy", "validation_accuracy", "validation_cross_entropy"),
    }
    assert not network.training


def test_every_epoch_is_recorded_and_reported() -> None:
    recorder = Recorder()
    data = tiny_data()
    _, state = learned(data, plan_for(epochs=3), recorder)
    assert [record["epoch"] for record in state.history] == [1, 2, 3]
    assert state.examples == 3 * 48
    assert state.seconds > 0
    assert ("learn/validation_accuracy", 2, state.history[1]["validation_accuracy"]) in recorder.reported
    assert recorder.progressed[-1] == (3, 3, "epochs")
    assert {step for _, step, _ in recorder.reported} == {1, 2, 3}


def test_the_same_plan_gives_the_same_bits_and_another_seed_others() -> None:
    data = tiny_data()
    plan = plan_for(objective=Regression(), flip=True, pad_crop=1)
    assert same_bits(learned(data, plan)[0], learned(data, plan)[0])
    other = FitPlan(plan.objective, plan.optimiser, plan.learn, plan.epochs, seed=plan.seed + 1, round=plan.round)
    assert not same_bits(learned(data, plan)[0], learned(data, other)[0])


def test_augmentation_and_fixed_batches_change_what_is_learned() -> None:
    data = tiny_data()
    networks = [learned(data, plan_for(**fields))[0] for fields in ({}, {"flip": True}, {"pad_crop": 1}, {"fixed_batches": True})]
    assert not any(same_bits(networks[0], other) for other in networks[1:])


@pytest.mark.parametrize("optimiser", [Sgd(), AdamW()])
@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 4])
def test_a_fit_cancelled_in_any_epoch_and_resumed_gives_the_same_bits(optimiser: Sgd | AdamW, stop_after: int) -> None:
    data, epochs = tiny_data(), 4
    plan = plan_for(epochs=epochs, objective=Regression(), optimiser=optimiser, pad_crop=1)
    whole, expected = learned(data, plan)
    store = MemoryStore()
    checks = 3 * stop_after + 2  # three steps per epoch: stop at the second step of the next

    def stop() -> None:
        nonlocal checks
        checks -= 1
        if checks == 0:
            raise JobCancelled("stop")

    for attempt, recorder in ((1, Recorder(on_check=stop)), (2, Recorder())):
        network = network_for(data)
        kept = StoreCheckpoints(store, "checkpoints/00001", round=1, attempt=attempt, digest="d", keep=1, attributes={})
        if attempt == 1 and stop_after < epochs:
            with pytest.raises(JobCancelled):
                fit(network, training_of(network, data), data.validation, plan, kept, recorder)
            continue
        state = fit(network, training_of(network, data), data.validation, plan, kept, recorder)
    assert same_bits(network, whole)
    assert state.history == expected.history
    assert state.examples == expected.examples
    assert {step for _, step, _ in recorder.reported} == {1, 2, 3, 4}


@dataclass(frozen=True)
class Diverging:
    """An objective whose second term is not finite from its fifth call on."""

    calls: list[int]

    def needs_targets(self, layers: object) -> tuple[str, ...]:
        return ()

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        self.calls.append(1)
        logits = outputs.head(outputs.blocks[-1])
        good, bad = logits.square().mean(), logits.mean() * (math.nan if len(self.calls) >= 5 else 1.0)
        return Loss(good + bad, {"good": good, "bad": bad}, logits)


def test_a_loss_that_is_not_finite_is_named_with_the_way_out() -> None:
    with pytest.raises(NumericalError, match=r"loss_bad is nan at epoch 2, step 2; lower learn\.optimiser\.lr"):
        learned(tiny_data(), plan_for(objective=Diverging([])))


def test_a_learning_rate_that_is_too_high_is_refused_by_name() -> None:
    with pytest.raises(NumericalError, match=r"learning: loss_cross_entropy is (nan|inf) at epoch \d+, step \d+"):
        learned(tiny_data(), plan_for(epochs=40, optimiser=Sgd(lr=1e30)))


def test_evaluation_uses_running_statistics_and_keeps_the_mode() -> None:
    data = tiny_data(rest=30)
    network = network_for(data).train()
    measured = evaluate(network, data.test)
    assert network.training
    with torch.no_grad():
        logits = network.eval()(data.test.images)
    assert measured.accuracy == pytest.approx(float((logits.argmax(1) == data.test.labels).double().mean()))
    assert measured.cross_entropy == pytest.approx(float(torch.nn.functional.cross_entropy(logits, data.test.labels)), rel=1e-5)
    alone = [evaluate(network, Split(data.test.images[i : i + 1], data.test.labels[i : i + 1])).cross_entropy for i in range(30)]
    assert measured.cross_entropy == pytest.approx(sum(alone) / 30, rel=1e-5)


def test_evaluation_covers_a_split_larger_than_its_batch() -> None:
    data = tiny_data(rest=EVALUATION_BATCH + 7)
    network = network_for(data)
    halves = [evaluate(network, Split(data.test.images[part], data.test.labels[part])) for part in (slice(0, 500), slice(500, None))]
    whole = evaluate(network, data.test)
    assert whole.accuracy == pytest.approx((500 * halves[0].accuracy + 7 * halves[1].accuracy) / 507)
    assert whole.cross_entropy == pytest.approx((500 * halves[0].cross_entropy + 7 * halves[1].cross_entropy) / 507)
