"""Gradient: steps of the exact gradient of the fitness with respect to the representation, normalised after each.

The control for every strategy that estimates a direction from evaluations. A step has a fixed length whatever the gradient's; the
gradient may be smoothed over the map first, which is what smooth noise does to an estimate. An evaluation here runs the part above the
layer forward and backward, about three times a strategy's that needs no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from repsearch.footprint import Footprint
from repsearch.networks.base import Shape
from searcher.strategies.base import Best, SearchLayer, Traits
from searcher.strategies.evolution import finish
from searcher.strategies.moves import blurred, rms, unit
from searcher.strategies.random_search import better
from searcher.strategies.schedules import check_blur, check_lengths, passes_bound


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Hyperparameters of gradient steps; lists hold one value per search layer, in the order of `search.layers`.

    steps: steps from the own representation.
    step: length of a step: root mean square over the representation, in that of the representation.
    blur_passes: passes of 3x3 average pooling of the gradient before its length is set (feature maps only).
    target: the result: where the last step ends, or the fittest point on the way.
    stop_probability: an image stops once it gives its class a greater probability than this; none: never.
    """

    steps: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [3, 3, 3, 1])
    step: list[Annotated[float, Field(gt=0, le=100)]] = field(default_factory=lambda: [0.3, 0.3, 0.3, 0.3])
    blur_passes: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [0, 0, 0, 0])
    target: Literal["last", "best"] = "last"
    stop_probability: Annotated[float, Field(gt=0, lt=1)] | None = None

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(
            needs_gradient=True,
            monotone=self.target == "best",
            stops=self.stop_probability is not None,
            depends_on=frozenset(),
        )

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless every schedule has one value per search layer, and the blur fits the layers' maps."""
        check_lengths({name: getattr(self, name) for name in ("steps", "step", "blur_passes")}, layers)
        check_blur(self.blur_passes, layers, shapes)

    def generations_at(self, position: int) -> int:
        """Return the number of steps at the `position`-th search layer."""
        return self.steps[position]

    def evaluations(self, position: int) -> int:
        """Return one evaluation, with its gradient, per point: the start, and the end of every step."""
        return self.steps[position] + 1

    def starts(self, position: int) -> int:
        """Return 1: the network's own representation."""
        return 1

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`."""
        return Footprint(candidates=1, held=3, working=8)

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> GradientState:
        """Return the state at the own representation."""
        own_B1GM = start_BSGM[:, :1]
        low_B1 = own_B1GM.new_full((len(own_B1GM), 1), float("-inf"))
        return GradientState(layer=layer, length_B1=rms(own_B1GM), point_B1GM=own_B1GM, found_B1GM=own_B1GM, fitness_B1=low_B1)

    def ask(self, state: GradientState) -> Tensor:
        """Return the point reached (B, 1, G, M)."""
        return state.point_B1GM

    def tell(self, state: GradientState, candidates_BPGM: Tensor, fitness_BP: Tensor, gradient_BPGM: Tensor | None = None) -> GradientState:
        """Return the state one step further along the gradient of the fitness."""
        assert gradient_BPGM is not None
        position = state.layer.position
        direction_B1GM = unit(blurred(gradient_BPGM, state.layer, self.blur_passes[position]))
        moved_B1GM = finish(candidates_BPGM + self.step[position] * state.length_B1 * direction_B1GM, state.layer)
        found_B1GM, fitness_B1 = candidates_BPGM, fitness_BP
        if self.target == "best":
            found_B1GM, fitness_B1 = better(state.found_B1GM, state.fitness_B1, candidates_BPGM, fitness_BP)
        return replace(state, point_B1GM=moved_B1GM, found_B1GM=found_B1GM, fitness_B1=fitness_B1)

    def best(self, state: GradientState) -> Best:
        """Return the last or the fittest point that was evaluated."""
        finished_B = passes_bound(state.fitness_B1[:, 0], self.stop_probability)
        return Best(targets_BRGM=state.found_B1GM, fitness_BR=state.fitness_B1, seeds_BSGM=state.found_B1GM, finished_B=finished_B)


@dataclass(frozen=True, kw_only=True)
class GradientState:
    """The point to evaluate next, the one to return with its fitness, and the representation's length (B, 1, 1, 1)."""

    layer: SearchLayer
    length_B1: Tensor
    point_B1GM: Tensor
    found_B1GM: Tensor
    fitness_B1: Tensor
