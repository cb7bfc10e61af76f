"""The learner's jobs: messages in, domain calls, committed groups out.

`check` loads the data and builds the networks; `initialise` writes the untrained network that round 0 searches; `learn` trains on a
round's committed targets, evaluates, and writes the learned network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from learner.checkpoints import StoreCheckpoints, load_state, rule_state, state_arrays
from learner.evaluation import Evaluation, evaluate
from learner.fit import FitPlan, FitState, fit, optimiser_of
from learner.initial import created
from learner.keeping import chooses_epochs
from learner.memory import check_memory
from learner.objectives.base import LearningObjective, target_name
from learner.objectives.classifiers import without_classifiers
from learner.optimisers.base import OptimiserSpec
from learner.rules.base import PASSES, LearningRule, problem_of
from learner.shortage import explained, smaller_steps
from learner.snapshots import Snapshots, WithSnapshots
from learner.streaming import open_batches
from learner.targets import CommittedTargets, expected_shapes, find_targets
from repsearch.config import RunConfig, parse_resolved
from repsearch.datasets import cached_data
from repsearch.datasets.augmentation import check_pad_crop
from repsearch.datasets.base import Data, Split
from repsearch.errors import ConfigError, DaemonError
from repsearch.failpoints import reach
from repsearch.families import NETWORKS, OBJECTIVES, OPTIMISERS, RULES
from repsearch.networks import (
    SearchableNetwork,
    build_network,
    calibrate,
    check_same_representations,
    load_arrays,
    outputs_of_blocks,
    to_arrays,
)
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import JobContext, JobResult
from repsearch.windows import Window, windows_of
from store import Reference, Store, open_store
from store.parameters import read_parameters, write_parameters


@dataclass(frozen=True)
class Run:
    """What every job of a run has: identity, configuration, data, store."""

    run_id: str
    term: int
    config: RunConfig
    data: Data
    store: Store


@dataclass(frozen=True)
class LearnTask:
    """One attempt at a round's learning; see the message `LearnSpec`."""

    round: int
    attempt: int
    shards: tuple[Reference, ...]
    initial_network: Reference | None
    output_path: str
    checkpoint_folder: str
    epochs: int
    digest: str
    searched_network: str
    window: Window
    state: Reference | None
    state_path: str
    measured_on: tuple[str, ...]

    def part(self, split: Split) -> Split:
        """Return the examples of the window."""
        rows = slice(self.window.first, self.window.first + self.window.count)
        return Split(split.images[rows], split.labels[rows])


def run_job(request: jobs_pb2.StartRequest, context: JobContext) -> JobResult:
    """Run the job that `request` describes; raises `RepSearchError` for every fault a user can act on."""
    with explained("building or running the network", "take a network of smaller width: its parameters grow with the square of it"):
        return _run_job(request, context)


def _run_job(request: jobs_pb2.StartRequest, context: JobContext) -> JobResult:
    config = parse_resolved(request.config_json)
    _prepare_torch(context)
    data = cached_data(config.dataset, seed=config.run.seed)
    if request.dataset_digest not in ("", data.digest):
        raise DaemonError(
            f"the learner's data have digest {data.digest[:12]}, the run's {request.dataset_digest[:12]}; give every daemon the same files"
        )
    store = open_store(str(context.store_root / request.run_path), chunk_mb=config.store.chunk_mb)
    run = Run(request.run_id, request.term, config, data, store)
    kind = request.WhichOneof("spec")
    if kind == "check":
        check(config, data)
        return JobResult(dataset_digest=data.digest)
    if kind == "initialise":
        return _result(initialise(run, request.initialise.output_path), data)
    if kind == "learn":
        return _result(learn(run, task_of(request.learn, len(data.train)), context), data)
    if kind == "stream_learn":
        from learner.stream import learn_stream

        learn_stream(run, request.stream_learn, context)
        return JobResult(dataset_digest=data.digest)
    raise DaemonError(f"a learner runs `check`, `initialise`, `learn` and `stream_learn` jobs, not {kind!r}; send it to a searcher")


def check(config: RunConfig, data: Data) -> None:
    """Raise `ConfigError` where the configuration's networks, objective, optimiser or augmentation do not fit one another or the data."""
    learned = build_network(config.network, data, seed=config.run.seed, purpose="learned")
    searched = build_network(config.search_network(), data, seed=config.run.seed, purpose="searched")
    check_same_representations(searched, learned)
    names = make_objective(config).needs_targets(config.search.layers)
    for layer in config.search.layers:
        if isinstance(layer, int) and layer >= learned.logits_layer and target_name(layer) in names:
            raise ConfigError(
                f"search.layers: block {layer} is not there; the network has blocks 0..{learned.logits_layer - 1} and 'logits'"
            )
    outputs = outputs_of_blocks(NETWORKS.build(config.network, at="network"))
    make_objective(config).check(config.search.layers, learned.logits_layer, outputs)
    if config.search.relative and config.learn.objective.get("match", "normalised") != "normalised":
        raise ConfigError(
            "search.relative: ways from the network's own representation are those of normalised ones; "
            'set learn.objective.match = "normalised", or search.relative = false'
        )
    shapes = expected_shapes(learned)
    check_memory(config, [shapes[name] for name in names], len(data.train))
    make_optimiser(config)
    make_rule(config).check(problem_of(learned, make_objective(config), config.learn, relative=config.search.relative), len(data.train))
    check_pad_crop(config.learn.pad_crop, *data.input_shape[1:])


def initialise(run: Run, path: str) -> Reference:
    """Write the untrained network, its BatchNorm calibrated, as `path`, unless it is there; return its reference."""
    config, data = run.config, run.data
    attributes = {"kind": "network", "run_id": run.run_id, "dataset_digest": data.digest, "network": config.search_network()}

    def write(store: Store) -> Reference:
        network = build_network(config.search_network(), data, seed=config.run.seed, purpose="searched")
        check_same_representations(network, build_network(config.network, data, seed=config.run.seed, purpose="learned"))
        calibrate(network, data.train.images[: config.search.calibration_examples])
        return write_network(store, path, network, attributes)

    return created(run.store, path, attributes, write)


def learn(run: Run, task: LearnTask, context: JobContext) -> Reference:
    """Train a network as `task` says, evaluate it, and write it; returns its reference."""
    config, data = run.config, run.data
    network = _initial_network(run, task)
    objective = make_objective(config)
    names = objective.needs_targets(config.search.layers)
    if names and not task.shards:
        name = config.learn.objective["name"]
        raise ConfigError(
            f"learn.objective: {name!r} needs searched targets, and the round has none; choose a policy that searches, or cross_entropy"
        )
    context.progress(0, task.epochs, unit="epochs", text="reading targets" if names else "")
    targets = targets_of(run, task, names, network)
    network.to(context.device)
    validation, test = (Split(part.images.to(context.device), part.labels.to(context.device)) for part in (data.validation, data.test))
    optimiser = optimiser_of(make_optimiser(config), network, objective)
    kept = {} if task.state is None else read_parameters(run.store, task.state)
    if kept:
        load_state(network, optimiser, kept)
    plan, snapshots = plan_of(run, task, objective, make_optimiser(config)), _snapshots(run, task)
    with (
        open_batches(context.device, task.part(data.train), targets, config.learn) as training,
        explained("learning", smaller_steps(config.learn)),
    ):
        saved = WithSnapshots(_checkpoints(run, task), snapshots)
        state = fit(network, training, validation, plan, saved, context, optimiser, rule_state(kept))
    parts = {"validation": validation, "test": test, "fitness": data.fitness}
    evaluations = {name: evaluate(network, part) for name in task.measured_on if (part := parts[name]) is not None}
    attributes = {"kind": "network", **_identity(run, task), **measured(state, evaluations), "snapshots": snapshots.listed()}
    context.check()
    if task.state_path:
        reference = write_state(run.store, task.state_path, state_arrays(network, optimiser, state.rule), _identity(run, task))
        attributes["state"] = {"path": reference.path, "digest": reference.digest}
    return write_network(run.store, task.output_path, network, attributes)


def write_state(store: Store, path: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> Reference:
    """Write the learner's state after a round as the group `path`."""
    reach("learner.state.before")
    reference = write_parameters(store, path, arrays, {"kind": "state", **attributes})
    reach("learner.state.after")
    return reference


def write_network(store: Store, path: str, network: SearchableNetwork, attributes: Mapping[str, Any]) -> Reference:
    """Write the parameters and buffers of a network as the group `path`."""
    reach("learner.network.before")
    reference = write_parameters(store, path, without_classifiers(to_arrays(network)), attributes)
    reach("learner.network.after")
    return reference


def plan_of(run: Run, task: LearnTask, objective: LearningObjective, optimiser: OptimiserSpec) -> FitPlan:
    """Return what is learned and how."""
    config = run.config
    plan = FitPlan(
        objective,
        optimiser,
        config.learn,
        task.epochs,
        config.learn_seed(),
        task.round,
        # What chooses among epochs needs validation, also where the network is then measured on other examples.
        evaluates="validation" in task.measured_on or (bool(task.measured_on) and chooses_epochs(config.learn)),
        relative=config.search.relative,
        rule=make_rule(config),
    )
    return with_schedule(plan, config, len(run.data.train))


def with_schedule(plan: FitPlan, config: RunConfig, examples: int) -> FitPlan:
    """Return `plan` at its place in the schedule of all rounds, if learning goes on from round to round."""
    if config.learn.start != "continue":
        return plan
    windows = windows_of(config, examples)
    first, steps = (windows.steps(rounds, config.learn.batch_size, plan.epochs) for rounds in (plan.round, config.rounds.count))
    return dataclasses.replace(plan, first_step=first * plan.rule.hold, steps=steps * plan.rule.hold)


def targets_of(run: Run, task: LearnTask, names: Sequence[str], network: SearchableNetwork) -> CommittedTargets | None:
    """Return the targets that `task` names, checked; None for an objective that needs none."""
    searches, pick = run.config.search.searches_per_example, run.config.learn.targets
    if not names:
        return None
    return find_targets(
        run.store,
        task.shards,
        names,
        network,
        run.data,
        searches=searches,
        pick=pick,
        searched=task.searched_network,
        window=task.window,
    )


def _initial_network(run: Run, task: LearnTask) -> SearchableNetwork:
    network = build_network(run.config.network, run.data, seed=run.config.learn_seed(), purpose="learned")
    if task.initial_network is not None:
        load_arrays(network, read_parameters(run.store, task.initial_network))
    return network


def _checkpoints(run: Run, task: LearnTask) -> StoreCheckpoints:
    return StoreCheckpoints(
        run.store,
        task.checkpoint_folder,
        round=task.round,
        attempt=task.attempt,
        digest=task.digest,
        keep=run.config.learn.keep_checkpoints,
        attributes=_identity(run, task),
    )


def _snapshots(run: Run, task: LearnTask) -> Snapshots:
    return Snapshots(
        run.store,
        task.output_path,
        attempt=task.attempt,
        digest=task.digest,
        every=run.config.learn.snapshots,
        epochs=task.epochs,
        attributes=_identity(run, task),
        patience=run.config.learn.patience,
    )


def _identity(run: Run, task: LearnTask) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "term": run.term,
        "round": task.round,
        "attempt": task.attempt,
        "learn_digest": task.digest,
        "dataset_digest": run.data.digest,
        "network": run.config.network,
    }


def measured(state: FitState, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return what the manifest of a learned network says of how it was learned."""
    figures = {f"{split}_{name}": value for split, measured in evaluations.items() for name, value in dataclasses.asdict(measured).items()}
    cost = {name: sum(record.get(name, 0) for record in state.history) for name in PASSES}
    return {"seconds": state.seconds, "examples": state.examples, **cost, "epochs": state.history, "kept_epoch": state.kept, **figures}


def make_objective(config: RunConfig) -> LearningObjective:
    """Return the objective of `config`."""
    objective: LearningObjective = OBJECTIVES.build(config.learn.objective, at="learn.objective")
    return objective


def make_rule(config: RunConfig) -> LearningRule:
    """Return the learning rule of `config`."""
    rule: LearningRule = RULES.build(config.learn.rule, at="learn.rule")
    return rule


def make_optimiser(config: RunConfig) -> OptimiserSpec:
    """Return the optimiser of `config`."""
    optimiser: OptimiserSpec = OPTIMISERS.build(config.learn.optimiser, at="learn.optimiser")
    return optimiser


def _prepare_torch(context: JobContext) -> None:
    torch.set_num_threads(context.threads)
    # On a GPU, convolutions otherwise pick algorithms whose sums differ from run to run.
    torch.backends.cudnn.deterministic = True


def task_of(spec: jobs_pb2.LearnSpec, examples: int) -> LearnTask:
    """Return the task of a message; `examples`: in the training set. Raises `DaemonError` for a window that is not in it."""
    if spec.first + spec.count > examples:
        raise DaemonError(f"{spec.count} examples from {spec.first} on are not there: the training set has {examples}")
    return LearnTask(
        round=spec.round,
        attempt=spec.attempt,
        shards=tuple(Reference(shard.path, shard.digest) for shard in spec.shards),
        initial_network=Reference(spec.initial_network.path, spec.initial_network.digest) if spec.HasField("initial_network") else None,
        output_path=spec.output_path,
        checkpoint_folder=spec.checkpoint_path,
        epochs=spec.epochs,
        digest=spec.digest,
        searched_network=spec.searched_network,
        window=Window(spec.first, spec.count or examples),
        state=Reference(spec.state.path, spec.state.digest) if spec.HasField("state") else None,
        state_path=spec.state_path,
        measured_on=() if spec.unevaluated else ("fitness",) if spec.fitness_alone else ("validation", "test", "fitness"),
    )


def _result(reference: Reference, data: Data) -> JobResult:
    return JobResult(path=reference.path, digest=reference.digest, dataset_digest=data.digest)
