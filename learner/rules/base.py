"""What the fit loop needs of a learning rule.

A rule is hyperparameters alone. It estimates the gradient of an objective's loss for a batch and writes it into `.grad` of the parameters
that learn, where `torch.optim` reads it; what it keeps from step to step is a state of named tensors, passed in and returned, which
checkpoints hold. A step's random numbers come from a generator of its own, so that a resumed fit needs no generator's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from learner.batches import Batch
from learner.forward import loss_function
from learner.objectives.base import LearningObjective, Loss
from learner.objectives.classifiers import fit_classifiers
from learner.rules.grouping import grouped_layers
from repsearch.config import LearnConfig
from repsearch.networks import SearchableNetwork

State = dict[str, Tensor]
"""What a rule keeps from step to step, by name; a dictionary, not a dataclass, because checkpoints store it as named arrays."""


PASSES = ("forward_examples", "backward_examples")
"""What an epoch's record says of its cost: `Estimate.forward` and `backward` of all steps."""


@dataclass(frozen=True)
class Problem:
    """What gradients are estimated of.

    loss_of: the loss of a batch, with gradient, as `learn.precision` and `learn.compile` say. relative: see `Outputs`.
    grouped: names of the layers whose units reach the loss of their own group of channels alone, see `Reading.groups`.
    """

    network: SearchableNetwork
    objective: LearningObjective
    learn: LearnConfig
    loss_of: Callable[[Batch], Loss]
    relative: bool = False
    grouped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Estimate:
    """loss: of the batch, for the record. forward, backward: examples that passed through the network either way; a tangent that is
    carried along a forward pass counts as another one."""

    loss: Loss
    forward: int
    backward: int


class LearningRule(Protocol):
    """A member of the rule family."""

    @property
    def hold(self) -> int:
        """Steps in a row on each batch."""
        ...

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` naming the layer and the way out if the rule cannot serve `problem` with `examples` to learn from."""
        ...

    def init(self, problem: Problem, *, rng: torch.Generator) -> State:
        """Return the state before the first step."""
        ...

    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write a gradient estimate into `.grad`, which is None before, of every parameter that learns; return loss, cost, next state."""
        ...

    def enter(self, problem: Problem, state: State) -> None:
        """Before an epoch: give the parameters the values that learning changes, where they are not those of the network itself."""
        ...

    def leave(self, problem: Problem, state: State) -> State:
        """After an epoch: give the parameters the values of the network itself; return the state that `enter` needs.

        A checkpoint within an epoch leaves and enters: both together change no bit.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PlainRule:
    """Base of a rule that serves every problem, keeps nothing, and learns the network's parameters themselves."""

    hold: ClassVar[int] = 1

    def check(self, problem: Problem, examples: int) -> None:
        """Serves every problem."""

    def init(self, problem: Problem, *, rng: torch.Generator) -> State:
        """Return an empty state."""
        return {}

    def enter(self, problem: Problem, state: State) -> None:
        """Do nothing."""

    def leave(self, problem: Problem, state: State) -> State:
        """Return the state as it is."""
        return state


@dataclass
class Teaching:
    """A rule at work on a problem, with the state it has come to."""

    rule: LearningRule
    problem: Problem
    state: State


def problem_of(network: SearchableNetwork, objective: LearningObjective, learn: LearnConfig, *, relative: bool = False) -> Problem:
    """Return the problem of learning `objective` with `network`, which is given the classifiers that the objective has."""
    reading = objective.reading
    fit_classifiers(network, wanted=reading.classifiers, groups=reading.groups)
    grouped = grouped_layers(network, reading) if reading.groups > 1 else frozenset[str]()
    return Problem(network, objective, learn, loss_function(network, objective, learn, relative=relative), relative, grouped)


def teaching_of(rule: LearningRule, problem: Problem, examples: int, *, rng: torch.Generator, state: State | None = None) -> Teaching:
    """Return `rule` at work on `problem`, checked, with `state` (None or empty: the initial one) on the network's device."""
    rule.check(problem, examples)
    initial = rule.init(problem, rng=rng)
    device = problem.network.mean.device
    return Teaching(rule, problem, {name: value.to(device) for name, value in (state or initial).items()})
