"""A stream of windows: network, optimiser and data stay in memory; each window is learned in turn and its network written.

Learning the windows of a run gives the bits that a `learn` job per round gives with `learn.start = "continue"`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from learner.batches import Batches
from learner.checkpoints import load_state, rule_state, state_arrays
from learner.evaluation import evaluate
from learner.fit import FitPlan, FitState, optimiser_of, run_epoch
from learner.jobs import (
    LearnTask,
    Run,
    make_objective,
    make_optimiser,
    make_rule,
    measured,
    plan_of,
    targets_of,
    task_of,
    write_network,
    write_state,
)
from learner.objectives.base import LearningObjective
from learner.optimisers.base import OptimiserSpec
from learner.rules.base import PASSES, Teaching, problem_of, teaching_of
from learner.shortage import explained, smaller_steps
from learner.streaming import open_batches
from repsearch.datasets.base import Split
from repsearch.networks import SearchableNetwork, build_network
from repsearch.rpc.v1 import jobs_pb2
from repsearch.seeding import generator
from repsearch.serving import Arrival, JobContext, StepClock
from store import Reference
from store.parameters import read_parameters


@dataclass
class Learning:
    """What stays in memory from window to window; splits are on the device."""

    network: SearchableNetwork
    spec: OptimiserSpec
    optimiser: torch.optim.Optimizer
    objective: LearningObjective
    teaching: Teaching
    train: Split
    measured: Mapping[str, Split]


def learn_stream(run: Run, spec: jobs_pb2.StreamLearnSpec, context: JobContext) -> None:
    """Learn the windows that are pushed, in order, until the end is."""
    run = dataclasses.replace(run, store=run.store.relaxed())
    learning = _begin(run, spec, context.device)
    clock = StepClock()
    with explained("learning", smaller_steps(run.config.learn)):
        for arrival in context.items():
            clock.begin(arrival.time)
            context.item_done(_window(run, learning, arrival, context, clock))
            context.progress(arrival.sequence, arrival.sequence + 1, unit="windows")


def _begin(run: Run, request: jobs_pb2.StreamLearnSpec, device: str) -> Learning:
    config, data = run.config, run.data
    network = build_network(config.network, data, seed=config.learn_seed(), purpose="learned").to(device)
    spec, objective = make_optimiser(config), make_objective(config)
    optimiser = optimiser_of(spec, network, objective)
    kept = {}
    if request.HasField("state"):
        kept = read_parameters(run.store, Reference(request.state.path, request.state.digest))
        load_state(network, optimiser, kept)
    splits = {"validation": data.validation, "test": data.test, **({"fitness": data.fitness} if data.fitness is not None else {})}
    measured_on = {name: Split(part.images.to(device), part.labels.to(device)) for name, part in splits.items()}
    train = Split(data.train.images.to(device), data.train.labels.to(device))
    problem = problem_of(network, objective, config.learn, relative=config.search.relative)
    rng = generator(config.learn_seed(), "learn", 0, "rule")
    teaching = teaching_of(make_rule(config), problem, len(train), rng=rng, state=rule_state(kept))
    return Learning(network, spec, optimiser, objective, teaching, train, measured_on)


def _window(run: Run, learning: Learning, arrival: Arrival, context: JobContext, clock: StepClock) -> jobs_pb2.ItemDone:
    """Learn a window and write what is to be kept; return what to tell of it."""
    task = task_of(arrival.item.learn, len(run.data.train))
    names = learning.objective.needs_targets(run.config.search.layers)
    plan = plan_of(run, task, learning.objective, learning.spec)
    with ExitStack() as stack:
        with clock.step("read"):
            targets = targets_of(run, task, names, learning.network)
            training = stack.enter_context(open_batches(context.device, task.part(learning.train), targets, run.config.learn))
        with clock.step("work"):
            state, figures = _learn(learning, training, plan, context)
    with clock.step("write"):
        done = _written(run, learning, task, state, figures)
    done.sequence = arrival.sequence
    for name, seconds in clock.end(arrival.time).items():
        setattr(done, name, seconds)
    return done


def _learn(learning: Learning, training: Batches, plan: FitPlan, context: JobContext) -> tuple[FitState, dict[str, Any]]:
    """Return the history of learning a window, and its measurements."""
    begin, state = time.perf_counter(), FitState()
    for _ in range(plan.epochs):
        state.history.append(run_epoch(learning.network, training, learning.teaching, learning.optimiser, plan, state, context))
        state.epoch += 1
    state.kept = state.epoch
    learning.network.eval()
    splits = learning.measured if plan.evaluates else {}
    evaluations = {name: evaluate(learning.network, split) for name, split in splits.items()}
    state.seconds = time.perf_counter() - begin
    return state, measured(state, evaluations)


def _written(run: Run, learning: Learning, task: LearnTask, state: FitState, found: dict[str, Any]) -> jobs_pb2.ItemDone:
    identity = {"run_id": run.run_id, "term": run.term, "round": task.round, "dataset_digest": run.data.digest}
    done = jobs_pb2.ItemDone()
    if task.state_path:
        arrays = state_arrays(learning.network, learning.optimiser, learning.teaching.state)
        kept = write_state(run.store, task.state_path, arrays, identity)
        done.state.path, done.state.digest = kept.path, kept.digest
    attributes = {"kind": "network", **identity, "network": run.config.network, **found}
    reference = write_network(run.store, task.output_path, learning.network, attributes)
    done.result.path, done.result.digest = reference.path, reference.digest
    figures = {
        **state.history[-1],
        **{name: value for name, value in found.items() if isinstance(value, float)},
        "examples": state.examples,
        **{name: found[name] for name in PASSES},
    }
    done.figures.update({name: float(value) for name, value in figures.items() if name not in ("epoch", "seconds")})
    return done
