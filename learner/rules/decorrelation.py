"""Layer inputs decorrelated by a matrix that is trained beside the weights: a = W R h + b.

Dalm et al. (arXiv 2310.00965; with backpropagation 2405.02385): x = R h, R starts as the identity, and with every step
R <- R - rate ((1 - whiten) C R + whiten V R), C the off-diagonal part of the mean of x x^T, V = diag(mean x^2 - 1). Of a convolution,
h is a patch. While an epoch runs, a layer's parameter is W; the network that is evaluated, stored and searched has W R in its place.
Shapes: B examples; Y the axes of a layer's input; F its features; N examples, or patches of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from learner.rules.base import PlainRule, Problem, State
from learner.rules.layers import Layer
from learner.rules.passes import layers_of
from repsearch.errors import ConfigError

MATRIX, WEIGHT = "decorrelation/", "weight/"


@dataclass(frozen=True, kw_only=True)
class Decorrelation:
    """Hyperparameters of decorrelation.

    rate: of the matrices. whiten: share of the rule that brings variances to 1. share: of a batch's examples that the correlations are
    taken of.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False, "strict": True}

    rate: Annotated[float, Field(gt=0)] = 1e-3
    whiten: Annotated[float, Field(ge=0, le=1)] = 0.0
    share: Annotated[float, Field(gt=0, le=1)] = 1.0

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise `ConfigError` naming a layer whose inputs it cannot decorrelate."""
        for layer in layers:
            module = layer.module
            if isinstance(module, nn.Conv2d) and (module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros"):
                raise ConfigError(
                    f"learn.rule.decorrelate: layer {layer.name} is a convolution in groups or with padding other than zeros, whose "
                    "patches are not built; take a network without it, or leave decorrelate out"
                )

    def init(self, layers: Sequence[Layer]) -> State:
        """Return the matrix of every layer: the identity."""
        return {f"{MATRIX}{layer.name}": torch.eye(layer.module.weight[0].numel()).to(layer.module.weight) for layer in layers}

    @torch.no_grad()
    def updated(self, layers: Sequence[Layer], inputs: Sequence[Tensor], state: State) -> State:
        """Return the matrices after a step, from the layers' undisturbed inputs (B, Y); raises `FloatingPointError` where one diverges."""
        after = dict(state)
        for layer, input_BY in zip(layers, inputs, strict=True):
            matrix_FF = state[f"{MATRIX}{layer.name}"]
            x_NF = features(layer, input_BY[: math.ceil(self.share * len(input_BY))]) @ matrix_FF.T
            after[f"{MATRIX}{layer.name}"] = self._moved(matrix_FF, x_NF)
        return after

    def _moved(self, matrix_FF: Tensor, x_NF: Tensor) -> Tensor:
        """Return R after a step by x. C R is (M - D) R, with M = x^T x / N and D its diagonal; M R is x^T (x R) / N where N < F."""
        count, size = x_NF.shape
        factor = self.rate * (1 - self.whiten)
        variance_F = x_NF.square().mean(0)
        scale_F = 1 + factor * variance_F
        if self.whiten:
            scale_F -= self.rate * self.whiten * (variance_F - 1)
        left_FX, right_XF = (x_NF.T, x_NF @ matrix_FF) if count < size else (x_NF.T @ x_NF, matrix_FF)
        return torch.addmm(scale_F[:, None] * matrix_FF, left_FX, right_XF, alpha=-factor / count)


@dataclass(frozen=True, kw_only=True)
class DecorrelatingRule(PlainRule):
    """Base of a rule that can decorrelate layer inputs: the matrices are its state, and W is what its epochs learn."""

    decorrelate: Decorrelation | None = None

    def init(self, problem: Problem, *, rng: torch.Generator) -> State:
        """Return the matrices; see `LearningRule.init`."""
        return {} if self.decorrelate is None else self.decorrelate.init(layers_of(problem))

    def enter(self, problem: Problem, state: State) -> None:
        """See `LearningRule.enter`."""
        separate(layers_of(problem), state)

    def leave(self, problem: Problem, state: State) -> State:
        """See `LearningRule.leave`."""
        return merge(layers_of(problem), state)


def features(layer: Layer, input_BY: Tensor) -> Tensor:
    """Return what a layer's weight is multiplied with: vectors, or the patches of maps (N, F)."""
    module = layer.module
    if isinstance(module, nn.Linear):
        return input_BY.flatten(0, -2)
    assert not isinstance(module.padding, str)
    patches_BFN = F.unfold(input_BY, module.kernel_size, module.dilation, module.padding, module.stride)
    return patches_BFN.transpose(1, 2).flatten(0, 1)


def merged(layer: Layer, state: State) -> Tensor | None:
    """Return W R, with gradient to W; None without decorrelation."""
    matrix_FF = state.get(f"{MATRIX}{layer.name}")
    if matrix_FF is None:
        return None
    weight = layer.module.weight
    return (weight.flatten(1) @ matrix_FF).reshape(weight.shape)


@torch.no_grad()
def separate(layers: Sequence[Layer], state: State) -> None:
    """Give the parameters the values W, which `state` has after an epoch; before the first they are the network's own."""
    for layer in layers:
        weight = state.get(f"{WEIGHT}{layer.name}")
        if weight is not None:
            layer.module.weight.copy_(weight)


@torch.no_grad()
def merge(layers: Sequence[Layer], state: State) -> State:
    """Give the parameters the values W R; return the state with W."""
    after = dict(state)
    for layer in layers:
        weight = merged(layer, state)
        if weight is not None:
            after[f"{WEIGHT}{layer.name}"] = layer.module.weight.detach().clone()
            layer.module.weight.copy_(weight)
    return after
