"""Backpropagation: the gradient itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.batches import Batch
from learner.rules.base import Estimate, PlainRule, Problem, State


@dataclass(frozen=True, kw_only=True)
class Backprop(PlainRule):
    """The gradient of the objective's loss, by reverse-mode differentiation."""

    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write the gradient; see `LearningRule.estimate`. One pass forward and one backward."""
        loss = problem.loss_of(batch)
        torch.autograd.backward(loss.total)
        return Estimate(loss, forward=len(batch.labels), backward=len(batch.labels)), state
