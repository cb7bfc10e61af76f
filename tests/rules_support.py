"""What the tests of learning rules share: plain networks on vectors, and estimates beside the true gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.batches import Batch
from learner.objectives.cross_entropy import CrossEntropy
from learner.rules.base import LearningRule, Problem, State, problem_of
from repsearch.config import LearnConfig
from repsearch.families import RULES
from repsearch.networks import SearchableNetwork


class PlainNetwork(SearchableNetwork):
    """Fully connected layers of `sizes`, each but the last a block that ends in `activation`; inputs are vectors, taken as they are."""

    def __init__(self, sizes: Sequence[int], activation: Callable[[Tensor], Tensor], *, seed: int = 0) -> None:
        super().__init__(mean=torch.zeros(1), std=torch.full((1,), 1 / 255))
        rng = torch.Generator().manual_seed(seed)
        layers = [nn.Linear(below, width) for below, width in itertools.pairwise(sizes)]
        with torch.no_grad():
            for layer in layers:
                nn.init.kaiming_normal_(layer.weight, generator=rng)
                layer.bias.zero_()
        self.stem, self.head = nn.Flatten(), layers[-1]
        self.blocks = nn.ModuleList(Block(layer, activation) for layer in layers[:-1])
        self.block_shapes = tuple((width,) for width in sizes[1:-1])
        self.classes, self.input_shape = sizes[-1], (1, 1, sizes[0])


class Block(nn.Module):
    """A linear layer and an activation."""

    def __init__(self, linear: nn.Linear, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, below: Tensor) -> Tensor:
        return self.activation(self.linear(below))


def leaky(values: Tensor) -> Tensor:
    return F.leaky_relu(values, 0.1)


def correlated_batch(count: int, features: int, classes: int, *, seed: int = 0) -> Batch:
    """Return correlated inputs, each with a mean of its own, in double precision.

    How far means are from 0 decides how much of an example's gradient is common to all, and so how many draws a rule needs: with a
    deviation of 1.5, estimates vary about as much as those of the network that the published cosines are of.
    """
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=rng, dtype=torch.float64) / features**0.5
    means = 1.5 * torch.randn(features, generator=rng, dtype=torch.float64)
    vectors = torch.randn(count, features, generator=rng, dtype=torch.float64) @ mixing + means
    return Batch(vectors.reshape(count, 1, 1, features), torch.randint(0, classes, (count,), generator=rng), {})


def rule_of(name: str, **fields: Any) -> LearningRule:
    rule: LearningRule = RULES.build({"name": name, **fields}, at="learn.rule")
    return rule


def problem_for(network: SearchableNetwork, objective: Any = None, **learn: Any) -> Problem:
    return problem_of(network, objective or CrossEntropy(), LearnConfig(**learn))


def gradient(problem: Problem, batch: Batch) -> Tensor:
    """Return the true gradient of all parameters as one vector."""
    gradients = torch.autograd.grad(problem.loss_of(batch).total, list(problem.network.parameters()))
    return torch.cat([value.flatten() for value in gradients])


def estimate(rule: LearningRule, problem: Problem, batch: Batch, *, seed: int = 0, state: State | None = None) -> Tensor:
    """Return one estimate of the gradient as one vector."""
    rng = torch.Generator().manual_seed(seed)
    state = rule.init(problem, rng=rng) if state is None else state
    problem.network.zero_grad(set_to_none=True)
    rule.estimate(problem, batch, state, rng=rng)
    return torch.cat([parameter.grad.flatten() for parameter in problem.network.parameters() if parameter.grad is not None])


def estimates(rule: LearningRule, problem: Problem, batch: Batch, count: int, *, seed: int = 0) -> Tensor:
    """Return `count` estimates, one per row."""
    return torch.stack([estimate(rule, problem, batch, seed=seed + number) for number in range(count)])


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))
