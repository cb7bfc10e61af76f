"""Feedback alignment: errors go back through fixed random weights in place of the network's own.

Lillicrap et al. 2016 (Nature Communications 7:13276): the error of a layer's input is B^T e in place of W^T e; the weight's gradient stays
e x^T. B is drawn once, by the law of an initial weight. What lies between the layers passes errors on by its own derivative.
Shapes: B examples; X the axes of a pre-activation; Y those of a layer's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from learner.batches import Batch
from learner.rules.base import Estimate, PlainRule, Problem, State
from learner.rules.directions import noise
from learner.rules.layers import Layer, running
from learner.rules.passes import layers_of
from learner.rules.suitability import check_no_classifiers, check_owners
from repsearch.errors import ConfigError

FEEDBACK = "feedback/"


@dataclass(frozen=True, kw_only=True)
class FeedbackAlignment(PlainRule):
    """Feedback alignment.

    feedback: `random` weights, or those of the `sign` of the network's own at every step, each of the size of a random one.
    """

    feedback: Literal["random", "sign"] = "random"

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` for layers that errors would pass by backpropagation unnoticed."""
        check_no_classifiers(problem, "feedback_alignment")
        check_owners(problem, "feedback_alignment", norms=True)
        if problem.learn.compile or problem.learn.precision != "float32":
            raise ConfigError('learn.rule: feedback_alignment needs learn.compile = false and learn.precision = "float32"; set them')

    def init(self, problem: Problem, *, rng: torch.Generator) -> State:
        """Return the feedback weights, of every layer."""
        weights = {layer.name: layer.module.weight.detach() for layer in layers_of(problem)}
        drawn = {
            name: noise(weight.shape, "gaussian", weight.cpu(), rng) / math.sqrt(weight[0].numel()) for name, weight in weights.items()
        }
        return {f"{FEEDBACK}{name}": weight.abs() if self.feedback == "sign" else weight for name, weight in drawn.items()}

    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write the estimate; see `LearningRule.estimate`. One pass forward and one backward."""
        layers = layers_of(problem)

        def forward(number: int, input_BY: Tensor) -> Tensor:
            layer = layers[number]
            back = state[f"{FEEDBACK}{layer.name}"]
            if self.feedback == "sign":
                back = back * layer.module.weight.detach().sign()
            output_BX: Tensor = _Aligned.apply(input_BY, layer.module.weight, layer.module.bias, back, layer)
            return output_BX

        with running(layers, forward):
            loss = problem.loss_of(batch)
        torch.autograd.backward(loss.total)
        cost = len(batch.labels)
        return Estimate(loss, forward=cost, backward=cost), state


class _Aligned(torch.autograd.Function):
    """A layer whose error goes back through other weights."""

    @staticmethod
    def forward(ctx: Any, input_BY: Tensor, weight: Tensor, bias: Tensor | None, back: Tensor, layer: Layer) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(input_BY, back)
        return layer.run(input_BY)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        (error_BX,), (input_BY, back), layer = errors, ctx.saved_tensors, ctx.layer
        below_BY = layer.back(input_BY, error_BX, back) if ctx.needs_input_grad[0] else None
        weight = layer.gradient(input_BY, error_BX) if ctx.needs_input_grad[1] else None
        bias = layer.bias_gradient(error_BX) if ctx.needs_input_grad[2] else None
        return below_BY, weight, bias, None, None
