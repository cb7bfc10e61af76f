"""Forward gradients: derivatives along random directions, carried along a forward pass; nothing goes backward.

Baydin et al. (arXiv 2202.08587): v of mean 0 and variance 1 over all weights, d = grad f . v by one Jacobian-vector product, estimate
d v; no activation outlives the pass. Belouze (2209.06302): the law of v. Fluegel et al. (2410.17764): several directions, their mean or
the projection. Ren et al. (2210.03310): directions u over pre-activations, drawn per example, whose derivative times u is multiplied with
the layer's input; the inputs are kept then, as in backpropagation. Derivatives are taken of each part's loss by itself, so that with
blocks isolated, directions are as short as a block is small, and with blocks in groups, as a group is. Finite differences of losses
take the place of derivatives where there are none. Shapes: B examples; X the axes of a pre-activation; K directions; S losses of parts,
or of their groups.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from learner.batches import Batch
from learner.objectives.base import Loss
from learner.rules.activities import along, beside, switched, unit_shapes
from learner.rules.base import Estimate, PlainRule, Problem, State
from learner.rules.carrying import Carrying, carried
from learner.rules.directions import DirectionLaw, noise
from learner.rules.layers import running
from learner.rules.passes import (
    Pass,
    layers_of,
    learn_read_outs,
    loss_of,
    over_draws,
    part_losses,
    parts_of,
    run,
    taught_parameters,
)
from learner.rules.suitability import check_formulas, check_pairs, made_up_batch, warn_of_rounding
from learner.rules.tangents import Combination, coefficients, combined
from repsearch.errors import ConfigError

with warnings.catch_warnings():
    # torch compiles some of its formulas for tangents when they are first needed, by a call that it warns of itself.
    warnings.simplefilter("ignore", FutureWarning)
    importlib.import_module("torch._decomp.decompositions_for_jvp")


MASK = "mask/"


@dataclass(frozen=True, kw_only=True)
class ForwardGradient(PlainRule):
    """Forward gradients.

    perturb: what directions are over: `weights`, or `activities`, the pre-activations of each example.
    directions: their law; `sphere`: uniform, of length sqrt(n) for n components.
    draws: directions that an estimate is made of, computed together.
    combine: their `mean`, or the orthogonal `projection` of the gradient on them.
    derivative: `jvp`, exact; or differences of losses at a distance of `step` along the direction, for losses without a derivative:
        `forward`, beside the undisturbed loss, or `central`, on both sides.
    step: distance of the differences.
    mask: over `activities`, leave out units whose ReLU is off, which have no gradient (Ren et al.).
    """

    perturb: Literal["weights", "activities"] = "weights"
    directions: DirectionLaw = "gaussian"
    draws: Annotated[int, Field(ge=1)] = 1
    combine: Combination = "mean"
    derivative: Literal["jvp", "forward", "central"] = "jvp"
    step: Annotated[float, Field(gt=0)] = 1e-3
    mask: bool = False

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` for a network it cannot serve, or more draws than there are directions; warn of rounding."""
        check_pairs(problem, "forward_gradient")
        if self.perturb == "activities":
            check_formulas(problem, "forward_gradient")
        if self.mask and (self.perturb == "weights" or not switched(problem, layers_of(problem))):
            raise ConfigError(
                "learn.rule.mask: leaves out units whose ReLU is off, and there are none; take a network with ReLU and "
                'perturb = "activities", or leave mask out'
            )
        if self.derivative == "jvp":
            _check_derivatives(problem)
        else:
            warn_of_rounding(problem, self.differences, "step", self.step)
        if self.combine == "projection" and problem.objective.reading.groups > 1:
            raise ConfigError(
                'learn.rule.combine: "projection" takes the directions of blocks together, learn.objective.groups take them apart; set '
                'combine = "mean", or groups = 1'
            )
        if self.combine == "projection" and self.draws > self._fewest(problem):
            raise ConfigError(
                f"learn.rule.draws: {self.draws} directions among {self._fewest(problem)} components are not independent; lower it, or set "
                'combine = "mean"'
            )

    def init(self, problem: Problem, *, rng: torch.Generator) -> State:
        """Return a mark for each layer that a ReLU follows, where units that are off are left out; else nothing."""
        return {f"{MASK}{name}": torch.ones(()) for name in sorted(switched(problem, layers_of(problem)))} if self.mask else {}

    @torch.no_grad()
    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write the estimate; see `LearningRule.estimate`."""
        loss = self._of_weights(problem, batch, rng) if self.perturb == "weights" else self._of_activities(problem, batch, state, rng)
        passes = self.draws * (2 if self.derivative == "central" else 1)
        return Estimate(loss, forward=(1 + passes) * len(batch.labels), backward=0), state

    def _of_weights(self, problem: Problem, batch: Batch, rng: torch.Generator) -> Loss:
        parts = parts_of(problem.network, problem.objective.reading)
        weights = {name: value.detach() for name, value in taught_parameters(problem).items()}
        drawn = {name: noise((self.draws, *value.shape), self.directions, value, rng) for name, value in weights.items()}
        owners = {name: parts.of(name) for name in weights}
        if self.directions == "sphere":
            drawn = _on_sphere(drawn, owners, 1)
        whole, layers = _Whole(problem), layers_of(problem)
        carrying = layers if self.derivative == "jvp" else []
        keeping = problem.objective.reading.classifiers

        def losses(weights: Mapping[str, Tensor], like: Pass | None = None) -> tuple[Tensor, Any]:
            with running(carrying, lambda number, input_BY: carried(layers[number], input_BY)):
                passed = torch.func.functional_call(whole, {f"network.{name}": value for name, value in weights.items()}, (batch, like))
            loss = loss_of(problem, passed, batch)
            return part_losses(problem, loss), (
                loss.total,
                loss.terms,
                passed.logits,
                loss.shares,
                (list(passed.blocks), list(passed.compared)) if keeping else (),
                () if self.derivative == "jvp" else passed,
            )

        derivatives_KS, aux = self._derivatives(losses, weights, drawn)
        in_groups = {f"{layer.name}.{what}": layer for layer in layers if layer.groups > 1 for what in ("weight", "bias")}
        for part in range(len(parts)):
            names = [name for name in weights if owners[name] == part and name not in in_groups]
            if not names:
                continue
            gram = sum(_gram(drawn[name].flatten(1)) for name in names) if self.combine == "projection" else None
            factors_K = coefficients(parts.whole(derivatives_KS, part), gram if isinstance(gram, Tensor) else None, self.combine)
            for name in names:
                problem.network.get_parameter(name).grad = combined(factors_K, drawn[name])
        for name, layer in in_groups.items():
            if name not in weights:
                continue
            factors_KG = derivatives_KS[:, parts.losses(layer.part)] / self.draws
            way = torch.unflatten(drawn[name], 1, (layer.groups, -1))
            problem.network.get_parameter(name).grad = combined(factors_KG, way).flatten(0, 1)
        total, terms, logits, shares, kept, _ = aux
        if keeping:
            learn_read_outs(problem, kept[0], kept[1], batch)
        return Loss(total, terms, logits, shares)

    def _of_activities(self, problem: Problem, batch: Batch, state: State, rng: torch.Generator) -> Loss:
        layers = layers_of(problem)
        owners = {layer.name: layer.part for layer in layers}

        def directions(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
            like = problem.network.mean
            drawn = {name: noise((self.draws, *shape), self.directions, like, rng) for name, shape in shapes.items()}
            return _on_sphere(drawn, owners, 2) if self.directions == "sphere" else drawn

        parts = parts_of(problem.network, problem.objective.reading)
        masked = {name.removeprefix(MASK) for name in state if name.startswith(MASK)}
        measure = along if self.derivative == "jvp" else beside
        found = measure(problem, batch, layers, masked, directions, self._derivatives)
        for part in set(owners.values()):
            members = [(number, layer) for number, layer in enumerate(layers) if layer.part == part]
            ways = [found.drawn[layer.name] for _, layer in members]
            gram = sum(_gram(way.flatten(2).transpose(0, 1)) for way in ways) if self.combine == "projection" else None
            factors_BK = coefficients(parts.whole(found.derivatives_KSB, part).T, gram if isinstance(gram, Tensor) else None, self.combine)
            for (number, layer), way in zip(members, ways, strict=True):
                if layer.groups == 1:
                    error_BX = combined(factors_BK.T / len(factors_BK), way)
                else:
                    factors_KL = parts.reached(found.derivatives_KSB, layer) / (self.draws * len(factors_BK))
                    error_BX = layer.together(combined(factors_KL, layer.in_groups(way)), way)
                layer.write(found.inputs[number], error_BX)
        learn_read_outs(problem, found.blocks, found.compared, batch)
        return found.loss

    def _derivatives(
        self,
        losses: Callable[..., tuple[Tensor, Any]],
        at: Mapping[str, Tensor],
        drawn: Mapping[str, Tensor],
    ) -> tuple[Tensor, Any]:
        """Return the derivatives of `losses` along the directions, (K, ...), and what else it gives at `at`."""
        if self.derivative == "jvp":

            def along(direction: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
                with Carrying():
                    value, tangent, aux = torch.func.jvp(losses, (dict(at),), (dict(direction),), has_aux=True)  # type: ignore[misc]
                # A tangent of a scalar divided by a number comes in double precision.
                return tangent.to(value.dtype), aux

            found: tuple[Tensor, Any] = over_draws(along, dict(drawn), out_dims=(0, None))
            return found
        undisturbed, aux = losses(at)
        undisturbed_pass = aux[-1]

        def moved(direction: Mapping[str, Tensor], step: float) -> Tensor:
            return losses({name: value + step * direction[name] for name, value in at.items()}, undisturbed_pass)[0]

        ahead = over_draws(lambda direction: moved(direction, self.step), dict(drawn))
        if self.derivative == "forward":
            return (ahead - undisturbed) / self.step, aux
        behind = over_draws(lambda direction: moved(direction, -self.step), dict(drawn))
        return (ahead - behind) / (2 * self.step), aux

    def differences(self, problem: Problem, batch: Batch) -> Tensor:
        """Return the derivatives that the gradient estimate of `batch` rests on, as its length in every parameter."""
        rng = torch.Generator(problem.network.mean.device).manual_seed(0)
        gradients = {name: parameter.grad for name, parameter in problem.network.named_parameters()}
        self.estimate(problem, batch, {}, rng=rng)
        found = [parameter.grad.flatten() for parameter in problem.network.parameters() if parameter.grad is not None]
        for name, gradient in gradients.items():
            problem.network.get_parameter(name).grad = gradient
        return torch.cat(found)

    def _fewest(self, problem: Problem) -> int:
        """Return the components of the smallest part."""
        parts = parts_of(problem.network, problem.objective.reading)
        if self.perturb == "weights":
            sizes = [(parts.of(name), value.numel()) for name, value in taught_parameters(problem).items()]
        else:
            layers = layers_of(problem)
            sizes = [(layer.part, math.prod(shape)) for layer, shape in zip(layers, unit_shapes(problem, layers), strict=True)]
        return min(sum(size for part, size in sizes if part == number) for number in {part for part, _ in sizes})


class _Whole(nn.Module):
    """A problem's network whose forward pass is `passes.run`, so that its parameters can be replaced for a pass."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.network = problem.network
        self._problem = problem

    def forward(self, batch: Batch, like: Pass | None) -> Pass:
        """Return the pass of the batch's images."""
        return run(self._problem, batch.images, like)


def _on_sphere(drawn: Mapping[str, Tensor], owners: Mapping[str, int], kept: int) -> dict[str, Tensor]:
    """Return Gaussian directions brought to length sqrt(n) in each part; kept: axes that number directions, and examples."""
    squares: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for name, value in drawn.items():
        part = owners[name]
        squares[part] = value.flatten(kept).square().sum(-1) + squares.get(part, 0)
        counts[part] = math.prod(value.shape[kept:]) + counts.get(part, 0)
    scales = {part: (counts[part] / square).sqrt() for part, square in squares.items()}
    return {name: value * scales[owners[name]].reshape(*value.shape[:kept], *[1] * (value.ndim - kept)) for name, value in drawn.items()}


def _gram(directions_LKN: Tensor) -> Tensor:
    return directions_LKN @ directions_LKN.mT


def _check_derivatives(problem: Problem) -> None:
    """Raise `ConfigError` if a tangent cannot be carried along a pass."""
    batch = made_up_batch(problem)
    weights = {name: value.detach() for name, value in taught_parameters(problem).items()}

    def losses(weights: Mapping[str, Tensor]) -> Tensor:
        passed = torch.func.functional_call(_Whole(problem), {f"network.{name}": value for name, value in weights.items()}, (batch, None))
        return loss_of(problem, passed, batch).total

    try:
        with torch.no_grad():
            torch.func.vmap(lambda way: torch.func.jvp(losses, (weights,), (way,))[1])({n: v[None] for n, v in weights.items()})
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["no more is said"])[0]
        raise ConfigError(
            f'learn.rule: forward_gradient cannot carry a derivative along this network ({reason}); set derivative = "central", or take '
            "another network"
        ) from error
