"""The fit loop: what it learns, records and refuses, and that stopping and going on changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.batches import TrainingSet
from learner.checkpoints import Checkpoint, NoCheckpoints, StoreCheckpoints
from learner.evaluation import EVALUATION_BATCH, evaluate
from learner.fit import FitPlan, FitState, fit
from learner.keeping import best_epoch, plateaued
from learner.objectives.base import Loss, Outputs, Reading
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
        *("train_accuracy", "forward_examples", "backward_examples", "validation_accuracy", "validation_cross_entropy"),
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


PLANS: dict[str, FitPlan] = {
    "sgd": plan_for(epochs=4, objective=Regression(), optimiser=Sgd(), pad_crop=1),
    "adamw": plan_for(epochs=4, objective=Regression(), optimiser=AdamW(), pad_crop=1),
    "isolated": plan_for(epochs=4, objective=Regression(isolate=True, match="last_activation_dropped"), clip_norm=0.1, schedule="cosine"),
    "bfloat16": plan_for(epochs=2, objective=Regression(), precision="bfloat16", batch_size=24),
    "kept": plan_for(epochs=4, optimiser=Sgd(lr=0.02), schedule="constant", keep="best", patience=3),
}


@pytest.mark.parametrize(("name", "stop_after"), [(name, stop) for name, plan in PLANS.items() for stop in range(plan.epochs + 1)])
def test_a_fit_cancelled_in_any_epoch_and_resumed_gives_the_same_bits(name: str, stop_after: int) -> None:
    data, plan = tiny_data(), PLANS[name]
    epochs, steps = plan.epochs, 48 // plan.learn.batch_size
    whole, expected = learned(data, plan)
    store = MemoryStore()
    checks = steps * stop_after + 2  # stop at the second step of the next epoch

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
    assert (state.examples, state.kept) == (expected.examples, expected.kept)
    assert {step for _, step, _ in recorder.reported} == {record["epoch"] for record in state.history}


@dataclass(frozen=True)
class Diverging:
    """An objective whose second term is not finite from its fifth call on."""

    calls: list[int]
    reading: ClassVar[Reading] = Reading()

    def needs_targets(self, layers: object) -> tuple[str, ...]:
        return ()

    def check(self, layers: object, blocks: int, outputs: object) -> None:
        pass

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


def test_the_gradient_is_shortened_to_the_norm_given() -> None:
    data = tiny_data()
    steps = {}
    for clip in (None, 1e9, 1e-3):
        network = network_for(data)
        before = to_arrays(network)
        optimiser = Sgd(lr=1.0, momentum=0.0, nesterov=False)
        plan = plan_for(epochs=1, optimiser=optimiser, batch_size=48, schedule="constant", clip_norm=clip)
        fit(network, training_of(network, data), data.validation, plan, NoCheckpoints(), Recorder())
        moved = [to_arrays(network)[name] - before[name] for name, _ in network.named_parameters()]
        steps[clip] = math.sqrt(sum(float((change.astype(np.float64) ** 2).sum()) for change in moved))
    # One step of rate 1 without momentum: the way moved is the gradient.
    assert steps[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert steps[None] == pytest.approx(steps[1e9], rel=1e-5)
    assert steps[None] > 0.01


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_network_kept_is_that_of_the_epoch_named(keep: str) -> None:
    data = tiny_data()
    # A rate that ruins the network after some epochs, so that the best epoch is not the last.
    plan = plan_for(epochs=8, optimiser=Sgd(lr=0.02), schedule="constant", keep=keep)
    network, state = learned(data, plan)
    accuracies = [record["validation_accuracy"] for record in state.history]
    assert state.kept == (8 if keep == "last" else accuracies.index(max(accuracies)) + 1)
    assert evaluate(network, data.validation).accuracy == accuracies[state.kept - 1]
    if keep == "best":
        assert state.kept < 8, accuracies
        shorter = network_for(data)
        constant = plan_for(epochs=state.kept, optimiser=Sgd(lr=0.02), schedule="constant")
        fit(shorter, training_of(shorter, data), data.validation, constant, NoCheckpoints(), Recorder())
        assert same_bits(network, shorter)


def test_patience_stops_after_so_many_epochs_without_a_better_one() -> None:
    data = tiny_data()
    _, whole = learned(data, plan_for(epochs=12, optimiser=Sgd(lr=0.02), schedule="constant"))
    _, stopped = learned(data, plan_for(epochs=12, optimiser=Sgd(lr=0.02), schedule="constant", patience=2))
    assert stopped.history == whole.history[: len(stopped.history)]
    assert len(stopped.history) < 12
    accuracies = [record["validation_accuracy"] for record in stopped.history]
    assert accuracies.index(max(accuracies)) == len(accuracies) - 3


@pytest.mark.parametrize(
    ("accuracies", "best", "stops"),
    [([], 0, False), ([0.5], 1, False), ([0.5, 0.5], 1, False), ([0.5, 0.4, 0.5], 1, True), ([0.5, 0.4, 0.6], 3, False), ([0.0], 1, False)],
)
def test_best_epoch_and_plateau_by_hand(accuracies: list[float], best: int, stops: bool) -> None:
    history = [{"validation_accuracy": accuracy} for accuracy in accuracies]
    assert best_epoch(history) == best
    assert plateaued(history, 2) is stops
    assert not plateaued(history, None)


def test_batch_statistics_are_those_of_the_batch_at_hand() -> None:
    data = tiny_data()
    network = network_for(data, batchnorm="batch").eval()
    assert not any("running" in name for name in network.state_dict())
    seen: list[Tensor] = []
    first: Any = network.blocks[0]
    first.groups[0].norm1.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    network(data.train.images)
    given, made = seen
    mean, variance = given.mean((0, 2, 3), keepdim=True), given.var((0, 2, 3), correction=0, keepdim=True)
    assert torch.allclose(made, (given - mean) / torch.sqrt(variance + 1e-5), atol=1e-5)
    state = fit(network, training_of(network, data), data.validation, plan_for(objective=Regression()), NoCheckpoints(), Recorder())
    assert state.history[-1]["loss_block0"] < state.history[0]["loss_block0"]


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


class Killed(BaseException):
    """The end of the process."""


class KilledCheckpoints(StoreCheckpoints):
    """Checkpoints of a process that is killed after `saves` of them."""

    saves = 0

    def save(self, checkpoint: Checkpoint) -> None:
        super().save(checkpoint)
        self.saves -= 1
        if self.saves == 0:
            raise Killed


@pytest.mark.parametrize("saves", range(1, 12))
def test_killed_within_an_epoch_nothing_but_the_step_under_way_is_learned_again(saves: int) -> None:
    data = tiny_data()
    plan = plan_for(epochs=4, keep="best", flip=True, pad_crop=1, checkpoint_seconds=1e-9)
    whole, expected = learned(data, plan)
    store, steps = MemoryStore(), 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def checkpoints(kind: type[StoreCheckpoints], attempt: int) -> StoreCheckpoints:
        return kind(store, "checkpoints/00001", round=1, attempt=attempt, digest="d", keep=1, attributes={})

    network = network_for(data)
    killed = checkpoints(KilledCheckpoints, 1)
    killed.saves = saves
    with pytest.raises(Killed):
        fit(network, training_of(network, data), data.validation, plan, killed, Recorder(on_check=count))
    network = network_for(data)
    state = fit(network, training_of(network, data), data.validation, plan, checkpoints(StoreCheckpoints, 2), Recorder(on_check=count))
    assert same_bits(network, whole)
    assert state.history == expected.history
    assert (state.examples, state.kept) == (expected.examples, expected.kept)
    # A check comes before each of the 12 steps, and before the kept state is written that a step may follow.
    assert steps - 12 <= 1
