"""The loop that learns: batches in an order from the seed, a rule's gradient of an objective's loss, an optimiser's step, checkpoints after
and within epochs.

`fit` is a function of (network, training set, objective, rule, optimiser, configuration, seed, round) alone, on one device type:
stopping it anywhere and going on from its newest checkpoint gives the same bits. Shapes: B examples of a batch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from learner.batches import Batch, Batches
from learner.checkpoints import BEST, Checkpoint, Checkpoints, Partial, best_arrays, load_state, rule_state, state_arrays
from learner.evaluation import evaluate
from learner.forward import MEMORY_FORMAT
from learner.keeping import best_epoch, plateaued
from learner.objectives.base import LearningObjective
from learner.objectives.classifiers import fit_classifiers
from learner.optimisers.base import OptimiserSpec
from learner.rules.backprop import Backprop
from learner.rules.base import PASSES, LearningRule, State, Teaching, problem_of, teaching_of
from learner.schedule import rate_factor, steps_per_epoch
from repsearch.config import LearnConfig
from repsearch.datasets.base import Split
from repsearch.errors import NumericalError
from repsearch.networks import SearchableNetwork, load_arrays, to_arrays
from repsearch.seeding import generator, seed_of

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
class FitPlan:
    """What is learned, how, and from which random numbers: `epochs` passes with the `learn` section of the configuration.

    first_step, steps: place in the schedule of the first step, and its length; None: the schedule is this fit's.
    evaluates: measure on validation after every epoch.
    relative: whether targets are ways from the network's own output.
    """

    objective: LearningObjective
    optimiser: OptimiserSpec
    learn: LearnConfig
    epochs: int
    seed: int
    round: int
    first_step: int = 0
    steps: int | None = None
    evaluates: bool = True
    relative: bool = False
    rule: LearningRule = field(default_factory=Backprop)


@dataclass
class FitState:
    """What grows while a fit runs; see `Checkpoint`.

    best: parameters and buffers after the best epoch, where they are to be kept. kept: epoch of the network at the end.
    rule: the learning rule's state at the end. partial: of the epoch that is gone on with.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    examples: int = 0
    seconds: float = 0.0
    best: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: int = 0
    rule: State = field(default_factory=dict)
    partial: Partial | None = None


def fit(
    network: SearchableNetwork,
    training: Batches,
    validation: Split,
    plan: FitPlan,
    checkpoints: Checkpoints,
    reporter: Reporter,
    optimiser: torch.optim.Optimizer | None = None,
    going_on: State | None = None,
) -> FitState:
    """Train `network` in place, from the newest checkpoint if there is one; return its history. It ends in evaluation mode.

    optimiser, going_on: one with a state, and the state of the rule, that learning goes on with; None: fresh ones.

    The network is that of the last epoch, or with `learn.keep` = "best" that of the best one.
    Raises `NumericalError` naming epoch, step and term for a loss that is not finite, and whatever `reporter.check` raises.
    """
    optimiser = optimiser or optimiser_of(plan.optimiser, network, plan.objective)
    teaching = teaching_for(plan, network, len(training), going_on)
    state = _resumed(network, optimiser, teaching, checkpoints)
    for record in state.history:
        reporter.points(_points(record))
    while state.epoch < plan.epochs and not plateaued(state.history, plan.learn.patience):
        begun = time.perf_counter()

        def keep(partial: Partial, begun: float = begun) -> None:
            checkpoints.save(_within(network, optimiser, teaching, plan, state, partial, state.seconds + time.perf_counter() - begun))

        record = run_epoch(network, training, teaching, optimiser, plan, state, reporter, keep)
        if plan.evaluates:
            measured = evaluate(network, validation)
            record |= {"validation_accuracy": measured.accuracy, "validation_cross_entropy": measured.cross_entropy}
        state.epoch += 1
        state.history.append(record)
        state.seconds += time.perf_counter() - begun
        checkpoints.save(_checkpoint(network, optimiser, teaching, plan, state))
        reporter.points(_points(record))
        text = _text(state.examples / state.seconds, (plan.epochs - state.epoch) * state.examples / state.epoch, record["loss"])
        reporter.progress(state.epoch, plan.epochs, unit="epochs", text=text)
    state.kept, state.rule = state.epoch, teaching.state
    if plan.learn.keep == "best":
        state.kept = best_epoch(state.history)
        load_arrays(network, state.best)
    network.eval()
    return state


def optimiser_of(spec: OptimiserSpec, network: SearchableNetwork, objective: LearningObjective) -> torch.optim.Optimizer:
    """Return a fresh optimiser of the parameters that learn, and lay the network out in memory as it learns fastest.

    The network is given the classifiers that `objective` has.
    """
    fit_classifiers(network, wanted=objective.reading.classifiers, groups=objective.reading.groups)
    network.to(memory_format=MEMORY_FORMAT)
    return spec.build(parameter for parameter in network.parameters() if parameter.requires_grad)


def teaching_for(plan: FitPlan, network: SearchableNetwork, examples: int, state: State | None = None) -> Teaching:
    """Return the plan's rule at work on `network` with `examples` to learn from, with `state` or, where it is None, the initial one."""
    problem = problem_of(network, plan.objective, plan.learn, relative=plan.relative)
    return teaching_of(plan.rule, problem, examples, rng=generator(plan.seed, "learn", plan.round, "rule"), state=state)


def _resumed(network: SearchableNetwork, optimiser: torch.optim.Optimizer, teaching: Teaching, checkpoints: Checkpoints) -> FitState:
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return FitState()
    load_state(network, optimiser, checkpoint.arrays)
    teaching.state = {name: value.to(network.mean.device) for name, value in rule_state(checkpoint.arrays).items()}
    best = best_arrays(checkpoint.arrays)
    history = list(checkpoint.history)
    return FitState(checkpoint.epoch, history, checkpoint.examples, checkpoint.seconds, best, partial=checkpoint.partial)


def _checkpoint(
    network: SearchableNetwork, optimiser: torch.optim.Optimizer, teaching: Teaching, plan: FitPlan, state: FitState
) -> Checkpoint:
    """Return the state after an epoch as a checkpoint, and keep the network if it is the best so far and wanted."""
    arrays = state_arrays(network, optimiser, teaching.state)
    if plan.learn.keep == "best":
        if best_epoch(state.history) == state.epoch:
            state.best = to_arrays(network)
        else:
            arrays |= {f"{BEST}{name}": array for name, array in state.best.items()}
    return Checkpoint(state.epoch, arrays, list(state.history), state.examples, state.seconds)


def _within(
    network: SearchableNetwork,
    optimiser: torch.optim.Optimizer,
    teaching: Teaching,
    plan: FitPlan,
    state: FitState,
    partial: Partial,
    seconds: float,
) -> Checkpoint:
    """Return the state within an epoch as a checkpoint; the best epoch's network is another by now."""
    arrays = state_arrays(network, optimiser, teaching.state)
    if plan.learn.keep == "best":
        arrays |= {f"{BEST}{name}": array for name, array in state.best.items()}
    return Checkpoint(state.epoch, arrays, list(state.history), state.examples, seconds, partial)


def run_epoch(
    network: SearchableNetwork,
    training: Batches,
    teaching: Teaching,
    optimiser: torch.optim.Optimizer,
    plan: FitPlan,
    state: FitState,
    reporter: Reporter,
    keep: Callable[[Partial], None] = lambda partial: None,
) -> dict[str, float]:
    """Run one epoch, or the rest of one, and return its record: means over its steps.

    keep: what to do with the state every `learn.checkpoint_seconds`, and when the reporter ends the fit.
    """
    network.train()
    learn, epoch = plan.learn, state.epoch + 1
    rule, hold = teaching.rule, teaching.rule.hold
    per_epoch = steps_per_epoch(learn, len(training)) * hold
    gone_on, state.partial = state.partial or Partial(), None
    sums, right, seen = dict(gone_on.sums), gone_on.right, gone_on.seen
    forward, backward = gone_on.forward, gone_on.backward
    rule.enter(teaching.problem, teaching.state)
    reported = begun = kept = time.monotonic()
    for index, batch in enumerate(_held(training.epoch(learn, seed=plan.seed, round=plan.round, epoch=epoch), hold)):
        if index < gone_on.step:
            continue  # drawn all the same: the generators of order and augmentation go on
        stop = _asked_to_stop(reporter)
        if index > gone_on.step and (stop is not None or time.monotonic() - kept > learn.checkpoint_seconds):
            kept = time.monotonic()
            teaching.state = rule.leave(teaching.problem, teaching.state)
            keep(Partial(index, dict(sums), right, seen, forward, backward))
            rule.enter(teaching.problem, teaching.state)
        if stop is not None:
            raise stop
        rate = _set_rate(optimiser, plan, plan.first_step + state.epoch * per_epoch + index, plan.steps or plan.epochs * per_epoch)
        optimiser.zero_grad(set_to_none=True)
        rng = torch.Generator(batch.labels.device).manual_seed(seed_of(plan.seed, "learn", plan.round, epoch, index, "rule"))
        estimate, teaching.state = rule.estimate(teaching.problem, batch, teaching.state, rng=rng)
        loss = estimate.loss
        # One transfer per step: on an accelerator each would wait for the device.
        values = torch.stack([loss.total, *loss.terms.values(), (loss.logits.argmax(1) == batch.labels).sum()]).tolist()
        named = dict(zip(["loss", *(f"loss_{term}" for term in loss.terms)], values, strict=False))
        _check_finite(named, epoch, index + 1)
        if learn.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), learn.clip_norm)
        optimiser.step()
        for name, value in named.items():
            sums[name] = sums.get(name, 0.0) + value
        right, seen = right + int(values[-1]), seen + len(batch.labels)
        forward, backward = forward + estimate.forward, backward + estimate.backward
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            left = (plan.epochs - state.epoch) * per_epoch - index - 1
            text = _text((seen - gone_on.seen) / (reported - begun), left * len(batch.labels), named["loss"])
            reporter.progress(state.epoch, plan.epochs, unit="epochs", text=f"step {index + 1}/{per_epoch}, {text}")
    teaching.state = rule.leave(teaching.problem, teaching.state)
    state.examples += seen
    means = {name: total / per_epoch for name, total in sums.items()}
    cost = dict(zip(PASSES, (forward, backward), strict=True))
    return {"epoch": epoch, **means, "learning_rate": rate, "train_accuracy": right / seen, **cost}


def _asked_to_stop(reporter: Reporter) -> Exception | None:
    try:
        reporter.check()
    except Exception as stop:
        return stop
    return None


def _held(batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
    for batch in batches:
        yield from itertools.repeat(batch, steps)


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


def _text(rate: float, examples_left: float, loss: float) -> str:
    """Return what a person wants to know in between: examples per second, time left at that rate, loss."""
    seconds = examples_left / rate
    left = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
    return f"{rate:.0f} examples/s, {left} left, loss {loss:.4f}"
