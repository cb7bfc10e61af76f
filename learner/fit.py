"""The loop that learns: batches in an order from the seed, an objective's loss, an optimiser's step, a checkpoint per epoch.

`fit` is a function of (network, training set, objective, optimiser, configuration, seed, round) alone, on one device type: stopping it
anywhere and going on from its newest checkpoint gives the same bits. Data stay uint8, and targets in stored precision, until a batch
is formed. Shapes: N training examples, B of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from learner.checkpoints import BEST, Checkpoint, Checkpoints, best_arrays, load_state, state_arrays
from learner.evaluation import evaluate
from learner.keeping import best_epoch, plateaued
from learner.objectives.base import LearningObjective, Loss, outputs_of
from learner.optimisers.base import OptimiserSpec
from learner.schedule import epoch_batches, rate_factor, steps_per_epoch
from learner.targets import draw_results
from repsearch.config import LearnConfig
from repsearch.datasets.augmentation import augment
from repsearch.datasets.base import Split
from repsearch.errors import NumericalError
from repsearch.networks import SearchableNetwork, load_arrays, to_arrays
from repsearch.seeding import generator

REPORT_SECONDS = 0.5
"""Shortest time between two progress reports within an epoch."""


class Reporter(Protocol):
    """Whom a fit tells how far it is, and asks whether to go on."""

    def progress(self, done: int, total: int, *, unit: str, text: str = "") -> None:
        """Take note that `done` of `total` epochs are over."""
        ...

    def points(self, points: Sequence[tuple[str, int, float]]) -> None:
        """Take note of measurements: key, step, value."""
        ...

    def check(self) -> None:
        """Raise if the fit is to stop."""
        ...


@dataclass(frozen=True)
class TrainingSet:
    """images: uint8 (N, C, H, W). labels: int64 (N,). targets: name -> (N, X) in stored precision; (N, R, X) where `results` R > 1,
    of which every epoch draws one per example, `drawn` (N,). All on the network's device."""

    images: Tensor
    labels: Tensor
    targets: Mapping[str, Tensor]
    results: int = 1
    drawn: Tensor | None = None

    @classmethod
    def on(cls, device: str, split: Split, targets: Mapping[str, Tensor], *, results: int = 1) -> TrainingSet:
        """Return the training set of `split` and `targets`, moved to `device`."""
        moved = {name: target.to(device) for name, target in targets.items()}
        return cls(split.images.to(device), split.labels.to(device), moved, results)

    def of_epoch(self, plan: FitPlan, epoch: int) -> TrainingSet:
        """Return the set with the results drawn for `epoch`: the same if there is one result per example."""
        if self.results == 1:
            return self
        drawn_N = draw_results(len(self), self.results, seed=plan.seed, round=plan.round, epoch=epoch)
        return replace(self, drawn=drawn_N.to(self.labels.device))

    def targets_at(self, index_B: Tensor) -> dict[str, Tensor]:
        """Return the targets (B, X) of the examples `index_B`."""
        if self.drawn is None:
            return {name: target.index_select(0, index_B) for name, target in self.targets.items()}
        rows_B = index_B * self.results + self.drawn.index_select(0, index_B)
        return {name: target.flatten(0, 1).index_select(0, rows_B) for name, target in self.targets.items()}

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FitPlan:
    """What is learned, how, and from which random numbers: `epochs` passes with the `learn` section of the configuration."""

    objective: LearningObjective
    optimiser: OptimiserSpec
    learn: LearnConfig
    epochs: int
    seed: int
    round: int


@dataclass
class FitState:
    """What grows while a fit runs; see `Checkpoint`.

    best: parameters and buffers after the best epoch, where they are to be kept. kept: epoch of the network at the end.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    examples: int = 0
    seconds: float = 0.0
    best: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: int = 0


def fit(
    network: SearchableNetwork, training: TrainingSet, validation: Split, plan: FitPlan, checkpoints: Checkpoints, reporter: Reporter
) -> FitState:
    """Train `network` in place, from the newest checkpoint if there is one; return its history. It ends in evaluation mode.

    The network is that of the last epoch, or with `learn.keep` = "best" that of the best one.
    Raises `NumericalError` naming epoch, step and term for a loss that is not finite, and whatever `reporter.check` raises.
    """
    optimiser = plan.optimiser.build(parameter for parameter in network.parameters() if parameter.requires_grad)
    state = _resumed(network, optimiser, checkpoints)
    for record in state.history:
        reporter.points(_points(record))
    while state.epoch < plan.epochs and not plateaued(state.history, plan.learn.patience):
        begun = time.perf_counter()
        record = _run_epoch(network, training, optimiser, plan, state, reporter)
        measured = evaluate(network, validation)
        record |= {"validation_accuracy": measured.accuracy, "validation_cross_entropy": measured.cross_entropy}
        state.epoch += 1
        state.history.append(record)
        state.seconds += time.perf_counter() - begun
        checkpoints.save(_checkpoint(network, optimiser, plan, state))
        reporter.points(_points(record))
        reporter.progress(state.epoch, plan.epochs, unit="epochs", text=_text(state, record["loss"]))
    state.kept = state.epoch
    if plan.learn.keep == "best":
        state.kept = best_epoch(state.history)
        load_arrays(network, state.best)
    network.eval()
    return state


def _resumed(network: SearchableNetwork, optimiser: torch.optim.Optimizer, checkpoints: Checkpoints) -> FitState:
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return FitState()
    load_state(network, optimiser, checkpoint.arrays)
    best = best_arrays(checkpoint.arrays)
    return FitState(checkpoint.epoch, list(checkpoint.history), checkpoint.examples, checkpoint.seconds, best)


def _checkpoint(network: SearchableNetwork, optimiser: torch.optim.Optimizer, plan: FitPlan, state: FitState) -> Checkpoint:
    """Return the state after an epoch as a checkpoint, and keep the network if it is the best so far and wanted."""
    arrays = state_arrays(network, optimiser)
    if plan.learn.keep == "best":
        if best_epoch(state.history) == state.epoch:
            state.best = to_arrays(network)
        else:
            arrays |= {f"{BEST}{name}": array for name, array in state.best.items()}
    return Checkpoint(state.epoch, arrays, list(state.history), state.examples, state.seconds)


def _run_epoch(
    network: SearchableNetwork,
    training: TrainingSet,
    optimiser: torch.optim.Optimizer,
    plan: FitPlan,
    state: FitState,
    reporter: Reporter,
) -> dict[str, float]:
    """Run one epoch and return its record: means over its steps."""
    network.train()
    learn, epoch = plan.learn, state.epoch + 1
    training = training.of_epoch(plan, epoch)
    batches = epoch_batches(learn, len(training), seed=plan.seed, round=plan.round, epoch=epoch)
    views = generator(plan.seed, "learn", plan.round, epoch, "augmentation")
    per_epoch = steps_per_epoch(learn, len(training))
    sums: dict[str, float] = {}
    right = seen = 0
    reported = begun = time.monotonic()
    for index, batch in enumerate(batches):
        reporter.check()
        rate = _set_rate(optimiser, plan, state.epoch * per_epoch + index, plan.epochs * per_epoch)
        loss, labels_B = _loss_of(network, training, batch, plan, views)
        # One transfer per step: on an accelerator each would wait for the device.
        values = torch.stack([loss.total, *loss.terms.values(), (loss.logits.argmax(1) == labels_B).sum()]).tolist()
        named = dict(zip(["loss", *(f"loss_{term}" for term in loss.terms)], values, strict=False))
        _check_finite(named, epoch, index + 1)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        if learn.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), learn.clip_norm)
        optimiser.step()
        for name, value in named.items():
            sums[name] = sums.get(name, 0.0) + value
        right, seen = right + int(values[-1]), seen + len(batch)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            text = f"step {index + 1}/{per_epoch}, {seen / (reported - begun):.0f} examples/s, loss {named['loss']:.4f}"
            reporter.progress(state.epoch, plan.epochs, unit="epochs", text=text)
    state.examples += seen
    means = {name: total / len(batches) for name, total in sums.items()}
    return {"epoch": epoch, **means, "learning_rate": rate, "train_accuracy": right / seen}


def _loss_of(
    network: SearchableNetwork, training: TrainingSet, batch_B: Tensor, plan: FitPlan, views: torch.Generator
) -> tuple[Loss, Tensor]:
    index_B = batch_B.to(training.labels.device)
    images_BCHW = training.images.index_select(0, index_B)
    if plan.learn.flip or plan.learn.pad_crop:
        images_BCHW = augment(images_BCHW, flip=plan.learn.flip, pad_crop=plan.learn.pad_crop, rng=views)
    labels_B = training.labels.index_select(0, index_B)
    targets = training.targets_at(index_B)
    return plan.objective.loss(outputs_of(network, images_BCHW, plan.objective.reading), targets, labels_B), labels_B


def _set_rate(optimiser: torch.optim.Optimizer, plan: FitPlan, step: int, steps: int) -> float:
    rate = plan.optimiser.lr * rate_factor(plan.learn, step, steps)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


def _check_finite(named: Mapping[str, float], epoch: int, step: int) -> None:
    faults = [name for name, value in named.items() if not math.isfinite(value)]
    if faults:
        # The total follows from its parts: name the part.
        fault = faults[-1] if len(faults) == 1 else faults[1]
        raise NumericalError(f"learning: {fault} is {named[fault]} at epoch {epoch}, step {step}; lower learn.optimiser.lr")


def _points(record: Mapping[str, float]) -> list[tuple[str, int, float]]:
    return [(f"learn/{name}", int(record["epoch"]), value) for name, value in record.items() if name != "epoch"]


def _text(state: FitState, loss: float) -> str:
    return f"{state.examples / max(state.seconds, 1e-9):.0f} examples/s, loss {loss:.4f}"
