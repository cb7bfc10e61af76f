"""Populations of vectors from the fitness of those before: a pure function of seed and fitness, replayed from the first generation.

 evolution_strategy   separable CMA-ES (Ros & Hansen 2008): a normal distribution with a variance per coordinate; its mean follows the
                      ranks, its step size the length of the mean's path, its variances the successful moves
 genetic              the fittest quarter of all candidates so far are parents; a child takes each group of coordinates from one of two
 random               independent draws from the first distribution: the control
Shapes: P candidates of a generation; D coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from repsearch.seeding import seed_of

Method = Literal["evolution_strategy", "genetic", "random"]
Vectors = np.ndarray
_MUTATION = 0.3
"""Standard deviation of a mutation, in that of the first distribution."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched: coordinates of mean 0 and standard deviation `step` to begin with.

    groups: group of each coordinate, (D,): coordinates of a group mean something together.
    """

    groups: Vectors
    population: int
    step: float
    seed: int

    def normal(self, generation: int) -> Vectors:
        """Return the standard normal numbers of a generation, (P, D)."""
        drawn: Vectors = self.rng(generation, "normal").standard_normal((self.population, len(self.groups)))
        return drawn

    def rng(self, generation: int, purpose: str) -> np.random.Generator:
        """Return a generator for one purpose in one generation."""
        return np.random.default_rng(seed_of(self.seed, "proposals", generation, purpose))


def proposed(method: Method, space: Space, fitness: Sequence[Vectors]) -> Vectors:
    """Return the population (P, D) that follows generations of `fitness` (P,) each, higher being better."""
    return _METHODS[method](space, fitness)


def distribution_mean(space: Space, fitness: Sequence[Vectors]) -> Vectors:
    """Return the mean (D,) of the evolution strategy's distribution after generations of `fitness`."""
    return _strategy(space, fitness).mean


def _evolution_strategy(space: Space, fitness: Sequence[Vectors]) -> Vectors:
    return _strategy(space, fitness).sample(space.normal(len(fitness)))


@dataclass
class _Strategy:
    """Separable CMA-ES; the names of its quantities are those of Hansen's tutorial (arXiv 1604.00772)."""

    mean: Vectors
    sigma: float
    variances: Vectors
    path_sigma: Vectors
    path_c: Vectors

    def sample(self, normal_PD: Vectors) -> Vectors:
        vectors: Vectors = self.mean + self.sigma * np.sqrt(self.variances) * normal_PD
        return vectors


def _strategy(space: Space, fitness: Sequence[Vectors]) -> _Strategy:
    count = len(space.groups)
    state = _Strategy(np.zeros(count), space.step, np.ones(count), np.zeros(count), np.zeros(count))
    for generation, values in enumerate(fitness):
        _tell(state, space.normal(generation), values, generation)
    return state


def _tell(state: _Strategy, normal_PD: Vectors, fitness: Vectors, generation: int) -> None:
    P, D = normal_PD.shape
    mu = P // 2
    weights = math.log((P + 1) / 2) - np.log(np.arange(1, mu + 1))
    weights = weights / weights.sum()
    mueff = 1 / float((weights**2).sum())
    c_sigma = (mueff + 2) / (D + mueff + 5)
    d_sigma = 1 + 2 * max(0.0, math.sqrt((mueff - 1) / (D + 1)) - 1) + c_sigma
    c_c = (4 + mueff / D) / (D + 4 + 2 * mueff / D)
    # Only D variances are learned, so that they may be learned faster than D * D.
    faster = (D + 2) / 3
    c_1 = min(1.0, faster * 2 / ((D + 1.3) ** 2 + mueff))
    c_mu = min(1 - c_1, faster * 2 * (mueff - 2 + 1 / mueff) / ((D + 2) ** 2 + mueff))
    # Of equal fitness the earlier is the better one.
    best = np.argsort(-fitness, kind="stable")[:mu]
    z = weights @ normal_PD[best]
    deviations = np.sqrt(state.variances)
    state.mean = state.mean + state.sigma * deviations * z
    state.path_sigma = (1 - c_sigma) * state.path_sigma + math.sqrt(c_sigma * (2 - c_sigma) * mueff) * z
    length, expected = float(np.linalg.norm(state.path_sigma)), math.sqrt(D) * (1 - 1 / (4 * D) + 1 / (21 * D * D))
    steady = length / math.sqrt(1 - (1 - c_sigma) ** (2 * (generation + 1))) < (1.4 + 2 / (D + 1)) * expected
    state.path_c = (1 - c_c) * state.path_c + steady * math.sqrt(c_c * (2 - c_c) * mueff) * deviations * z
    moves = weights @ (deviations * normal_PD[best]) ** 2
    state.variances = (1 - c_1 - c_mu) * state.variances + c_1 * state.path_c**2 + c_mu * moves
    state.sigma *= math.exp((c_sigma / d_sigma) * (length / expected - 1))


def _genetic(space: Space, fitness: Sequence[Vectors]) -> Vectors:
    everyone = [space.step * space.normal(0)]
    for generation in range(1, len(fitness) + 1):
        known, values = np.concatenate(everyone), np.concatenate(fitness[:generation])
        parents = known[np.argsort(-values, kind="stable")[: max(2, space.population // 4)]]
        everyone.append(_children(space, parents, generation))
    return everyone[-1]


def _children(space: Space, parents: Vectors, generation: int) -> Vectors:
    rng = space.rng(generation, "crossover")
    pairs = rng.integers(len(parents), size=(space.population, 2))
    second = rng.random((space.population, int(space.groups.max()) + 1))[:, space.groups] < 0.5
    crossed = np.where(second, parents[pairs[:, 1]], parents[pairs[:, 0]])
    return crossed + _MUTATION * space.step * space.normal(generation)


def _random(space: Space, fitness: Sequence[Vectors]) -> Vectors:
    return space.step * space.normal(len(fitness))


_METHODS: dict[Method, Callable[[Space, Sequence[Vectors]], Vectors]] = {
    "evolution_strategy": _evolution_strategy,
    "genetic": _genetic,
    "random": _random,
}
