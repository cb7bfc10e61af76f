"""Evolution strategy: antithetic Gaussian directions around a mean that moves along the estimated gradient of the fitness.

Per generation: directions e_i of unit variance; candidates mean + sigma e_i and mean - sigma e_i, in the form of the layer; fitness
replaced by centred ranks u in [-1/2, 1/2]; estimate = sum of (u_i+ - u_i-) e_i. The mean moves a fixed length along the momentum of the
estimates, each brought to unit length, and is brought to the form of the layer again. Ranks and antithetic pairs: Salimans et al. 2017,
section 2. The mean is evaluated with its pairs, so that its fitness is known.

Shapes: see `searcher.strategies.base`; I pairs; P = 1 + 2 I candidates: the mean, mean + sigma e, mean - sigma e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from repsearch.footprint import Footprint, table_bytes
from repsearch.networks.base import Shape
from searcher.strategies.base import Best, SearchLayer, Traits
from searcher.strategies.evolution import finish
from searcher.strategies.moves import NoiseKind, directions, offsets, rms, unit
from searcher.strategies.random_search import better
from searcher.strategies.schedules import check_blur, check_lengths, passes_bound
from searcher.strategies.step_sizes import StepSize, adapted

Pairs = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class EvolutionStrategy:
    """Hyperparameters of the evolution strategy; lists hold one value per search layer, in the order of `search.layers`.

    pairs: antithetic pairs per generation; one number, or one per search layer: above a late block they cost next to nothing.
    generations: moves of the mean.
    sigma: root mean square of the noise, in that of the representation.
    step: length of a move: root mean square over the representation, in that of the representation.
    step_size: what sigma and step are measured in: the representation's root mean square (`relative`), which is 1 in a block, or its units
        (`absolute`); or as `relative`, with moves times a factor per image that grows after a move to a fitter mean than any before, and
        shrinks after any other, so that a fifth of them succeed (`adapted`).
    momentum: weight of the direction of the moves before.
    noise: a value per position (smoothed by `blur_passes`), per 3x3 positions (interpolated), or per channel.
    blur_passes: passes of 3x3 average pooling that smooth noise per position (feature maps only); its size stays.
    target: the result: the mean, or the fittest candidate seen.
    noise_rows: maps in the table that directions are drawn from.
    stop_probability: an image stops once its result gives its class a greater probability than this; none: never.
    """

    pairs: Pairs | list[Pairs] = 16
    generations: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [4, 4, 4, 1])
    sigma: list[Annotated[float, Field(gt=0, le=100)]] = field(default_factory=lambda: [0.3, 0.3, 0.3, 0.3])
    step: list[Annotated[float, Field(gt=0, le=100)]] = field(default_factory=lambda: [0.3, 0.3, 0.3, 0.3])
    step_size: StepSize = "relative"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    noise: Literal["pixel", "low_resolution", "channel"] = "pixel"
    blur_passes: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [5, 1, 1, 0])
    target: Literal["mean", "best"] = "mean"
    noise_rows: Annotated[int, Field(ge=64)] = 16384
    stop_probability: Annotated[float, Field(gt=0, lt=1)] | None = None

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(monotone=self.target == "best", stops=self.stop_probability is not None)

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless every schedule has one value per search layer, and the blur fits the layers' maps."""
        schedules = {name: getattr(self, name) for name in ("pairs", "generations", "sigma", "step", "blur_passes")}
        check_lengths({name: values for name, values in schedules.items() if isinstance(values, list)}, layers)
        if self.noise == "pixel":
            check_blur(self.blur_passes, layers, shapes)

    def generations_at(self, position: int) -> int:
        """Return the number of moves at the `position`-th search layer."""
        return self.generations[position]

    def pairs_at(self, position: int) -> int:
        """Return the pairs of a generation at the `position`-th search layer."""
        return self.pairs[position] if isinstance(self.pairs, list) else self.pairs

    def evaluations(self, position: int) -> int:
        """Return the mean and its pairs before every move, and the mean after the last."""
        return self.generations[position] * (1 + 2 * self.pairs_at(position)) + 1

    def wider(self, factor: float) -> dict[str, int | list[int]]:
        """Return pairs times `factor`, rounded up."""
        if isinstance(self.pairs, list):
            return {"pairs": [math.ceil(pairs * factor) for pairs in self.pairs]}
        return {"pairs": math.ceil(self.pairs * factor)}

    def starts(self, position: int) -> int:
        """Return 1: the network's own representation."""
        return 1

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`."""
        shared, pairs = table_bytes(shape, self.noise_rows), self.pairs_at(position)
        return Footprint(candidates=1 + 2 * pairs, held=4, working=5 * pairs + 4, shared=shared)

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> MeanState:
        """Return the state whose mean is the own representation."""
        own_B1GM = start_BSGM[:, :1]
        return MeanState(
            layer=layer,
            generation=0,
            keys_B=keys_B,
            length_B1=torch.ones_like(rms(own_B1GM)) if self.step_size == "absolute" else rms(own_B1GM),
            mean_B1GM=own_B1GM,
            velocity_B1GM=torch.zeros_like(own_B1GM),
            found_B1GM=own_B1GM,
            fitness_B1=own_B1GM.new_full((len(own_B1GM), 1), float("-inf")),
            factor_B=own_B1GM.new_ones(len(own_B1GM)) if self.step_size == "adapted" else None,
            highest_B=own_B1GM.new_full((len(own_B1GM),), float("-inf")),
        )

    def ask(self, state: MeanState) -> Tensor:
        """Return the mean and its pairs (B, 1 + 2 I, G, M); after the last move the mean alone."""
        layer = state.layer
        if state.generation == self.generations[layer.position]:
            return state.mean_B1GM
        noise_BIGM = self.directions(state) * (self.sigma[layer.position] * state.length_B1)
        pairs = torch.cat([state.mean_B1GM + noise_BIGM, state.mean_B1GM - noise_BIGM], dim=1)
        return torch.cat([state.mean_B1GM, finish(pairs, layer)], dim=1)

    def tell(self, state: MeanState, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None) -> MeanState:
        """Return the state with the mean moved along the estimate, and its result."""
        found_B1GM, fitness_B1 = candidates_BPGM[:, :1], fitness_BP[:, :1]
        if self.target == "best":
            found_B1GM, fitness_B1 = better(state.found_B1GM, state.fitness_B1, candidates_BPGM, fitness_BP)
        factor_B = self.factor(state, fitness_BP[:, 0])
        state = replace(
            state, found_B1GM=found_B1GM, fitness_B1=fitness_B1, factor_B=factor_B, highest_B=state.highest_B.maximum(fitness_BP[:, 0])
        )
        if candidates_BPGM.shape[1] == 1:
            return replace(state, generation=state.generation + 1)
        direction_B1GM = unit(estimate(self.directions(state), fitness_BP[:, 1:]))
        velocity_B1GM = self.momentum * state.velocity_B1GM + direction_B1GM
        length_B1 = self.step[state.layer.position] * state.length_B1
        if state.factor_B is not None:
            length_B1 = length_B1 * state.factor_B[:, None, None, None]
        move_B1GM = unit(velocity_B1GM) * length_B1
        return replace(
            state,
            generation=state.generation + 1,
            velocity_B1GM=velocity_B1GM,
            mean_B1GM=finish(state.mean_B1GM + move_B1GM, state.layer),
        )

    def best(self, state: MeanState) -> Best:
        """Return the mean that was evaluated last, or the fittest candidate seen."""
        finished_B = passes_bound(state.fitness_B1[:, 0], self.stop_probability)
        return Best(targets_BRGM=state.found_B1GM, fitness_BR=state.fitness_B1, seeds_BSGM=state.found_B1GM, finished_B=finished_B)

    def factor(self, state: MeanState, fitness_B: Tensor) -> Tensor | None:
        """Return the factor on the next move, given the fitness of the mean that the last one led to."""
        if state.factor_B is None or state.generation == 0:
            return state.factor_B
        return adapted(state.factor_B, (fitness_B > state.highest_B).float())

    def directions(self, state: MeanState) -> Tensor:
        """Return the directions (B, I, G, M) of the state's generation; drawing them again costs less than keeping them."""
        drawn_BI = offsets(state.keys_B, state.generation, self.pairs_at(state.layer.position))
        passes = self.blur_passes[state.layer.position]
        kind: NoiseKind = self.noise
        return directions(state.layer, kind, drawn_BI, passes=passes, rows=self.noise_rows)


@dataclass(frozen=True, kw_only=True)
class MeanState:
    """The mean to evaluate next and its momentum, the result with its fitness, and the representation's length (B, 1, 1, 1).

    factor_B: on moves, where they adapt. highest_B: fitness of the fittest mean so far: moves that overshoot beat the one before by chance.
    """

    layer: SearchLayer
    generation: int
    keys_B: Tensor
    length_B1: Tensor
    mean_B1GM: Tensor
    velocity_B1GM: Tensor
    found_B1GM: Tensor
    fitness_B1: Tensor
    factor_B: Tensor | None
    highest_B: Tensor


def estimate(directions_BIGM: Tensor, fitness_BP: Tensor) -> Tensor:
    """Return the estimated direction of the gradient (B, 1, G, M) from the fitness of the pairs (B, 2 I): all plus, then all minus."""
    ranks_BP = centred_ranks(fitness_BP)
    B, pairs, G, M = directions_BIGM.shape
    weights_B1I = (ranks_BP[:, :pairs] - ranks_BP[:, pairs:])[:, None]
    return torch.bmm(weights_B1I, directions_BIGM.flatten(2)).view(B, 1, G, M)


def centred_ranks(fitness_BP: Tensor) -> Tensor:
    """Return ranks over P scaled to [-1/2, 1/2]; equal ones share their mean rank, so that a flat fitness gives no direction."""
    wins_BP = torch.sign(fitness_BP[:, :, None] - fitness_BP[:, None]).sum(dim=2)
    return wins_BP / (2 * (fitness_BP.shape[1] - 1))
