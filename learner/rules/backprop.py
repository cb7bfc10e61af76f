"""Backpropagation: the gradient itself; with decorrelated layer inputs, Dalm et al. (arXiv 2405.02385)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batches import Batch
from learner.rules.base import Estimate, Problem, State
from learner.rules.decorrelation import DecorrelatingRule, merged
from learner.rules.layers import running
from learner.rules.passes import layers_of
from repsearch.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Backprop(DecorrelatingRule):
    """The gradient of the objective's loss, by reverse-mode differentiation.

    decorrelate: train a matrix that decorrelates the inputs of each linear layer and convolution:
        `{rate = 1e-3, whiten = 0.0, share = 1.0}`, the rate, the share of it that brings variances to 1, and the share of a batch that
        correlations are taken of. The stored network has it in its weights.
    """

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` for what cannot be decorrelated."""
        if self.decorrelate is None:
            return
        if problem.learn.compile or problem.learn.precision != "float32":
            raise ConfigError(
                'learn.rule.decorrelate: needs learn.compile = false and learn.precision = "float32"; set them, or leave it out'
            )
        self.decorrelate.check(layers_of(problem))

    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write the gradient; see `LearningRule.estimate`. One pass forward and one backward."""
        cost = len(batch.labels)
        if self.decorrelate is None:
            loss = problem.loss_of(batch)
            torch.autograd.backward(loss.total)
            return Estimate(loss, forward=cost, backward=cost), state
        layers = layers_of(problem)
        inputs: dict[int, Tensor] = {}

        def forward(number: int, input_BY: Tensor) -> Tensor:
            inputs[number] = input_BY.detach()
            return layers[number].run(input_BY, merged(layers[number], state))

        with running(layers, forward):
            loss = problem.loss_of(batch)
        torch.autograd.backward(loss.total)
        state = self.decorrelate.updated(layers, [inputs[number] for number in range(len(layers))], state)
        return Estimate(loss, forward=cost, backward=cost), state
